"""A key/value cache whose rows have lengths of their own, and a model that decodes with it.

No cache of transformers lets the rows of a batch differ in length. Here the slot index *is* the
logical position: keys and values are written at [row, position], and a query sees the slots up to
its own position. So rolling back is a no-op: what was written above a row's length is masked, and
overwritten before a query can see it.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rsd.models import attention
from rsd.models.attention import RAGGED, Ragged

GROW = 256  # slots: the buffers grow in such steps, so that short traces cost little memory
PREFILL = 512  # columns of one prefill pass: bounds the attention mask
OTHER = "choose another model"

# A model is given its cache by the name that all versions of transformers from 5.16 on know.
warnings.filterwarnings("ignore", ".*past_key_values.* is deprecated", FutureWarning)


class TreeMask(NamedTuple):
    """Columns that are not all in the slot of their position: some of a row's may stand for another continuation.

    slot: int64 [R, W], where a column's keys and values go. before, since: int64 [R, W], it sees the slots below
        `before`, and those from `since` to its own. A branch at position p takes neighbouring slots behind
        the row's own, so that nothing of the row is written over.
    """

    slot: Tensor
    before: Tensor
    since: Tensor


class RowCache:
    """Keys and values of all layers, [rows, heads, slots, head size] each.

    It has the two methods of a transformers cache that attention layers call. Before a forward,
    `write_at` says where the new columns go and how much of the buffers the queries may read.
    """

    is_initialized = True  # models that read images ask for it, to mask these in a prompt's first pass

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.slots = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._index: dict[tuple[int, torch.device], Tensor] = {}
        self._positions = torch.empty(0, dtype=torch.long)
        self._reach = (0, 0)
        self._rows: Tensor | None = None
        self._first = 0
        self._ragged: Ragged | None = None

    def write_at(
        self, slots: Tensor, length: int, rows: Tensor | None = None, first: int = 0, ragged: Ragged | None = None
    ) -> None:
        """Direct the next forward: columns to `slots` [R, W], queries read slots below `length`.

        Args:
            rows: int64 [R], whose columns these are; those from `first` on if not given.
            ragged: the forward has these of the columns alone, in a batch of one.
        """
        self._first, self._ragged = first, ragged
        self.reserve(length)
        self._reach = (slots.shape[0], length)
        self._positions = slots
        self._rows = rows
        self._index = {}

    def reserve(self, length: int) -> None:
        """Have at least so many slots."""
        if length <= self.slots:
            return
        self.slots = -(-length // GROW) * GROW
        for layer, (keys, values) in self.layers.items():  # one at a time: both sizes exist of one layer only
            self.layers[layer] = new = self._empty(keys, values)
            for grown, short in zip(new, (keys, values), strict=True):
                grown[:, :, : short.shape[2]] = short

    def _empty(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers for the heads and sizes of [_, heads, _, size] examples."""
        return (
            keys.new_zeros(self.rows, keys.shape[1], self.slots, keys.shape[3]),
            values.new_zeros(self.rows, values.shape[1], self.slots, values.shape[3]),
        )

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [R, heads, W, size] and return all that the queries may read, [R, heads, length, size]."""
        if layer not in self.layers:
            self.layers[layer] = self._empty(keys, values)
        rows, length = self._reach
        # The flat slots [R * heads * W] are the same in every layer with so many heads, on each of several devices.
        kind = keys.shape[1], keys.device
        if kind not in self._index:
            heads = torch.arange(keys.shape[1], device=keys.device)
            row = (
                torch.arange(self._first, self._first + rows, device=keys.device)
                if self._rows is None
                else self._rows.to(keys.device)
            )
            slots = self._positions.to(keys.device)
            if self._ragged is None:
                row_heads = (row[:, None] * len(heads) + heads)[..., None] * self.slots
                self._index[kind] = (row_heads + slots[:, None, :]).flatten()
            else:
                real = self._ragged.real.to(keys.device)
                row = row.repeat_interleave(slots.shape[1])[real]
                self._index[kind] = ((row * len(heads) + heads[:, None]) * self.slots + slots.flatten()[real]).flatten()
        index = self._index[kind]
        # A ragged block repeats a row's last column; equal writes to one slot do no harm.
        k, v = self.layers[layer]
        k.view(-1, k.shape[3]).index_copy_(0, index, keys.reshape(-1, k.shape[3]))
        v.view(-1, v.shape[3]).index_copy_(0, index, values.reshape(-1, v.shape[3]))
        if self._rows is not None:
            some = self._rows.to(keys.device)
            return k.narrow(2, 0, length)[some], v.narrow(2, 0, length)[some]
        if rows < self.rows:
            k, v = k.narrow(0, self._first, rows), v.narrow(0, self._first, rows)
        return k.narrow(2, 0, length), v.narrow(2, 0, length)

    def held(self) -> Counter[str]:
        """Bytes, by the device that they are on."""
        made: Counter[str] = Counter()
        for keys, values in self.layers.values():
            made[str(keys.device)] += keys.nbytes + values.nbytes
        return made

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._reach[1]

    def copy_row(self, source: "RowCache", row: int, to: int) -> None:
        """Copy row `row` of `source` (it may be this cache) to row `to`, and clear what lies beyond.

        A row that ended with NaN would otherwise leak it through masked attention, where 0 * NaN is NaN.
        """
        self.reserve(source.slots)
        for layer, theirs in source.layers.items():
            if layer not in self.layers:
                self.layers[layer] = self._empty(*theirs)
            for mine, other in zip(self.layers[layer], theirs, strict=True):
                mine[to, :, : source.slots] = other[row]
                if source.slots < self.slots:
                    mine[to, :, source.slots :] = 0
        for layer in self.layers.keys() - source.layers.keys():  # it has read nothing: a prompt of one token
            for mine in self.layers[layer]:
                mine[to] = 0


def check(config: PreTrainedConfig, model: type[PreTrainedModel]) -> None:
    """Refuse what cannot be decoded with this cache, by name.

    Raises:
        ValueError: the model has layers of another kind than attention, whose state cannot be rolled back, it
            is an encoder-decoder, reads positions off the batch's longest row, or its configuration does not say
            how long its context is.
    """
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder-decoder: choose a model that has a decoder alone")
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if model._is_stateful and not kinds:
        kinds = {"recurrent"}
    if kinds:
        raise ValueError(
            f"{text.model_type} has {', '.join(sorted(kinds))} layers, whose state cannot be rolled "
            "back: choose a model with full or sliding-window attention in every layer"
        )
    if text.model_type == "bloom" or (text.model_type == "falcon" and text.alibi):
        raise ValueError(f"{text.model_type} places tokens by ALiBi, from the mask of rows of one length: {OTHER}")
    if text.model_type == "gpt_neo":
        raise ValueError(f"gpt_neo measures its local windows from the batch's longest row: {OTHER}")
    if getattr(text, "max_position_embeddings", None) is None:
        raise ValueError(f"{text.model_type} names no context length: add max_position_embeddings to its config.json")


def context(config: PreTrainedConfig) -> int:
    """How many positions a row may have.

    With LongRoPE, those that have its short factors: a longer row has other factors for all of its positions,
    keys in the cache included, and in transformers so have all rows beside it.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one, or one for each kind of layer
    short = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return int(min([text.max_position_embeddings, *short]))


def first_device(model: PreTrainedModel) -> torch.device:
    """Where a model reads ids. Of one that is spread over devices it is that of its first layers.

    Hooks carry what a layer is given to the layer's device, and bring the logits back. Weights that are fetched only
    when they are needed have no device of their own meanwhile.
    """
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


class CachedModel:
    """A causal language model, its cache, and its attention mask.

    Args:
        compile: run decoding steps (not prefills) through `torch.compile`, once for any length and,
            as far as it can tell them apart, any number of rows and columns.

    Raises:
        ValueError: the model keeps a recurrent state, which cannot be rolled back (see `check`), or attends by
            something that reads no mask of a row's own.
    """

    def __init__(self, model: PreTrainedModel, rows: int, *, compile: bool = False) -> None:
        check(model.config, type(model))
        self.model = model
        self.step: Any = model
        if compile:
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self.step = torch.compile(model, dynamic=True)
        self.rows = rows
        self.cache = RowCache(rows)
        config = model.config.get_text_config()
        self.context = context(model.config)
        kinds = getattr(config, "layer_types", None)
        if model.config._attn_implementation not in ("sdpa", "eager", attention.NAME):
            raise ValueError(f"attention by {model.config._attn_implementation} reads no masks: choose sdpa or eager")
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(attention.NAME)
        self.packs = model.config._attn_implementation == attention.NAME
        # Models of mixed layers take one mask a kind; others take one mask, windowed if they have a window.
        self.kinds = sorted(set(kinds)) if kinds else None
        self.window: int = getattr(config, "sliding_window", None) or sys.maxsize
        self.device = first_device(model)
        self.columns = torch.arange(GROW, device=self.device)
        self.seen = torch.zeros((), dtype=model.dtype, device=self.device)
        self.hidden = self.seen - torch.inf

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        length: int,
        *,
        last_only: bool = False,
        tree: TreeMask | None = None,
        rows: Sequence[int] | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of `ids` [R, W] at `positions` [R, W], read against the rows' first `length` slots.

        Args:
            tree: columns that are not in the slots of their positions.
            rows: whose columns these are; the first R if not given. A range of neighbouring ones costs no copy.
            counts: how many columns each row has, at least one; the others repeat its last one. They cost nothing
                but where attention is not ours.

        Returns [R, W, V], or [R, 1, V] of the last column alone; with `counts` [N, V], of the N columns in turn.
        """
        neighbours = rows is None or isinstance(rows, range)
        some = None if neighbours else torch.tensor(rows, device=self.device)
        first = rows.start if isinstance(rows, range) else 0
        step = self.step if neighbours and counts is None else self.model  # not worth compiling for
        # A block may reach past the context, with drafts that are not committed.
        place = positions if length <= self.context else positions.clamp_max(self.context - 1)
        masks = self._masks(positions, length, tree)
        ragged = None if counts is None else self._ragged(ids.shape[1], counts)
        packed = ragged if self.packs else None
        if packed is not None:
            ids, place = (x.flatten()[packed.real][None] for x in (ids, place))
        self.cache.write_at(positions if tree is None else tree.slot, length, some, first, packed)
        running = RAGGED.set(packed)
        try:
            out = step(
                input_ids=ids,
                position_ids=place,
                attention_mask=masks,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=int(last_only),
            )
        finally:
            RAGGED.reset(running)
        if ragged is None:
            return out.logits
        return out.logits[0] if packed is not None else out.logits.flatten(0, 1)[ragged.real]

    def _ragged(self, width: int, counts: Sequence[int]) -> Ragged:
        of = torch.tensor(counts)[:, None]
        columns = torch.arange(width)
        real = (columns < of).flatten().nonzero()[:, 0]
        padded = of.cumsum(0) - of + torch.minimum(columns, of - 1)
        return Ragged(padded.to(self.device), real.to(self.device))

    def copy_row(self, source: "CachedModel", row: int, to: int) -> None:
        """Row `to` becomes what row `row` of `source` (it may be this one) has read."""
        self.cache.copy_row(source.cache, row, to)

    def drop(self, rows: int) -> None:
        """Forget all that was read; room for `rows` rows from now on."""
        self.cache = RowCache(rows)

    def another(self, rows: int) -> "CachedModel":
        """The same model with a cache of its own."""
        return CachedModel(self.model, rows)

    def _masks(self, positions: Tensor, length: int, tree: TreeMask | None) -> Tensor | dict[str, Tensor]:
        # An additive mask serves both eager attention and SDPA, which would convert a boolean one per layer.
        if len(self.columns) < length:
            self.columns = torch.arange(length + GROW, device=self.device)
        columns, at = self.columns[:length], positions[:, None, :, None]
        if tree is None:
            full, place = torch.where(columns > at, self.hidden, self.seen), columns
        else:
            slot, before, since = (x[:, None, :, None] for x in tree)
            unseen = (columns >= before) & (columns < since) | (columns > slot)
            full = torch.where(unseen, self.hidden, self.seen)
            place = torch.where(columns < since, columns, columns - slot + at)  # the position of what is seen
        if self.window == sys.maxsize:
            return full if self.kinds is None else dict.fromkeys(self.kinds, full)
        near = full.masked_fill(place <= at - self.window, -torch.inf)
        if self.kinds is None:
            return near
        return {kind: full if kind == "full_attention" else near for kind in self.kinds}

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> "CachedModel":
        """Read several prompts into a cache of their own, one row each, all but their last token.

        The last token is what decoding starts from, so that the first step is a step like any other.
        """
        read = self.another(len(prompts))
        lengths = torch.tensor([len(p) - 1 for p in prompts], device=self.device)
        longest = int(lengths.max())
        padded = [(p[:-1] or p) + [0] * (longest - len(p) + 1) for p in prompts]
        if longest:
            ids = torch.tensor([p[:longest] for p in padded], device=self.device)
            for start in range(0, longest, PREFILL):
                columns = torch.arange(start, min(start + PREFILL, longest), device=self.device)
                # Past a row's end its last column is repeated: it writes what is already there.
                positions = torch.minimum(columns[None], (lengths - 1).clamp_min(0)[:, None])
                read(ids.gather(1, positions), positions, start + len(columns), last_only=True)
        return read

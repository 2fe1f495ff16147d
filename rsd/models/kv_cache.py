"""A model that decodes rows that have lengths of their own, with its cache."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rsd.models import attention
from rsd.models.attention import LAID_OUT, LaidOut, PoolColumns, Reshaped
from rsd.models.row_cache import GROW, Part, RowCache
from rsd.models.row_pools import RowPools

PREFILL = 512  # columns of one prefill pass: bounds the attention mask
OTHER = "choose another model"


class TreeMask(NamedTuple):
    """Columns that are not all in the slot of their position: some of a row's may stand for another continuation.

    slot: int64 [R, W], where a column's keys and values go. before, since: int64 [R, W], it sees the slots below
        `before`, and those from `since` to its own. A branch at position p takes neighbouring slots behind
        the row's own, so that nothing of the row is written over.
    """

    slot: Tensor
    before: Tensor
    since: Tensor


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
        pooled: rows of unlike lengths lie apart (`row_pools`), where the model has our attention and is not compiled.

    Raises:
        ValueError: the model keeps a recurrent state, which cannot be rolled back (see `check`), or attends by
            something that reads no mask of a row's own.
    """

    def __init__(self, model: PreTrainedModel, rows: int, *, compile: bool = False, pooled: bool = False) -> None:
        check(model.config, type(model))
        self.model = model
        self.step: Any = model
        if compile:
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self.step = torch.compile(model, dynamic=True)
        # How forwards call the cache: newer versions of transformers do otherwise, and may one day ignore the old name.
        self.named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        config = model.config.get_text_config()
        self.context = context(model.config)
        kinds = getattr(config, "layer_types", None)
        if model.config._attn_implementation not in ("sdpa", "eager", attention.NAME):
            raise ValueError(f"attention by {model.config._attn_implementation} reads no masks: choose sdpa or eager")
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(attention.NAME)
        self.packs = model.config._attn_implementation == attention.NAME
        # A compiled step wants all rows in one buffer, a captured one at addresses that stay.
        self.pooled = pooled and self.packs and not compile
        self.rows = rows
        self.cache = self._room_for(rows)
        self.joined = False  # a layer makes other keys of those in a cache
        # Models of mixed layers take one mask a kind; others take one mask, windowed if they have a window.
        self.kinds = sorted(set(kinds)) if kinds else None
        self.window: int = getattr(config, "sliding_window", None) or sys.maxsize
        self.device = first_device(model)
        self.spread = len({p.device for p in model.parameters()}) > 1
        self.columns = torch.arange(GROW, device=self.device)
        self.seen = torch.zeros((), dtype=model.dtype, device=self.device)
        self.hidden = self.seen - torch.inf

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        reach: np.ndarray,
        *,
        last_only: bool = False,
        tree: TreeMask | None = None,
        rows: Sequence[int] | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of `ids` [R, W] at `positions` [R, W].

        Args:
            reach: int64 [R], how many slots each row reads.
            tree: columns that are not in the slots of their positions.
            rows: whose columns these are; the first R if not given.
            counts: how many columns each row has, at least one; the others repeat its last one. They cost nothing
                but where attention is not ours.

        Returns [R, W, V], or [R, 1, V] of the last column alone, where all rows lie in one buffer; with `counts`
        [N, V], of the N columns in turn.
        """
        parts = self.cache.parts(range(len(ids)) if rows is None else rows, reach)
        apart = len(parts) > 1 or not parts[0].in_turn
        if self.packs and (apart or counts is not None):
            logits = self._laid_out(parts, ids, positions, tree, counts)
            return logits if counts is not None else logits.unflatten(0, ids.shape)
        part = parts[0]
        logits = self.over(part.cache, ids, positions, part.reach, last_only=last_only, tree=tree, part=part)
        if counts is None:
            return logits
        real = (torch.arange(ids.shape[1]) < torch.tensor(counts)[:, None]).flatten().nonzero()[:, 0]
        return logits.flatten(0, 1)[real.to(logits.device)]

    def over(
        self,
        cache: Any,
        ids: Tensor,
        positions: Tensor,
        length: int,
        *,
        last_only: bool = False,
        tree: TreeMask | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Logits of `ids` [R, W] over a cache, against its first `length` slots.

        Args:
            part: whose columns these are; the first R rows' if not given. Those of neighbours cost no copy.

        Returns [R, W, V], or [R, 1, V] of the last column alone.
        """
        apart = part is not None and part.first is None
        some = torch.from_numpy(part.places).to(self.device) if part and apart else None
        first = (part.first if part else None) or 0
        cache.write_at(positions if tree is None else tree.slot, length, some, first)
        step = self.step if some is None else self.model  # not worth compiling for
        masks = self._masks(positions, length, tree)
        return self._forward(step, ids, positions, masks, cache, keep=int(last_only))

    def _laid_out(
        self,
        parts: Sequence[Part],
        ids: Tensor,
        positions: Tensor,
        tree: TreeMask | None,
        counts: Sequence[int] | None,
    ) -> Tensor:
        """One forward with the columns of all rows in one row, those of a pool after each other: logits [N, V]."""
        width = ids.shape[1]
        many = np.full(len(ids), width) if counts is None else np.array(counts)
        index = []  # which of all R * W columns, in the order of the forward
        sent: list[np.ndarray] = []
        for part in parts:
            mine = many[part.of]
            columns = np.arange(mine.max())
            real = columns < mine[:, None]
            index.append((part.of[:, None] * width + columns)[real])
            padded = (mine.cumsum() - mine)[:, None] + np.minimum(columns, mine[:, None] - 1)
            sent += [part.of, part.places, padded.ravel(), np.flatnonzero(real)]
        order = np.concatenate(index)
        keep = np.argsort(order)  # the head reads them row by row
        told = torch.from_numpy(np.concatenate([order, keep, *sent])).to(self.device)
        taken, back, *each = told.split([len(order), len(order), *map(len, sent)])
        pools, masks, begin = [], [], 0
        for i, part in enumerate(parts):
            of, places, padded_at, real_at = each[4 * i : 4 * i + 4]
            size, n = len(of), len(real_at)
            wide = len(padded_at) // size
            at = positions[of, :wide]
            branches = None if tree is None else TreeMask(*(x[of, :wide] for x in tree))
            some = places if part.first is None else None
            slot = at if branches is None else branches.slot
            part.cache.write_at(slot, part.reach, some, part.first or 0, real_at)
            masks.append(self._masks(at, part.reach, branches))
            even = n == len(padded_at)
            pools.append(PoolColumns(slice(begin, begin + n), size, wide, None if even else padded_at, real_at))
            begin += n
        given, place = (x.flatten()[taken][None] for x in (ids, positions))
        cache = LaidOut([part.cache for part in parts], pools, joined=self.joined)
        running = LAID_OUT.set(cache)
        try:
            which = 0 if _in_turn(keep) else torch.from_numpy(keep) if self.spread else back
            return self._forward(self.model, given, place, _joined(masks), cache, keep=which)[0]
        except Reshaped:
            self.joined = True
        finally:
            LAID_OUT.reset(running)
        return self._laid_out(parts, ids, positions, tree, counts)

    def _forward(
        self, step: Any, ids: Tensor, positions: Tensor, masks: Any, cache: Any, *, keep: int | Tensor
    ) -> Tensor:
        return step(
            input_ids=ids,
            # A block may reach past the context, with drafts that are not committed.
            position_ids=positions.clamp_max(self.context - 1),
            attention_mask=masks,
            use_cache=True,
            logits_to_keep=keep,
            **{self.named: cache},
        ).logits

    def copy_row(self, source: "CachedModel", row: int, to: int, *, length: int) -> None:
        """Row `to` becomes the `length` tokens that row `row` of `source`, a prefill, has read."""
        self.cache.copy_row(source.cache, row, to, length=length)  # type: ignore[arg-type]

    def move_row(self, row: int, to: int) -> None:
        """Row `to` becomes row `row`, which is needed no more."""
        self.cache.move_row(row, to)

    def drop_row(self, row: int) -> None:
        """A row is needed no more."""
        self.cache.drop_row(row)

    def drop(self, rows: int) -> None:
        """Forget all that was read; room for `rows` rows from now on."""
        self.rows = rows
        self.cache = self._room_for(rows)

    def in_one_buffer(self) -> RowCache:
        """The cache, whose rows lie together from now on: for what is captured with its address."""
        if not isinstance(self.cache, RowCache):
            self.pooled = False
            self.cache = RowCache(self.rows)
        return self.cache

    def _room_for(self, rows: int) -> RowCache | RowPools:
        return RowPools(rows) if self.pooled else RowCache(rows)

    def another(self, rows: int) -> "CachedModel":
        """The same model with a cache of its own, for rows that are read together."""
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
                reach = np.full(len(prompts), start + len(columns))
                read(ids.gather(1, positions), positions, reach, last_only=True)
        return read


def _in_turn(numbers: np.ndarray) -> bool:
    return bool((numbers == np.arange(len(numbers))).all())


def _joined(masks: Sequence[Any]) -> Any:
    """The masks of several pools, one after the other, as one that a model hands on as it is."""
    if isinstance(masks[0], dict):
        return {kind: _joined([mask[kind] for mask in masks]) for kind in masks[0]}
    return torch.cat([mask.flatten() for mask in masks])[None, None, None]

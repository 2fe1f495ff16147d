"""The student's log-probabilities of a trace's tokens, after all that precedes and after a window of steps.

Local Naturalness (arXiv 2510.03988) reads a step after the prompt and the few steps before it, and nothing
else. That is no sliding-window mask over one pass, which would let what lies outside the window leak in
through the layers: each step is the end of a *document* of its own, prompt + window + step. Documents share
the prompt's keys and values and are read in batches; steps whose window reaches back to the start are read
by the pass over the whole trace. Short traces are read many at once, in one pass over all of them with their
prompts, and then their documents together. It knows ids only, never text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.models.kv_cache import CachedModel
from rsd.scoring.shared_prompt import Branches, Trunk

COLUMNS = 2048  # of a batch of documents, or of whole traces
SLOTS = 1 << 15  # that a batch's attention reads: a layer's keys and values of the prompt are copied for every row
CHUNK = 512  # of one pass over a long row: bounds the attention mask
EAGER_CHUNK = 64  # where the scores of all heads are as large as the mask, too
LOGITS = 1 << 25  # that are held at once
PIECE = 1 << 18  # of them that are scored at once on a CPU


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What the student makes of a trace's T tokens, over its full width at temperature 1.

    logprobs: float32 [T], natural log, after the prompt and all tokens before.
    local: float32 [T], after the prompt, the window of the token's step, and the step so far.
    ranks: int32 [T], 1 for the likeliest token after all tokens before.
    """

    logprobs: np.ndarray
    local: np.ndarray
    ranks: np.ndarray


class Document(NamedTuple):
    """Tokens [start, end) of a trace, read right after its prompt; those from `wanted` on are scored."""

    start: int
    wanted: int
    end: int


def documents(steps: Sequence[int], first: Sequence[int], tokens: int) -> Iterator[Document]:
    """The documents of all steps whose window does not reach back to the start of the trace.

    Args:
        steps: the index of each step's first token, ascending, the first one 0.
        first: of each step the step that its window begins with, at most the step itself, never descending.
        tokens: how many the trace has.

    Steps in a row whose windows begin alike are one document: each is read after the one before anyway.
    """
    ends = [*steps[1:], tokens]
    i = 0
    while i < len(steps):
        j = i
        while j + 1 < len(steps) and first[j + 1] == first[i]:
            j += 1
        if first[i] > 0:
            yield Document(steps[first[i]], steps[i], ends[j])
        i = j + 1


class TraceIds(NamedTuple):
    """A trace as it is read.

    prompt: at least one id. tokens: at least one id; with the prompt, no more than the context.
    steps, first: as of `documents`.
    """

    prompt: list[int]
    tokens: list[int]
    steps: Sequence[int]
    first: Sequence[int]


class Row(NamedTuple):
    """What is read in one row of a pass: `ids` from position `at` on, after the first `at` ids of a trace's prompt.

    Its last columns predict the `targets`, whose scores go to `into` and after, in an array for all traces' tokens.
    """

    trace: int
    at: int
    ids: list[int]
    targets: list[int]
    into: int


def whole_row(trace: TraceIds, place: int, into: int = 0) -> Row:
    """A trace after its prompt; its last token predicts nothing."""
    return Row(place, 0, [*trace.prompt, *trace.tokens[:-1]], trace.tokens, into)


def branches(trace: TraceIds, place: int, into: int) -> Iterator[Row]:
    """A trace's documents, each from the last id of the prompt on, since that predicts the first token."""
    tokens = trace.tokens
    for d in documents(trace.steps, trace.first, len(tokens)):
        ids = [trace.prompt[-1], *tokens[d.start : d.end - 1]]
        yield Row(place, len(trace.prompt) - 1, ids, tokens[d.wanted : d.end], into + d.wanted)


def batches(todo: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Rows of like length together, as many as bound the columns, the slots and the logits of a pass.

    A row that is longer than half of the columns, or of which more than `most` tokens are scored, is alone.
    """
    batch: list[Row] = []
    scored = reach = 0
    for row in sorted(todo, key=lambda row: -len(row.ids)):  # the longest first
        widest = len(batch[0].ids) if batch else len(row.ids)
        scored, reach = scored + len(row.targets), max(reach, row.at + widest)
        if batch and (len(batch) >= min(COLUMNS // widest, SLOTS // reach) or scored > most):
            yield batch
            batch, scored, reach = [], len(row.targets), row.at + len(row.ids)
        batch.append(row)
    if batch:
        yield batch


class Reader:
    """A student that reads traces: by itself or, between rounds, as the student of an engine."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.cached = model, CachedModel(model, 1)
        self.chunk = EAGER_CHUNK if model.config._attn_implementation == "eager" else CHUNK
        self.most = max(1, LOGITS // model.config.get_text_config().vocab_size)  # tokens scored at once

    def together(self, traces: Sequence[TraceIds]) -> list[list[int]]:
        """Which traces are read at once, by their places in a batch each."""
        rows = (whole_row(trace, place) for place, trace in enumerate(traces))
        return [[row.trace for row in batch] for batch in batches(rows, self.most)]

    def read(self, prompt: list[int], tokens: list[int], steps: Sequence[int], first: Sequence[int]) -> TokenScores:
        """Judge a trace; the arguments are those of `TraceIds`."""
        return self.read_all([TraceIds(prompt, tokens, steps, first)])[0]

    @torch.inference_mode()
    def read_all(self, traces: Sequence[TraceIds]) -> list[TokenScores]:
        """Judge the traces of one batch, or one of any length.

        The last bits of a sum depend on the shapes that are computed, and so on what is read at once.
        """
        ends = np.cumsum([len(trace.tokens) for trace in traces]).tolist()
        begins = [0, *ends[:-1]]
        rows = [whole_row(trace, i, begins[i]) for i, trace in enumerate(traces)]
        trunk = Trunk(len(rows), max(len(row.ids) for row in rows))
        # Of full length at once: small results that live on between large temporary ones scatter the heap.
        logprobs, ranks = torch.empty(ends[-1]), torch.empty(ends[-1], dtype=torch.int32)
        self._read(rows, trunk, trunk, logprobs, ranks)
        local = logprobs.clone()
        for batch in batches((b for i, trace in enumerate(traces) for b in branches(trace, i, begins[i])), self.most):
            self._read(batch, Branches(trunk, [row.trace for row in batch]), trunk, local)
        both = logprobs.numpy(), local.numpy(), ranks.numpy()
        return [TokenScores(*(x[a:b].copy() for x in both)) for a, b in zip(begins, ends, strict=True)]

    def _read(
        self, rows: list[Row], cache: Trunk | Branches, trunk: Trunk, into: Tensor, ranks: Tensor | None = None
    ) -> None:
        """Put the log-probs of the rows' targets `into`, and their ranks into `ranks`."""
        if len(rows) == 1 and (len(rows[0].ids) > COLUMNS // 2 or len(rows[0].targets) > self.most):
            self._long(rows[0], trunk, into, ranks)
            return
        width = max(len(row.ids) for row in rows)
        ids = np.empty((len(rows), width), dtype=np.int64)
        columns, places = [], []
        for i, row in enumerate(rows):
            end = len(row.ids)
            ids[i, :end], ids[i, end:] = row.ids, row.ids[-1]  # padding comes after all that is scored
            columns.append(np.arange(end - len(row.targets), end) + i * width)
            places.append(np.arange(row.into, row.into + len(row.targets)))
        starts = np.array([[row.at] for row in rows])
        if (starts == starts[0]).all():
            starts = starts[:1]  # so that one mask serves all
        targets = np.concatenate([row.targets for row in rows])
        made = self._scores(cache, ids, starts + np.arange(width), np.concatenate(columns), targets)
        self._put(made, torch.from_numpy(np.concatenate(places)), into, ranks)

    def _long(self, row: Row, trunk: Trunk, into: Tensor, ranks: Tensor | None) -> None:
        """The same of a row that is alone, piece by piece.

        It overwrites what was read after the prompt before, which nothing needs any more.
        """
        start, first, size = 0, len(row.ids) - len(row.targets), min(self.chunk, self.most)
        while start < len(row.ids):
            end = min(start + self.chunk, first) if start < first else min(start + size, len(row.ids))
            ids, positions = np.array([row.ids[start:end]]), np.arange(row.at + start, row.at + end)[None]
            if end <= first:
                self._pass(trunk, ids, positions, last_only=True)
            else:
                targets = np.array(row.targets[start - first : end - first])
                made = self._scores(trunk, ids, positions, np.arange(end - start), targets)
                self._put(made, slice(row.into + start - first, row.into + end - first), into, ranks)
            start = end

    def _scores(
        self, cache: Trunk | Branches, ids: np.ndarray, positions: np.ndarray, columns: np.ndarray, targets: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and ranks [N] of `targets` [N] at N of the flattened columns of `ids` [R, W].

        The head itself is given only these; what a model does after its head (caps, scales) remains its own.
        """
        at = torch.from_numpy(columns)

        def only_these(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            return (args[0].flatten(0, 1)[at.to(args[0].device)][None],)

        with self.model.get_output_embeddings().register_forward_pre_hook(only_these):
            logits = self._pass(cache, ids, positions)[0]
        return _scored(logits, torch.from_numpy(targets))

    def _pass(
        self, cache: Trunk | Branches, ids: np.ndarray, positions: np.ndarray, *, last_only: bool = False
    ) -> Tensor:
        on, at = (torch.from_numpy(x).to(self.cached.device) for x in (ids, positions))
        return self.cached.over(cache, on, at, int(positions.max()) + 1, last_only=last_only)

    @staticmethod
    def _put(made: tuple[Tensor, Tensor], at: Tensor | slice, into: Tensor, ranks: Tensor | None) -> None:
        into[at] = made[0]
        if ranks is not None:
            ranks[at] = made[1].int()


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and ranks [N] of `targets` [N] under logits [N, V]."""
    targets = targets[:, None].to(logits.device)
    # On a CPU a few rows at a time: what fits into the cache is an order of magnitude faster.
    rows = max(1, PIECE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    logprobs, ranks = [], []
    for piece, target in zip(logits.split(rows), targets.split(rows), strict=True):
        logprobs.append(piece.float().log_softmax(-1).gather(-1, target)[:, 0])
        ranks.append(torch.count_nonzero(piece > piece.gather(-1, target), -1))
    return torch.cat(logprobs).cpu(), torch.cat(ranks).cpu() + 1

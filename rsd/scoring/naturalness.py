"""The student's log-probabilities of a trace's tokens, after all that precedes and after a window of steps.

Local Naturalness (arXiv 2510.03988) reads a step after the prompt and the few steps before it, and nothing
else. That is no sliding-window mask over one pass, which would let what lies outside the window leak in
through the layers: each step is the end of a *document* of its own, prompt + window + step. Documents share
the prompt's keys and values and are read in batches; steps whose window reaches back to the start are read
by the pass over the whole trace. It knows ids only, never text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.models.kv_cache import CachedModel, RowCache

COLUMNS = 2048  # of a batch of documents
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


class Reader:
    """A student that reads traces: by itself or, between rounds, as the student of an engine."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.whole = CachedModel(model, 1)
        self.branches = CachedModel(model, 0)
        self.chunk = EAGER_CHUNK if model.config._attn_implementation == "eager" else CHUNK
        self.most = max(1, LOGITS // model.config.get_text_config().vocab_size)  # tokens scored at once

    @torch.inference_mode()
    def read(self, prompt: list[int], tokens: list[int], steps: Sequence[int], first: Sequence[int]) -> TokenScores:
        """Judge a trace.

        Args:
            prompt: at least one id.
            tokens: at least one id; with the prompt, no more than the context.
            steps, first: as of `documents`.
        """
        self.whole.cache = RowCache(1)
        self.whole.cache.reserve(len(prompt) + len(tokens))
        self.branches.cache = SharedPrompt(self.whole.cache)
        shared = len(prompt) - 1  # the last id begins every document, since it predicts the first token
        for start in range(0, shared, self.chunk):
            end = min(start + self.chunk, shared)
            self.whole(self._tensor([prompt[start:end]]), self._positions(start, end), end, last_only=True)
        line = [prompt[-1], *tokens]
        # Of full length at once: small results that live on between large temporary ones scatter the heap.
        logprobs, ranks = torch.empty(len(tokens)), torch.empty(len(tokens), dtype=torch.int32)
        self._long(line, Document(0, 0, len(tokens)), shared, logprobs, ranks)
        local = logprobs.clone()
        for batch in self._batches(list(documents(steps, first, len(tokens))), shared):
            width = max(d.end - d.start for d in batch)
            if len(batch) == 1 and (width > COLUMNS or batch[0].end - batch[0].wanted > self.most):
                self._long(line, batch[0], shared, local)
            else:
                self._together(line, batch, width, shared, local)
        return TokenScores(logprobs.numpy(), local.numpy(), ranks.numpy())

    def _batches(self, todo: list[Document], shared: int) -> Iterator[list[Document]]:
        """Documents of like length together, as many as bound the columns, the slots and the logits of a pass."""
        batch: list[Document] = []
        scored = 0
        for document in sorted(todo, key=lambda d: d.start - d.end):  # the longest first
            widest = batch[0].end - batch[0].start if batch else 0
            scored += document.end - document.wanted
            rows = min(COLUMNS // widest, SLOTS // (shared + widest)) if batch else 1
            if batch and (len(batch) >= rows or scored > self.most):
                yield batch
                batch, scored = [], document.end - document.wanted
            batch.append(document)
        if batch:
            yield batch

    def _together(self, line: list[int], batch: list[Document], width: int, shared: int, into: Tensor) -> None:
        """Put the log-probs of all documents' scored tokens `into` [T]; the documents branch off one prompt."""
        ids = np.zeros((len(batch), width), dtype=np.int64)  # padding comes after all that is scored
        columns, targets = [], []
        for row, d in enumerate(batch):
            # line[i] predicts token i; the last id of the prompt stands before every document.
            ids[row, : d.end - d.start] = [line[0], *line[d.start + 1 : d.end]]
            columns.append(row * width + np.arange(d.wanted - d.start, d.end - d.start))
            targets.append(np.array(line[d.wanted + 1 : d.end + 1]))
        logits = self._logits(
            self.branches,
            torch.from_numpy(ids).to(self.whole.device),
            self._positions(shared, shared + width),
            np.concatenate(columns),
        )
        at = np.concatenate([np.arange(d.wanted, d.end) for d in batch])
        into[torch.from_numpy(at)] = _scored(logits, torch.from_numpy(np.concatenate(targets)))[0]

    def _long(self, line: list[int], d: Document, shared: int, into: Tensor, ranks: Tensor | None = None) -> None:
        """Put the log-probs of one document's scored tokens `into` [T] and their ranks into `ranks`, piece by piece.

        It overwrites what was read after the prompt before, which nothing needs any more.
        """
        ids = [line[0], *line[d.start + 1 : d.end]]
        size = min(self.chunk, self.most)
        for start in range(0, len(ids), size):
            end = min(start + size, len(ids))
            begin = max(start, d.wanted - d.start)
            piece, positions = self._tensor([ids[start:end]]), self._positions(shared + start, shared + end)
            if begin >= end:
                self.whole(piece, positions, shared + end, last_only=True)
                continue
            logits = self._logits(self.whole, piece, positions, np.arange(begin, end) - start)
            targets = self._tensor(line[d.start + begin + 1 : d.start + end + 1])
            scored = slice(d.start + begin, d.start + end)
            into[scored], places = _scored(logits, targets)
            if ranks is not None:
                ranks[scored] = places

    def _logits(self, model: CachedModel, ids: Tensor, positions: Tensor, columns: np.ndarray) -> Tensor:
        """Logits [N, V] at N of the flattened columns of `ids` [R, W].

        The head itself is given only these; what a model does after its head (caps, scales) remains its own.
        """
        at = torch.from_numpy(columns).to(ids.device)

        def only_these(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            return (args[0].flatten(0, 1)[at.to(args[0].device)][None],)

        with self.model.get_output_embeddings().register_forward_pre_hook(only_these):
            return model(ids, positions, int(positions[0, -1]) + 1)[0]

    def _positions(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, device=self.whole.device)[None]

    def _tensor(self, ids: list[Any]) -> Tensor:
        return torch.tensor(ids, device=self.whole.device)


class SharedPrompt(RowCache):
    """Rows that go on from the first slots of another cache's only row, and are not kept."""

    def __init__(self, trunk: RowCache) -> None:
        super().__init__(0)
        self.trunk = trunk

    def write_at(self, slots: Tensor, length: int, rows: Tensor | None = None, first: int = 0) -> None:
        self.shared = length - slots.shape[1]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the queries may read: the trunk's slots, and the new columns [R, heads, W, size]."""
        rows = keys.shape[0]
        k, v = (x[:, :, : self.shared].expand(rows, -1, -1, -1) for x in self.trunk.layers[layer])
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


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

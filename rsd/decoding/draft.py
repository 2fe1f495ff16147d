"""The student's side of a round: what it drafts, and where it lets a proposal of the teacher stand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.candidates import bounded, largest, likeliest, wide
from rsd.decoding.sampling import accept_mask, drafter, draw, least_logprob, warp
from rsd.models.kv_cache import CachedModel
from rsd.pair.vocabulary import Vocabulary


class Step(NamedTuple):
    """What the student drafts in N places, mostly one of every row, and what it says there.

    token: int64 [N]. sure: its log-prob [N], at temperature 1. logprobs: [N, V], log-softmax over the full width at
    temperature 1. sound: [N], finite where the logits are. Where a filter leaves few candidates also these: ids [N, C]
    and p [N, C], and where the acceptance asks for it `sampling.least_logprob`, [N, 1].
    """

    token: Tensor
    sure: Tensor
    logprobs: Tensor
    sound: Tensor
    ids: Tensor | None = None
    p: Tensor | None = None
    least: Tensor | None = None


class Over(NamedTuple):
    """What the student says of candidates [R, K, C]: where they would stand, p, d, and their log-probs."""

    mask: Tensor
    p: Tensor
    d: Tensor
    logprobs: Tensor


class Student:
    """A student that drafts.

    few: whether its sampling distribution, and the teacher's, have few candidates (see `candidates`).
    """

    def __init__(
        self,
        model: CachedModel,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        acceptance: Acceptance,
        thresholds: Sequence[float] = (),
    ) -> None:
        self.model, self.sampling, self.acceptance = model, sampling, acceptance
        self.others = [replace(acceptance, threshold=threshold) for threshold in thresholds]
        # What matters to any of them: the most that may stand.
        self.widest = min([acceptance, *self.others], key=lambda one: one.threshold)
        self.few = bounded(sampling, vocabulary.width)
        self.own = vocabulary.own.to(model.device)
        said = vocabulary.own == 0
        self.last = int(said.nonzero().max()) + 1
        self.never = None if said[: self.last].all() else ~said[: self.last].to(model.device)

    def step(self, token: Tensor, at: Tensor, reach: np.ndarray, uniform: Tensor) -> tuple[Tensor, ...]:
        """Read `token` [R] at `at` [R, 1], seeing `reach` [R] slots, and draft the next one: the fields of a `Step`."""
        return self.drafted(self.model(token[:, None], at, reach)[:, 0], uniform)

    def steps(self, token: Tensor, at: Tensor, uniforms: Tensor, reach: np.ndarray) -> list[tuple[Tensor, ...]]:
        """Several steps, with uniforms [R, K], as `cuda_graph.DraftLoop` repeats them."""
        made = []
        for j in range(uniforms.shape[1]):
            made.append(self.step(token, at + j, reach + j, uniforms[:, j]))
            token = made[-1][0]
        return made

    def drafted(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """The fields of a `Step`, of logits [N, V] and a uniform for each."""
        logits = logits.float()
        logprobs = logits.log_softmax(-1)
        if not self.few:
            token = draw(self.over_all(logprobs).d, uniform)
            return token, logprobs.gather(-1, token[:, None])[:, 0], logprobs, logprobs.amax(-1)
        ids, p = likeliest(self._allowed(logits), self.sampling)
        known, least = logprobs.gather(-1, ids), least_logprob(logprobs, self.acceptance)
        d = drafter(p, accept_mask(known, p, self.acceptance, self.sampling, least))
        place = draw(d, uniform)[:, None]
        token, sure = ids.gather(-1, place)[:, 0], known.gather(-1, place)[:, 0]
        return token, sure, logprobs, known.amax(-1), ids, p, *(() if least is None else (least,))

    def _allowed(self, logits: Tensor) -> Tensor:
        """The logits of the student's own tokens, without what is never to be said; mostly no copy."""
        logits = logits[:, : self.last]
        return logits if self.never is None else logits.masked_fill(self.never, -torch.inf)

    def over_all(self, logprobs: Tensor) -> Over:
        """Over all tokens [..., V], where no filter leaves few candidates."""
        p = warp(logprobs + self.own, self.sampling)
        mask = accept_mask(logprobs, p, self.acceptance, self.sampling)
        return Over(mask, p, drafter(p, mask), logprobs)


class Pass(NamedTuple):
    """A step, and where it drafted, int64 [N]: in which columns of which rows; None for all rows in turn, which have
    had as many steps before."""

    step: Step
    rows: np.ndarray | None
    columns: np.ndarray


class Outcome(NamedTuple):
    """What became of a round's drafts of R rows.

    verified: bool [R, K], columns that were judged, with all drafts before them standing. tokens: int64 [R, K], what
    stands there. ratio: [R, K], r / d of the student's own drafts. survived, ends: bool [R, K], those whose draft
    stood, and whose token ended the trace. committed: tokens, of all rows. others: seconds that other rows had
    meanwhile.
    """

    verified: np.ndarray
    tokens: np.ndarray
    ratio: np.ndarray
    survived: np.ndarray
    ends: np.ndarray
    committed: int
    others: float


class Drafts:
    """A block of drafts of some rows.

    tokens: int64 [R, K], what the student drafts before it is told otherwise. told: the drafts themselves, as many as
    the teacher reads of each row. given: the same, int64 [R, K], where they are not the student's, but looked up.
    sound: [R, K], finite where the student's logits are. candidates: ids and p, [R, K, C] each, of what the student may
    say there, if these are few. Where nothing was drafted all of them are 0.
    """

    def __init__(
        self,
        student: Student,
        passes: Sequence[Pass],
        told: Sequence[list[int]],
        *,
        given: Tensor | None = None,
        first: int = 0,
        block: int | None = None,
    ) -> None:
        """first: the rows are those from this one on. block: columns, if not as many as the most that is told."""
        self.student, self.passes, self.told, self.given, self.first = student, passes, told, given, first
        self.block = block or max(map(len, told))
        self.even = all(p.rows is None for p in passes)
        self.tokens, self.sound = self._grid("token"), self._grid("sound")
        self.candidates = (self._grid("ids"), self._grid("p")) if student.few else None
        self.least = None if passes[0].step.least is None else self._grid("least")

    def _grid(self, name: str) -> Tensor:
        """What the steps have of this name, [R, K, ..]."""
        return self._placed([getattr(p.step, name)[self._mine(p)] for p in self._passes()])

    def _passes(self) -> Sequence[Pass]:
        return self.passes[: self.block] if self.even else self.passes

    def _mine(self, one: Pass) -> slice | Tensor:
        """Which places of a pass are in these rows and columns."""
        if one.rows is None:
            return slice(self.first, self.first + len(self.told))
        return torch.from_numpy(self._here(one.rows, one.columns).nonzero()[0]).to(one.step.token.device)

    def _here(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return (rows >= self.first) & (rows < self.first + len(self.told)) & (columns < self.block)

    def _at(self, rows: np.ndarray, columns: np.ndarray) -> tuple[Tensor, Tensor]:
        """The rows and columns of these places."""
        here, device = self._here(rows, columns), self.student.model.device
        return torch.from_numpy(rows[here] - self.first).to(device), torch.from_numpy(columns[here]).to(device)

    def _placed(self, parts: Sequence[Tensor]) -> Tensor:
        """What each pass has in its places, [R, K, ..]."""
        if self.even:
            return torch.stack(list(parts), 1) if len(parts) > 1 else parts[0].unsqueeze(1)
        made = parts[0].new_zeros(len(self.told), self.block, *parts[0].shape[1:])
        for one, part in zip(self.passes, parts, strict=True):
            if one.rows is not None:
                made[self._at(one.rows, one.columns)] = part
        return made

    def of(self, rows: slice) -> "Drafts":
        """Those of some rows, with as many columns."""
        if (rows.start, rows.stop) == (0, len(self.told)):
            return self
        given = None if self.given is None else self.given[rows]
        return Drafts(self.student, self.passes, self.told[rows], given=given, first=rows.start, block=self.block)

    def over(self, ids: Tensor | None, p: Tensor | None) -> Over:
        """Over candidates [R, K, C] with p as `Proposed` has them; over all tokens where these are None."""
        if ids is None or p is None:
            return self.student.over_all(self._grid("logprobs"))
        logprobs = self.logprobs(ids)
        mask = accept_mask(logprobs, p, self.student.acceptance, self.student.sampling, self.least)
        return Over(mask, p, drafter(p, mask), logprobs)

    def logprobs(self, ids: Tensor) -> Tensor:
        """The student's of any tokens [R, K, C]."""
        parts = []
        for j, one in enumerate(self._passes()):
            wanted = ids[:, j] if one.rows is None else ids[self._at(one.rows, one.columns)]
            parts.append(one.step.logprobs[self._mine(one)].gather(-1, wanted))
        return self._placed(parts)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens in each place, [R, K, k], -1 where it has no more, and their log-probs."""
        found = [largest(one.step.logprobs[self._mine(one)], k) for one in self._passes()]
        ids, values = self._placed([ids for _, ids in found]), self._placed([values for values, _ in found])
        return wide(ids, k, -1), wide(values, k, torch.nan)

    def accepts(self, places: Sequence[tuple[int, int, int]]) -> list[bool]:
        """Of (row, draft, token), whether the token could stand there at any threshold that is asked for."""
        if not places:
            return []
        said = [(*self._place(i, j), token) for i, j, token in places]
        if not self.student.few:
            found: dict[tuple[int, int], Tensor] = {}  # over all tokens: each place once, and those of a step together
            for step in {id(step): step for step, *_ in said}.values():
                rows = list(dict.fromkeys(n for s, n, _ in said if s is step))
                mask = self._mask(self.student.over_all(step.logprobs[rows]), self.student.widest) > 0
                found |= {(id(step), n): of for n, of in zip(rows, mask, strict=True)}
            return torch.stack([found[id(step), n][token] for step, n, token in said]).tolist()
        logprobs = torch.stack([step.logprobs[n, token] for step, n, token in said])
        p = torch.stack([(step.p[n] * (step.ids[n] == token)).sum() for step, n, token in said])  # type: ignore[index]
        least = None if self.least is None else torch.cat([step.least[n] for step, n, _ in said])  # type: ignore[index]
        return (accept_mask(logprobs, p, self.student.widest, self.student.sampling, least) > 0).tolist()

    def accepted_at(self, q: Tensor, over: Over) -> Tensor:
        """q(A) at the other thresholds, [N, R, K], of proposals [R, K, C] and what `over` says of them."""
        sums = [(q * self._mask(over, acceptance, self.least)).sum(-1) for acceptance in self.student.others]
        return torch.stack(sums).clamp_max(1)

    def _mask(self, over: Over, acceptance: Acceptance, least: Tensor | None = None) -> Tensor:
        return accept_mask(over.logprobs, over.p, acceptance, self.student.sampling, least)

    def stand(self, row: int, column: int) -> list[int]:
        """A in one place: the tokens that could stand there."""
        step, n = self._place(row, column)
        asked = self.student.acceptance, self.student.sampling
        logprobs = step.logprobs[n]
        if asked[0].threshold_on == "raw":  # p does not matter
            return accept_mask(logprobs, logprobs, *asked).nonzero()[:, 0].tolist()
        if step.ids is None or step.p is None:
            return self.student.over_all(logprobs).mask.nonzero()[:, 0].tolist()
        least = None if step.least is None else step.least[n]
        mask = accept_mask(logprobs[step.ids[n]], step.p[n], *asked, least)
        return step.ids[n][mask > 0].tolist()

    def _place(self, row: int, column: int) -> tuple[Step, int]:
        if self.even:
            return self.passes[column].step, self.first + row
        there = [(one.step, (one.rows == self.first + row) & (one.columns == column)) for one in self.passes]
        return next((step, int(found.argmax())) for step, found in there if found.any())

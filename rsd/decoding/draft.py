"""The student's side of a round: what it drafts, and where it lets a proposal of the teacher stand."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.candidates import bounded, likeliest
from rsd.decoding.sampling import accept_mask, drafter, draw, least_logprob, warp
from rsd.models.kv_cache import CachedModel
from rsd.pair.vocabulary import Vocabulary


class Step(NamedTuple):
    """A draft of every row, and what the student says in its place.

    token: int64 [R]. logprobs: [R, V], log-softmax over the full width at temperature 1. sound: [R], finite where
    the logits are. Where a filter leaves few candidates also these: ids [R, C] and p [R, C], and where the
    acceptance asks for it `sampling.least_logprob`, [R, 1].
    """

    token: Tensor
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
        self, model: CachedModel, vocabulary: Vocabulary, *, sampling: Sampling, acceptance: Acceptance
    ) -> None:
        self.model, self.sampling, self.acceptance = model, sampling, acceptance
        self.few = bounded(sampling, vocabulary.width)
        self.own = vocabulary.own.to(model.device)
        said = vocabulary.own == 0
        self.last = int(said.nonzero().max()) + 1
        self.never = None if said[: self.last].all() else ~said[: self.last].to(model.device)

    def step(self, token: Tensor, at: Tensor, length: int, uniform: Tensor) -> tuple[Tensor, ...]:
        """Read `token` [R] at `at` [R, 1] and draft the next one: the fields of a `Step`."""
        logits = self.model(token[:, None], at, length)[:, 0].float()
        logprobs = logits.log_softmax(-1)
        if not self.few:
            return draw(self.over_all(logprobs).d, uniform), logprobs, logprobs.amax(-1)
        ids, p = likeliest(self._allowed(logits), self.sampling)
        known, least = logprobs.gather(-1, ids), least_logprob(logprobs, self.acceptance)
        d = drafter(p, accept_mask(known, p, self.acceptance, self.sampling, least))
        drafted = ids.gather(-1, draw(d, uniform)[:, None])[:, 0]
        return drafted, logprobs, known.amax(-1), ids, p, *(() if least is None else (least,))

    def _allowed(self, logits: Tensor) -> Tensor:
        """The logits of the student's own tokens, without what is never to be said; mostly no copy."""
        logits = logits[:, : self.last]
        return logits if self.never is None else logits.masked_fill(self.never, -torch.inf)

    def over_all(self, logprobs: Tensor) -> Over:
        """Over all tokens [..., V], where no filter leaves few candidates."""
        p = warp(logprobs + self.own, self.sampling)
        mask = accept_mask(logprobs, p, self.acceptance, self.sampling)
        return Over(mask, p, drafter(p, mask), logprobs)


class Drafts:
    """A block of drafts of some rows.

    tokens: int64 [R, K]. sound: [R, K], finite where the student's logits are. candidates: ids and p, [R, K, C] each,
    of what the student may say there, if these are few.
    """

    def __init__(self, student: Student, steps: Sequence[Step]) -> None:
        self.student, self.steps = student, steps
        self.tokens, self.sound = _stacked([s.token for s in steps]), _stacked([s.sound for s in steps])
        ids, p, least = ([getattr(s, name) for s in steps] for name in ("ids", "p", "least"))
        self.candidates = (_stacked(ids), _stacked(p)) if student.few else None
        self.least = None if steps[0].least is None else _stacked(least)

    def of(self, rows: slice) -> "Drafts":
        """Those of some rows."""
        if (rows.start, rows.stop) == (0, len(self.tokens)):
            return self
        return Drafts(self.student, [Step(*(x[rows] for x in step if x is not None)) for step in self.steps])

    def over(self, ids: Tensor | None, p: Tensor | None) -> Over:
        """Over candidates [R, K, C] with p as `Proposed` has them; over all tokens where these are None."""
        if ids is None or p is None:
            return self.student.over_all(_stacked([s.logprobs for s in self.steps]))
        logprobs = torch.stack([s.logprobs.gather(-1, ids[:, j]) for j, s in enumerate(self.steps)], 1)
        mask = accept_mask(logprobs, p, self.student.acceptance, self.student.sampling, self.least)
        return Over(mask, p, drafter(p, mask), logprobs)

    def accepts(self, places: Sequence[tuple[int, int, int]]) -> list[bool]:
        """Of (row, draft, token), whether the token could stand there."""
        if not places:
            return []
        if not self.student.few:
            return [bool(self.student.over_all(self.steps[j].logprobs[i]).mask[token]) for i, j, token in places]
        said = [(self.steps[j], i, token) for i, j, token in places]
        logprobs = torch.stack([step.logprobs[i, token] for step, i, token in said])
        p = torch.stack([(step.p[i] * (step.ids[i] == token)).sum() for step, i, token in said])  # type: ignore[index]
        least = None if self.least is None else torch.cat([step.least[i] for step, i, _ in said])  # type: ignore[index]
        return (accept_mask(logprobs, p, self.student.acceptance, self.student.sampling, least) > 0).tolist()


def _stacked(several: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(several), 1) if len(several) > 1 else several[0].unsqueeze(1)

"""One round for all live rows: draft, verify, commit. It knows ids only, never text.

The student drafts a block of tokens one by one, leaving its distribution at every position; the teacher
reads the block in one pass; what survives is committed (`sampling.verify`). A block of one is lockstep:
one step of each model a token. Rows advance by different amounts, and nothing is moved to roll back
(`cache`).
"""

import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.config import Acceptance, Sampling
from rsd.decoding.block_size import Pace
from rsd.decoding.candidates import likeliest
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.loops import EVERY, REACH, loops
from rsd.decoding.partial_tokens import BETWEEN, Filter, Midst
from rsd.decoding.proposals import Proposals
from rsd.decoding.sampling import DRAFT, acceptable, drafter, draw, least_logprob, target, uniforms, verify, warp
from rsd.decoding.teacher import Contexts, Judged, Teacher
from rsd.models.kv_cache import CachedModel, RowCache
from rsd.pair.vocabulary import Reading, Vocabulary

# Columns of a row's state, which the host keeps and sends to the device once a round.
KEY, DONE, LIMIT, LENGTH, PENDING = range(5)
STATE = 5  # columns
# Columns of a token's record, in the order in which a round makes them.
TOKEN, LABEL, TEACHER_LOGPROB, STUDENT_LOGPROB, ACCEPTED, PROPOSAL, LEFT_OUT = range(7)
RECORD = 7  # columns
WIDE = 1 << 24  # bytes of a tensor over all tokens, of some ten that a round without top-k works with


class Rounds:
    """Teacher and student in step. Arguments as of `engine.Engine`."""

    def __init__(
        self,
        teacher: Teacher,
        student: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        acceptance: Acceptance,
        eos: Collection[int],
        rows: int,
        pace: Pace,
        loop_check: bool,
        compile: bool,
    ) -> None:
        self.teacher = teacher
        self.student = CachedModel(student, rows, compile=compile)
        self.vocabulary = vocabulary
        self.proposals = Proposals(vocabulary, sampling, self.student.device)
        self.own = vocabulary.own.to(self.student.device)
        said = vocabulary.own == 0
        self.last = int(said.nonzero().max()) + 1
        self.never = None if said[: self.last].all() else ~said[: self.last].to(self.student.device)
        self.sampling, self.acceptance, self.pace, self.loop_check = sampling, acceptance, pace, loop_check
        # What the host looks up by the student's ids.
        self.teacher_has = vocabulary.shared.numpy() > 0
        self.stops = np.isin(np.arange(vocabulary.width), list(eos))
        self.readings: list[Reading] = [Reading()] * rows  # what the teacher reads in each row, to its last token
        self.midst: list[Midst] = [BETWEEN] * rows  # where the teacher is in its own tokens
        self.recent: list[list[int]] = [[]] * rows  # the student's last tokens, as far as they may begin a spelling
        on_gpu = self.student.device.type == "cuda"
        self.loop = DraftLoop(self._draft, self.student, capture=True) if compile and on_gpu else None

    def drop_caches(self, rows: int) -> None:
        """Free what both models have read, and have room for `rows` rows from now on."""
        if self.loop is not None:
            self.loop.drop()
        self.student.cache = RowCache(rows)
        self.teacher.drop(rows)

    def place_row(
        self,
        row: int,
        reading: Reading,
        midst: Midst,
        tokens: Sequence[int],
        *,
        prefilled: tuple[CachedModel, object],
        at: int,
    ) -> None:
        """Row `row` becomes one that was read: the teacher's reading, and the trace's tokens so far."""
        student, teacher = prefilled
        self.student.cache.copy_row(student.cache, at, row)
        self.teacher.copy_row(teacher, at, row, length=len(reading.ids) - 1)
        self.readings[row], self.midst[row] = reading, midst
        self.recent[row] = list(tokens[-self.proposals.units.longest :])

    def move_row(self, row: int, to: int) -> None:
        self.student.cache.copy_row(self.student.cache, row, to)
        self.teacher.move_row(row, to)
        self.readings[to], self.midst[to], self.recent[to] = self.readings[row], self.midst[row], self.recent[row]

    def round(self, state: np.ndarray, book: np.ndarray, block: int) -> list[tuple[int, str, str | None]]:
        """Draft, verify, commit `block` tokens at the most: advances `state` [R, STATE] and `book` [R, T, RECORD].

        Returns the rows that ended, how, and what went wrong. Nothing is advanced if it raises.
        """
        started = time.perf_counter()
        device = self.student.device
        noise = torch.from_numpy(uniforms(state[:, KEY], state[:, DONE, None] + np.arange(block))).to(device)
        on_device = torch.from_numpy(state).to(device)
        at, token = on_device[:, LENGTH, None], on_device[:, PENDING]
        reach = int(state[:, LENGTH].max()) + 1

        if self.loop is not None:
            steps = [Step(*step) for step in self.loop(token, at, noise[..., DRAFT], reach)]
        else:
            steps = []
            for j in range(block):
                steps.append(Step(*self._draft(token, at + j, reach + j, noise[:, j, DRAFT])))
                token = steps[-1].token

        drafts = _stacked(steps, "token")
        drafted = drafts.cpu().numpy()
        contexts = []
        for reading, row in zip(self.readings, drafted.tolist(), strict=False):
            contexts.append(Contexts(self.vocabulary, reading, row))
            self.proposals.units.look_ahead(contexts[-1], row)
        made: list[Tensor] = []
        midst: list[tuple[Filter | None, int]] = []
        errors: dict[int, str] = {}
        reached = np.zeros(len(state), dtype=np.int64)
        for judged in self.teacher.judge(contexts, block):
            for part in self._parts(judged, block):
                rows = slice(part.first, part.first + len(part.at))
                here, where = self._verify(
                    [step.of(rows) for step in steps], drafts[rows], contexts[rows], part, noise[rows], self.midst[rows]
                )
                made.append(here)
                midst += [(where, i) for i in range(len(part.at))]
                reached[rows] = (part.at[:, :block] >= 0).sum(1)
            errors |= judged.errors
        ended = self._commit(state, book, contexts, midst, drafted, reached, torch.cat(made, 1).cpu().numpy(), started)
        nan = "the logits of a model hold NaN or infinity"
        return [(i, how, errors.get(i, nan) if how == "error" else None) for i, how in ended]

    def _draft(self, token: Tensor, at: Tensor, length: int, uniform: Tensor) -> tuple[Tensor, ...]:
        """One draft [R] of the student, and what judging it needs: the fields of a `Step`."""
        logits = self.student(token[:, None], at, length)[:, 0].float()
        logprobs = logits.log_softmax(-1)
        if not self.proposals.few:
            return draw(self._of_all(logprobs)[2], uniform), logprobs, logprobs.amax(-1)
        ids, p = likeliest(self._allowed(logits), self.sampling)
        known, least = logprobs.gather(-1, ids), least_logprob(logprobs, self.acceptance)
        d = drafter(p, acceptable(known, p, self.acceptance, self.sampling, least))
        drafted = ids.gather(-1, draw(d, uniform)[:, None])[:, 0]
        return drafted, logprobs, known.amax(-1), ids, p, *(() if least is None else (least,))

    def _allowed(self, logits: Tensor) -> Tensor:
        """The logits of the student's own tokens, without what is never to be said; mostly no copy."""
        logits = logits[:, : self.last]
        return logits if self.never is None else logits.masked_fill(self.never, -torch.inf)

    def _of_all(self, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A, p and d over all tokens [..., V], where no filter leaves few candidates."""
        p = warp(logprobs + self.own, self.sampling)
        stands = acceptable(logprobs, p, self.acceptance, self.sampling)
        return stands, p, drafter(p, stands)

    def _stand(self, steps: Sequence["Step"], places: Sequence[tuple[int, int, int]]) -> list[bool]:
        """Of (row, draft, token), whether the token could stand there."""
        if not places:
            return []
        if not self.proposals.few:
            return [bool(self._of_all(steps[j].logprobs[i])[0][token]) for i, j, token in places]
        said = [(steps[j], i, token) for i, j, token in places]
        logprobs = torch.stack([step.logprobs[i, token] for step, i, token in said])
        p = torch.stack([(step.p[i] * (step.ids[i] == token)).sum() for step, i, token in said])  # type: ignore[index]
        least = None if steps[0].least is None else torch.cat([step.least[i] for step, i, _ in said])  # type: ignore[index]
        return (acceptable(logprobs, p, self.acceptance, self.sampling, least) > 0).tolist()

    def _parts(self, judged: Judged, block: int) -> Iterator[Judged]:
        """All rows that were judged; or some of them after the other, where a round works over all tokens."""
        rows = len(judged.at)
        if not self.proposals.few:
            rows = max(1, WIDE // (4 * block * self.vocabulary.width))
        for first in range(0, len(judged.at), rows):
            yield judged._replace(at=judged.at[first : first + rows], first=judged.first + first)

    def _verify(
        self,
        steps: list["Step"],
        drafts: Tensor,
        contexts: list[Contexts],
        judged: Judged,
        noise: Tensor,
        midst: list[Midst],
    ) -> tuple[Tensor, Filter | None]:
        """What is made of some rows' drafts [R, K] when the teacher has judged them: [RECORD + 2, R, K], as float64,
        so that ids are exact and one transfer carries all; and where the teacher is then."""
        logits = _at(judged.logits, judged.at[:, : drafts.shape[1]]).to(drafts.device).float()
        proposed, where = self.proposals.read(
            logits,
            (_stacked(steps, "ids"), _stacked(steps, "p")) if self.proposals.few else None,
            partial(self._stand, steps),
            teacher=self.teacher,
            contexts=contexts,
            judged=judged,
            before=self.recent[judged.first : judged.first + len(drafts)],
            midst=midst,
            drafts=drafts.tolist(),
        )
        if proposed.ids is None or proposed.p is None:
            logprobs = _stacked(steps, "logprobs")
            stands, p, d = self._of_all(logprobs)
        else:
            logprobs = torch.stack([s.logprobs.gather(-1, proposed.ids[:, j]) for j, s in enumerate(steps)], 1)
            p, least = proposed.p, _stacked(steps, "least") if steps[0].least is not None else None
            stands = acceptable(logprobs, p, self.acceptance, self.sampling, least)
            d = drafter(p, stands)
        goal = target(proposed.q, p, stands, self.acceptance.trials)
        verdict = verify(proposed.place(drafts), d, goal, noise)

        tokens = proposed.token(verdict.tokens)
        total = self.teacher.total(logits.flatten(0, 1), proposed.top.flatten()).view(drafts.shape)
        in_teacher = tokens if self.proposals.theirs is None else self.proposals.theirs[tokens]
        asked = torch.stack([in_teacher.clamp_max(logits.shape[-1] - 1), proposed.top], -1)
        theirs = logits.gather(-1, asked) - total[..., None]
        likeliest_one = proposed.q.max(-1)
        made = [
            tokens,
            verdict.from_teacher,
            theirs[..., 0],
            logprobs.gather(-1, verdict.tokens[..., None])[..., 0],
            goal.accepted,
            torch.where(likeliest_one.values > 0, proposed.token(likeliest_one.indices), -1),
            proposed.left_out,
            verdict.survived[:, None].expand_as(drafts),
            theirs[..., 1] + _stacked(steps, "sound"),  # finite only where both models' logits are
        ]
        return torch.stack([x.double() for x in made]), where

    def _commit(
        self,
        state: np.ndarray,
        book: np.ndarray,
        contexts: list[Contexts],
        midst: list[tuple[Filter | None, int]],
        drafted: np.ndarray,
        reached: np.ndarray,
        made: np.ndarray,
        started: float,
    ) -> list[tuple[int, str]]:
        """Book what a round made [RECORD + 2, R, K], up to a row's end; the rows that ended, and why."""
        *_, survived, sound = made
        tokens = made[TOKEN].astype(np.int64)
        rows, block = tokens.shape
        column = np.arange(block)
        # The first draft that falls is replaced, and ends the block.
        kept = np.minimum(survived[:, 0].astype(int) + 1, reached)
        valid = column < kept[:, None]
        stops = self.stops[tokens]
        # What the teacher would have read before the next token.
        full = np.array([[*(p.end for p in c.places[1:block]), c.after.end] for c in contexts]) > self.teacher.context
        for i in ((tokens != drafted) & valid).any(1).nonzero()[0].tolist():
            j = int(kept[i]) - 1
            length = contexts[i].places[j].end + len(self.vocabulary.spelled.get(int(tokens[i, j]), (0,)))
            full[i, j] = length > self.teacher.context
        full |= state[:, DONE, None] + column + 1 >= state[:, LIMIT, None]
        looping = np.zeros_like(stops)
        if self.loop_check:
            for i, j in zip(*(valid & ((state[:, DONE, None] + column + 1) % EVERY == 0)).nonzero(), strict=True):
                before = book[i, max(0, state[i, DONE] - REACH) : state[i, DONE], TOKEN]
                looping[i, j] = loops(np.concatenate([before, tokens[i, : j + 1]]))
        ends = (stops | full | looping) & valid
        ended = ends.any(1)
        count = np.where(ended, ends.argmax(1) + 1, kept)
        valid &= column < count[:, None]
        broken = (~np.isfinite(sound) & valid).any(1)

        made[TEACHER_LOGPROB][~self.teacher_has[tokens]] = np.nan
        r, c = valid.nonzero()
        book[r, state[r, DONE] + c] = made[:RECORD, r, c].T
        last = np.maximum(count - 1, 0)
        state[:, PENDING] = np.where(count > 0, tokens[np.arange(rows), last], state[:, PENDING])
        state[:, DONE] += count
        state[:, LENGTH] += count
        for i, n in enumerate(count.tolist()):
            self._read_on(i, contexts[i], tokens[i, :n].tolist(), drafted[i].tolist())
            where, row = midst[i]
            if n:
                self.midst[i] = BETWEEN if where is None else where.after(row, n - 1, int(tokens[i, n - 1]))
        state[broken, DONE] = 0  # nothing of a broken row is kept
        self.pace.learn(
            seconds=time.perf_counter() - started,
            judged=valid,
            survived=valid & (column < survived),
            ends=ends,
            tokens=int(count.sum()),
        )
        return [
            (i, "error" if broken[i] else "stop" if stops[i, c] else "loop" if looping[i, c] else "length")
            for i, c in ((i, last[i]) for i in (ended | broken).nonzero()[0].tolist())
        ]

    def _read_on(self, row: int, contexts: Contexts, tokens: list[int], drafts: list[int]) -> None:
        """The teacher reads what was committed to a row."""
        reading = self.readings[row]
        start = len(reading.ids)
        for j, token in enumerate(tokens):
            edit = contexts.edits[j] if token == drafts[j] else self.vocabulary.edit(reading, token)
            start = min(start, edit.keep)
            reading.apply(edit)
        start = min([start, *contexts.forks[1:]])
        self.recent[row] = [*self.recent[row], *tokens][-self.proposals.units.longest :]
        self.teacher.keep(row, contexts, reading.ids, start)


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

    def of(self, rows: slice) -> "Step":
        return Step(*(x[rows] for x in self if x is not None))


def _stacked(steps: Sequence[Step], name: str) -> Tensor:
    several = [getattr(step, name) for step in steps]
    return torch.stack(several, 1) if len(several) > 1 else several[0].unsqueeze(1)


def _at(logits: Tensor, index: np.ndarray) -> Tensor:
    """Logits [N, V] by their index [R, K]; any of them where it is -1. No copy where it is all of them in turn."""
    rows, block = index.shape
    if len(logits) == rows * block and (index.ravel() == np.arange(index.size)).all():
        return logits.view(rows, block, -1)
    return logits[torch.from_numpy(index).to(logits.device)]

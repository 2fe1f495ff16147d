"""One round for all live rows: draft, verify, commit. It knows the student's ids only, never text.

The student drafts a block of tokens, leaving its distribution at every position (`drafting`); the teacher reads of each
row's block what is likely to stand, in one pass; what survives is committed (`sampling.rejection_sample`). A block of
one is lockstep: one step of each model a token. Rows advance by different amounts, and nothing is moved to roll back
(`row_cache`). Where the teacher is away with what it was asked, other rows may have their turn (`groups`).
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.block_size import BlockController
from rsd.decoding.continued import Continued, Turns
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.draft import Drafts, Outcome, Student
from rsd.decoding.drafting import Drafting
from rsd.decoding.given import Given, as_given
from rsd.decoding.lookup import LookUp
from rsd.decoding.loops import EVERY, REACH, loops
from rsd.decoding.proposals import Proposed
from rsd.decoding.proposer import Proposer
from rsd.decoding.sampling import rejection_sample, target
from rsd.decoding.sequence import TraceSoFar
from rsd.decoding.teacher import LOGITS, LOGITS_ELSEWHERE, Away, Teacher
from rsd.models.kv_cache import CachedModel
from rsd.pair.vocabulary import TeacherContext, Vocabulary
from rsd.traces.tokens import record, top_columns

U = TypeVar("U")
Ended = list[tuple[int, str, str | None]]  # rows that ended, how, and what went wrong


class Verified(NamedTuple):
    """What verifying makes of R rows' K drafts, on the host.

    tokens: `tokens.record`s [R, K]: the drafts, and in place of the first of a row that falls what replaces it.
    survived: int64 [R], how many stand before that. sound: bool [R, K], both models' logits are finite. ratio: [R, K],
    r / d of what the student drafted. errors: rows that the teacher cannot read, and why.
    """

    tokens: np.ndarray
    survived: np.ndarray
    sound: np.ndarray
    ratio: np.ndarray
    errors: Mapping[int, str]


class Rounds:
    """Teacher and student in step. Arguments as of `engine.Engine`."""

    def __init__(
        self,
        teacher: Teacher,
        student: CachedModel,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        acceptance: Acceptance,
        eos: Collection[int],
        rows: int,
        blocks: BlockController,
        loop_check: bool,
        graphs: bool,
        top: int = 0,
        thresholds: Sequence[float] = (),
    ) -> None:
        """graphs: replay the student's steps as CUDA graphs. top: how many likeliest tokens of each model are kept."""
        self.student = Student(student, vocabulary, sampling=sampling, acceptance=acceptance, thresholds=thresholds)
        self.proposer = Proposer(teacher, vocabulary, sampling=sampling, rows=rows, device=student.device, top=top)
        self.acceptance, self.blocks, self.loop_check = acceptance, blocks, loop_check
        self.top, self.record = top, record(top, len(thresholds))
        self.stops = np.isin(np.arange(vocabulary.width), list(eos))
        self.loop = DraftLoop(self.student.step, student, capture=True) if graphs else None
        # Columns of a pass over what was looked up, whose log-probs are kept.
        self.columns = (LOGITS if student.device.type == "cpu" else LOGITS_ELSEWHERE) // (4 * vocabulary.width)
        self.seen: list[LookUp | None] = [None] * rows  # what each row has read, to look drafts up in
        self.asked: list[Callable[[Sequence[int]], int | None] | None] = [None] * rows  # each row's `Request.ends`
        self.given: list[Sequence[int]] = [()] * rows  # each row's `Request.given`
        self.turns, self.asked_for = Turns(), 0
        self.others = 0.0  # seconds of this round that others had

    def drop_caches(self, rows: int) -> None:
        """Free what both models have read, and have room for `rows` rows from now on."""
        if self.loop is not None:
            self.loop.drop()
        self.student.model.drop(rows)
        self.proposer.teacher.drop(rows)

    def place_row(
        self, row: int, so_far: TraceSoFar, context: TeacherContext, *, prefilled: Any, at: int, shared: int
    ) -> None:
        """Row `row` becomes the first `shared` ids of row `at` that the teacher prefilled, and the trace so far."""
        self.proposer.place_row(row, context, so_far.partial, so_far.ids, prefilled=prefilled, at=at, shared=shared)
        self.asked[row], self.given[row] = so_far.request.ends, so_far.request.given
        if self.blocks.fixed is None and not so_far.request.given:
            request = so_far.request
            theirs = self.proposer.in_ours(request.teacher_prompt)
            self.seen[row] = LookUp([theirs, [*request.student_prompt, *so_far.ids]])

    def move_row(self, row: int, to: int) -> None:
        self.student.model.move_row(row, to)
        self.proposer.move_row(row, to)
        self.seen[to], self.asked[to], self.given[to] = self.seen[row], self.asked[row], self.given[row]

    def drop_row(self, row: int) -> None:
        self.student.model.drop_row(row)
        self.proposer.drop_row(row)

    def round(self, state: np.ndarray, records: np.ndarray) -> Away[Ended]:
        """Draft, verify, commit: advances `state` [R] and `records` [R, T].

        Args:
            state: of `sequence.STATE`. records: of `tokens.record`; a row holds what was committed before.

        Yields where the teacher is away, as often as it is in a round, and returns the rows that ended. Nothing is
        advanced if it raises, or is closed there.
        """
        began, self.others = time.perf_counter(), 0.0
        drafting = yield from self.draft(state)
        given = isinstance(drafting, Given)
        proposals = yield from self._asked(self.proposer.propose(drafting.drafts))
        verified = self.verify(drafting.drafts, drafting.noise, proposals, given=given)
        before = self.blocks.tokens
        ended = self.commit(state, records, verified, drafting, given=given)
        if self.proposer.teacher.talks:
            seconds = time.perf_counter() - began - self.others
            self.turns.learn(len(state), self.asked_for, self.blocks.tokens - before, seconds)
        return ended

    def _asked(self, asking: Away[U]) -> Away[U]:
        """What comes of it; others have their turn meanwhile. What they do is no time of this round's: so the times of
        all rounds are that of the job, and what a server does meanwhile costs what is still waited for."""
        with closing(asking):
            while True:
                try:
                    next(asking)
                except StopIteration as e:
                    return e.value
                left = time.perf_counter()
                yield
                self.others += time.perf_counter() - left

    def _turn(self, rows: int, most: int) -> int:
        """How many tokens the teacher is asked to say by itself in this round; 0: the student drafts."""
        if self.blocks.fixed is not None or not self.proposer.teacher.talks:
            return 0
        return min(self.turns.plan(rows), most)

    def draft(self, state: np.ndarray) -> Away[Drafting | Given | Continued]:
        seen, rows = self.seen[: len(state)], len(state)
        streaks = [one.streak if one else 0 for one in seen]
        most = max(self.columns // rows - 1, 0)
        if self.given[0]:
            return Given(self.student, state, self.given[:rows], most=min(most + 1, self.blocks.longest))
        self.asked_for = self._turn(rows, min(most, int((state["limit"] - state["done"]).max())))
        if self.asked_for:
            said = yield from self._asked(self.proposer.go_on(rows, self.asked_for))
            return Continued(self.student, self.blocks, self.turns, state, said)
        ahead = [
            one.ahead(min(self.blocks.look_up(rows, one.streak), most)) if one and one.streak else [] for one in seen
        ]
        return Drafting(
            self.student, self.blocks, state, stops=self.stops, ahead=ahead, streaks=streaks, loop=self.loop
        )

    def verify(self, drafts: Drafts, noise: Tensor, proposals: Iterator[Proposed], *, given: bool = False) -> Verified:
        """Keep drafts while they survive, each with min(1, r / d), and draw what replaces the first that falls.
        What is `given` stands.

        r is the distribution of RSD (`sampling`), of the teacher's proposals q and the student's p and A.
        """
        rows, block = drafts.tokens.shape
        made = []
        errors: dict[int, str] = {}
        for proposed in proposals:
            mine, chance = drafts.of(proposed.rows), noise[proposed.rows]
            student = mine.over(proposed.ids, proposed.p)
            goal = target(proposed.q, student.p, student.mask, self.acceptance.trials)
            if given:
                verdict = as_given(mine)
                tokens, said = verdict.tokens, mine.logprobs(verdict.tokens[..., None])[..., 0]
            else:
                there = None if mine.given is None else proposed.place_if_any(mine.given)
                verdict = rejection_sample(proposed.place(mine.tokens), student.d, goal, chance, given=there)
                tokens = proposed.token(verdict.tokens)
                said = student.logprobs.gather(-1, verdict.tokens[..., None])[..., 0]
            kept = {
                "token_ids": tokens,
                "teacher_logprobs": proposed.logprobs(tokens),
                "student_logprobs": said,
                "from_teacher": verdict.from_teacher,
                "accepted": goal.accepted,
                "proposals": proposed.likeliest,
                "left_out": (1 - proposed.coverage).clamp(0, 1),
                "survived": verdict.survived[:, None].expand_as(tokens),
                "sound": proposed.sound + mine.sound,
                "ratio": verdict.ratio,
            }
            numbers = [torch.stack([x.double() for x in kept.values()])]  # exact for ids; one transfer carries all
            if self.top:
                numbers += [x.double().movedim(-1, 0) for x in (*proposed.soft, *mine.top(self.top))]
            if self.student.others:
                numbers.append(mine.accepted_at(proposed.q, student))
            made.append(torch.cat(numbers))
            errors |= proposed.errors
        host = torch.cat(made, 1).cpu().numpy()
        columns = dict(zip(kept, host, strict=False))
        if self.top:
            wide = host[len(kept) :][: 4 * self.top].reshape(4, self.top, rows, block)
            columns |= dict(zip(top_columns(), np.moveaxis(wide, 1, -1), strict=True))
        if self.student.others:
            columns["accepted_at"] = np.moveaxis(host[len(kept) + 4 * self.top :], 0, -1)
        records = np.empty((rows, block), dtype=self.record)
        for name in self.record.names or ():
            records[name] = columns[name]
        survived = columns["survived"][:, 0].astype(np.int64)
        return Verified(records, survived, np.isfinite(columns["sound"]), columns["ratio"], errors)

    def commit(
        self,
        state: np.ndarray,
        records: np.ndarray,
        verified: Verified,
        drafting: Drafting | Given | Continued,
        *,
        given: bool = False,
    ) -> Ended:
        """Keep what survived and what replaced the next one, up to a row's end; both models read on from there. What is
        `given` has one end alone, its own."""
        tokens = verified.tokens["token_ids"]
        column = np.arange(tokens.shape[1])
        # The first draft that falls is replaced, and ends the block.
        kept = np.minimum(verified.survived + 1, drafting.counts)
        valid = column < kept[:, None]
        position = state["done"][:, None] + column
        stops = self.stops[tokens] & (not given)
        full = self.proposer.full(tokens, kept) | (position + 1 >= state["limit"][:, None])
        looping = self._looping(records["token_ids"], tokens, position, valid & (not given))
        ends = (stops | full | looping) & valid
        ended = ends.any(1)
        count = np.where(ended, ends.argmax(1) + 1, kept)
        cut = self._cut(records["token_ids"], tokens, state["done"], count)
        ended |= cut >= 0
        ends |= (cut >= 0)[:, None] & (column == count[:, None] - 1)
        valid &= column < count[:, None]
        broken = (~verified.sound & valid).any(1)

        r, c = valid.nonzero()
        records[r, position[r, c]] = verified.tokens[r, c]
        last = np.maximum(count - 1, 0)
        state["pending"] = np.where(count > 0, tokens[np.arange(len(tokens)), last], state["pending"])
        state["done"] += count
        state["length"] += count
        self.proposer.commit(tokens, count)
        for seen, row, n in zip(self.seen, tokens.tolist(), count.tolist(), strict=False):
            if seen:
                seen.say(row[:n])
        state["done"] = np.where(cut >= 0, cut, state["done"])
        state["done"][broken] = 0  # nothing of a broken row is kept
        survived = valid & (column < verified.survived[:, None])
        drafting.learn(Outcome(valid, tokens, verified.ratio, survived, ends, int(count.sum()), self.others))
        made: Ended = []
        for i in (ended | broken).nonzero()[0].tolist():
            j = last[i]
            how = "stop" if stops[i, j] else "loop" if looping[i, j] else "length"
            how = "error" if broken[i] else "cut" if cut[i] >= 0 else how
            nan = "the logits of a model hold NaN or infinity" if broken[i] else None
            made.append((i, how, verified.errors.get(i, nan) if broken[i] else None))
        return made

    def _cut(self, before: np.ndarray, tokens: np.ndarray, done: np.ndarray, count: np.ndarray) -> np.ndarray:
        """How many tokens each row keeps whose request wants it to end here, int64 [R], else -1.

        Asked token by token, so that it does not depend on blocks; `count` [R] is then that of the last one's.
        """
        cut = np.full(len(tokens), -1)
        for i, ends in enumerate(self.asked[: len(tokens)]):
            if ends is None:
                continue
            said = [*before[i, : done[i]].tolist(), *tokens[i, : count[i]].tolist()]
            for n in range(int(done[i]) + 1, len(said) + 1):
                if (keep := ends(said[:n])) is not None:
                    cut[i], count[i] = keep, n - done[i]
                    break
        return cut

    def _looping(self, before: np.ndarray, tokens: np.ndarray, position: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Where a row says the same for ever, bool [R, K]: of ids `before` [R, T], and a block's `tokens` [R, K]."""
        looping = np.zeros(tokens.shape, dtype=bool)
        if self.loop_check:
            for i, j in zip(*(valid & ((position + 1) % EVERY == 0)).nonzero(), strict=True):
                done = position[i, 0]
                said = before[i, max(0, done - REACH) : done]
                looping[i, j] = loops(np.concatenate([said, tokens[i, : j + 1]]))
        return looping

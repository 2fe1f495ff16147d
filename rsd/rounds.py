"""One round for all live rows: draft, verify, commit. It knows ids only, never text.

The student drafts a block of tokens one by one, leaving its distribution at every position; the teacher
reads the block in one pass; what survives is committed (`sampling.verify`). A block of one is lockstep:
one step of each model a token. Rows advance by different amounts, and nothing is moved to roll back
(`cache`).
"""

import time
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.cache import CachedModel, RowCache
from rsd.config import Acceptance, Sampling
from rsd.graph import DraftLoop
from rsd.loops import EVERY, REACH, loops
from rsd.midst import BETWEEN, Filter, Midst
from rsd.pace import Pace
from rsd.proposals import Proposals, normalised
from rsd.sampling import DRAFT, acceptable, drafter, draw, target, uniforms, verify, warp
from rsd.teacher import Contexts, Teacher
from rsd.vocabulary import Reading, Vocabulary

# Columns of a row's state, which the host keeps and sends to the device once a round.
KEY, DONE, LIMIT, LENGTH, PENDING = range(5)
STATE = 5  # columns
# Columns of a token's record, in the order in which a round makes them.
TOKEN, LABEL, TEACHER_LOGPROB, STUDENT_LOGPROB, ACCEPTED, PROPOSAL, LEFT_OUT = range(7)
RECORD = 7  # columns


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
        self.recent[row] = list(tokens[-self.proposals.longest :])

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
            steps = self.loop(token, at, noise[..., DRAFT], reach)
        else:
            steps = []
            for j in range(block):
                steps.append(self._draft(token, at + j, reach + j, noise[:, j, DRAFT]))
                token = steps[-1][0]
        # Stacking copies what is as wide as the vocabulary: not in lockstep, where there is one of each.
        drafts, logprobs, p, stands, d = (
            x[0].unsqueeze(1) if block == 1 else torch.stack(x, 1) for x in zip(*steps, strict=True)
        )

        drafted = drafts.cpu().numpy()
        contexts = []
        for reading, row in zip(self.readings, drafted.tolist(), strict=False):
            contexts.append(Contexts(self.vocabulary, reading, row))
            self.proposals.look_ahead(contexts[-1], row)
        judged = self.teacher.judge(contexts, block)
        index = judged.at[:, :block]
        reached = (index >= 0).sum(1)
        logits = _at(judged.logits, index).to(device).float()
        pool = self.proposals.pool(logits)
        masses = self.proposals.masses(pool)
        whole = self.proposals.spell(
            masses,
            pool,
            stands,
            teacher=self.teacher,
            contexts=contexts,
            judged=judged,
            before=self.recent,
            drafts=drafted.tolist(),
        )
        midst = Filter(self.proposals.several, masses, whole, pool, self.midst)
        if self.proposals.several.spelled:
            masses, whole = midst.mix(drafted.tolist())
        q, held = normalised(masses)
        goal = target(q, p, stands, self.acceptance.trials)
        verdict = verify(drafts, d, goal, noise)

        at_token = verdict.tokens[..., None]
        theirs = self.teacher.logprobs(logits)
        in_teacher = at_token if self.proposals.theirs is None else self.proposals.theirs[at_token]
        likeliest = q.max(-1)
        made = torch.stack(  # as float64, so that ids are exact and one transfer carries all
            [
                verdict.tokens.double(),
                verdict.from_teacher,
                theirs.gather(-1, in_teacher.clamp_max(theirs.shape[-1] - 1))[..., 0],
                logprobs.gather(-1, at_token)[..., 0],
                goal.accepted,
                torch.where(likeliest.values > 0, likeliest.indices, -1),
                (1 - held / whole)[..., 0].clamp(0, 1),
                verdict.survived[:, None].expand(-1, block),
                theirs.amax(-1) + logprobs.amax(-1) + held[..., 0],  # finite only where both models' logits are sound
            ]
        )
        ended = self._commit(state, book, contexts, midst, drafted, reached, made.cpu().numpy(), started)
        nan = "the logits of a model hold NaN or infinity"
        return [(i, how, judged.errors.get(i, nan) if how == "error" else None) for i, how in ended]

    def _draft(self, token: Tensor, at: Tensor, length: int, uniform: Tensor) -> tuple[Tensor, ...]:
        """One draft [R] of the student, and what judging it needs: log-probs, p, A and d, [R, V] each."""
        logits = self.student(token[:, None], at, length)[:, 0].float()
        logprobs = logits.log_softmax(-1)
        p = warp(logits + self.own, self.sampling)
        stands = acceptable(logprobs, p, self.acceptance, self.sampling)
        d = drafter(p, stands)
        return draw(d, uniform), logprobs, p, stands, d

    def _commit(
        self,
        state: np.ndarray,
        book: np.ndarray,
        contexts: list[Contexts],
        midst: Filter,
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
            if n and self.proposals.several.spelled:
                self.midst[i] = midst.after(i, n - 1, int(tokens[i, n - 1]))
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
        self.recent[row] = [*self.recent[row], *tokens][-self.proposals.longest :]
        self.teacher.keep(row, contexts, reading.ids, start)


def _at(logits: Tensor, index: np.ndarray) -> Tensor:
    """Logits [N, V] by their index [R, K]; any of them where it is -1. No copy where it is all of them in turn."""
    rows, block = index.shape
    if len(logits) == rows * block and (index.ravel() == np.arange(index.size)).all():
        return logits.view(rows, block, -1)
    return logits[torch.from_numpy(index).to(logits.device)]

"""One round for all live rows: draft, verify, commit. It knows ids only, never text.

The student drafts a block of tokens one by one, leaving its distribution at every position; the teacher
reads the block in one pass; what survives is committed (`sampling.verify`). A block of one is lockstep:
one step of each model a token. Rows advance by different amounts, and nothing is moved to roll back
(`cache`).
"""

import time
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsd.cache import CachedModel, RowCache
from rsd.config import Acceptance, Sampling
from rsd.graph import DraftLoop
from rsd.loops import EVERY, REACH, loops
from rsd.pace import Pace
from rsd.sampling import DRAFT, acceptable, drafter, draw, proposals, target, uniforms, verify, warp
from rsd.vocabulary import Vocabulary

# From so many rows on, a row whose next token the teacher spells in several pieces reads one of them a
# round and waits: widening the pass for all rows would cost more than the one row's wait.
WAIT_FROM = 16

# Columns of a row's state, which the host keeps and sends to the device once a round.
KEY, DONE, LIMIT, STUDENT_LENGTH, TEACHER_LENGTH, PENDING, TEACHER_PENDING, READ = range(8)
# Columns of a token's record, in the order in which a round makes them.
TOKEN, LABEL, TEACHER_LOGPROB, STUDENT_LOGPROB, ACCEPTED, PROPOSAL = range(6)
RECORD = 6  # columns


class Rounds:
    """Teacher and student in step. Arguments as of `engine.Engine`."""

    def __init__(
        self,
        teacher: PreTrainedModel,
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
        self.teacher = CachedModel(teacher, rows, compile=compile)
        self.student = CachedModel(student, rows, compile=compile)
        self.shared = vocabulary.shared.to(self.student.device)
        self.own = vocabulary.own.to(self.student.device)
        self.sampling, self.acceptance, self.pace, self.loop_check = sampling, acceptance, pace, loop_check
        # What the host looks up by the student's ids.
        self.spelled = vocabulary.spelled.numpy()
        self.spelling = vocabulary.spelling.numpy()
        self.teacher_has = vocabulary.shared.numpy() > 0
        self.stops = np.isin(np.arange(vocabulary.width), list(eos))
        on_gpu = self.student.device.type == "cuda"
        self.loop = DraftLoop(self._draft, self.student, capture=True) if compile and on_gpu else None

    def drop_caches(self, rows: int) -> None:
        """Free what both models have read, and have room for `rows` rows from now on."""
        if self.loop is not None:
            self.loop.drop()
        for model in (self.student, self.teacher):
            model.cache = RowCache(rows)

    def round(self, state: np.ndarray, book: np.ndarray, block: int) -> list[tuple[int, str]]:
        """Draft, verify, commit `block` tokens at the most: advances `state` [R, 8] and `book` [R, T, RECORD].

        Returns the rows that ended, and why. Nothing is advanced if it raises.
        """
        started = time.perf_counter()
        device = self.student.device
        noise = torch.from_numpy(uniforms(state[:, KEY], state[:, DONE, None] + np.arange(block))).to(device)
        on_device = torch.from_numpy(state).to(device)
        at, token = on_device[:, STUDENT_LENGTH, None], on_device[:, PENDING]
        reach = int(state[:, STUDENT_LENGTH].max()) + 1

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

        teacher_logits, reached = self._teach(state, drafts)
        teacher_logits = teacher_logits.to(device).float()
        q = proposals(teacher_logits, self.shared, self.sampling)
        goal = target(q, p, stands, self.acceptance.trials)
        verdict = verify(drafts, d, goal, noise)

        at_token = verdict.tokens[..., None]
        in_teacher = at_token.clamp_max(teacher_logits.shape[-1] - 1)
        theirs = teacher_logits.log_softmax(-1)
        likeliest = q.max(-1)
        made = torch.stack(  # as float64, so that ids are exact and one transfer carries all
            [
                verdict.tokens.double(),
                verdict.from_teacher,
                theirs.gather(-1, in_teacher)[..., 0],
                logprobs.gather(-1, at_token)[..., 0],
                goal.accepted,
                torch.where(likeliest.values > 0, likeliest.indices, -1),
                verdict.survived[:, None].expand(-1, block),
                theirs.amax(-1) + logprobs.amax(-1),  # finite only where both models' logits are sound
            ]
        )
        return self._commit(state, book, reached, made.cpu().numpy(), started)

    def _draft(self, token: Tensor, at: Tensor, length: int, uniform: Tensor) -> tuple[Tensor, ...]:
        """One draft [R] of the student, and what judging it needs: log-probs, p, A and d, [R, V] each."""
        logits = self.student(token[:, None], at, length)[:, 0].float()
        logprobs = logits.log_softmax(-1)
        p = warp(logits + self.own, self.sampling)
        stands = acceptable(logprobs, p, self.acceptance, self.sampling)
        d = drafter(p, stands)
        return draw(d, uniform), logprobs, p, stands, d

    def _teach(self, state: np.ndarray, drafts: Tensor) -> tuple[Tensor, np.ndarray]:
        """The teacher's logits [R, K, V_teacher] where each draft is to be judged, and of how many of a
        row's drafts [R] they are: the teacher has not read all pieces before the others yet.
        """
        block = drafts.shape[1]
        fed = state[:, TEACHER_PENDING, None]
        if block > 1:
            fed = np.concatenate([fed, drafts[:, :-1].cpu().numpy()], 1)
        lengths = self.spelled[fed]
        lengths[:, 0] -= state[:, READ]
        ends = lengths.cumsum(1)  # [R, K]: one past the last piece of each token
        columns = np.arange(block if len(fed) >= WAIT_FROM else ends[:, -1].max())
        which = np.minimum((columns[:, None] >= ends[:, None, :]).sum(-1), block - 1)
        # A row that is spelled in fewer pieces than another repeats its last one in place.
        of = np.take_along_axis
        piece = np.minimum(columns - of(ends - lengths, which, 1), of(lengths, which, 1) - 1)
        piece += np.where(which == 0, state[:, READ, None], 0)
        ids = self.spelling[of(fed, which, 1), piece]
        positions = state[:, TEACHER_LENGTH, None] + np.minimum(columns, ends[:, -1:] - 1)
        both = torch.from_numpy(np.stack([ids, positions])).to(self.teacher.device)
        logits = self.teacher(both[0], both[1], int(positions.max()) + 1)
        reached = (ends <= len(columns)).sum(1)
        if len(columns) > 1:
            last = torch.from_numpy(np.minimum(ends, len(columns)) - 1).to(logits.device)
            logits = logits.gather(1, last[..., None].expand(-1, -1, logits.shape[-1]))
        return logits, reached

    def _commit(
        self,
        state: np.ndarray,
        book: np.ndarray,
        reached: np.ndarray,
        made: np.ndarray,
        started: float,
    ) -> list[tuple[int, str]]:
        """Book what a round made [RECORD + 2, R, K], up to a row's end; the rows that ended, and why."""
        *_, survived, sound = made
        tokens = made[TOKEN].astype(np.int64)
        rows, block = tokens.shape
        column, row = np.arange(block), np.arange(rows)
        # The first draft that falls is replaced, and ends the block.
        kept = np.minimum(survived[:, 0].astype(int) + 1, reached)
        # What the teacher has read when it judges a token, and would have read for the next one.
        fed = np.concatenate([state[:, TEACHER_PENDING, None], tokens[:, :-1]], 1)
        read = (state[:, TEACHER_LENGTH] - state[:, READ])[:, None] + self.spelled[fed].cumsum(1)
        stops = self.stops[tokens]
        full = read + self.spelled[tokens] > self.teacher.context
        full |= state[:, DONE, None] + column + 1 >= state[:, LIMIT, None]
        valid = column < kept[:, None]
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
        waits = count == 0  # the block's columns were all pieces of the row's next token
        last = np.maximum(count - 1, 0)
        state[:, DONE] += count
        state[:, STUDENT_LENGTH] += count
        state[:, READ] = np.where(waits, state[:, READ] + block, 0)
        state[:, TEACHER_LENGTH] = np.where(waits, state[:, TEACHER_LENGTH] + block, read[row, last])
        for pending in (PENDING, TEACHER_PENDING):
            state[:, pending] = np.where(waits, state[:, pending], tokens[row, last])
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

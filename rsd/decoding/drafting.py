"""How a round's drafts are made: what can be looked up at once, then step by step while another column pays.

Whatever is drafted here stands where it is the token that the position's noise makes of r (`sampling`), so that no
choice of this module changes a trace.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rsd.decoding.block_size import BlockController
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.draft import Drafts, Outcome, Pass, Step, Student
from rsd.decoding.sampling import DRAFT, SURVIVE, uniforms

NONE = -1


class Drafting:
    """The drafts of one round of R rows.

    drafts, and noise: float64 [R, K, 4], the uniforms of their positions, which are chosen before the teacher speaks.
    counts: int64 [R], how many columns of each row the teacher is to read.

    Args:
        state: of `sequence.STATE`. stops: bool [V], tokens that end a trace. ahead: what was looked up for each row;
            streaks: for how long each has gone as before. loop: the student's steps as a GPU repeats them.
    """

    def __init__(
        self,
        student: Student,
        blocks: BlockController,
        state: np.ndarray,
        *,
        stops: np.ndarray,
        ahead: Sequence[list[int]],
        streaks: Sequence[int],
        loop: DraftLoop | None,
    ) -> None:
        self.began = time.perf_counter()
        self.student, self.blocks, self.state, self.stops, self.streaks = student, blocks, state, stops, streaks
        self.device = student.model.device
        # Where every look at a draft would have to wait for the device, drafts are looked at together.
        self._blind = loop is not None or self.device.type != "cpu"
        looked = max(map(len, ahead), default=0)
        steps = blocks.plan(len(state)) if self._blind else blocks.most()
        shape = len(state), steps + (looked + 1 if looked else 0)
        self._noise = uniforms(state["key"], state["done"][:, None] + np.arange(shape[1]))
        self._chances = torch.from_numpy(self._noise).to(self.device)
        self._reach = np.zeros(shape)  # how likely a column is to commit a token
        self._reach[:, 0] = 1
        self._given = np.zeros(shape, dtype=np.int64)
        self._guess = np.full(shape, NONE)  # what was looked up, whatever became of it
        self._sure = np.zeros(shape)  # the student's probabilities of what it drafts itself
        self._other: np.ndarray | None = None  # and of what was looked up and drafted in its place, 0 elsewhere
        self._columns = np.zeros(len(state), dtype=np.int64)  # how many each row has drafted
        self._passes: list[Pass] = []
        self._steps = 0
        if looked:
            self._read(ahead, looked + 1)
        self._step(steps, loop)
        self.counts = self._counts()
        self.drafting = time.perf_counter()
        self.drafts = self._drafts()
        self.noise = self._chances[:, : self.drafts.block]

    def _read(self, ahead: Sequence[list[int]], width: int) -> None:
        """One pass over what was looked up; each row goes on where the student's own draft is the likelier to stand."""
        counts = [len(found) + 1 for found in ahead]
        ids = np.array(
            [
                [t, *found, *[0] * (width - 1 - len(found))]
                for t, found in zip(self.state["pending"], ahead, strict=True)
            ]
        )
        columns = np.minimum(np.arange(width), np.array(counts)[:, None] - 1)
        ids = np.take_along_axis(ids, columns, 1)
        read = torch.from_numpy(np.stack([ids, self.state["length"][:, None] + columns])).to(self.device)
        real = np.arange(width) < np.array(counts)[:, None]
        row, column = real.nonzero()
        logits = self.student.model(read[0], read[1], self.state["length"] + np.array(counts), counts=counts)
        uniform = self._chances[torch.from_numpy(row), torch.from_numpy(column), DRAFT]
        step = Step(*self.student.drafted(logits, uniform))
        guess = np.array([t for found in ahead for t in (*found, NONE)])
        asked = torch.from_numpy(np.maximum(guess, 0)).to(self.device)[:, None]
        token, sure, other = self._heard(step.token, step.sure, step.logprobs.gather(-1, asked)[:, 0])
        survive = self._noise[row, column, SURVIVE]
        own, theirs = self.blocks.chance(sure, survive), self.blocks.chance_looked_up(other, survive)
        same = token == guess
        follows = same | ((guess != NONE) & (theirs > own))
        given = np.where(follows, guess, token)
        # Whatever is behind a place where the row does not follow was read in vain, and is written over.
        before = np.zeros((len(ahead), width), dtype=bool)
        before[row, column] = follows
        kept = np.concatenate([np.ones((len(ahead), 1), dtype=bool), before[:, :-1].cumprod(1).astype(bool)], 1)[
            row, column
        ]
        self._passes.append(Pass(step, np.where(kept, row, NONE), column))
        row, column = row[kept], column[kept]
        self._given[row, column], self._guess[row, column] = given[kept], guess[kept]
        self._sure[row, column] = sure[kept]
        self._other = np.zeros_like(self._sure)
        self._other[row, column] = np.where(follows & ~same, other, 0)[kept]
        stands = np.zeros((len(ahead), width))
        stands[row, column] = np.where(follows & ~same, theirs, own)[kept]
        self._columns = np.bincount(row, minlength=len(ahead))
        stands *= self._goes_on(self._given[:, :width], np.arange(width))
        self._reach[:, 1 : width + 1] = stands.cumprod(1)[:, : self._reach.shape[1] - 1]
        if not self._blind:
            self.blocks.step.add(len(guess), time.perf_counter() - self.began)

    def _step(self, most: int, loop: DraftLoop | None) -> None:
        """Drafts one by one, of all rows, where each of them is."""
        if self._passes:
            last = self._given[np.arange(len(self.state)), self._columns - 1]
            read = np.stack([last, self.state["length"] + self._columns])
        else:
            read = np.stack([self.state["pending"], self.state["length"]])
        both = torch.from_numpy(read).to(self.device)
        token, at, reach = both[0], both[1][:, None], read[1] + 1
        if self._blind:
            uniform = self._chances[..., DRAFT]
            if self._other is not None:
                columns = torch.from_numpy(self._columns[:, None] + np.arange(most))
                uniform = uniform.gather(1, columns.to(self.device))
            made = loop(token, at, uniform, reach) if loop else self.student.steps(token, at, uniform, reach)
            steps = [Step(*step) for step in made]
            self._passes += [self._pass(step, j) for j, step in enumerate(steps)]
            tokens, sures = (torch.stack([getattr(s, name) for s in steps]) for name in ("token", "sure"))
            told = self._heard(tokens, sures)
            for j in range(most):
                self._take(told[0][j], told[1][j])
            return
        while self._steps < most and (not self._passes or self._pays()):
            step = Step(*self.student.step(token, at, reach, self._uniform()))
            self._passes.append(self._pass(step, 0))
            self._take(*self._heard(step.token, step.sure))
            token, at, reach = step.token, at + 1, reach + 1

    def _pass(self, step: Step, ahead: int) -> Pass:
        if self._other is None:
            return Pass(step, None, self._columns)
        return Pass(step, np.arange(len(self._columns)), self._columns + ahead)

    def _uniform(self) -> Tensor:
        if self._other is None:
            return self._chances[:, self._steps, DRAFT]
        return self._chances[torch.arange(len(self._columns)), torch.from_numpy(self._columns), DRAFT]

    def _heard(self, tokens: Tensor, *logprobs: Tensor) -> list[np.ndarray]:
        """Tokens, and probabilities, on the host; what is not finite will be seen by its logits."""
        if tokens.device.type == "cpu":
            told = [tokens.numpy(), *(x.numpy() for x in logprobs)]
        else:
            told = list(torch.stack([x.double() for x in (tokens, *logprobs)]).cpu().numpy())
        return [told[0].astype(np.int64), *(np.exp(np.nan_to_num(x, nan=-9.0, posinf=0)) for x in told[1:])]

    def _take(self, token: np.ndarray, sure: np.ndarray) -> None:
        """A step more of every row."""
        at = np.arange(len(token)), self._columns
        self._given[at], self._sure[at] = token, sure
        if self.blocks.fixed is None:
            stands = self.blocks.chance(sure, self._noise[(*at, SURVIVE)]) * self._goes_on(token, self._columns)
            some = self._columns + 1 < self._reach.shape[1]
            self._reach[at[0][some], at[1][some] + 1] = (self._reach[at] * stands)[some]
        self._columns = self._columns + 1
        self._steps += 1

    def _goes_on(self, tokens: np.ndarray, columns: np.ndarray | int) -> np.ndarray:
        """Where a row may go on behind tokens [R] or [R, K] in these columns."""
        room = self.state["limit"] - self.state["done"] - 1
        return ~self.stops[tokens] & (columns < (room if tokens.ndim == 1 else room[:, None]))

    def _pays(self) -> bool:
        return self.blocks.goes_on(self._reach[np.arange(len(self._columns)), self._columns])

    def _counts(self) -> np.ndarray:
        columns = int(self._columns.max())
        drafted = np.arange(columns) < self._columns[:, None]
        return self.blocks.counts(self._reach[:, :columns] * drafted)

    def _drafts(self) -> Drafts:
        told = [row[:n].tolist() for row, n in zip(self._given, self.counts.tolist(), strict=True)]
        given = None
        if self._other is not None and self._other.any():
            given = torch.from_numpy(self._given[:, : max(map(len, told))]).to(self.device)
        return Drafts(self.student, self._passes, told, given=given)

    def learn(self, came: Outcome) -> None:
        verified = came.verified
        self.blocks.learn(
            drafting=self.drafting - self.began,
            verifying=time.perf_counter() - self.drafting - came.others,
            steps=self._steps if self._other is None else 0,
            columns=int(self.counts.sum()),
            verified=verified,
            survived=came.survived,
            ends=came.ends,
            tokens=came.committed,
        )
        if self.blocks.fixed is not None:
            return
        row, column = verified.nonzero()
        self.blocks.judged(self._sure[row, column], np.nan_to_num(came.ratio[row, column]))
        if self._other is not None:
            row, column = (verified & (self._guess[:, : verified.shape[1]] != NONE)).nonzero()
            other, guess = self._other[row, column], self._guess[row, column]
            self.blocks.judged_looked_up(
                np.array(self.streaks)[row] + column,
                other > 0,
                other,
                self._noise[row, column, SURVIVE],
                came.tokens[row, column] == guess,
            )

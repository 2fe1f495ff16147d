"""Drafts that the teacher makes itself, where asking it to go on costs less than having it read what others drafted.

A server that reads k drafts reads k contexts, each from where its cache ends: many times the work of saying k tokens,
if many rows are read together. So it may go on by itself, and tell what it finds likely in every place; the student
reads what it said in one pass. That is a draft like any other, which stands where it is the token that the position's
noise makes of r (`sampling`): no trace depends on who drafts. What a round of either kind makes is measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rsd.decoding.block_size import BlockController, Seconds, kind_of
from rsd.decoding.draft import Drafts, Outcome, Pass, Step, Student
from rsd.decoding.sampling import DRAFT, uniforms

LONGEST = 16  # tokens that a teacher is asked for at once
TRIED = (4, 8, 2, 16)  # counts of the first such rounds
TRIES = 2  # rounds of each of them, and of the worse kind each time that it is tried again
AGAIN = 64  # rounds after which the worse kind is tried again
WARM = 12  # rounds that the student drafts first: it begins in lockstep
FADE = 0.95  # what the rate of earlier rounds counts for, a round later
FORGET = 0.99  # the same of how tokens stood


class Said(NamedTuple):
    """What the teacher said by itself of one row: its tokens in the student's ids, as far as it has these, and in how
    many places it told what it finds likely."""

    tokens: list[int]
    told: int


class Turns:
    """Who drafts the next round: the student, or the teacher by going on."""

    def __init__(self) -> None:
        self._rates: dict[tuple[int, bool], np.ndarray] = {}  # tokens and seconds, by rows and whether the teacher did
        self._rounds: dict[tuple[int, bool], int] = {}
        self._seconds: dict[int, Seconds] = {}  # of the teacher's rounds, by the tokens it is asked for
        self._rows: dict[int, int] = {}  # of the last round of each kind
        self._stood = np.zeros(2)  # tokens of its own that were judged, and that stood

    def plan(self, rows: int) -> int:
        """How many tokens the teacher is to say in the next round; 0: the student drafts."""
        kind = kind_of(rows)
        tried = [k for k, said in self._seconds.items() if said.known and self._count(k, True) >= TRIES * len(TRIED)]
        if kind not in tried and tried:  # few rows are left, say
            kind = min(tried, key=lambda k: abs(k - kind))
        drafted, said = self._count(kind, False), self._count(kind, True)
        if drafted < WARM:
            return 0
        if said < TRIES * len(TRIED):
            return TRIED[said // TRIES]
        count, rate = self._best(kind)
        tokens, seconds = self._rates[kind, False]
        better, worse = (count, 0) if rate > tokens / seconds else (0, count)
        return worse if (drafted + said) % AGAIN < TRIES else better

    def _count(self, kind: int, by_teacher: bool) -> int:
        return self._rounds.get((kind, by_teacher), 0)

    def _best(self, kind: int) -> tuple[int, float]:
        """How many tokens pay best, and the tokens a second that rounds of so many rows make then."""
        judged, stood = self._stood
        stands = (stood + 3) / (judged + 4)
        rows, seconds = self._rows[kind], self._seconds[kind]
        expected = np.cumsum(stands ** np.arange(LONGEST))
        rates = [rows * float(expected[n - 1]) / seconds(n) for n in range(1, LONGEST + 1)]
        best = int(np.argmax(rates))
        return best + 1, rates[best]

    def learn(self, rows: int, asked: int, tokens: int, seconds: float) -> None:
        """A round of `rows` rows, the teacher asked for `asked` tokens or 0, committed `tokens` of all rows."""
        key = kind_of(rows), asked > 0
        self._rounds[key] = self._rounds.get(key, 0) + 1
        made = self._rates.setdefault(key, np.zeros(2))
        made *= FADE
        made += tokens, seconds
        self._rows[key[0]] = rows
        if asked:
            self._seconds.setdefault(key[0], Seconds()).add(asked, seconds)

    def judged(self, stood: np.ndarray) -> None:
        """Tokens of the teacher's, in places that all before them led to: whether they stood, bool [N]."""
        self._stood *= FORGET
        self._stood += len(stood), stood.sum()


class Continued:
    """The drafts of one round of R rows, in the place of what `drafting.Drafting` drafts.

    Args:
        state: of `sequence.STATE`. said: by row. turns: learns how they stood.
    """

    def __init__(
        self, student: Student, blocks: BlockController, turns: Turns, state: np.ndarray, said: Sequence[Said]
    ) -> None:
        self.blocks, self.turns = blocks, turns
        room = (state["limit"] - state["done"]).tolist()
        # A column more than the student has tokens for, where the teacher told what is likely there.
        self.counts = np.array(
            [max(1, min(len(one.tokens) + 1, one.told, most)) for one, most in zip(said, room, strict=True)]
        )
        width, device = int(self.counts.max()), student.model.device
        self.guess = np.full((len(state), width), -1)
        for row, one in zip(self.guess, said, strict=True):
            row[: min(len(one.tokens), width)] = one.tokens[:width]
        columns = np.arange(width)
        self.guess[columns >= self.counts[:, None]] = -1
        ids = np.concatenate([state["pending"][:, None], self.guess[:, :-1]], 1)
        ids = np.take_along_axis(ids, np.minimum(columns, self.counts[:, None] - 1), 1)
        at = state["length"][:, None] + np.minimum(columns, self.counts[:, None] - 1)
        read = torch.from_numpy(np.stack([ids, at])).to(device)
        noise = uniforms(state["key"], state["done"][:, None] + columns)
        self.noise = torch.from_numpy(noise).to(device)
        row, column = (columns < self.counts[:, None]).nonzero()
        counts = self.counts.tolist()
        logits = student.model(read[0], read[1], state["length"] + self.counts, counts=counts)
        uniform = self.noise[torch.from_numpy(row).to(device), torch.from_numpy(column).to(device), DRAFT]
        step = Step(*student.drafted(logits, uniform))
        tokens = np.zeros((len(state), width), dtype=np.int64)
        tokens[row, column] = step.token.numpy(force=True)
        tokens = np.where(self.guess >= 0, self.guess, tokens)
        told = [row[:n].tolist() for row, n in zip(tokens, counts, strict=True)]
        self.drafts = Drafts(student, [Pass(step, row, column)], told, given=torch.from_numpy(tokens).to(device))

    def learn(self, came: Outcome) -> None:
        self.blocks.count(came.verified, came.survived, came.committed)
        guess = self.guess[:, : came.verified.shape[1]]
        self.turns.judged((came.tokens == guess)[came.verified & (guess >= 0)])

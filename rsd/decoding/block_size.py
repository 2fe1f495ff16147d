"""How many tokens to draft a round: from what rounds have cost, and how far drafts have survived.

A round of k drafts costs k student steps and one teacher pass of k columns, and commits
1 + s1 + s1 s2 + ... tokens (k terms; s the survival of each draft after those before it). Where a pass
over k columns costs little more than one over a single column (one row; a GPU), long blocks win; where
it costs k times as much (many rows on a CPU), lockstep does. So nothing is assumed: both are measured.
"""

from collections import Counter, deque
from statistics import median
from typing import Any

import numpy as np

CHOICES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])
REMEMBER = 15  # rounds whose median is the cost of a choice
COLD = 0.6  # what the first round of a choice is taken to cost when warm: it allocates, compiles, captures
DOUBT = 0.08  # how far a cost may be below its median if it was measured once; shrinks with the root of the rounds
MARGIN = 0.05  # by which a block must be better than lockstep: never to be slower counts more than a little
FADE = 0.998  # how much of the rounds that a cost remainders on is left a round later, so that it is measured again
FORGET = 0.99  # the same for the survival of drafts


class BlockController:
    """Chooses the block length of every round, and keeps statistics of all of them.

    It begins in lockstep and climbs while that pays. A choice never changes a trace.

    Args:
        fixed: always this block length.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.longest = max(fixed or 0, int(CHOICES[-1]))
        self.begin()
        # Drafts verified by position in the block, and of these the ones after which a row goes on.
        self._recent = np.zeros((2, self.longest))
        self._costs: dict[int, dict[int, _Cost]] = {}

    def begin(self) -> None:
        """Begin new statistics; what was learned stays."""
        self.verified = np.zeros(self.longest, dtype=np.int64)
        self.survived = np.zeros(self.longest, dtype=np.int64)
        self.blocks: Counter[int] = Counter()
        self.row_rounds = self.tokens = self.most_rows = 0

    def choose(self, rows: int) -> int:
        """The block length of the next round of `rows` live rows."""
        if self.fixed is not None:
            return self.fixed
        if not self._costs:
            return 1
        # With a new number of rows, what was best for the nearest one is measured first.
        kind = min(self._costs, key=lambda other: abs(other - _kind(rows)))
        costs = self._costs[kind]
        measured = np.array(sorted(costs))
        least = np.array([costs[k].least() for k in measured])
        # What was never measured is taken to be cheap, so that it is tried where it could be best: fewer
        # drafts at their share of the cost, more of them at half the last slope. (Up to four at no slope:
        # going from one column to two can cost more than from two to eight.)
        seconds = np.interp(CHOICES, measured, least)
        seconds = np.where(measured[0] > CHOICES, least[0] * CHOICES / measured[0], seconds)
        if measured[-1] >= 4 and len(measured) > 1:
            slope = (least[-1] - least[-2]) / (measured[-1] - measured[-2]) / 2
            seconds += max(slope, 0) * np.maximum(CHOICES - measured[-1], 0)
        rate = self.expected()[CHOICES - 1] / seconds
        rate[2 * measured[-1] < CHOICES] = 0  # climbs in steps
        rate[0] *= 1 + MARGIN
        return int(CHOICES[rate.argmax()])

    def expected(self) -> np.ndarray:
        """Tokens that a round of 1, 2, ... drafts is expected to commit to a row."""
        verified, went_on = self._recent
        pooled = (went_on.sum() + 4) / (verified.sum() + 5)
        goes_on = (went_on + 4 * pooled) / (verified + 4)
        return np.concatenate([[1.0], goes_on[:-1]]).cumprod().cumsum()

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a round committed to a row, on average; 0 before the first."""
        return self.tokens / max(self.row_rounds, 1)

    def learn(
        self, *, seconds: float, verified: np.ndarray, survived: np.ndarray, ends: np.ndarray, tokens: int
    ) -> None:
        """Take down one round.

        Args:
            seconds: wall time of the round.
            verified, survived, ends: bool [R, K]: drafts that were verified with all before them standing;
                those that stood; those whose token ended the trace.
            tokens: committed by all rows together.
        """
        rows, block = verified.shape
        self.blocks[block] += 1
        self.row_rounds += rows
        self.most_rows = max(self.most_rows, rows)
        self.tokens += tokens
        self.verified[:block] += verified.sum(0)
        self.survived[:block] += survived.sum(0)
        self._recent *= FORGET
        self._recent[0, :block] += verified.sum(0)
        self._recent[1, :block] += (survived & ~ends).sum(0)
        costs = self._costs.setdefault(_kind(rows), {})
        for cost in costs.values():
            cost.weight *= FADE
        costs.setdefault(block, _Cost()).add(seconds)

    def statistics(self) -> dict[str, Any]:
        """Totals of all rounds since `begin`, as JSON values.

        rounds, row_rounds (a round of 8 rows is 8), tokens committed, rounds by block size, and by a
        draft's position in its block how many were verified and how many survived.
        """
        longest = int(np.count_nonzero(self.verified))
        return {
            "rounds": self.blocks.total(),
            "row_rounds": self.row_rounds,
            "tokens": self.tokens,
            "block_sizes": {str(k): n for k, n in sorted(self.blocks.items())},
            "drafts_judged": self.verified[:longest].tolist(),
            "drafts_survived": self.survived[:longest].tolist(),
        }


def _kind(rows: int) -> int:
    """Numbers of rows that cost about the same are measured together: 1, 2, 3-4, 5-8, 9-16, ..."""
    return (rows - 1).bit_length()


class _Cost:
    """Seconds of the last rounds of one choice, and how many rounds they still count for."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.seconds: deque[float] = deque(maxlen=REMEMBER)
        self.weight = 0.0

    def add(self, seconds: float) -> None:
        self.weight += 1
        if self.first is None:
            self.first = seconds
        else:
            self.seconds.append(seconds)

    def least(self) -> float:
        """What the choice may cost at the least, as far as is known."""
        if not self.seconds:
            return COLD * (self.first or 0.0)
        return median(self.seconds) * (1 - min(DOUBT / self.weight**0.5, 0.9))

"""How far a round drafts, and which drafts the teacher reads: from what passes cost, and how drafts stand.

A round has a column for the next token of every row, and one more behind each draft; a column commits a token if
all drafts before it stand. One step of the student makes a column more of every row, and a column of the teacher's
pass costs more or less: next to nothing for one row or on a GPU, nearly as much as the first for many rows on a CPU.
Nothing is assumed about that: it is measured.

How likely a draft is to stand is known before the teacher speaks, row by row. It stands if u < r(x) / d(x), and its
uniform u is known, since noise belongs to a position; how r(x) / d(x) is distributed is learned, by the probability
that the student gives x. (The idea is this project's.) A column is asked for where its chance of committing a token
is at least the tokens that its time makes elsewhere; a step more is drafted where all such columns together pay for
it. What is committed is a function of a row's context and noise, so that none of this changes a trace.
"""

import math
from collections import Counter, deque
from statistics import median
from typing import Any

import numpy as np

LONGEST = 24  # columns of a row
REMEMBER = 15  # passes whose median is what their size costs
COLD = 0.6  # what the first pass of a size is taken to cost when warm: it allocates, compiles, captures
# Share of an average column that one more is taken to cost as long as that is not measured; and for how many passes
# this counts then.
CHEAP, PRIOR = 0.05, 0.2
FADE = 0.998  # how much of the passes that a cost stands on is left a pass later, so that it is measured again
FORGET = 0.99  # the same for how drafts stand
RECENT = 0.95  # and for the rate of rounds
MARGIN = 0.05  # by which more than lockstep must be better: never to be slower counts more than a little
SURE, EVEN = 16, 16  # bins: of the student's probability of a draft, and of uniforms
# Of drafts, and of others than the student's own, that are taken to stand before any were judged.
GUESS, STRANGE = 0.75, 0.25
LIKELY = 0.5  # what is looked up must stand as often: rows that differ in columns are dearer to draft for
STREAKS = (1, 4, 8, 16, 32)  # how long a text has gone as it did before, in tokens


class BlockController:
    """Chooses how far every round drafts and what the teacher reads, and keeps statistics of all rounds.

    It begins in lockstep.

    Args:
        fixed: always so many columns of each row.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.longest = fixed or 2 * LONGEST  # as many looked up as drafted
        self.begin()
        self.step, self.teacher = Seconds(), Seconds()
        self._rates: dict[int, np.ndarray] = {}  # tokens and seconds of the last rounds, by the number of rows
        self._drafts = Standing()
        # Tokens that were looked up and judged, and of these what stood: all; where the student would draft others.
        self._followed = np.zeros((2, len(STREAKS)))
        self._others = np.zeros((2, SURE, 4))
        self._recent = np.zeros((2, self.longest))  # drafts judged by position, and those after which a row went on
        self._worths: dict[int, tuple[float, float]] = {}  # of the round that is drafted, by its rows
        self._last = 1

    def begin(self) -> None:
        """Begin new statistics; what was learned stays."""
        self.verified = np.zeros(self.longest, dtype=np.int64)
        self.survived = np.zeros(self.longest, dtype=np.int64)
        self.blocks: Counter[int] = Counter()
        self.row_rounds = self.tokens = self.most_rows = 0

    def most(self) -> int:
        """Columns that the next round has at the most; it climbs in steps."""
        return self.fixed or min(LONGEST, 2 * self._last + 1)

    def plan(self, rows: int) -> int:
        """Columns of the next round of `rows` rows, where its drafts are only looked at when all are made."""
        if self.fixed:
            return self.fixed
        if not self.teacher.known:
            return 1
        columns = np.arange(1, self.most() + 1)
        seconds = columns * self.step(rows) + [self.teacher(n * rows) for n in columns.tolist()]
        rate = self.expected()[: len(columns)] / seconds
        rate[0] *= 1 + MARGIN
        return int(rate.argmax()) + 1

    def expected(self) -> np.ndarray:
        """Tokens that a round of 1, 2, ... columns is expected to commit to a row."""
        judged, went_on = self._recent
        pooled = (went_on.sum() + 4 * GUESS) / (judged.sum() + 4)
        goes_on = (went_on + 4 * pooled) / (judged + 4)
        return np.concatenate([[1.0], goes_on[:-1]]).cumprod().cumsum()

    def chance(self, sure: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """How likely drafts are to stand.

        Args:
            sure: the student's probabilities of them. uniform: those that decide it.
        """
        return self._drafts.chance(sure, uniform)

    def chance_looked_up(self, sure: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """The same for tokens that were looked up, where the student would have drafted others."""
        judged, stood = self._others[:, _bin(sure), (uniform * 4).astype(np.int64)]
        return (stood + 2 * STRANGE) / (judged + 2)

    def look_up(self, rows: int, streak: int) -> int:
        """How many tokens are worth looking up for a row whose text has gone as before for `streak` tokens.

        Each costs a column of the student's, and saves a step, or makes a better draft, if it stands.
        """
        if self.fixed is not None or not self.step.known:
            return 0
        judged, stood = self._followed[:, np.searchsorted(STREAKS, streak, side="right") - 1]
        chance = (stood + 4 * GUESS) / (judged + 4)
        worth = self.step.slope(rows) * rows / self.step(rows)
        if chance < max(worth, LIKELY):
            return 0
        return min(LONGEST - 1, int(math.log(max(worth, 1e-3)) / math.log(min(chance, 0.995))))

    def goes_on(self, reach: np.ndarray) -> bool:
        """Whether another column pays.

        Args:
            reach: [R], how likely it is to commit a token of each row.
        """
        if self.fixed is not None or not self.teacher.known:
            return self.fixed is not None
        column, step = self._worth(len(reach))
        return float(np.maximum(reach - column, 0).sum()) > step

    def counts(self, reach: np.ndarray) -> np.ndarray:
        """How many columns of each row the teacher is asked for, int64 [R].

        Args:
            reach: [R, K], how likely each is to commit a token; never rising, and 1 in the first one.
        """
        if self.fixed is not None:
            return np.full(len(reach), reach.shape[1])
        least = self._worth(len(reach))[0] if self.teacher.known else 0.0
        return np.maximum((reach > max(least, 0.02)).sum(1), 1)

    def _worth(self, rows: int) -> tuple[float, float]:
        """The tokens that the time of a column of the teacher's, and of a step, makes elsewhere."""
        if rows not in self._worths:
            rate = self.rate(rows)
            self._worths[rows] = rate * self.teacher.slope(rows), rate * self.step(rows)
        return self._worths[rows]

    def rate(self, rows: int) -> float:
        """Tokens a second that rounds make: what they lately made, or what lockstep would."""
        lockstep = rows / (self.step(rows) + self.teacher(rows))
        tokens, seconds = self._rates.get(kind_of(rows), (0.0, 0.0))
        return max(lockstep * (1 + MARGIN), tokens / seconds if seconds else 0.0)

    @property
    def tokens_per_round(self) -> float:
        """Tokens that a round committed to a row, on average; 0 before the first."""
        return self.tokens / max(self.row_rounds, 1)

    def learn(
        self,
        *,
        drafting: float,
        verifying: float,
        steps: int,
        columns: int,
        verified: np.ndarray,
        survived: np.ndarray,
        ends: np.ndarray,
        tokens: int,
    ) -> None:
        """Take down one round.

        Args:
            drafting, verifying: seconds of `steps` steps of the student, 0 if these were not like others; and of the
                rest, with a pass of the teacher over `columns` columns.
            verified, survived, ends: bool [R, K]: columns that were asked for, with all drafts before them standing;
                those whose draft stood; those whose token ended the trace.
            tokens: committed by all rows together.
        """
        rows, block = verified.shape
        self.count(verified, survived, tokens)
        self._last = block
        self._worths.clear()
        self._recent *= FORGET
        self._recent[0, :block] += verified.sum(0)
        self._recent[1, :block] += (survived & ~ends).sum(0)
        if steps:
            self.step.add(rows, drafting / steps)
        self.teacher.add(columns, verifying)
        made = self._rates.setdefault(kind_of(rows), np.zeros(2))
        made *= RECENT
        made += tokens, drafting + verifying

    def count(self, verified: np.ndarray, survived: np.ndarray, tokens: int) -> None:
        """Count a round; arguments as of `learn`."""
        rows, block = verified.shape
        self.blocks[block] += 1
        self.row_rounds += rows
        self.tokens += tokens
        self.verified[:block] += verified.sum(0)
        self.survived[:block] += survived.sum(0)

    def judged(self, sure: np.ndarray, ratio: np.ndarray) -> None:
        """Drafts of which the teacher has spoken.

        Args:
            sure: the student's probabilities of them. ratio: r(x) / d(x), at most 1.
        """
        self._drafts.add(sure, ratio)

    def judged_looked_up(
        self, streak: np.ndarray, other: np.ndarray, sure: np.ndarray, uniform: np.ndarray, stood: np.ndarray
    ) -> None:
        """Tokens that were looked up, of which the teacher has spoken.

        Args:
            streak: how long each row's text had gone as before. other: bool, the student would have drafted another
                token. sure, uniform: as of `chance`. stood: bool.
        """
        self._followed *= FORGET
        at = np.searchsorted(STREAKS, streak, side="right") - 1
        np.add.at(self._followed[0], at, 1.0)
        np.add.at(self._followed[1], at[stood], 1.0)
        self._others *= FORGET
        sure, uniform, stood = sure[other], uniform[other], stood[other]
        bins = _bin(sure), (uniform * 4).astype(np.int64)
        np.add.at(self._others[0], bins, 1.0)
        np.add.at(self._others[1], bins, stood.astype(float))

    def statistics(self) -> dict[str, Any]:
        """Totals of all rounds since `begin`, as JSON values.

        rounds, row_rounds (a round of 8 rows is 8), tokens committed, rounds by the columns of their longest row, and
        by a draft's position in its block how many were verified and how many survived.
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


class Standing:
    """How r(x) / d(x) of drafts is distributed, by the student's probability of x."""

    def __init__(self) -> None:
        self.seen = np.zeros((SURE, EVEN + 1))  # by the ratio; those of 1 apart
        self._chance: np.ndarray | None = None

    def add(self, sure: np.ndarray, ratio: np.ndarray) -> None:
        self.seen *= FORGET
        np.add.at(self.seen, (_bin(sure), (ratio * EVEN).astype(np.int64)), 1.0)
        self._chance = None

    def chance(self, sure: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        if self._chance is None:
            # Of a uniform's own bin half is taken to be above it.
            above = self.seen[:, ::-1].cumsum(1)[:, ::-1]
            above = (above[:, 1:] + above[:, :-1]) / 2
            of_all = (above.sum(0) + 4 * GUESS) / (self.seen.sum() + 4)
            self._chance = (above + 4 * of_all) / (self.seen.sum(1, keepdims=True) + 4)
        return self._chance[_bin(sure), (uniform * EVEN).astype(np.int64)]


def _bin(sure: np.ndarray) -> np.ndarray:
    """Bins of probabilities, narrower where drafts stand."""
    return np.minimum(sure * sure * SURE, SURE - 1).astype(np.int64)


class Seconds:
    """What passes over so many columns cost."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Cost] = {}
        self._points: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # columns, seconds, passes

    @property
    def known(self) -> bool:
        return bool(self._sizes)

    def add(self, columns: int, seconds: float) -> None:
        for cost in self._sizes.values():
            cost.weight *= FADE
        self._sizes.setdefault(round(2 * math.log2(columns)), _Cost()).add(columns, seconds)
        self._points = None

    def _known(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._points is None:
            costs = [self._sizes[size] for size in sorted(self._sizes)]
            points = np.array([[c.columns, c.typical(), min(c.weight, REMEMBER)] for c in costs]).T
            self._points = points[0], points[1], points[2]
        return self._points

    def __call__(self, columns: int) -> float:
        """Seconds of a pass over so many columns."""
        at, seconds, _ = self._known()
        if columns <= at[0]:
            return float(max(seconds[0] - (at[0] - columns) * self.slope(columns), seconds[0] * columns / at[0]))
        if columns >= at[-1]:
            return float(seconds[-1] + (columns - at[-1]) * self.slope(columns))
        return float(np.interp(columns, at, seconds))

    def slope(self, columns: int) -> float:
        """Seconds of one column more, from so many columns on."""
        at, seconds, weight = self._known()
        nearest = int(np.abs(at - columns).argmin())
        average = seconds[nearest] / at[nearest]
        some = at >= columns / 2
        more = weight * (at > 1.2 * columns)
        evidence, slope = float(more.sum()), 0.0
        if evidence and some.sum() > 1:
            x, y, w = at[some], seconds[some], weight[some]
            x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
            slope = float((w * x * y).sum() / (w * x * x).sum())
        slope = min(max(slope, 0.0), average)
        return (evidence * slope + PRIOR * CHEAP * average) / (evidence + PRIOR)


def kind_of(rows: int) -> int:
    """Numbers of rows that cost about the same are measured together: 1, 2, 3-4, 5-8, 9-16, ..."""
    return (rows - 1).bit_length()


class _Cost:
    """Seconds of the last passes of one size, and how many passes they still count for."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.seconds: deque[float] = deque(maxlen=REMEMBER)
        self.columns = self.weight = 0.0

    def add(self, columns: int, seconds: float) -> None:
        self.weight += 1
        self.columns += (columns - self.columns) / min(self.weight, REMEMBER)
        if self.first is None:
            self.first = seconds
        else:
            self.seconds.append(seconds)

    def typical(self) -> float:
        return median(self.seconds) if self.seconds else COLD * (self.first or 0.0)

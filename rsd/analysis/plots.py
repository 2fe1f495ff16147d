"""The charts of a comparison's report, in the pixels of their SVG."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from rsd.analysis.compare import Comparison, Pair, mean
from rsd.analysis.figures import minus, number
from rsd.scoring.metrics import LN
from rsd.scoring.scorer import Scored

T = TypeVar("T")
POINTS = 1000  # of the scatter plot
POSITIONS = 20
SURPRISALS = 50  # bins
MOST = 25.0  # nats; the last bin holds what is above
SERIES = {1: "b", 2: "ab"}  # the classes of the sides' lines


class Ranked(NamedTuple):
    """A problem of one set: its Local Naturalness in nats a token, and its mean length in tokens."""

    key: str
    ln: float
    tokens: float


class Plot:
    """One chart in the pixels of its SVG, whose axes and marks the template draws.

    paths: class and outline. points: x, y, what each is, and the problem that it leads to. bars: outline, what each
    is, and the lowest and the highest value of its problems. texts: x, y, anchor and what is written there.
    legend: whether the two sides are told apart in it.
    """

    width, height, left, right, top, bottom = 440, 300, 62, 428, 14, 250

    def __init__(
        self,
        title: str,
        x: tuple[str, float, float],
        y: tuple[str, float, float],
        *,
        notes: Iterable[str] = (),
        legend: bool = False,
    ) -> None:
        """x, y: of each axis the label, the lowest and the highest value."""
        self.title, self.notes, self.legend = title, list(notes), legend
        (self.x_label, *self.x_range), (self.y_label, *self.y_range) = x, y
        self.x_ticks = [(self.x(v), label) for v, label in _ticks(*self.x_range)]
        self.y_ticks = [(self.y(v), label) for v, label in _ticks(*self.y_range)]
        self.paths: list[tuple[str, str]] = []
        self.points: list[tuple[float, float, str, str]] = []
        self.bars: list[tuple[str, str, float, float]] = []
        self.texts: list[tuple[float, float, str, str]] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    def line(self, name: str, xs: Iterable[float], ys: Iterable[float]) -> None:
        self.paths.append((name, "M" + "L".join(f"{self.x(a)} {self.y(b)}" for a, b in zip(xs, ys, strict=True))))

    def steps(self, name: str, edges: np.ndarray, heights: np.ndarray) -> None:
        """The outline of a histogram, open where it is empty, so that no line runs along the axis."""
        path = f"M{self.x(float(edges[0]))} {self.bottom}"
        for edge, height in zip(map(self.x, edges[1:].tolist()), map(self.y, heights.tolist()), strict=True):
            path += f"V{height}H{edge}" if height < self.bottom else f"V{height}M{edge} {height}"
        self.paths.append((name, f"{path}V{self.bottom}"))

    def histogram(self, edges: np.ndarray, counts: np.ndarray) -> None:
        """Bars of whole numbers, each of which leads to its problems."""
        self.y_ticks = [(self.y(v), f"{v:.0f}") for v, _ in _ticks(*self.y_range) if abs(v - round(v)) < 1e-9]
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
            if count:
                outline = f"M{self.x(low)} {self.bottom}V{self.y(count)}H{self.x(high)}V{self.bottom}Z"
                what = f"{count} problem{'' if count == 1 else 's'}, {number(low)} to {number(high)}"
                self.bars.append((outline, what, low, high))


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values in a range, about five, and how they are written."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= 0.7 * raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(v, minus(f"{v:.{digits}f}")) for v in values]


def _around(values: np.ndarray) -> tuple[float, float]:
    """A range with room around all values, however alike they are."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) if high - low > 1e-9 * max(1.0, abs(low)) else max(0.5, abs(low) / 10)
    return low - room, high + room


def plots(c: Comparison, logprobs: Callable[[Scored], np.ndarray]) -> list[Plot]:
    """The charts of a comparison, over all of its traces; none of them is held for longer than it is looked at.

    Args:
        logprobs: the student's log-probs of a trace's tokens, one entry a token.
    """
    sides = [[s for p in c.pairs for s in side(p)] for side in (lambda p: p.baseline, lambda p: p.candidate)]
    made = _of_tokens(sides, float(c.scoring["threshold"]), logprobs)
    if ranked := c.ranked():
        made += [_scatter(ranked), _differences(ranked)]
    return made


def set_plots(
    ranked: Sequence[Ranked], scored: Sequence[Scored], threshold: float, logprobs: Callable[[Scored], np.ndarray]
) -> list[Plot]:
    """The charts of one set of traces. ranked: the key, the Local Naturalness and the mean length of each problem."""
    made = _of_tokens([scored], threshold, logprobs)
    if ranked:
        made += [_lengths(ranked), _levels(ranked)]
    return made


def _of_tokens(
    sides: Sequence[Sequence[Scored]], threshold: float, logprobs: Callable[[Scored], np.ndarray]
) -> list[Plot]:
    """The charts that need every token of every side."""

    def surprisals(side: Sequence[Scored]) -> Iterator[np.ndarray]:
        return (-logprobs(s).astype(float) for s in side)

    curves = [_Curve(surprisals(side)) for side in sides]
    most = min(max(*(curve.highest for curve in curves), 1.0), MOST)
    edges = np.linspace(0, most, SURPRISALS + 1)
    shares = [
        sum(np.histogram(np.minimum(v, most), edges)[0] for v in surprisals(side)) / curve.counts.sum()
        for side, curve in zip(sides, curves, strict=True)
    ]
    cut = any(curve.highest > most for curve in curves)
    return [_distribution(edges, shares, threshold, cut=cut), _positions(curves)]


class _Curve:
    """A side's surprisals summed, and its tokens counted, by their relative positions [POSITIONS]; and the highest."""

    def __init__(self, surprisals: Iterable[np.ndarray]) -> None:
        self.sums, self.counts, self.highest = np.zeros(POSITIONS), np.zeros(POSITIONS, dtype=np.int64), 0.0
        for v in surprisals:
            at = np.arange(len(v)) * POSITIONS // len(v)
            np.add.at(self.sums, at, v)
            self.counts += np.bincount(at, minlength=POSITIONS)
            self.highest = max(self.highest, float(v.max()))


def _distribution(edges: np.ndarray, shares: Sequence[np.ndarray], threshold: float, *, cut: bool) -> Plot:
    """How surprising tokens are; on a log scale, since most are not at all, and it is the others that matter.

    Args:
        cut: whether the last bin also holds what is above it.
    """
    most = float(edges[-1])
    lowest = math.floor(math.log10(min(s[s > 0].min() for s in shares)) - 1e-9)
    notes = ["The share axis is logarithmic."]
    if cut:
        notes.append(f"The last bin holds all tokens above {most:g} nats.")
    plot = Plot(
        "How surprising the tokens are to the student",
        ("surprisal of a token (nats)", 0, most),
        ("share of the tokens", lowest, 0),
        notes=notes,
        legend=len(shares) > 1,
    )
    decades = range(lowest, 1, max(1, round(-lowest / 5)))
    plot.y_ticks = [(plot.y(d), f"{100 * 10.0**d:g} %") for d in decades]
    for name, share in zip(SERIES[len(shares)], shares, strict=True):
        plot.steps(name, edges, np.log10(np.maximum(share, 10.0**lowest)))
    if 0 < threshold < 1 and -math.log(threshold) < most:
        at = -math.log(threshold)
        plot.line("mark", [at, at], [lowest, 0])
        plot.texts.append((plot.x(at) + 5, plot.top + 12, "start", f"p = {threshold:g}"))
    return plot


def _positions(sides: Sequence[_Curve]) -> Plot:
    curves = []
    for side in sides:
        known = np.flatnonzero(side.counts)  # traces may be shorter than there are bins
        curves.append((known, side.sums[known] / side.counts[known]))
    plot = Plot(
        "Where in the trace they are",
        ("relative position in the trace (%)", 0, 100),
        ("mean surprisal (nats)", 0, max(1.05 * max(float(means.max()) for _, means in curves), 0.01)),
        notes=[f"Means over all tokens in each of {POSITIONS} parts."],
        legend=len(curves) > 1,
    )
    for name, (known, means) in zip(SERIES[len(curves)], curves, strict=True):
        plot.line(name, ((known + 0.5) * 100 / POSITIONS).tolist(), means.tolist())
    return plot


def _scatter(ranked: Sequence[Pair]) -> Plot:
    notes = ["Above the diagonal the candidate is the more natural one."]
    if len(ranked) > POINTS:
        notes.append(f"Shown are {POINTS} of {len(ranked)} problems, evenly spaced by their difference.")
    ranked = _thinned(ranked)
    found = [(mean(p.baseline, LN) or 0.0, mean(p.candidate, LN) or 0.0) for p in ranked]
    low, high = _around(np.array(found))
    plot = Plot(
        "Local Naturalness of each problem",
        ("baseline (nats a token)", low, high),
        ("candidate (nats a token)", low, high),
        notes=notes,
    )
    plot.line("mark", [low, high], [low, high])
    for p, (a, b) in zip(ranked, found, strict=True):
        plot.points.append((plot.x(a), plot.y(b), f"{p.key}: {number(a)} → {number(b)}", p.key))
    return plot


def _lengths(ranked: Sequence[Ranked]) -> Plot:
    notes = ["Each dot is a problem."]
    if len(ranked) > POINTS:
        notes.append(f"Shown are {POINTS} of {len(ranked)}, evenly spaced by their naturalness.")
    shown = _thinned(ranked)
    plot = Plot(
        "Length and naturalness",
        ("tokens of a trace", *_around(np.array([p.tokens for p in shown]))),
        ("Local Naturalness (nats a token)", *_around(np.array([p.ln for p in shown]))),
        notes=notes,
    )
    for p in shown:
        what = f"{p.key}: {number(p.ln)}, {number(p.tokens)} tokens"
        plot.points.append((plot.x(p.tokens), plot.y(p.ln), what, p.key))
    return plot


def _levels(ranked: Sequence[Ranked]) -> Plot:
    values = np.array([p.ln for p in ranked])
    counts, edges = np.histogram(values, 1 + 2 * min(20, 4 + len(values) // 16), _around(values))
    plot = Plot(
        "Local Naturalness of each problem",
        ("nats a token", float(edges[0]), float(edges[-1])),
        ("problems", 0, 1.12 * int(counts.max())),
        notes=["A bar leads to its problems."],
    )
    plot.histogram(edges, counts)
    return plot


def _thinned(ranked: Sequence[T]) -> Sequence[T]:
    """At most POINTS of them, evenly spaced."""
    if len(ranked) <= POINTS:
        return ranked
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, POINTS).round().astype(int)]


def _differences(ranked: Sequence[Pair]) -> Plot:
    deltas = np.array([p.deltas[LN] for p in ranked], dtype=float)
    low, high = _around(np.append(deltas, 0))
    bins = 1 + 2 * min(20, 4 + len(deltas) // 16)  # odd, so that equal sides are one bar around 0
    counts, edges = np.histogram(deltas, bins, (low, high))
    gains, losses = int((deltas > 0).sum()), int((deltas < 0).sum())
    plot = Plot(
        "Differences in Local Naturalness",
        ("candidate \u2212 baseline (nats a token)", low, high),
        ("problems", 0, 1.12 * int(counts.max())),  # room for the label
        notes=[f"{gains} gain, {losses} lose, {len(deltas) - gains - losses} are equal. A bar leads to them."],
    )
    plot.histogram(edges, counts)
    top = plot.y_range[1]
    plot.line("mark", [0, 0], [0, top])
    average = float(deltas.mean())
    plot.line("b", [average, average], [0, top])
    right = plot.x(average) > (plot.left + plot.right) / 2
    at, anchor = (plot.x(average) - 5, "end") if right else (plot.x(average) + 5, "start")
    plot.texts.append((at, plot.top + 12, anchor, f"mean {number(average, '+')}"))
    return plot

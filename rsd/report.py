"""The HTML report of a comparison: one file that needs no network and trusts nothing that it shows."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rsd.compare import BY_CONSTRUCTION, Comparison, Pair, mean
from rsd.naturalness import Reading
from rsd.scoring import METRICS, Scored

LN = "local_naturalness"
GENERATIONS = 4  # of a side of a problem whose heat maps are embedded
POINTS = 1000  # of the scatter plot
POSITIONS = 20
SURPRISALS = 50  # bins
MOST = 25.0  # nats; the last bin holds what is above
LABELS = {
    LN: ("Local Naturalness", "log-prob after prompt and window, nats a token"),
    "global_logprob": ("Global log-prob", "after all that precedes, nats a token"),
    "perplexity": ("Perplexity", "of the whole trace"),
    "rsr": ("RSR", "mean rank over mean surprisal"),
    "aslec_drop": ("ASLEC-DROP", "log-prob without each step's first token"),
    "low_prob_share": ("Improbable tokens", "share below the threshold"),
    "surprisal_p50": ("Surprisal, median", "nats"),
    "surprisal_p90": ("Surprisal, 90th percentile", "nats"),
    "surprisal_p99": ("Surprisal, 99th percentile", "nats"),
    "scored_tokens": ("Tokens", "a trace"),
    "num_steps": ("Steps", "a trace"),
    "tokens_per_step": ("Tokens a step", "longer steps score better"),
}


def html_report(comparison: Comparison, *, decode: Callable[[int], str], tokens: int = 300_000) -> str:
    """The report as one HTML file's text, which UTF-8 can encode.

    Args:
        decode: the text of one token id, for what the teacher proposed.
        tokens: bounds the tokens whose heat maps are embedded; summary and plots always cover all.
    """
    import jinja2

    pairs, decode = _embedded(comparison, tokens), cache(decode)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = _number
    html = page.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).render(
        c=comparison,
        by_construction=BY_CONSTRUCTION,
        ln=comparison.metrics.get(LN),
        rows=[(name, *LABELS[name], better) for name, better in METRICS.items()],
        plots=_plots(comparison),
        embedded=len(pairs),
        cut=any(len(side) > GENERATIONS for p in pairs for side in (p.baseline, p.candidate)),
        generations=GENERATIONS,
        data=_json({"names": comparison.names, "problems": [_problem(p, decode) for p in pairs]}),
    )
    # A file name or an id may hold half of a surrogate pair.
    return html.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _number(value: float | None, sign: str = "") -> str:
    """Three significant digits, or all before the point; `sign` "+" for differences."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    return _minus(f"{value:{sign}{'.0f' if 1000 <= abs(value) < 1e6 else '#.3g'}}".rstrip("."))


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _json(value: Any) -> str:
    """JSON that no HTML parser can take for markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so line separators are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _embedded(comparison: Comparison, tokens: int) -> list[Pair]:
    """The problems whose heat maps fit: a third the greatest gains, a third the greatest losses, a third between."""
    order = comparison.ranked() + [p for p in comparison.pairs if p.deltas[LN] is None]
    sizes = np.array([sum(len(s.token_ids) for s in _shown(p.baseline) + _shown(p.candidate)) for p in order])
    n = len(order)
    while True:
        ends = n // 3
        between = np.linspace(ends, len(order) - ends - 1, n - 2 * ends).round().astype(int)
        chosen = [*range(ends), *between.tolist(), *range(len(order) - ends, len(order))]
        total = int(sizes[chosen].sum()) if chosen else 0
        if total <= tokens:
            return [order[i] for i in chosen]
        n = min(n - 1, n * max(tokens, 0) // total)


def _shown(side: Sequence[Scored]) -> list[Scored]:
    return list(side[:GENERATIONS])


def _problem(p: Pair, decode: Callable[[int], str]) -> dict[str, Any]:
    """A problem as the page's script reads it, the candidate's side last."""
    sides = (p.baseline, p.candidate)
    return {
        "id": " / ".join(dict.fromkeys(s.response.id for side in sides for s in side)),
        "prompt": p.prompt,
        "delta": p.deltas[LN],
        "ln": [mean(side, LN) for side in sides],
        "length": mean(p.candidate, "scored_tokens"),
        "of": [len(side) for side in sides],
        "sides": [[_trace(s, decode) for s in _shown(side)] for side in sides],
    }


def _trace(s: Scored, decode: Callable[[int], str]) -> dict[str, Any]:
    """One trace's tokens; log-probs in thousandths, null where there is none."""
    reading = _reading(s)
    correct = s.response.row.get("is_correct")
    made: dict[str, Any] = {
        "ln": s.metrics[LN],
        "correct": correct if isinstance(correct, bool) else None,
        "pieces": s.pieces(),
        "student": _thousandths(reading.logprobs),
        "local": _thousandths(reading.local),
        "steps": list(s.steps),
    }
    if s.arrays is not None:
        own = np.flatnonzero(s.arrays.from_teacher == 0)
        made["teacher"] = _thousandths(s.arrays.teacher_logprobs)
        made["own"] = own.tolist()
        made["proposed"] = [decode(i) if i >= 0 else None for i in s.arrays.proposals[own].tolist()]
        made["unknown"] = np.flatnonzero(s.arrays.from_teacher < 0).tolist()
    return made


def _reading(s: Scored) -> Reading:
    if s.reading is None:
        raise ValueError("a report needs the log-probs of every token, not stored scores alone: score the rows anew")
    return s.reading


def _thousandths(logprobs: np.ndarray) -> list[int | None]:
    values = np.clip(logprobs.astype(float), -1e9, 0) * 1000
    return [None if math.isnan(v) else round(v) for v in values.tolist()]


class Plot:
    """One chart in the pixels of its SVG, whose axes and marks the template draws.

    paths: class and outline. points: x, y and what each is. texts: x, y, anchor and what is written there.
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
        self.points: list[tuple[float, float, str]] = []
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


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values in a range, about five, and how they are written."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= 0.7 * raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(v, _minus(f"{v:.{digits}f}")) for v in values]


def _around(values: np.ndarray) -> tuple[float, float]:
    """A range with room around all values, however alike they are."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) if high - low > 1e-9 * max(1.0, abs(low)) else max(0.5, abs(low) / 10)
    return low - room, high + room


def _plots(c: Comparison) -> list[Plot]:
    sides = [[s for p in c.pairs for s in side(p)] for side in (lambda p: p.baseline, lambda p: p.candidate)]
    surprisals = [[-_reading(s).logprobs.astype(float) for s in side] for side in sides]
    plots = [_distribution(surprisals, float(c.scoring["threshold"])), _positions(surprisals)]
    if ranked := c.ranked():
        plots += [_scatter(ranked), _differences(np.array([p.deltas[LN] for p in ranked], dtype=float))]
    return plots


def _distribution(sides: Sequence[Sequence[np.ndarray]], threshold: float) -> Plot:
    """How surprising tokens are; on a log scale, since most are not at all, and it is the others that matter."""
    every = [np.concatenate(side) for side in sides]
    highest = max(float(v.max()) for v in every)
    most = min(max(highest, 1.0), MOST)
    edges = np.linspace(0, most, SURPRISALS + 1)
    shares = [np.histogram(np.minimum(v, most), edges)[0] / len(v) for v in every]
    lowest = math.floor(math.log10(min(s[s > 0].min() for s in shares)) - 1e-9)
    notes = ["The share axis is logarithmic."]
    if highest > most:
        notes.append(f"The last bin holds all tokens above {most:g} nats.")
    plot = Plot(
        "How surprising the tokens are to the student",
        ("surprisal of a token (nats)", 0, most),
        ("share of the tokens", lowest, 0),
        notes=notes,
        legend=True,
    )
    decades = range(lowest, 1, max(1, round(-lowest / 5)))
    plot.y_ticks = [(plot.y(d), f"{100 * 10.0**d:g} %") for d in decades]
    for name, share in zip("ab", shares, strict=True):
        plot.steps(name, edges, np.log10(np.maximum(share, 10.0**lowest)))
    if 0 < threshold < 1 and -math.log(threshold) < most:
        at = -math.log(threshold)
        plot.line("mark", [at, at], [lowest, 0])
        plot.texts.append((plot.x(at) + 5, plot.top + 12, "start", f"p = {threshold:g}"))
    return plot


def _positions(sides: Sequence[Sequence[np.ndarray]]) -> Plot:
    curves = []
    for side in sides:
        at = np.concatenate([np.arange(len(v)) * POSITIONS // len(v) for v in side])
        known, counts = np.unique(at, return_counts=True)  # traces may be shorter than there are bins
        curves.append((known, np.bincount(at, np.concatenate(side))[known] / counts))
    plot = Plot(
        "Where in the trace they are",
        ("relative position in the trace (%)", 0, 100),
        ("mean surprisal (nats)", 0, max(1.05 * max(float(means.max()) for _, means in curves), 0.01)),
        notes=[f"Means over all tokens in each of {POSITIONS} parts."],
        legend=True,
    )
    for name, (known, means) in zip("ab", curves, strict=True):
        plot.line(name, ((known + 0.5) * 100 / POSITIONS).tolist(), means.tolist())
    return plot


def _scatter(ranked: Sequence[Pair]) -> Plot:
    notes = ["Above the diagonal the candidate is the more natural one."]
    if len(ranked) > POINTS:
        notes.append(f"Shown are {POINTS} of {len(ranked)} problems, evenly spaced by their difference.")
        ranked = [ranked[i] for i in np.linspace(0, len(ranked) - 1, POINTS).round().astype(int)]
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
        plot.points.append((plot.x(a), plot.y(b), f"{p.key}: {_number(a)} → {_number(b)}"))
    return plot


def _differences(deltas: np.ndarray) -> Plot:
    low, high = _around(np.append(deltas, 0))
    bins = 1 + 2 * min(20, 4 + len(deltas) // 16)  # odd, so that equal sides are one bar around 0
    counts, edges = np.histogram(deltas, bins, (low, high))
    gains, losses = int((deltas > 0).sum()), int((deltas < 0).sum())
    plot = Plot(
        "Differences in Local Naturalness",
        ("candidate \u2212 baseline (nats a token)", low, high),
        ("problems", 0, 1.12 * int(counts.max())),  # room for the label
        notes=[f"{gains} gain, {losses} lose, {len(deltas) - gains - losses} are equal."],
    )
    plot.y_ticks = [(plot.y(v), f"{v:.0f}") for v, _ in _ticks(*plot.y_range) if abs(v - round(v)) < 1e-9]
    plot.steps("bars", edges, counts)
    top = plot.y_range[1]
    plot.line("mark", [0, 0], [0, top])
    average = float(deltas.mean())
    plot.line("b", [average, average], [0, top])
    right = plot.x(average) > (plot.left + plot.right) / 2
    at, anchor = (plot.x(average) - 5, "end") if right else (plot.x(average) + 5, "start")
    plot.texts.append((at, plot.top + 12, anchor, f"mean {_number(average, '+')}"))
    return plot

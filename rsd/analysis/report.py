"""The page of a comparison, or of one scored set: one file that needs no network and trusts nothing that it shows."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import rsd.traces.html
from rsd.analysis.compare import BY_CONSTRUCTION, SHOWN, Comparison, mean
from rsd.analysis.figures import well_formed
from rsd.analysis.packed import block, figure, page_json
from rsd.analysis.plots import Plot, Ranked, plots, set_plots
from rsd.analysis.templates import template
from rsd.analysis.tracefile import VALUES, TraceFile
from rsd.analysis.verdict import Tile, correctness, right_share, set_tiles, set_verdict, tiles, verdict
from rsd.files import replacing
from rsd.scoring.metrics import LN, METRICS
from rsd.scoring.scorer import Scored

GENERATIONS = 16  # of a side of a problem whose tokens are embedded
TOKENS = 6_000_000  # that are embedded: some 40 MB
ERRORS = 1000  # of a side that are listed
FITS = 160  # tokens of a trace that is read at a glance


class Problem(NamedTuple):
    """One problem and its scored traces on each side, the candidate's last; gain: what it is ranked by."""

    key: str
    prompt: str
    sides: Sequence[Sequence[Scored]]
    gain: float | None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a page shows. names, errors: of each side. facts: how it was made. names_of: problems, by a title."""

    command: str
    title: str
    names: Sequence[str]
    scoring: Mapping[str, Any]
    verdict: str
    tiles: Sequence[Tile]
    problems: Sequence[Problem]
    errors: Sequence[Sequence[Scored]]
    notices: Sequence[str]
    facts: Mapping[str, Any]
    plots: Sequence[Plot]
    extremes: Mapping[str, Sequence[Problem]]
    comparison: Comparison | None = None
    averages: Mapping[str, float | None] = field(default_factory=dict)


def write_report(out: str | Path, comparison: Comparison, traces: TraceFile) -> None:
    """Write the page of a comparison, as `replacing` does, without holding all of it."""
    _write(out, compared(comparison, traces), traces)


def write_set_report(out: str | Path, scored: Sequence[Scored], name: str, traces: TraceFile) -> None:
    """Write the page of one set of scored traces; see `write_report`.

    Raises:
        ValueError: no trace could be scored.
    """
    _write(out, of_set(scored, name, traces), traces)


def _write(out: str | Path, contents: Contents, traces: TraceFile) -> None:
    with replacing(out) as file:
        for piece in html_page(contents, traces):
            file.write(piece.encode())


def compared(c: Comparison, traces: TraceFile) -> Contents:
    """The contents of a comparison's page.

    Raises:
        ValueError: `traces` does not keep a trace of the comparison.
    """
    right = correctness(c.pairs)
    problems = [Problem(p.key, p.prompt, (p.baseline, p.candidate), p.deltas[LN]) for p in c.pairs]
    by_key = {p.key: problem for p, problem in zip(c.pairs, problems, strict=True)}
    ranked = [by_key[p.key] for p in c.ranked()]
    return Contents(
        command="compare",
        title=f"{c.names[1]} against {c.names[0]}",
        names=c.names,
        scoring=c.scoring,
        verdict=verdict(c, right),
        tiles=tiles(c, right),
        problems=problems,
        errors=c.errors,
        notices=c.notices,
        facts={
            f"Aligned by {c.aligned_by}": f"{len(c.pairs)} problems",
            "Only in the baseline": c.missing,
            "Only in the candidate": c.new,
            "Not scored on a side": c.unscored,
            "Errors, baseline": len(c.errors[0]),
            "Errors, candidate": len(c.errors[1]),
        },
        plots=plots(c, traces.logprobs),
        extremes={"Greatest gain": ranked[:SHOWN], "Smallest gain, or greatest loss": ranked[::-1][:SHOWN]},
        comparison=c,
    )


def of_set(scored: Sequence[Scored], name: str, traces: TraceFile) -> Contents:
    """The contents of the page of one set; raises ValueError if no trace could be scored."""
    errors = [s for s in scored if s.error]
    good = [s for s in scored if not s.error]
    if not good:
        raise ValueError(f"no trace could be scored: {errors[0].error}" if errors else "there is no trace")
    groups: dict[str, list[Scored]] = {}
    for s in good:
        groups.setdefault(s.response.id, []).append(s)
    problems = [Problem(key, some[0].response.prompt, (some,), mean(some, LN)) for key, some in groups.items()]
    ranked = sorted((p for p in problems if p.gain is not None), key=lambda p: (-(p.gain or 0), p.key))
    scoring = good[0].scoring
    return Contents(
        command="score",
        title=name,
        names=(name,),
        scoring=scoring,
        verdict=set_verdict(good, name, scoring),
        tiles=set_tiles(good),
        problems=problems,
        errors=(errors,),
        notices=(),
        facts={"Traces": len(good), "Problems": len(problems), "Errors": len(errors)},
        plots=set_plots(_measured(ranked), good, float(scoring["threshold"]), traces.logprobs),
        extremes={"Most natural": ranked[:SHOWN], "Least natural": ranked[::-1][:SHOWN]},
        averages={m: mean(good, m) for m in METRICS},
    )


def _measured(problems: Sequence[Problem]) -> list[Ranked]:
    return [Ranked(p.key, p.gain or 0.0, mean(p.sides[0], "scored_tokens") or 0.0) for p in problems]


def html_page(contents: Contents, traces: TraceFile, *, tokens: int = TOKENS) -> Iterator[str]:
    """A page as one HTML file's text, piece by piece, which UTF-8 can encode.

    Args:
        traces: the file that keeps what is shown of the traces.
        tokens: bounds the tokens that are embedded; figures and plots always cover all.
    """
    shown = _embedded(contents.problems, traces, tokens)
    index = Index(contents, shown)
    html = template("page.html").generate(
        p=contents,
        by_construction=BY_CONSTRUCTION,
        metrics=METRICS,
        token_styles=rsd.traces.html.styles(),
        embedded=len(shown),
        cut=any(len(side) > GENERATIONS for p in shown for side in p.sides),
        generations=GENERATIONS,
        blocks=index.blocks(traces),
        index=index.json,
    )
    for piece in html:
        yield well_formed(piece)


def _embedded(problems: Sequence[Problem], traces: TraceFile, tokens: int) -> list[Problem]:
    """The problems whose tokens fit: a third the greatest gains, a third the greatest losses, a third between."""
    order = sorted(problems, key=lambda p: (p.gain is None, -(p.gain or 0), p.key))
    sizes = np.array([sum(traces.room(s) for side in p.sides for s in _some(side)) for p in order])
    n = len(order)
    while True:
        ends = n // 3
        between = np.linspace(ends, len(order) - ends - 1, n - 2 * ends).round().astype(int)
        chosen = [*range(ends), *between.tolist(), *range(len(order) - ends, len(order))]
        total = int(sizes[chosen].sum()) if chosen else 0
        if total <= tokens:
            return [order[i] for i in chosen]
        n = min(n - 1, n * max(tokens, 0) // total)


def _some(side: Sequence[Scored]) -> Sequence[Scored]:
    return side[:GENERATIONS]


class Index:
    """What a page's script knows of all problems without unpacking them; it is complete when `blocks` are written."""

    def __init__(self, contents: Contents, problems: Sequence[Problem]) -> None:
        self.contents, self.problems = contents, problems
        self.lines: list[str] = []
        self.values: dict[tuple[str, str], int] = {}
        self.keys: dict[str, int] = {}
        starts = {_family(p.key) for p in problems}
        self.families = 1 < len(starts) <= min(VALUES, len(problems) // 2)
        gains = [p.gain for p in problems if p.gain is not None]
        self.typical = float(np.median(gains)) if gains else 0.0
        self.story: tuple[Any, ...] = ()
        self.weighed = False  # any trace

    def blocks(self, traces: TraceFile) -> Iterator[str]:
        """What is unpacked when a problem is shown: a line each."""
        for i, p in enumerate(self.problems):
            sides = [[traces.shown(s) for s in _some(side)] for side in p.sides]
            headers = [[header for header, _ in side] for side in sides]
            yield block({"prompt": p.prompt, "sides": headers}, (c for side in sides for _, c in side)) + "\n"
            self._add(i, p, headers)

    def _add(self, i: int, p: Problem, headers: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        every = [h for side in headers for h in side]
        values = {pair for h in every for pair in h["columns"].items()}
        self.weighed |= any("weighed" in h for h in every)
        if self.families:
            values.add(("beginning of the id", _family(p.key)))
        right = [right_share(side) for side in p.sides]
        line = {
            "key": self._key(p.key),
            "name": " / ".join(dict.fromkeys(s.response.id for side in p.sides for s in side)),
            "gain": figure(p.gain),
            "scores": [[figure(mean(side, name)) for name in METRICS] for side in p.sides],
            "right": right,
            "of": [len(side) for side in p.sides],
            "own": sum(len(h.get("own", ())) for h in every),
            "instead": sum(len(h["likes"]) for h in every),
            "values": sorted(self.values.setdefault(v, len(self.values)) for v in values),
        }
        self.lines.append(page_json(line))
        told = headers[-1][0]
        fits = all(h["n"] <= FITS for side in headers for h in side[:1])
        all_right = all(share in (1, None) for share in right)
        near = -abs((p.gain or 0.0) - self.typical)
        self.story = max(self.story, (fits, all_right, min(len(told["likes"]), 6), near, -i))

    def _key(self, key: str) -> str:
        """A name that a link can hold, and that no other problem has."""
        key = well_formed(key)
        self.keys[key] = count = self.keys.get(key, 0) + 1
        return key if count == 1 else f"{key} ({count})"

    def json(self) -> Iterator[str]:
        """All of it but the blocks, as JSON."""
        c = self.contents
        errors = [
            {"side": side, "key": s.response.id, "error": s.error, "prompt": s.response.prompt}
            for side, some in enumerate(c.errors)
            for s in some[:ERRORS]
        ]
        about = {
            "command": c.command,
            "names": list(c.names),
            "threshold": c.scoring.get("threshold"),
            "metrics": [{"name": k, "label": m.label, "better": m.better} for k, m in METRICS.items()],
            "values": [list(v) for v in self.values],
            "errors": errors,
            "story": -self.story[-1] if self.story else None,
        } | ({"weighed": True} if self.weighed else {})
        yield f'{page_json(about)[:-1]},"problems":['
        for i, line in enumerate(self.lines):
            yield "," * (i > 0) + line
        yield "]}"


def _family(key: str) -> str:
    """What an id begins with, before its number."""
    return re.sub(r"[-_ #:./]?\d+$", "", key)[:60]

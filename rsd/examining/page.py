"""The page of an examination: one file that needs no network, and trusts nothing that it shows."""

import math

from rsd.analysis.figures import BESIDE, BETTER, WORSE, minus, well_formed
from rsd.analysis.plots import Plot
from rsd.analysis.templates import template
from rsd.analysis.verdict import Tile
from rsd.examining import words
from rsd.examining.examination import Examination
from rsd.examining.findings import Findings


def page(e: Examination) -> str:
    """All of it as HTML that UTF-8 can encode."""
    f = e.findings
    html = template("doctor.html").render(
        f=f,
        verdict=e.verdict,
        advice=e.recommendations,
        tiles=tiles(e),
        notices=[f"No trace could be made of {len(f.errors)} problems, the first: {f.errors[0]}"] if f.errors else [],
        plots=[acceptance(f), below(f)],
        tables={table.name: table for table in (words.sets(f), words.thresholds(f), words.overlaps(f))},
        rough=words.rough(f),
        construction=words.CONSTRUCTION,
        thirds=words.THIRDS,
        token=words.shown,
        share=words.percent,
        facts=facts(f),
    )
    return well_formed(html)


def tiles(e: Examination) -> list[Tile]:
    """The figures at the top."""
    f = e.findings
    begin = "none" if e.threshold is None else f"{e.threshold:g}"
    made = [
        Tile(
            label="Threshold to begin with",
            value=begin,
            kind=BESIDE if e.threshold is None else BETTER,
            words="see what to do"
            if e.threshold is None
            else f"{words.percent(f.at(e.threshold).fallback)} the student's own",
        ),
        Tile(
            label=f"Raw tokens below {f.threshold:g}",
            value=words.percent(f.raw.below[f.threshold]),
            kind=BESIDE,
            words="improbable for the student",
        ),
        Tile(
            label="A proposal stands",
            value=words.percent(f.at(f.threshold).accepted),
            kind=BESIDE,
            words="on RSD's own text",
        ),
        Tile(label="Naturalness", value=_ln(f.rsd.ln), kind=BESIDE, words=f"of RSD; raw {_ln(f.raw.ln)}"),
    ]
    if f.rsd.judged:
        others = f"teacher {f.raw.solved}, student {f.student_alone.solved}"
        kind = WORSE if f.rsd.solved <= min(f.raw.solved, f.student_alone.solved) else BESIDE
        made.insert(1, Tile(label="RSD solves", value=f"{f.rsd.solved} of {f.rsd.judged}", kind=kind, words=others))
    return made


def _ln(value: float | None) -> str:
    return "not known" if value is None else minus(f"{value:.2f}")


def facts(f: Findings) -> dict[str, object]:
    """How it was made."""
    where = "all" if f.problems == f.of else "evenly spread"
    return {
        "Teacher": f.teacher,
        "Student": f.student,
        "Problems": f"{f.problems} of {f.of}, {where}",
        "Tokens of a trace": f"{f.max_new_tokens} at the most",
        "Threshold": f"{f.threshold:g}, on the {f.threshold_on} probability",
        "Trials": f"{f.trials:g}",
        "Sampling": next((n.partition(": ")[2] for n in f.notices if n.startswith("sampling: ")), "not known"),
        "Seed": f.seed,
        "Vocabularies": f.vocabularies,
        "Memory of a job": f.memory.removeprefix("memory: "),
    }


def _by_threshold(f: Findings, title: str, y: tuple[str, float, float], note: str) -> Plot:
    """A chart over the thresholds, on a logarithmic axis."""
    at = [math.log10(t.threshold) for t in f.thresholds]
    room = 0.05 * (at[-1] - at[0])
    plot = Plot(title, ("threshold", at[0] - room, at[-1] + room), y, notes=[note], legend=True)
    plot.x_ticks = [(plot.x(math.log10(t.threshold)), f"{t.threshold:g}") for t in f.thresholds]
    plot.y_ticks = [(where, f"{label} %") for where, label in plot.y_ticks]
    return plot


def _lines(plot: Plot, f: Findings, raw: list[float], rsd: list[float]) -> Plot:
    xs = [math.log10(t.threshold) for t in f.thresholds]
    for name, values in (("a", raw), ("b", rsd)):
        plot.line(name, xs, [100 * value for value in values])
    top = plot.y_range[1]
    here = math.log10(f.threshold)
    plot.line("mark", [here, here], [0, top])
    return plot


def acceptance(f: Findings) -> Plot:
    """a by threshold."""
    note = f"a = q(A), exact in every place of these texts. The dotted line is {f.threshold:g}, RSD's own threshold."
    plot = _by_threshold(f, "How often a proposal of the teacher stands", ("mean acceptance a", 0, 105), note)
    return _lines(plot, f, [t.raw_accepted for t in f.thresholds], [t.accepted for t in f.thresholds])


def below(f: Findings) -> Plot:
    """The share of tokens below each threshold."""
    shares = [[s.below[t.threshold] for t in f.thresholds] for s in (f.raw, f.rsd)]
    most = max(max(values) for values in shares)
    note = "Of RSD's text only the student's own tokens may be below its threshold."
    top = max(105 * most, 1.0)
    plot = _by_threshold(f, "What the student finds improbable", ("share of the tokens below", 0, top), note)
    return _lines(plot, f, *shares)

"""What was found, as text for a terminal of 80 columns."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rsd.examining.findings import Fallen, Findings, SetFindings
from rsd.examining.rules import Recommendation
from rsd.examining.sets import OWN, RAW, RSD, TITLES
from rsd.terminal import BAD, GOOD, HEADING, harmless, in_lines, joined, marked, paint

WIDTH = 79
FOLLOWS = " " * 13
COLOURS = {"worth it": GOOD, "little": GOOD, "raw": GOOD}  # of a verdict; all others say no
CONSTRUCTION = (
    "A threshold raises naturalness by construction (arXiv 2509.22230, 2510.03988): that RSD's traces are more natural "
    "than the raw ones shows that it works, not that training on them helps. Speed is of this small run alone."
)
THIRDS = (
    "Of the teacher's k likeliest tokens, before any filter, the share that is among the student's k: in the first "
    "third of each trace, and in the last."
)


class Table(NamedTuple):
    """A table: its name, what it is, the heads of its columns, and rows, of which the first column is the head."""

    name: str
    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def text(f: Findings, said: Sequence[Recommendation]) -> str:
    """All of it."""
    verdict = said[0]
    lines: list[str] = [paint(line, COLOURS.get(verdict.name, BAD)) for line in wrapped(verdict.verdict or "")]
    lines += ["", *about(f), ""]
    lines += [*laid(sets(f), 28, 17), "", *wrapped(CONSTRUCTION), ""]
    lines += [*laid(thresholds(f), 10, 13, f"{f.threshold:g}"), "", *wrapped(rough(f)), ""]
    lines += [*laid(overlaps(f), 19, 15), "", *wrapped(THIRDS), ""]
    if f.fallen:
        lines += [*fallen(f.fallen, f), ""]
    lines += [paint("what to do", HEADING)]
    for one in said:
        lines += [*listed("- " + one.says), *listed(f"  rule: {one.why}"), *listed(f"  source: {one.source}")]
    return in_lines(lines)


def wrapped(said: str) -> list[str]:
    return textwrap.wrap(said, WIDTH, break_long_words=False, break_on_hyphens=False)


def listed(said: str) -> list[str]:
    return textwrap.wrap(said, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def told(name: str, value: str) -> list[str]:
    """A line `name  value`, and those that follow."""
    first = f"{name:<{len(FOLLOWS)}}"
    return textwrap.wrap(first + value, WIDTH, subsequent_indent=FOLLOWS, break_long_words=False)


def about(f: Findings) -> list[str]:
    spread = ", evenly spread" if f.problems < f.of else ""
    lines = [*told("teacher", f.teacher), *told("student", f.student)]
    lines += told("problems", f"{f.problems} of {f.of}{spread}, {f.max_new_tokens} tokens of a trace at the most")
    for notice in [*f.notices, f.memory]:
        name, _, rest = notice.partition(": ")
        lines += told(name, rest) if rest and len(name) < len(FOLLOWS) else wrapped(notice)
    if f.errors:
        first = told("errors", f"of {len(f.errors)} problems no trace could be made, the first: {f.errors[0]}")
        lines += [joined([paint("errors", BAD), first[0][len("errors") :]]), *first[1:]]
    return [marked(line) for line in lines]


def percent(share: float | None, digits: int = 1) -> str:
    return "not known" if share is None else f"{share:.{digits}%}"


def sets(f: Findings) -> Table:
    """The three sets of traces."""
    every = [f.raw, f.rsd, f.student_alone]
    rows = [["solved", *(f"{s.solved} of {s.judged}" for s in every)]] if any(s.judged for s in every) else []
    rows += [
        ["cut, so not solved", *(f"{s.cut} of {s.traces}" for s in every)],
        ["tokens of a trace", *(f"{s.tokens_per_trace:.1f}" for s in every)],
        ["the student's own tokens", "-", percent(f.rsd.own), "-"],
        [f"tokens below {f.threshold:g}", *(percent(s.below[f.threshold]) for s in every)],
        ["local naturalness", *map(naturalness, every)],
        ["  its 95 % interval", *map(interval, every)],
        ["tokens/s, here and now", *(f"{s.tokens_per_second:.0f}" for s in every)],
        ["tokens a round", *(f"{s.tokens_per_round:.1f}" for s in every)],
    ]
    return Table(
        "sets", "Three sets of traces", ["traces", TITLES[RAW], f"{TITLES[RSD]}, {f.threshold:g}", TITLES[OWN]], rows
    )


def naturalness(s: SetFindings) -> str:
    return "not known" if s.ln is None else f"{s.ln:.3f}"


def interval(s: SetFindings) -> str:
    return "-" if s.ln_interval is None else f"[{s.ln_interval[0]:.2f}, {s.ln_interval[1]:.2f}]"


def thresholds(f: Findings) -> Table:
    """What each threshold does."""
    heads = ["threshold", "raw below", "a, raw text", "a, RSD text", "fallback", "first falls"]
    rows = []
    for t in f.thresholds:
        values = (t.raw_below, t.raw_accepted, t.accepted, t.fallback, t.first_falls)
        rows.append([f"{t.threshold:g}", *map(percent, values)])
    return Table("thresholds", "What a threshold does", heads, rows)


def rough(f: Findings) -> str:
    """What is to be said of that."""
    return (
        f"a: the mean chance that a proposal stands. fallback: the expected share of the student's own tokens, the "
        f"mean of (1-a)^n with n = {f.trials:g} trials; first falls: of one trial. But for {f.threshold:g} these are "
        f"estimates: RSD's text was made with {f.threshold:g}, and another threshold would write another one."
    )


def overlaps(f: Findings) -> Table:
    """How alike the likeliest tokens are."""
    heads = ["top k shared", "raw, early", "raw, late", "RSD, early", "RSD, late"]
    rows = [
        [f"k = {raw.k}", *map(percent, (raw.early, raw.late, rsd.early, rsd.late))]
        for raw, rsd in zip(f.raw_overlaps, f.overlaps, strict=True)
    ]
    return Table("overlaps", "Where the two agree", heads, rows)


def laid(table: Table, first: int, width: int, bold: str | None = None) -> list[str]:
    """A table in columns of these widths; the row whose head is `bold` stands out."""
    lines = []
    for i, (head, *values) in enumerate([table.heads, *table.rows]):
        line = f"{head:<{first}}" + "".join(f"{value:>{width}}" for value in values)
        lines.append(paint(line, HEADING) if i == 0 or head == bold else line)
    return lines


def fallen(some: Sequence[Fallen], f: Findings) -> list[str]:
    share = f.falls / f.raw.tokens
    lines: list[str] = [paint(f"raw tokens below {f.threshold:g}: {f.falls} ({share:.1%}), the most frequent", HEADING)]
    for one in some:
        instead = ", ".join(f"{shown(token)} {times / one.below:.0%}" for token, times in one.instead)
        line = f"{shown(one.token):<18} {one.below:>4} of {one.of:<5} the student: {instead}"
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")
    return lines


def shown(token: str) -> str:
    """A token in quotes, in which a line break is seen; not longer than a column."""
    made = harmless(repr(token))
    return made if len(made) <= 18 else made[:14] + "..'"

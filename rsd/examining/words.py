"""What was found, as text for a terminal of 80 columns."""

import textwrap
from collections.abc import Iterable, Sequence

from rsd.examining.findings import Fallen, Findings, Overlap, SetFindings
from rsd.examining.rules import Recommendation
from rsd.examining.sets import OWN, RAW, RSD, TITLES
from rsd.terminal import BAD, GOOD, HEADING, NOTE, harmless, in_lines, joined, marked, paint

WIDTH = 79
FOLLOWS = " " * 13
COLOURS = {"worth it": GOOD, "raw": GOOD}  # of a verdict; all others say no
ROUGH = (
    "Of a threshold other than {threshold:g} all is an estimate, on a text that was made with {threshold:g}; speed is of "
    "this small run alone. fallback: the expected share of the student's own tokens, the mean of (1-a)^n with n = "
    "{trials:g} trials; first falls: the same of one trial, 1-a."
)
CONSTRUCTION = (
    "A threshold raises naturalness by construction (arXiv 2509.22230, 2510.03988): that RSD's traces are more natural "
    "than the raw ones shows that it works, not that training on them helps."
)
THIRDS = (
    "Of the teacher's k likeliest tokens, before any filter, the share that is among the student's k: in the first third "
    "of each trace, and in the last."
)


def text(f: Findings, said: Sequence[Recommendation]) -> str:
    """All of it."""
    verdict = said[0]
    lines: list[str] = [paint(line, COLOURS.get(verdict.name, BAD)) for line in wrapped(verdict.verdict or "")]
    lines += ["", *about(f), ""]
    lines += [*sets(f), "", *wrapped(CONSTRUCTION), ""]
    lines += [*thresholds(f), "", *wrapped(ROUGH.format(threshold=f.threshold, trials=f.trials)), ""]
    lines += [*overlaps(f.raw_overlaps, f.overlaps), "", *wrapped(THIRDS), ""]
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


def sets(f: Findings) -> list[str]:
    columns = [f.raw, f.rsd, f.student_alone]
    titles = [TITLES[RAW], f"{TITLES[RSD]}, {f.threshold:g}", TITLES[OWN]]

    def row(name: str, values: Iterable[str]) -> str:
        return f"{name:<28}" + "".join(f"{value:>17}" for value in values)

    lines: list[str] = [paint(row("", titles), HEADING)]
    if any(s.judged for s in columns):
        lines.append(row("solved", (f"{s.solved} of {s.judged}" for s in columns)))
    lines += [
        row("cut, so not solved", (f"{s.cut} of {s.traces}" for s in columns)),
        row("tokens of a trace", (f"{s.tokens_per_trace:.1f}" for s in columns)),
        row("the student's own tokens", ("-", percent(f.rsd.own), "-")),
        row(f"tokens below {f.threshold:g}", (percent(s.below[f.threshold]) for s in columns)),
        row("local naturalness", (naturalness(s) for s in columns)),
        row("  its 95 % interval", (interval(s) for s in columns)),
        row("tokens/s, here and now", (f"{s.tokens_per_second:.0f}" for s in columns)),
        row("tokens a round", (f"{s.tokens_per_round:.1f}" for s in columns)),
    ]
    return lines


def naturalness(s: SetFindings) -> str:
    return "not known" if s.ln is None else f"{s.ln:.3f}"


def interval(s: SetFindings) -> str:
    return "-" if s.ln_interval is None else f"[{s.ln_interval[0]:.2f}, {s.ln_interval[1]:.2f}]"


def thresholds(f: Findings) -> list[str]:
    heads = ("threshold", "raw below", "a, raw text", "a, RSD's text", "fallback", "first falls")
    lines: list[str] = [paint("".join(f"{head:>13}" for head in heads).lstrip().rjust(76), HEADING)]
    for t in f.thresholds:
        values = (t.raw_below, t.raw_accepted, t.accepted, t.fallback, t.first_falls)
        line = f"{t.threshold:>11g}" + "".join(f"{percent(v):>13}" for v in values)
        lines.append(paint(line, HEADING) if t.threshold == f.threshold else line)
    return lines


def overlaps(raw: Sequence[Overlap], rsd: Sequence[Overlap]) -> list[str]:
    heads = ("raw, early", "raw, late", "RSD, early", "RSD, late")
    lines: list[str] = [paint(f"{'top-k overlap':<19}" + "".join(f"{head:>15}" for head in heads), HEADING)]
    for one, other in zip(raw, rsd, strict=True):
        values = (one.early, one.late, other.early, other.late)
        lines.append(f"{f'k = {one.k}':<19}" + "".join(f"{percent(v):>15}" for v in values))
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
    made = harmless(repr(token) if token.isprintable() else repr(token))
    return made if len(made) <= 18 else made[:14] + "..'"



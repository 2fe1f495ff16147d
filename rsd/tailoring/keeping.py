"""What to train on of a job of `rsd tailor`: traces, and raw responses where these are better."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd.files import write_rows
from rsd.generation import raw
from rsd.generation.summary import Summary, kept_file
from rsd.scoring.metrics import COLUMNS as SCORES
from rsd.scoring.metrics import LN
from rsd.terminal import in_lines, joined
from rsd.traces.columns import is_number
from rsd.traces.filters import choose, is_right
from rsd.traces.lines import whole_lines
from rsd.traces.trace import one_think_close

LOW = "low_prob_share"


@dataclass(eq=False)
class _Problem:
    """What the rows of one problem say. at: the last one's place. best: the most natural right trace, and its place."""

    at: int
    generations: int = 0
    raw_right: bool = False
    raw_natural: float | None = None
    best: tuple[float, int, int] | None = None
    kept: bool = False


def chosen(out: Path, how: str | None, *, max_fallback_rate: float) -> tuple[set[int], dict[int, int], str]:
    """Which rows of a job's file are kept, by their places; in which places the raw response is, with its number among
    the problem's generations; and by which rule.

    Args:
        how: one of `config.KEEP`. All but "natural-and-correct" are those of `filters.choose`, and where nothing of a
            problem is kept its raw response is, if that is right. "natural-and-correct" keeps of a problem's right
            traces and its raw response, if that is right, the one that is most natural for the student. None is
            "correct" where anything is known to be right or wrong, else "all".

    Raises:
        ValueError: as `filters.choose`.
    """
    problems: dict[str, _Problem] = {}
    of: list[_Problem] = []  # each row's
    judged = False
    for i, row in enumerate(whole_lines(out)):
        problem = problems.setdefault(str(row["id"]), _Problem(i))
        of.append(problem)
        problem.at, problem.generations = i, max(problem.generations, row["generation"] + 1)
        if row.get("error") is not None:
            continue
        verdicts = row.get("is_correct"), row.get("raw_is_correct")
        judged = judged or any(isinstance(verdict, bool) for verdict in verdicts)
        problem.raw_right = problem.raw_right or verdicts[1] is True
        problem.raw_natural = row.get(f"raw_{LN}") if is_number(row.get(f"raw_{LN}")) else problem.raw_natural
        if is_right(row, max_fallback_rate=max_fallback_rate) and is_number(row.get(LN)):
            # Of equals that of the lowest generation, whatever the order in which they were finished.
            best = (float(row[LN]), -int(row["generation"]), i)
            problem.best = max(problem.best or best, best)
    how = how or ("correct" if judged else "all")
    if how == "natural-and-correct":
        return *_natural(problems), how
    places = set(choose(whole_lines(out), how, max_fallback_rate=max_fallback_rate)[0])
    for i in places:
        of[i].kept = True
    return places, {p.at: p.generations for p in problems.values() if p.raw_right and not p.kept}, how


def _natural(problems: Mapping[str, _Problem]) -> tuple[set[int], dict[int, int]]:
    places, raws = set[int](), dict[int, int]()
    for problem in problems.values():
        natural = problem.raw_natural if problem.raw_right else None
        if problem.best is not None and (natural is None or problem.best[0] >= natural):
            places.add(problem.best[-1])
        elif problem.raw_right:
            raws[problem.at] = problem.generations
    return places, raws


def raw_row(row: Mapping[str, Any], generation: int) -> dict[str, Any]:
    """The row of a problem's raw response, with the columns of its traces. generation: a number that none of these has,
    so that nobody takes their tokens for its own."""
    text = row["raw_completion"]
    known = {
        "completion": [{"role": "assistant", "content": text}],
        "generation": generation,
        "is_correct": row["raw_is_correct"],
        "one_think_close": one_think_close(text),
        "source": raw.RAW,
        **{name: row.get(f"raw_{name}") for name in raw.SCORES},
    }
    of_traces = ("finish_reason", "verify_error", "ended_by_eos", "num_tokens", "acceptance_rate", "fallback_rate")
    nothing = dict.fromkeys((*of_traces, "error", *(name for name in SCORES if name != "scoring")))
    return {name: known.get(name, nothing.get(name, value)) for name, value in row.items()}


@dataclass(frozen=True, kw_only=True)
class TailorSummary:
    """What a job's files hold, beside what is said of its raw responses.

    rows: with a score on both sides, and the means of these scores: raw, and of the traces. raw_right, raw_wrong: of
    the problems. cut: references that were cut, and how many steps were left out. kept: rows by their `source`, by the
    rule `keep`.
    """

    summary: Summary
    keep: str
    kept: Mapping[str, int]
    kept_file: Path
    raw_right: int = 0
    raw_wrong: int = 0
    cut: int = 0
    steps_left_out: int = 0
    rows: int = 0
    means: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def totals(self) -> Mapping[str, Any]:
        return self.summary.totals

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self.summary.as_json() | {
            "kept": sum(self.kept.values()),
            "kept_by_source": dict(self.kept),
            "raw_correct": self.raw_right,
            "raw_wrong": self.raw_wrong,
            "references_cut": self.cut,
            "steps_left_out": self.steps_left_out,
            "scored_on_both_sides": self.rows,
            **{name: {"raw": a, "tailored": b} for name, (a, b) in self.means.items()},
        }

    def text(self) -> str:
        lines = []
        if self.raw_right or self.raw_wrong:
            lines.append(f"raw          {self.raw_right} correct, {self.raw_wrong} wrong")
        if self.rows:
            (a, b), (low, now) = self.means[LN], self.means[LOW]
            lines.append(
                f"natural      {a:.4g} raw, {b:.4g} now; improbable tokens {low:.1%} raw, {now:.1%} now "
                f"(means of {self.rows} rows)"
            )
        if self.cut:
            lines.append(
                f"references   {self.cut} cut to what the teacher's context holds: {self.steps_left_out} steps left out"
            )
        sources = ", ".join(f"{self.kept.get(name, 0)} {name}" for name in (raw.TAILORED, raw.RAW))
        lines.append(f"kept         {sum(self.kept.values())} rows ({self.keep}): {sources}; in {self.kept_file}")
        return joined([self.summary.text(), in_lines(lines)], "\n")


def finished(summary: Summary, out: str | Path, *, keep: str | None, max_fallback_rate: float) -> TailorSummary:
    """Write what is kept of a finished job beside its file, whole or not at all; and what all of it comes to.

    Raises:
        ValueError: as of `chosen`.
    """
    places, raws, how = chosen(Path(out), keep, max_fallback_rate=max_fallback_rate)
    kept = {raw.TAILORED: len(places), raw.RAW: len(raws)}

    def rows() -> Iterator[Mapping[str, Any]]:
        for i, row in enumerate(whole_lines(Path(out))):
            if i in places:
                yield row
            if i in raws:
                yield raw_row(row, raws[i])

    write_rows(rows(), kept_file(out))
    return TailorSummary(summary=summary, keep=how, kept=kept, kept_file=kept_file(out), **_sums(Path(out)))


def _sums(out: Path) -> dict[str, Any]:
    verdicts: dict[str, bool | None] = {}
    left_out: dict[str, int] = {}
    sums = {name: [0.0, 0.0] for name in (LN, LOW)}
    scored = 0
    for row in whole_lines(out):
        name = str(row["id"])
        if isinstance(row.get("raw_is_correct"), bool):
            verdicts[name] = row["raw_is_correct"]
        left_out[name] = row.get("steps_left_out") or 0
        columns = [(f"raw_{name}", name) for name in sums]
        if all(is_number(row.get(column)) for pair in columns for column in pair):
            scored += 1
            for pair in columns:
                sums[pair[1]] = [a + row[column] for a, column in zip(sums[pair[1]], pair, strict=True)]
    means = {name: (a / scored, b / scored) for name, (a, b) in sums.items()} if scored else {}
    return {
        "raw_right": sum(verdict is True for verdict in verdicts.values()),
        "raw_wrong": sum(verdict is False for verdict in verdicts.values()),
        "cut": sum(count > 0 for count in left_out.values()),
        "steps_left_out": sum(left_out.values()),
        "rows": scored,
        "means": means,
    }

"""What a file of scored rows holds: known again without the student, row by row, by their bytes."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsd.config import StudentConfig
from rsd.files import encode, first_row
from rsd.models.bundled import folder_of
from rsd.models.fingerprint import fingerprint
from rsd.outputs import anew
from rsd.scoring.measure import SetRsr
from rsd.scoring.metrics import COLUMNS, METRICS
from rsd.scoring.responses import Responses
from rsd.scoring.steps import RULES
from rsd.scoring.verdicts import Judging, unjudged
from rsd.terminal import BAD, in_lines, joined, paint, say
from rsd.traces.columns import is_number
from rsd.traces.lines import Key
from rsd.traces.soft import SoftFile, soft_file
from rsd.traces.totals import answers


def named(scoring: Mapping[str, Any]) -> str:
    """The rules of a score in words."""
    return (
        f"student {scoring['student']}, {scoring['steps']} steps, window {scoring['window']}, "
        f"weighting by {scoring['weighting']}, improbable below {scoring['threshold']:g}"
    )


class ScoreSummary:
    """What a file of scored rows holds, and what this run added to it: `new_rows` in `seconds`."""

    def __init__(self, scoring: Mapping[str, Any]) -> None:
        self.scoring = scoring
        self.rows = self.errors = self.tokens = self.new_rows = 0
        self.seconds = 0.0
        self._first_error = ""
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._counts = dict.fromkeys(METRICS, 0)
        self._rsr = SetRsr()
        self.verdicts = Counter[bool | None]()

    def add(self, row: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """A row more, and the columns of its scores."""
        self.rows += 1
        self.verdicts[verdict if isinstance(verdict := row.get("is_correct"), bool) else None] += 1
        if columns["score_error"] is not None:
            self._first_error = self._first_error or columns["score_error"]
            self.errors += 1
            return
        self.tokens += columns["scored_tokens"]
        self._rsr.add(columns)
        for name in METRICS:
            if (value := columns[name]) is not None:
                self._sums[name] += value
                self._counts[name] += 1

    def text(self) -> str:
        lines: list[str] = [
            f"scored by    {named(self.scoring)}",
            f"rows         {self.rows} ({self.new_rows} new), {self.errors} of them with an error",
        ]
        for name, count in self._counts.items():
            if count:
                few = "" if count == self.rows - self.errors else f" ({count} rows)"
                lines.append(f"{name:<20} {self._sums[name] / count:.4g}{few}")
        if (of_set := self._rsr.value) is not None:
            lines.append(f"{'rsr of the set':<20} {of_set:.4g}")
        if self.errors:
            said = f"       {self.errors} rows have `score_error`, the first: {self._first_error}"
            lines.append(joined([paint("errors", BAD), said]))
        if self.verdicts.keys() - {None}:
            lines.append(answers(*map(self.verdicts.get, (True, False, None), (0, 0, 0))))
        lines.append(f"time         {self.seconds:.1f} s, {self.tokens} tokens in all")
        return in_lines(lines)


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the scores that it may already have."""
    return {k: v for k, v in row.items() if k not in COLUMNS}


def lines_before(
    rows: Sequence[Mapping[str, Any]], out: Path, plain: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], bytes, bytes]]:
    """Of each whole line that `out` holds already: the row that it is of, the line, and what of it comes after the row.

    plain: a row without what is added to it.

    Raises:
        ValueError: a line is not of the row in its place.
    """
    with open(out, "rb") as file:
        for i, line in enumerate(file):
            try:
                of = rows[i]
            except IndexError as e:
                raise ValueError(f"{out} holds more rows than the input: {anew()}") from e
            row = encode(plain(of))
            begins = b"{" if row == b"{}\n" else row.removesuffix(b"}\n") + b", "
            torn = not line.endswith(b"\n")  # by a crash
            if not (line.startswith(begins) or (torn and begins.startswith(line))):
                raise ValueError(f"{out}, line {i + 1}, is not of the input's row {i + 1}: {anew()}")
            if not torn:
                yield of, line, b"{" + line[len(begins) :]


def scored_before(
    summary: ScoreSummary,
    todo: Responses,
    out: Path,
    judging: Judging | None,
    *,
    has_soft: Callable[[Key], bool] | None = None,
) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take; they are added to the summary.

    has_soft: whether a trace's soft targets are there, too, where they must be; what comes behind one without is made
    again.
    """
    done = size = 0
    for row, line, added in lines_before(todo.rows, out, lambda row: plain(unjudged(row, judging))):
        try:
            made = scores_of(added, summary.scoring)
            if judging and judging.wants(row):
                row = judging.read(made)
            elif "verified_by" in made:
                raise ValueError(f"was verified by {made['verified_by']}, and now by none")
        except ValueError as e:
            raise ValueError(f"{out}, line {done + 1}, {e}: {anew()}") from e
        if has_soft and made["score_error"] is None and not has_soft((todo[done].id, todo[done].generation)):
            break
        summary.add(row, made)
        done, size = done + 1, size + len(line)
    return done, size


def scores_of(line: bytes, scoring: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of a line that holds scores, maybe among others.

    Raises:
        ValueError: they are no scores by these rules.
    """
    try:
        made = json.loads(line)
        there = made["scoring"]
        whole = made["score_error"] is not None or isinstance(made["scored_tokens"], int)
        numbers = all(made[name] is None or is_number(made[name]) for name in METRICS)
        if there == scoring and whole and numbers:
            return dict(made)
        rules = dict.fromkeys([*there, *scoring])
        differing = [
            f"{k} (there {there.get(k)!r}, now {scoring.get(k)!r})" for k in rules if there.get(k) != scoring.get(k)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("holds no scores") from None
    raise ValueError(f"was scored with other settings: {', '.join(differing)}" if differing else "holds no scores")


def finished_before(
    todo: Responses, out: Path, config: StudentConfig, judging: Judging | None, *, top_logprobs: int = 0
) -> ScoreSummary | None:
    """What `out` holds, if all rows are scored there as `config` asks; None if that is not known here.

    Of a student on the Hub it is the name that counts, and of any whether it is the same one, not in which type it
    computed: scores that are there are not undone by a branch that has moved on, or a GPU that is there now.
    """
    scoring = first_row(out).get("scoring") if out.is_file() else None
    if not isinstance(scoring, dict):
        return None
    name = folder_of(config.student)
    known = str(scoring.get("fingerprint"))
    if os.path.exists(name):
        same = known == fingerprint(name)
    else:
        same = known.startswith(f"{name}@{config.student_revision or ''}")
    asked = asdict(config.scoring()) | {"step_rules": RULES} | config.layout()
    told = {k: v for k, v in scoring.items() if k not in ("student", "fingerprint", "dtype")}
    if not same or told != asked or config.dtype not in (None, scoring.get("dtype")):
        return None
    summary = ScoreSummary(scoring)
    with suppress(ValueError):
        has_soft = SoftFile(soft_file(out)).has if top_logprobs else None
        done, size = scored_before(summary, todo, out, judging, has_soft=has_soft)
        if done == len(todo) and size == out.stat().st_size and not summary.errors:
            say(f"{out} is finished: it holds the scores of all {done} rows")
            return summary
    return None

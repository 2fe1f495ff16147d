"""Scoring a file: rows with their scores, in order, resumable, with a progress bar and a summary."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from rsd.events import logging, ticking
from rsd.files import Output, check_outputs, encode, locked, replacing
from rsd.scoring.measure import SetRsr
from rsd.scoring.metrics import COLUMNS, METRICS
from rsd.scoring.responses import Response
from rsd.scoring.scorer import Scored, Scorer, named
from rsd.terminal import hushed, in_lines, say
from rsd.traces import ours
from rsd.traces.columns import is_number
from rsd.traces.shards import Lines

AGAIN = "use another -o, or --overwrite to start anew"


class Place(NamedTuple):
    """Where a line is."""

    file: Path
    offset: int


@dataclass(frozen=True, kw_only=True)
class Others:
    """The processes that share a file with this one: rows of all, the files of all, and whether this one prints."""

    total: int
    files: Sequence[Path]
    shown: bool


def score_file(
    scorer: Scorer,
    todo: Sequence[Response],
    out: str | Path,
    *,
    overwrite: bool = False,
    known: Mapping[str, Place] | None = None,
    others: Others | None = None,
) -> "ScoreSummary":
    """Write the rows with their scores, in order, each as soon as it is scored; resumes what an earlier run left.

    Args:
        known: by what `content` says of a row, where a line with scores by the same rules is already.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with these rules left.
    """
    started = time.monotonic()
    check_outputs([Output(out, ours.scored if overwrite else None)])
    summary = ScoreSummary(scorer.scoring)
    with closing(_begun(Path(out), overwrite=overwrite)) as file:
        done, size = (0, 0) if overwrite else _scored_before(summary, todo, Path(out))
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} scored rows, {len(todo) - done} to score")
        places = {i: at for i in range(done, len(todo)) if (at := known.get(content(todo[i].row)))} if known else {}
        missing = len(todo) - done - len(places)
        made = progress(
            scorer,
            (todo[i] for i in range(done, len(todo)) if i not in places),
            count=missing,
            initial=len(todo) - missing,
            others=others,
        )
        for i in range(done, len(todo)):
            if i in places:
                with open(places[i].file, "rb") as other:
                    other.seek(places[i].offset)
                    line = other.readline()
                summary.add(_scores(line, b"", scorer.scoring))
            else:
                scored = next(made)
                line = encode(_plain(scored.response.row) | scored.columns())
                summary.add(scored.columns())
            file.write(line)
            file.flush()
        next(made, None)  # closes the bar
    summary.new_rows, summary.seconds = missing, time.monotonic() - started
    return summary


def content(row: Mapping[str, Any]) -> str:
    """What tells a row from others, whatever scores it may have."""
    return hashlib.blake2b(encode(_plain(row)), digest_size=16).hexdigest()


def _begun(out: Path, *, overwrite: bool) -> BinaryIO:
    file = locked(out)
    if overwrite and os.fstat(file.fileno()).st_nlink > 1:  # what goes by another name too, such as a copy, stays
        with replacing(out):
            file.close()
        file = locked(out)
    return file


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

    def add(self, columns: Mapping[str, Any]) -> None:
        """A row more, by the columns of its scores."""
        self.rows += 1
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
        lines = [
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
            lines.append(f"errors       {self.errors} rows have `score_error`, the first: {self._first_error}")
        lines.append(f"time         {self.seconds:.1f} s, {self.tokens} tokens in all")
        return in_lines(lines)


def progress(
    scorer: Scorer, todo: Iterable[Response], *, count: int, initial: int = 0, others: Others | None = None
) -> Iterator[Scored]:
    """Score responses in order, with a progress bar. count: how many. initial: rows that were scored before."""
    every = 0.1 if sys.stderr.isatty() else 10
    tokens, started, shown = 0, time.monotonic(), others is None or others.shown
    total, lines = initial + count, None
    if others is not None and shown:
        total, lines = others.total, Lines(others.files)
        initial = lines.count()
    new, errors, before = 0, 0, initial

    def record() -> dict[str, Any]:
        seconds = time.monotonic() - started
        told = {"new": new, "to_go": count - new, "errors": errors, "tokens": tokens, "seconds": round(seconds, 3)}
        whole = {"done": before + new, "total": total} if others is None else {}  # otherwise a share is all it knows
        return whole | told | {"tokens_per_second": round(tokens / seconds, 1)}

    bar = tqdm(
        total=total,
        initial=initial,
        unit="trace",
        dynamic_ncols=True,
        mininterval=every,
        disable=None if shown and not hushed() and not logging() else True,
    )
    with bar, ticking(record):
        for response in todo:
            scored = scorer.score(response)
            tokens += len(scored.token_ids)
            new, errors = new + 1, errors + (scored.error is not None)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tok/s", refresh=False)
            bar.update(1 if lines is None else lines.count() - bar.n)
            yield scored


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the scores that it may already have."""
    return {k: v for k, v in row.items() if k not in COLUMNS}


def _scored_before(summary: ScoreSummary, todo: Sequence[Response], out: Path) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take; they are added to the summary."""
    done = size = 0
    with open(out, "rb") as file:
        for line in file:
            try:
                row = encode(_plain(todo[done].row))
            except IndexError as e:
                raise ValueError(f"{out} holds more rows than the input: {AGAIN}") from e
            begins = b"{" if row == b"{}\n" else row.removesuffix(b"}\n") + b", "
            torn = not line.endswith(b"\n")  # by a crash
            if not (line.startswith(begins) or (torn and begins.startswith(line))):
                raise ValueError(f"{out}, line {done + 1}, is not of the input's row {done + 1}: {AGAIN}")
            if not torn:
                try:
                    summary.add(_scores(line, begins, summary.scoring))
                except ValueError as e:
                    raise ValueError(f"{out}, line {done + 1}, {e}: {AGAIN}") from e
                done, size = done + 1, size + len(line)
    return done, size


def _scores(line: bytes, begins: bytes, scoring: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of a line that begins with those of its row.

    Raises:
        ValueError: they are no scores by these rules.
    """
    try:
        made = json.loads(b"{" + line[len(begins) :] if begins else line)
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

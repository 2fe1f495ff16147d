"""Scoring a file: rows with their scores, in order, resumable, with a progress bar and a summary."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from rsd.events import logging, ticking
from rsd.files import Output, check_outputs, encode, locked, replacing
from rsd.scoring.measure import set_rsr
from rsd.scoring.metrics import COLUMNS, METRICS
from rsd.scoring.responses import Response
from rsd.scoring.scorer import Scored, Scorer, named
from rsd.terminal import hushed, in_lines, say
from rsd.traces import ours
from rsd.traces.shards import Lines


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
    with closing(_begun(Path(out), overwrite=overwrite)) as file:
        done, size = (0, 0) if overwrite else _scored_before(scorer, todo, Path(out))
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} scored rows, {len(todo) - done} to score")
        places = [known.get(content(response.row)) if known else None for response in todo[done:]]
        missing = [r for r, place in zip(todo[done:], places, strict=True) if place is None]
        made = progress(scorer, missing, initial=len(todo) - len(missing), others=others)
        for place in places:
            if place is None:
                scored = next(made)
                file.write(encode(_plain(scored.response.row) | scored.columns()))
            else:
                with open(place.file, "rb") as other:
                    other.seek(place.offset)
                    file.write(other.readline())
            file.flush()
        next(made, None)  # closes the bar
    rows = [json.loads(line) for line in Path(out).read_bytes().splitlines()]
    return ScoreSummary(scorer.scoring, rows, len(missing), time.monotonic() - started)


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


@dataclass(frozen=True)
class ScoreSummary:
    """What a file of scored rows holds, and what this run added to it."""

    scoring: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    new_rows: int
    seconds: float

    @property
    def errors(self) -> int:
        return sum(row["score_error"] is not None for row in self.rows)

    def text(self) -> str:
        scored = [row for row in self.rows if row["score_error"] is None]
        tokens = sum(row["scored_tokens"] for row in scored)
        lines = [
            f"scored by    {named(self.scoring)}",
            f"rows         {len(self.rows)} ({self.new_rows} new), {self.errors} of them with an error",
        ]
        for name in METRICS:
            values = [row[name] for row in scored if row[name] is not None]
            if values:
                few = "" if len(values) == len(scored) else f" ({len(values)} rows)"
                lines.append(f"{name:<20} {sum(values) / len(values):.4g}{few}")
        if (of_set := set_rsr(scored)) is not None:
            lines.append(f"{'rsr of the set':<20} {of_set:.4g}")
        if self.errors:
            first = next(row for row in self.rows if row["score_error"] is not None)
            lines.append(f"errors       {self.errors} rows have `score_error`, the first: {first['score_error']}")
        lines.append(f"time         {self.seconds:.1f} s, {tokens} tokens in all")
        return in_lines(lines)


def progress(
    scorer: Scorer, todo: Sequence[Response], *, initial: int = 0, others: Others | None = None
) -> Iterator[Scored]:
    """Score responses in order, with a progress bar."""
    every = 0.1 if sys.stderr.isatty() else 10
    tokens, started, shown = 0, time.monotonic(), others is None or others.shown
    total, lines = initial + len(todo), None
    if others is not None and shown:
        total, lines = others.total, Lines(others.files)
        initial = lines.count()
    new, errors, before = 0, 0, initial

    def record() -> dict[str, Any]:
        seconds = time.monotonic() - started
        told = {"new": new, "to_go": len(todo) - new, "errors": errors, "tokens": tokens, "seconds": round(seconds, 3)}
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


def _scored_before(scorer: Scorer, todo: Sequence[Response], out: Path) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take."""
    done = size = 0
    with open(out, "rb") as file:
        for line in file:
            torn = not line.endswith(b"\n")  # by a crash
            try:
                expected = encode(_plain(todo[done].row))
                if torn:
                    begins = expected.removesuffix(b"}\n") + b","
                    same = line.startswith(begins) or begins.startswith(line)
                else:
                    row = json.loads(line)
                    same = encode(_plain(row)) == expected and row["scoring"] == scorer.scoring
            except (ValueError, IndexError, KeyError, AttributeError):
                same = False
            if not same:
                raise ValueError(
                    f"{out}, line {done + 1}, is not what these settings make of the input's row {done + 1}: "
                    "use another -o, or --overwrite to start anew"
                )
            if not torn:
                done, size = done + 1, size + len(line)
    return done, size

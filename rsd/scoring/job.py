"""Scoring a file: rows with their scores, in order, resumable, with a progress bar and a summary."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from rsd.bar import Bar
from rsd.events import ticking
from rsd.files import begun, encode
from rsd.outputs import Output, check_outputs
from rsd.scoring.responses import Responses
from rsd.scoring.scored_rows import ScoreSummary, plain, scored_before, scores_of
from rsd.scoring.scorer import WINDOW, Scored, Scorer
from rsd.scoring.verdicts import Judging, judged
from rsd.terminal import say
from rsd.traces import ours
from rsd.traces.shards import Lines
from rsd.traces.soft import SoftLog, soft_file


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
    todo: Responses,
    out: str | Path,
    *,
    judging: Judging | None = None,
    overwrite: bool = False,
    known: Mapping[int, Place] | None = None,
    others: Others | None = None,
    seen: Callable[[Scored], object] | None = None,
    reread: Callable[[Sequence[Scored]], list[Scored]] | None = None,
    top: int = 0,
) -> ScoreSummary:
    """Write the rows with their scores, in order, as soon as they are scored; resumes what an earlier run left.

    Args:
        judging: how rows are judged; a verdict comes before the scores.
        known: by a row's place, where its line with scores by the same rules is already.
        seen: is given every scored trace, in order; those that were scored before are scored again for it.
        reread: has both models read what was scored, and says what `top` tokens they find likeliest in each place;
            that goes into a file beside `out`.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with these rules left.
    """
    started = time.monotonic()
    check_outputs([Output(out, ours.scored if overwrite else None), *([Output(soft_file(out))] if top else [])])
    summary = ScoreSummary(scorer.scoring)
    with ExitStack() as stack:
        file = stack.enter_context(closing(begun(Path(out), overwrite=overwrite)))
        soft = stack.enter_context(SoftLog(soft_file(out), top, keep=not overwrite)) if top else None
        has_soft = soft.has if soft else None
        done, size = (0, 0) if overwrite else scored_before(summary, todo, Path(out), judging, has_soft=has_soft)
        file.truncate(size)
        if soft:
            soft.begin()
        if done:
            say(f"resuming {out}: found {done} scored rows, {len(todo) - done} to score")
        places = {i: place for i, place in (known or {}).items() if i >= done}
        missing = len(todo) - done - len(places)
        again = seen is not None  # what was scored before
        scored = windows(scorer, todo, lambda i: (again or i >= done) and i not in places, judging)
        if seen is not None:
            for one in islice(scored, done):
                seen(one)
        if reread is not None:
            scored = in_windows(scored, reread)
        made = progress(scored, count=missing, initial=len(todo) - missing, others=others)
        for i in range(done, len(todo)):
            if i in places:
                with open(places[i].file, "rb") as other:
                    other.seek(places[i].offset)
                    line = other.readline()
                made_before = scores_of(line, scorer.scoring)
                summary.add(made_before, made_before)
            else:
                one = next(made)
                line = encode(plain(one.response.row) | one.columns())
                summary.add(one.response.row, one.columns())
                if seen is not None:
                    seen(one)
                if soft and one.soft is not None:
                    soft.append((one.response.id, one.response.generation), one.soft)
            file.write(line)
            file.flush()
        next(made, None)  # closes the bar
    summary.new_rows, summary.seconds = missing, time.monotonic() - started
    return summary


def in_windows(made: Iterable[Scored], reread: Callable[[Sequence[Scored]], list[Scored]]) -> Iterator[Scored]:
    """Have them read again, many at once."""
    left = iter(made)
    while window := list(islice(left, WINDOW)):
        yield from reread(window)


def windows(
    scorer: Scorer, todo: Responses, wanted: Callable[[int], bool], judging: Judging | None
) -> Iterator[Scored]:
    """Scores of the rows that are wanted, in order, each with its verdict; whole windows are read that hold one."""
    verdicts = judged((todo[i] for i in range(len(todo)) if wanted(i)), judging)
    with closing(verdicts):
        for start in range(0, len(todo), WINDOW):
            window = range(start, min(start + WINDOW, len(todo)))
            places = {i - start for i in window if wanted(i)}
            if places:
                responses = [next(verdicts) if i - start in places else todo[i] for i in window]
                yield from scorer.score_window(responses, places)


class Made(Protocol):
    """A row that something was made of."""

    @property
    def token_ids(self) -> Sized: ...

    @property
    def error(self) -> str | None: ...


M = TypeVar("M", bound=Made)


def progress(
    made: Iterable[M],
    *,
    count: int,
    initial: int = 0,
    others: Others | None = None,
    what: str = "",
) -> Iterator[M]:
    """Hand on scores, or what else there is of rows, as they are made, and show how far it is.

    count: how many. initial: rows that were scored before. what: as of `Bar`.
    """
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

    def rates() -> str:
        return f"{tokens / (time.monotonic() - started):.0f} tok/s" if tokens else ""

    with Bar(total, initial, rates=rates, what=what, shown=shown) as bar, ticking(record):
        for scored in made:
            tokens += len(scored.token_ids)
            new, errors = new + 1, errors + (scored.error is not None)
            bar.at(before + new if lines is None else lines.count())
            yield scored

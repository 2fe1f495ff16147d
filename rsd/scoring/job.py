"""Scoring a file: rows with their scores, in order, resumable, with a progress bar and a summary."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rsd.bar import Bar
from rsd.events import ticking
from rsd.files import Output, begun, check_outputs, encode
from rsd.scoring.responses import Response, Responses
from rsd.scoring.scored_rows import ScoreSummary, content, plain, scored_before, scores_of
from rsd.scoring.scorer import Scored, Scorer
from rsd.scoring.verdicts import Judging, judged, unjudged
from rsd.terminal import say
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
    todo: Responses,
    out: str | Path,
    *,
    judging: Judging | None = None,
    overwrite: bool = False,
    known: Mapping[str, Place] | None = None,
    others: Others | None = None,
    seen: Callable[[Scored], object] | None = None,
) -> ScoreSummary:
    """Write the rows with their scores, in order, each as soon as it is scored; resumes what an earlier run left.

    Args:
        judging: how rows are judged; a verdict comes before the scores.
        known: by what `content` says of a row, where a line with scores by the same rules is already.
        seen: is given every scored trace, in order; those that were scored before are scored again for it.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with these rules left.
    """
    started = time.monotonic()
    check_outputs([Output(out, ours.scored if overwrite else None)])
    summary = ScoreSummary(scorer.scoring)
    with closing(begun(Path(out), overwrite=overwrite)) as file:
        done, size = (0, 0) if overwrite else scored_before(summary, todo, Path(out), judging)
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} scored rows, {len(todo) - done} to score")
        if seen is not None:
            for response in judged((todo[i] for i in range(done)), judging):
                seen(scorer.score(response))
        places: dict[int, Place] = {}
        if known:
            contents = ((i, content(unjudged(todo.rows[i], judging))) for i in range(done, len(todo)))
            places = {i: known[of] for i, of in contents if of in known}
        missing = len(todo) - done - len(places)
        made = progress(
            scorer,
            judged((todo[i] for i in range(done, len(todo)) if i not in places), judging),
            count=missing,
            initial=len(todo) - missing,
            others=others,
        )
        for i in range(done, len(todo)):
            if i in places:
                with open(places[i].file, "rb") as other:
                    other.seek(places[i].offset)
                    line = other.readline()
                made_before = scores_of(line, scorer.scoring)
                summary.add(made_before, made_before)
            else:
                scored = next(made)
                line = encode(plain(scored.response.row) | scored.columns())
                summary.add(scored.response.row, scored.columns())
                if seen is not None:
                    seen(scored)
            file.write(line)
            file.flush()
        next(made, None)  # closes the bar
    summary.new_rows, summary.seconds = missing, time.monotonic() - started
    return summary


def progress(
    scorer: Scorer,
    todo: Iterable[Response],
    *,
    count: int,
    initial: int = 0,
    others: Others | None = None,
    what: str = "",
) -> Iterator[Scored]:
    """Score responses in order, and show how far it is.

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
        for response in todo:
            scored = scorer.score(response)
            tokens += len(scored.token_ids)
            new, errors = new + 1, errors + (scored.error is not None)
            bar.at(before + new if lines is None else lines.count())
            yield scored

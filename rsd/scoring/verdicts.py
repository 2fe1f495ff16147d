"""Whether responses are right, for rows that exist: the same judges as of `rsd generate`, over any file."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from rsd.answers.verifier import Judgement, Verifier, answer_columns, resolve
from rsd.reading import Reading
from rsd.scoring.responses import Response, Responses
from rsd.settings import called
from rsd.traces.rows import answer_of

# What a row that was judged has besides; the last one says by what.
COLUMNS = ("is_correct", "verify_error", "verified_by")
AHEAD = 256  # responses that are judged while others are worked on


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How the rows of a file are judged.

    how: as of `Verifier`. columns: where their answers may be. anew: those, too, that have a verdict.
    """

    how: str
    columns: tuple[str, ...]
    anew: bool

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is judged here."""
        return self.anew or not (isinstance(row.get("is_correct"), bool) or row.get("verified_by"))

    def plain(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row without what judging it adds."""
        return {k: v for k, v in row.items() if k not in COLUMNS} if self.wants(row) else dict(row)

    def read(self, made: Mapping[str, Any]) -> Mapping[str, Any]:
        """The verdict that is in what was added to a row.

        Raises:
            ValueError: it is none, or was found by another judge.
        """
        if (by := made.get("verified_by")) != self.how:
            raise ValueError(f"was verified by {by or 'none'}, and now by {self.how}")
        if not isinstance(made.get("is_correct"), bool | None):
            raise ValueError("holds no verdict")
        return {name: made.get(name) for name in COLUMNS}


def judging_of(todo: Responses, config: Reading) -> Judging | None:
    """How a file is judged; None if it is not. With verify "auto" that is where rows have an answer, and no verdict.

    Raises:
        ValueError: rows are to be judged, and there is no column of answers.
    """
    how = resolve(config.verify)
    columns = _columns(todo, config, config.verify)
    judges = how != "none" and (columns or ":" in how)
    return Judging(how=how, columns=columns, anew=config.verify != "auto") if judges else None


def must_judge(todo: Responses, config: Reading) -> Judging:
    """How all rows of a file are judged, whatever verdicts they have.

    Raises:
        ValueError: nothing is to judge them, or there is no column of answers.
    """
    how = resolve(config.verify)
    if how == "none":
        raise ValueError(
            f"{called('verify', 'none')} judges nothing: choose auto, boxed, math or your own module:callable"
        )
    return Judging(how=how, columns=_columns(todo, config, how), anew=True)


def _columns(todo: Responses, config: Reading, how: str) -> tuple[str, ...]:
    """Where the answers are: in no column that holds the traces."""
    given = (config.prompt_column, config.response_column, config.thinking_column)
    return answer_columns([c for c in todo.columns if c not in given], how, config.answer_column)


def unjudged(row: Mapping[str, Any], judging: Judging | None) -> Mapping[str, Any]:
    """A row without what judging adds, if it is judged."""
    return judging.plain(row) if judging else row


def judged(todo: Iterable[Response], judging: Judging | None) -> Generator[Response, None, None]:
    """The responses, in order, whose rows end with a verdict where they are judged.

    Raises:
        ValueError: a user's function cannot be imported.
    """
    if judging is None:
        yield from todo
        return
    verifier = Verifier(judging.how)
    verifier.start()
    waiting: deque[tuple[Response, Future[Judgement] | None]] = deque()
    try:
        for response in todo:
            waiting.append((response, _submitted(verifier, response, judging)))
            if len(waiting) > AHEAD:
                yield _with_verdict(*waiting.popleft(), judging)
        while waiting:
            yield _with_verdict(*waiting.popleft(), judging)
    finally:
        verifier.stop()


def _submitted(verifier: Verifier, response: Response, judging: Judging) -> "Future[Judgement] | None":
    row = response.row
    if not judging.wants(row):
        return None
    if response.error is not None:
        future: Future[Judgement] = Future()
        future.set_result(Judgement(None, response.error))
        return future
    # Where the prompt has opened the thought, the text of one that was cut off does not show it.
    opened = row.get("one_think_close") is False and "<think>" not in response.text
    given = {**row, "id": response.id, "prompt": response.messages}
    return verifier.submit(response.text, given, answer_of(row, judging.columns), opened=opened)


def _with_verdict(response: Response, future: "Future[Judgement] | None", judging: Judging) -> Response:
    if future is None:
        return response
    found = future.result()
    verdict = dict(zip(COLUMNS, (found.correct, found.error, judging.how), strict=True))
    return replace(response, row=judging.plain(response.row) | verdict)

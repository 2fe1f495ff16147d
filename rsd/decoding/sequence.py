"""One trace on its way through the engine: what is asked for, its state in a round, what comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from rsd.decoding.partial_tokens import AT_BOUNDARY, Partial
from rsd.pair.vocabulary import TeacherContext, Vocabulary
from rsd.traces.tokens import TokenColumns, no_tokens

T = TypeVar("T")
# A live row, which the host keeps: its noise key, how many tokens it has and may have at the most, how many ids are in
# the student's cache, and the id that it reads next.
STATE = np.dtype([(name, np.int64) for name in ("key", "done", "limit", "length", "pending")])


@dataclass(frozen=True, eq=False)
class Request(Generic[T]):
    """One trace to make.

    student_prompt, teacher_prompt: the prompt as each model reads it; at least one id each. Requests in a row whose
        prompts are the beginning of the first one's, or all of it, share one prefill.
    key: the noise key, from `sampling.row_key`.
    tag: the caller's; handed back untouched.
    given: the trace, where it is there already and is only to be read; all requests of a run have one, or none has.
    ends: asked after every token, with all ids so far: how many of these the trace keeps, if it ends here, else None.
    """

    student_prompt: list[int]
    teacher_prompt: list[int]
    key: int
    max_new_tokens: int
    tag: T = None  # type: ignore[assignment]
    ends: Callable[[Sequence[int]], int | None] | None = None
    given: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Finished(TokenColumns, Generic[T]):
    """One trace made.

    tokens: the committed tokens [T], the final EOS included, as records of `traces.tokens.record`.
    finish_reason: "stop" (an EOS), "length", "loop" (see `loops`), "cut" (see `Request.ends`), or "error".
    """

    request: Request[T]
    tokens: np.ndarray
    finish_reason: str
    error: str | None = None


class TraceSoFar(NamedTuple):
    """A request, and the records [T] of the tokens that it has: none, unless it was interrupted; and where the
    teacher is after them."""

    request: Request
    tokens: np.ndarray = no_tokens()
    partial: Partial = AT_BOUNDARY

    @property
    def ids(self) -> list[int]:
        return self.tokens["token_ids"].tolist()

    def read(self, vocabulary: Vocabulary) -> tuple[list[int], TeacherContext]:
        """The trace so far as each model reads it."""
        theirs = vocabulary.read(TeacherContext(self.request.teacher_prompt), self.ids)
        return [*self.request.student_prompt, *self.ids], theirs

"""The decoding engine: which traces run together, from prompt to end. It knows ids only, never text.

The algorithm of a round is in `rounds`; here prompts are read, freed rows are refilled at once, and a
lack of memory is met with fewer rows (`room`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from rsd.config import Acceptance, Sampling
from rsd.decoding.block_size import Pace
from rsd.decoding.partial_tokens import BETWEEN, Midst
from rsd.decoding.round import (
    ACCEPTED,
    DONE,
    LABEL,
    LEFT_OUT,
    PROPOSAL,
    RECORD,
    STATE,
    STUDENT_LOGPROB,
    TEACHER_LOGPROB,
    TOKEN,
    Rounds,
)
from rsd.decoding.teacher import LocalTeacher, Teacher
from rsd.models.kv_cache import CachedModel
from rsd.models.room import Room, out_of_memory, twice_fit
from rsd.pair.vocabulary import Reading, Vocabulary

READ_AHEAD = 2048  # prompt tokens that are prefilled together, before rows are free for them
AT_ONCE = 16  # and how many prompts at the most


@dataclass(frozen=True, eq=False)
class Request:
    """One trace to make.

    student_prompt, teacher_prompt: the prompt as each model reads it; at least one id each.
        Requests in a row with equal prompts share one prefill.
    key: the noise key, from `sampling.row_key`.
    tag: the caller's; handed back untouched.
    """

    student_prompt: list[int]
    teacher_prompt: list[int]
    key: int
    max_new_tokens: int
    tag: Any = None


@dataclass(frozen=True, eq=False)
class Finished:
    """One trace made: arrays of T committed tokens, the final EOS included.

    token_ids: int64, the student's ids.
    teacher_logprobs, student_logprobs: float64, log-softmax over the full width at temperature 1,
        before any mask; NaN where the teacher has no such token.
    from_teacher: bool, drawn from its posterior given the token.
    accepted: float64, a = q(A), the chance that one proposal stands.
    proposals: int64, the teacher's likeliest proposal; -1 where it has none that the student knows. (Of a token
        that it spells, only where this could stand; see `proposals`.)
    left_out: float64, the share of the teacher's sampling distribution that is no token of the student's.
    finish_reason: "stop" (an EOS), "length", "loop" (see `loops`), or "error".
    """

    request: Request
    token_ids: np.ndarray
    teacher_logprobs: np.ndarray
    student_logprobs: np.ndarray
    from_teacher: np.ndarray
    accepted: np.ndarray
    proposals: np.ndarray
    left_out: np.ndarray
    finish_reason: str
    error: str | None = None


class Row(NamedTuple):
    """A request, and the record [T, RECORD] of the tokens that it has: none, unless it was interrupted; and where
    the teacher is after them."""

    request: Request
    record: np.ndarray
    midst: Midst = BETWEEN

    @property
    def tokens(self) -> list[int]:
        return self.record[:, TOKEN].astype(int).tolist()

    def read(self, vocabulary: Vocabulary) -> tuple[list[int], Reading]:
        """The row so far as each model reads it."""
        theirs = vocabulary.read(Reading(self.request.teacher_prompt), self.tokens)
        return [*self.request.student_prompt, *self.tokens], theirs


class Ready(NamedTuple):
    """A row that is read, all but its last id: it is row `at` of what both models prefilled."""

    row: Row
    prefilled: tuple[CachedModel, Any]
    at: int


class Engine:
    """Teacher and student in step over at most `rows` rows.

    Args:
        eos: ids that end a trace.
        block: tokens drafted a round; 1 is lockstep; None leaves it to `pace`. A trace does not depend
            on it (in fp32, up to near-ties).
        loop_check: end traces that repeat themselves for ever, see `loops`.
        compile: see `cache.CachedModel`.

    Raises:
        ValueError: a model whose state cannot be rolled back.
    """

    def __init__(
        self,
        teacher: PreTrainedModel | Teacher,
        student: PreTrainedModel,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        acceptance: Acceptance,
        eos: Collection[int],
        rows: int = 32,
        block: int | None = None,
        loop_check: bool = True,
        compile: bool = False,
    ) -> None:
        self.vocabulary = vocabulary
        self.room, self.at_once = Room(rows), AT_ONCE
        self.pace = Pace(block)
        if isinstance(teacher, PreTrainedModel):
            teacher = LocalTeacher(teacher, rows, compile=compile)
        self.rounds = Rounds(
            teacher,
            student,
            vocabulary,
            sampling=sampling,
            acceptance=acceptance,
            eos=eos,
            rows=rows,
            pace=self.pace,
            loop_check=loop_check,
            compile=compile,
        )

    @property
    def rows(self) -> int:
        """How many rows there is room for now."""
        return self.room.rows

    @torch.inference_mode()
    def run(self, requests: Iterable[Request]) -> Iterator[Finished]:
        """Yield traces as they finish; a finished row's slot takes the next request at once.

        An iterator that has come to its end is asked again when there is room: what follows from a trace that
        was yielded may be requested then.

        Out of memory, it goes on with half of the rows, from the tokens that all of them have, and tries more
        rows again later. With one row left, that row ends as an error.
        """
        self.pace.begin()
        waiting = _Waiting(requests)
        ready: deque[Ready] = deque()
        live: list[Row | None] = []  # by slot
        state = np.zeros((self.room.asked, STATE), dtype=np.int64)
        book = np.empty((self.room.asked, 256, RECORD))
        while True:
            if self.room.may_grow and (ready or waiting.rows):
                if twice_fit(self._models()):
                    self._interrupt(waiting, ready, live, state, book)
                    self.room.grow()
                    self.at_once = AT_ONCE
                    self._drop_caches()
                else:
                    self.room.wait()
            short = False
            ended: list[tuple[int, str, str | None]] = []
            try:
                book = self._fill(waiting, ready, live, state, book)
                if not live:
                    return
                block = self.pace.choose(len(live))
                book = _room(book, int(state[: len(live), DONE].max()) + block)
                ended = self.rounds.round(state[: len(live)], book, block)
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e):
                    raise
                short = True  # what the exception holds on to is only freed after this block
            if short:
                alone = self.rows == 1
                self._interrupt(waiting, ready, live, state, book)
                self.room.shrink()
                self._drop_caches()
                if alone and (row := waiting.pop()):
                    why = f"out of memory after {len(row.record)} tokens, with this row alone"
                    yield _finished(row.request, row.record[:0], "error", why)
            for slot, reason, error in ended:
                request = live[slot].request  # type: ignore[union-attr]
                live[slot] = None
                self.room.finish(1)
                yield _finished(request, book[slot, : state[slot, DONE]], reason, error)

    def _interrupt(
        self, waiting: "_Waiting", ready: deque[Ready], live: list[Row | None], state: np.ndarray, book: np.ndarray
    ) -> None:
        """All rows wait again, with the tokens that they have."""
        interrupted = [
            Row(row.request, book[slot, : state[slot, DONE]].copy(), self.rounds.midst[slot])
            for slot, row in enumerate(live)
            if row
        ]
        waiting.put_back(interrupted + [r.row for r in ready])
        live.clear()
        ready.clear()

    def _fill(
        self, waiting: "_Waiting", ready: deque[Ready], live: list[Row | None], state: np.ndarray, book: np.ndarray
    ) -> np.ndarray:
        """Fill the free slots, with rows that wait or else with the last live ones, so that these stay together."""
        slot = 0
        while slot < self.rows:
            if slot < len(live) and live[slot] is not None:
                slot += 1
                continue
            if not ready:
                self._prefill(waiting, ready)
            if ready:
                row, prefilled, at = ready[0]
                ours, theirs = row.read(self.vocabulary)
                self.rounds.place_row(slot, theirs, row.midst, row.tokens, prefilled=prefilled, at=at)
                done = len(row.record)
                state[slot] = row.request.key, done, row.request.max_new_tokens, len(ours) - 1, ours[-1]
                book = _room(book, done)
                book[slot, :done] = row.record
                live[slot : slot + 1] = [row]
                ready.popleft()
            elif slot >= len(live):
                break
            elif live[-1] is None:
                live.pop()
            else:
                last = len(live) - 1
                state[slot] = state[last]
                book[slot, : state[slot, DONE]] = book[last, : state[slot, DONE]]
                self.rounds.move_row(last, slot)
                live[slot] = live.pop()
        return book

    def _prefill(self, waiting: "_Waiting", ready: deque[Ready]) -> None:
        """Read what waits first: several different prompts in one pass, equal ones in a row once.

        Out of memory, it reads half as many at once.
        """
        while True:
            group: list[tuple[Row, int]] = []
            ours: list[list[int]] = []
            theirs: list[list[int]] = []
            while (row := waiting.peek(len(group))) is not None:
                reads = row.read(self.vocabulary)
                if not group or (reads[0], reads[1].ids) != (ours[-1], theirs[-1]):
                    if len(ours) == self.at_once or sum(map(len, ours)) >= READ_AHEAD:
                        break
                    ours.append(reads[0])
                    theirs.append(reads[1].ids)
                group.append((row, len(ours) - 1))
            if not group:
                return
            try:
                prefilled = self.rounds.student.prefill(ours), self.rounds.teacher.prefill(theirs)
            except (RuntimeError, MemoryError) as e:
                if len(ours) == 1 or not out_of_memory(e):
                    raise
            else:
                for row, at in group:
                    waiting.pop()
                    ready.append(Ready(row, prefilled, at))
                return
            self.at_once = len(ours) // 2

    def _drop_caches(self) -> None:
        self.rounds.drop_caches(self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _models(self) -> list[CachedModel]:
        teacher = [self.rounds.teacher.model] if isinstance(self.rounds.teacher, LocalTeacher) else []
        return [self.rounds.student, *teacher]


class _Waiting:
    """The rows that wait: those that were put back first, then what the requests still give."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = iter(requests)
        self.rows: deque[Row] = deque()

    def peek(self, i: int) -> Row | None:
        while len(self.rows) <= i:
            request = next(self.requests, None)
            if request is None:
                return None
            self.rows.append(Row(request, np.empty((0, RECORD))))
        return self.rows[i]

    def pop(self) -> Row | None:
        return self.rows.popleft() if self.peek(0) is not None else None

    def put_back(self, rows: list[Row]) -> None:
        self.rows.extendleft(reversed(rows))


def _room(book: np.ndarray, tokens: int) -> np.ndarray:
    while tokens > book.shape[1]:
        book = np.concatenate([book, np.empty_like(book)], 1)
    return book


def _finished(request: Request, record: np.ndarray, reason: str, error: str | None) -> Finished:
    column = record.T.copy()
    return Finished(
        request=request,
        token_ids=column[TOKEN].astype(np.int64),
        teacher_logprobs=column[TEACHER_LOGPROB],
        student_logprobs=column[STUDENT_LOGPROB],
        from_teacher=column[LABEL] > 0,
        accepted=column[ACCEPTED],
        proposals=column[PROPOSAL].astype(np.int64),
        left_out=column[LEFT_OUT],
        finish_reason=reason,
        error=error,
    )

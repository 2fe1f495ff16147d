"""The decoding engine: which traces run together, from prompt to end. It knows ids only, never text.

The algorithm of a round is in `round`; here prompts are read, freed rows are refilled at once, and a
lack of memory is met with fewer rows (`room`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from rsd.config import Acceptance, Sampling
from rsd.decoding.block_size import BlockController
from rsd.decoding.round import Ended, Rounds
from rsd.decoding.sequence import STATE, Finished, Request, T, TraceSoFar
from rsd.decoding.teacher import LocalTeacher, Teacher
from rsd.models.kv_cache import CachedModel
from rsd.models.room import Room, out_of_memory, twice_fit
from rsd.pair.vocabulary import Vocabulary
from rsd.traces.tokens import TOKEN

READ_AHEAD = 2048  # prompt tokens that are prefilled together, before rows are free for them
AT_ONCE = 16  # and how many prompts at the most
Live = list[TraceSoFar | None]  # by slot


class Ready(NamedTuple):
    """A row that is read, all but its last id: it is row `at` of what both models prefilled."""

    row: TraceSoFar
    prefilled: tuple[CachedModel, Any]
    at: int


class Engine:
    """Teacher and student in step over at most `rows` rows.

    Args:
        eos: ids that end a trace.
        block: tokens drafted a round; 1 is lockstep; None leaves it to `block_size`. A trace does not depend
            on it (in fp32, up to near-ties).
        loop_check: end traces that repeat themselves for ever, see `loops`.
        compile: see `kv_cache.CachedModel`.

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
        self.blocks = BlockController(block)
        self.student = CachedModel(student, rows, compile=compile)
        self.teacher = LocalTeacher(teacher, rows, compile=compile) if isinstance(teacher, PreTrainedModel) else teacher
        self.rounds = Rounds(
            self.teacher,
            self.student,
            vocabulary,
            sampling=sampling,
            acceptance=acceptance,
            eos=eos,
            rows=rows,
            blocks=self.blocks,
            loop_check=loop_check,
            graphs=compile and self.student.device.type == "cuda",
        )

    @property
    def rows(self) -> int:
        """How many rows there is room for now."""
        return self.room.rows

    @torch.inference_mode()
    def run(self, requests: Iterable[Request[T]]) -> Iterator[Finished[T]]:
        """Yield traces as they finish; a finished row's slot takes the next request at once.

        An iterator that has come to its end is asked again when there is room: what follows from a trace that
        was yielded may be requested then.

        Out of memory, it goes on with half of the rows, from the tokens that all of them have, and tries more
        rows again later. With one row left, that row ends as an error.
        """
        self.blocks.begin()
        waiting = _Waiting(requests)
        ready: deque[Ready] = deque()
        live: Live = []  # by slot
        state = np.zeros(self.room.asked, dtype=STATE)
        records = np.empty((self.room.asked, 256), dtype=TOKEN)
        while True:
            if self.room.may_grow and (ready or waiting.rows):
                if twice_fit(self._models()):
                    self._interrupt(waiting, ready, live, state, records)
                    self.room.grow()
                    self.at_once = AT_ONCE
                    self._drop_caches()
                else:
                    self.room.wait()
            short = False
            ended: Ended = []
            try:
                records = self._fill(waiting, ready, live, state, records)
                if not live:
                    return
                block = self.blocks.choose(len(live))
                records = _room(records, int(state["done"][: len(live)].max()) + block)
                ended = self.rounds.round(state[: len(live)], records, block)
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e):
                    raise
                short = True  # what the exception holds on to is only freed after this block
            if short:
                alone = self.rows == 1
                self._interrupt(waiting, ready, live, state, records)
                self.room.shrink()
                self._drop_caches()
                if alone and (row := waiting.pop()):
                    why = f"out of memory after {len(row.tokens)} tokens, with this row alone"
                    yield Finished(row.request, row.tokens[:0], "error", why)
            for slot, reason, error in ended:
                request = live[slot].request  # type: ignore[union-attr]
                live[slot] = None
                self.room.finish(1)
                yield Finished(request, records[slot, : state["done"][slot]].copy(), reason, error)

    def _interrupt(
        self,
        waiting: "_Waiting",
        ready: deque[Ready],
        live: Live,
        state: np.ndarray,
        records: np.ndarray,
    ) -> None:
        """All rows wait again, with the tokens that they have."""
        interrupted = [
            TraceSoFar(row.request, records[slot, : state["done"][slot]].copy(), self.rounds.proposer.partials[slot])
            for slot, row in enumerate(live)
            if row
        ]
        waiting.put_back(interrupted + [r.row for r in ready])
        live.clear()
        ready.clear()

    def _fill(
        self,
        waiting: "_Waiting",
        ready: deque[Ready],
        live: Live,
        state: np.ndarray,
        records: np.ndarray,
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
                student, teacher = prefilled
                self.student.cache.copy_row(student.cache, at, slot)
                self.rounds.proposer.place_row(slot, theirs, row.partial, row.ids, prefilled=teacher, at=at)
                done = len(row.tokens)
                state[slot] = row.request.key, done, row.request.max_new_tokens, len(ours) - 1, ours[-1]
                records = _room(records, done)
                records[slot, :done] = row.tokens
                live[slot : slot + 1] = [row]
                ready.popleft()
            elif slot >= len(live):
                break
            elif live[-1] is None:
                live.pop()
            else:
                last = len(live) - 1
                state[slot] = state[last]
                done = state["done"][slot]
                records[slot, :done] = records[last, :done]
                self.rounds.move_row(last, slot)
                live[slot] = live.pop()
        return records

    def _prefill(self, waiting: "_Waiting", ready: deque[Ready]) -> None:
        """Read what waits first: several different prompts in one pass, equal ones in a row once.

        Out of memory, it reads half as many at once.
        """
        while True:
            group: list[tuple[TraceSoFar, int]] = []
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
                prefilled = self.student.prefill(ours), self.teacher.prefill(theirs)
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
        teacher = [self.teacher.model] if isinstance(self.teacher, LocalTeacher) else []
        return [self.student, *teacher]


class _Waiting:
    """The rows that wait: those that were put back first, then what the requests still give."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = iter(requests)
        self.rows: deque[TraceSoFar] = deque()

    def peek(self, i: int) -> TraceSoFar | None:
        while len(self.rows) <= i:
            request = next(self.requests, None)
            if request is None:
                return None
            self.rows.append(TraceSoFar(request))
        return self.rows[i]

    def pop(self) -> TraceSoFar | None:
        return self.rows.popleft() if self.peek(0) is not None else None

    def put_back(self, rows: list[TraceSoFar]) -> None:
        self.rows.extendleft(reversed(rows))


def _room(records: np.ndarray, tokens: int) -> np.ndarray:
    while tokens > records.shape[1]:
        records = np.concatenate([records, np.empty_like(records)], 1)
    return records

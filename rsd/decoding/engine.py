"""The decoding engine: which traces run together, from prompt to end. It knows ids only, never text.

The algorithm of a round is in `round`; here prompts are read, freed rows are refilled at once, and a
lack of memory is met with fewer rows (`room`).
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.block_size import BlockController
from rsd.decoding.round import Ended, Rounds
from rsd.decoding.sequence import STATE, Finished, Request, T, TraceSoFar
from rsd.decoding.teacher import LocalTeacher, Teacher
from rsd.decoding.waiting import Ready, Waiting
from rsd.models.kv_cache import CachedModel
from rsd.models.room import Room, out_of_memory, twice_fit
from rsd.pair.vocabulary import Vocabulary

READ_AHEAD = 2048  # prompt tokens that are prefilled together, before rows are free for them
AT_ONCE = 16  # and how many prompts at the most
ALIKE = 256  # rows that are asked for at once, of which many may have one prompt: there may be a million
AGAIN = 16  # ids of the teacher's that a row may read itself, where its prompt begins like another one's

# Who is shown the rows that live on after a round: each one's request, and the records [T] of its tokens so far, which
# are the engine's own.
Watch = Callable[[Iterable[tuple[Request, np.ndarray]]], object]


class Engine:
    """Teacher and student in step over at most `rows` rows.

    Args:
        eos: ids that end a trace.
        block: tokens drafted a round; 1 is lockstep; None leaves it to `block_size`. A trace does not depend
            on it (in fp32, up to near-ties).
        loop_check: end traces that repeat themselves for ever, see `loops`.
        compile: see `kv_cache.CachedModel`.
        top_logprobs: how many of each model's likeliest tokens a record holds (`traces.tokens.record`).
        thresholds: others, for which a record holds a = q(A) in its place, too. No trace depends on them.

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
        top_logprobs: int = 0,
        thresholds: Sequence[float] = (),
    ) -> None:
        self.vocabulary = vocabulary
        self.room, self.at_once = Room(rows), AT_ONCE
        self.watch: Watch | None = None
        self.blocks = BlockController(block)
        self.student = CachedModel(student, rows, compile=compile, pooled=True)
        if isinstance(teacher, PreTrainedModel):
            teacher = LocalTeacher(CachedModel(teacher, rows, compile=compile, pooled=True))
        self.teacher = teacher
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
            top=top_logprobs,
            thresholds=thresholds,
        )

    @property
    def rows(self) -> int:
        """How many rows there is room for now."""
        return self.room.rows

    def learn_with(self, other: "Engine") -> None:
        """What the rounds of one of them teach is known to both, and counted together."""
        self.blocks = self.rounds.blocks = other.blocks
        self.rounds.turns = other.rounds.turns

    def begin(self) -> None:
        """Begin new statistics; what was learned stays."""
        self.blocks.begin()
        self.teacher.counts.update(dict.fromkeys(self.teacher.counts, 0))

    def run(self, requests: Iterable[Request[T]]) -> Iterator[Finished[T]]:
        """Yield traces as they finish; a finished row's slot takes the next request at once.

        An iterator that has come to its end is asked again when there is room: what follows from a trace that
        was yielded may be requested then.

        Out of memory, it goes on with half of the rows, from the tokens that all of them have, and tries more
        rows again later. With one row left, that row ends as an error.
        """
        self.begin()
        for step in self.steps(Waiting(requests)):
            if step is not None:
                yield step

    @torch.inference_mode()
    def steps(self, waiting: Waiting[T], *, first: int | None = None) -> Generator[Finished[T] | None]:
        """As `run`, of rows that others may take, too. None: the teacher is away, and others may have their turn.

        It ends where no row waits, or there is no memory for one beside those of others.

        Args:
            first: how many rows it takes at the most to begin with.
        """
        rows = _Rows(waiting, self.room.asked, self.rounds.record)
        most = self.rows if first is None else first
        while True:
            if self.room.may_grow and (waiting.ready or waiting.rows):
                self._try_more_rows(rows)
            short = False
            ended: Ended = []
            try:
                self._fill(rows, min(most, self.rows))
                most = self.room.asked
                if not rows.live:
                    return
                live = rows.state[: len(rows.live)]
                rows.reserve(int(live["done"].max()) + self.blocks.longest)
                ended = yield from self.rounds.round(live, rows.records)
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e):
                    raise
                short = True  # what the exception holds on to is only freed after this block
            if short:
                alone = self.rows == 1
                self._interrupt(rows)
                self.room.shrink()
                self._drop_caches()
                if alone and waiting.live:
                    return  # others have the memory
                if alone and (row := waiting.pop()):
                    why = f"out of memory after {len(row.tokens)} tokens, with this row alone"
                    yield Finished(row.request, row.tokens[:0], "error", why)
            for slot, reason, error in ended:
                request = rows.live[slot].request  # type: ignore[union-attr]
                rows.live[slot] = None
                waiting.live -= 1
                self.room.finish(1)
                yield Finished(request, rows.tokens(slot), reason, error)
            if self.watch is not None:
                self.watch(rows.so_far())

    def _try_more_rows(self, rows: "_Rows") -> None:
        if twice_fit(self._models()):
            self._interrupt(rows)
            self.room.grow()
            self.at_once = AT_ONCE
            self._drop_caches()
        else:
            self.room.wait()

    def _interrupt(self, rows: "_Rows") -> None:
        """All rows wait again, with the tokens that they have."""
        interrupted = [
            TraceSoFar(row.request, rows.tokens(slot), self.rounds.proposer.partials[slot])
            for slot, row in enumerate(rows.live)
            if row
        ]
        rows.waiting.put_back(interrupted)
        rows.live.clear()

    def _fill(self, rows: "_Rows", most: int) -> None:
        """Fill the free ones of `most` slots, with rows that wait or else with the last live ones, so that these stay
        together."""
        slot, live, waiting = 0, rows.live, rows.waiting
        while slot < most:
            if slot < len(live) and live[slot] is not None:
                slot += 1
                continue
            if not waiting.ready:
                self._prefill(waiting)
            if waiting.ready:
                row, (student, teacher), at, shared = waiting.ready[0]
                ours, theirs = row.read(self.vocabulary)
                self.student.copy_row(student, at, slot, length=len(ours) - 1)
                self.rounds.place_row(slot, row, theirs, prefilled=teacher, at=at, shared=shared)
                done = len(row.tokens)
                rows.state[slot] = row.request.key, done, row.request.max_new_tokens, len(ours) - 1, ours[-1]
                rows.reserve(done)
                if done:
                    rows.records[slot, :done] = row.tokens
                live[slot : slot + 1] = [row]
                waiting.ready.popleft()
                waiting.live += 1
            elif slot >= len(live):
                break
            elif live[-1] is None:
                live.pop()
                self.rounds.drop_row(len(live))
            else:
                last = len(live) - 1
                rows.move(last, slot)
                self.rounds.move_row(last, slot)
                live[slot] = live.pop()
        self.blocks.most_rows = max(self.blocks.most_rows, waiting.live)

    def _prefill(self, waiting: Waiting) -> None:
        """Read what waits first: several different prompts in one pass; those in a row that begin the one before once.

        Out of memory, it reads half as many at once.
        """
        while True:
            group: list[tuple[TraceSoFar, int, int]] = []
            ours: list[list[int]] = []
            theirs: list[list[int]] = []
            while len(group) < ALIKE and (row := waiting.peek(len(group))) is not None:
                mine, context = row.read(self.vocabulary)
                shared = begun(mine, context.ids, ours[-1], theirs[-1]) if group else None
                if shared is None:
                    if len(ours) == self.at_once or sum(map(len, ours)) >= READ_AHEAD:
                        break
                    ours.append(mine)
                    theirs.append(context.ids)
                    shared = len(context.ids) - 1
                group.append((row, len(ours) - 1, shared))
            if not group:
                return
            try:
                prefilled = self.student.prefill(ours), self.teacher.prefill(theirs)
            except (RuntimeError, MemoryError) as e:
                if len(ours) == 1 or not out_of_memory(e):
                    raise
            else:
                for row, at, shared in group:
                    waiting.pop()
                    waiting.ready.append(Ready(row, prefilled, at, shared))
                return
            self.at_once = len(ours) // 2

    def _drop_caches(self) -> None:
        self.rounds.drop_caches(self.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _models(self) -> list[CachedModel]:
        teacher = [self.teacher.model] if isinstance(self.teacher, LocalTeacher) else []
        return [self.student, *teacher]


def begun(ours: list[int], theirs: list[int], read: list[int], by_teacher: list[int]) -> int | None:
    """How many ids of a teacher's context `theirs` a row has from another one's prefill; None if it shares none.

    What the student reads, `ours`, must be the beginning of what it has `read`. The teacher may read the last few ids
    otherwise (its context changes with what follows): these the row reads itself.
    """
    if ours != read[: len(ours)]:
        return None
    most = min(len(theirs), len(by_teacher)) - 1
    if theirs[:most] == by_teacher[:most]:
        shared = most
    else:
        shared = next(i for i, (a, b) in enumerate(zip(theirs, by_teacher, strict=False)) if a != b)
    return shared if shared >= len(theirs) - 1 - AGAIN else None


class _Rows:
    """The live rows of one run, with their state and records; and those that wait, which others may take, too.

    live: by slot. state: [slots] of `sequence.STATE`. records: [slots, T] of `record`, a type of `tokens.record`.
    """

    def __init__(self, waiting: Waiting, slots: int, record: np.dtype) -> None:
        self.waiting = waiting
        self.live: list[TraceSoFar | None] = []
        self.state = np.zeros(slots, dtype=STATE)
        self.records = np.empty((slots, 256), dtype=record)

    def reserve(self, tokens: int) -> None:
        """Have room for the records of so many tokens a row."""
        while tokens > self.records.shape[1]:
            self.records = np.concatenate([self.records, np.empty_like(self.records)], 1)

    def so_far(self) -> Iterator[tuple[Request, np.ndarray]]:
        """The live rows, and the records of their tokens, which are not copied."""
        for slot, row in enumerate(self.live):
            if row is not None:
                yield row.request, self.records[slot, : self.state["done"][slot]]

    def tokens(self, slot: int) -> np.ndarray:
        """A copy of the records of a live row's tokens."""
        return self.records[slot, : self.state["done"][slot]].copy()

    def move(self, slot: int, to: int) -> None:
        self.state[to] = self.state[slot]
        done = self.state["done"][to]
        self.records[to, :done] = self.records[slot, :done]

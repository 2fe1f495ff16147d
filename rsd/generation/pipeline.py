"""What is asked of the engine, as a schedule wants it, and the traces that it made on their way to being judged."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from rsd.answers.verifier import Judgement
from rsd.decoding.engine import Finished, Request
from rsd.generation.schedule import Schedule
from rsd.pair.prompts import Prompt
from rsd.traces.filters import is_right
from rsd.traces.rows import Row
from rsd.traces.trace import Trace

if TYPE_CHECKING:
    from rsd.generation.generator import TraceGenerator


class Requests:
    """What the schedule wants, as requests for the engine; and the traces on their way to being judged.

    While a verdict is awaited the engine goes on with other rows; only when it has none left does it wait.
    """

    def __init__(self, generator: TraceGenerator, schedule: Schedule) -> None:
        self.generator, self.schedule = generator, schedule
        self.decoding = 0
        self._last: tuple[Row, Prompt | str] | None = None
        self._waiting: dict[Future[Judgement], tuple[Trace, Row]] = {}
        self._judged: list[Trace] = []

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Request:
        while True:
            wanted = self.schedule.pop()
            if wanted is None:
                if self.decoding or not self._waiting:
                    raise StopIteration
                wait(self._waiting, return_when=FIRST_COMPLETED)
                self._settle()
                continue
            row, generation = wanted
            prompt = self._prompt(row)
            if not isinstance(prompt, str):
                self.decoding += 1
                return self.generator.request(row, generation, prompt)
            trace = Trace(id=row.id, generation=generation, prompt=row.messages, error=prompt, columns=row.columns)
            self._judged.append(self.generator.with_scores(trace))
            self.schedule.tell(row, right=False)

    def _prompt(self, row: Row) -> Prompt | str:
        """A row's prompt, or what is wrong with it; rendered once for all of its generations in a row."""
        if self._last is None or self._last[0] is not row:
            try:
                prompt: Prompt | str = row.error if row.error is not None else self.generator.render(row)
            except Exception as e:  # a prompt must not be able to end a job
                prompt = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
            self._last = row, prompt
        return self._last[1]

    def judge(self, finished: Finished) -> None:
        """Have a trace judged that the engine has finished."""
        row, generation, prompt = finished.request.tag
        trace = Trace.of(row, generation, prompt, finished, decode=self.generator.decode)
        self.decoding -= 1
        self._waiting[self.generator.judge(trace, row)] = trace, row

    def judged(self) -> list[Trace]:
        """The traces that were judged since the last call."""
        self._settle()
        made, self._judged = self._judged, []
        return made

    def _settle(self) -> None:
        for future in [f for f in self._waiting if f.done()]:
            trace, row = self._waiting.pop(future)
            judgement = future.result()
            trace = replace(trace, is_correct=judgement.correct, verify_error=judgement.error)
            trace = self.generator.with_scores(trace)
            self._judged.append(trace)
            limit = self.generator.config.max_fallback_rate
            self.schedule.tell(row, right=is_right(trace.row(), max_fallback_rate=limit))

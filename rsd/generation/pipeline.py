"""A row's way to a trace: prompt, request, engine, text, verdict, scores."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import NamedTuple

from rsd.answers.verifier import Judgement, Verifier, verdict
from rsd.config import GenerateConfig
from rsd.decoding.groups import Decoder
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Finished, Request
from rsd.generation.raw import RawResponses
from rsd.generation.schedule import Schedule
from rsd.pair.pair import Pair
from rsd.pair.prompts import Prompt
from rsd.scoring.scorer import Scorer
from rsd.traces.filters import is_right
from rsd.traces.rows import Row
from rsd.traces.trace import Trace


class Wanted(NamedTuple):
    """Which trace a request is for: it crosses the engine and comes back."""

    row: Row
    generation: int
    prompt: Prompt


class Pipeline:
    """The rows of one run of the engine, on their way: iterating it gives the requests that a schedule wants.

    While a verdict is awaited the engine goes on with other rows; only when it has none left does it wait.
    """

    def __init__(
        self, pair: Pair, config: GenerateConfig, schedule: Schedule, *, verifier: Verifier, scorer: Scorer | None
    ) -> None:
        self.pair, self.config, self.schedule = pair, config, schedule
        self.verifier, self.scorer = verifier, scorer
        self.raw = RawResponses(verifier, scorer)
        self.decoding = 0
        self._last: tuple[Row, Prompt | str] | None = None
        self._waiting: dict[Future[Judgement], tuple[Trace, Row]] = {}
        self._done: list[Trace] = []

    def run(self, engine: Decoder) -> Iterator[Trace]:
        """Yield traces as they are finished and judged."""
        for finished in engine.run(self):
            self._judge(finished)
            yield from self._settled()
        yield from self._settled()

    def __iter__(self) -> "Pipeline":
        return self

    def __next__(self) -> Request[Wanted]:
        """The next request. Where there is none now, an iterator that has ended may be asked again: there may be one
        when a trace is judged."""
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
                self.raw.submit(row, opened=prompt.opened)
                return self._request(Wanted(row, generation, prompt))
            trace = Trace(id=row.id, generation=generation, prompt=row.messages, error=prompt, columns=row.columns)
            self._done.append(self._with_scores(trace, row))
            self.schedule.tell(row, right=False)

    def _prompt(self, row: Row) -> Prompt | str:
        """A row's prompt, or what is wrong with it; rendered once for all of its generations in a row."""
        if self._last is None or self._last[0] is not row:
            try:
                prompt: Prompt | str = row.error if row.error is not None else self.pair.render(row, self.config)
            except Exception as e:  # a prompt must not be able to end a job
                prompt = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
            self._last = row, prompt
        return self._last[1]

    def _request(self, wanted: Wanted) -> Request[Wanted]:
        ids = wanted.prompt.student + wanted.prompt.prefix
        return Request(
            student_prompt=ids,
            teacher_prompt=wanted.prompt.teacher,
            key=row_key(self.config.seed, str(wanted.row.id), wanted.generation),
            max_new_tokens=min(self.pair.max_new_tokens, self.pair.student.context - len(ids)),
            tag=wanted,
        )

    def _trace(self, finished: Finished[Wanted]) -> Trace:
        """What the engine made of a row."""
        row, generation, prompt = finished.request.tag
        ids = finished.token_ids.tolist()
        shown = ids[:-1] if finished.finish_reason == "stop" else ids
        return Trace(
            id=row.id,
            generation=generation,
            prompt=row.messages,
            text=self.pair.decode(prompt.prefix + shown),
            prompt_ids=prompt.student,
            prefix_ids=prompt.prefix,
            tokens=finished.tokens,
            finish_reason=finished.finish_reason,
            thinking_opened=prompt.opened,
            error=finished.error,
            teacher_messages=row.teacher,
            columns=row.columns,
            decode=self.pair.decode,
        )

    def _judge(self, finished: Finished[Wanted]) -> None:
        """Have a trace judged that the engine has finished."""
        trace, row = self._trace(finished), finished.request.tag.row
        self.decoding -= 1
        if trace.error is None:
            future = verdict(self.verifier, row, trace.text, opened=trace.thinking_opened)
        else:
            future = Future()
            future.set_result(Judgement(None))
        self._waiting[future] = trace, row

    def _settled(self) -> list[Trace]:
        """The traces that were judged since the last call."""
        self._settle()
        made, self._done = self._done, []
        return made

    def _settle(self) -> None:
        for future in [f for f in self._waiting if f.done()]:
            trace, row = self._waiting.pop(future)
            judgement = future.result()
            trace = replace(trace, is_correct=judgement.correct, verify_error=judgement.error)
            trace = self._with_scores(trace, row)
            self._done.append(trace)
            right = is_right(trace.row(), max_fallback_rate=self.config.max_fallback_rate)
            self.schedule.tell(row, right=right)

    def _with_scores(self, trace: Trace, row: Row) -> Trace:
        if row.raw is not None:
            trace = replace(trace, columns={**trace.columns, **self.raw.columns(row, trace.prompt_ids)})
        if self.scorer is None:
            return trace
        error = trace.error and f"the row is an error itself: {trace.error}"
        scored = self.scorer.score_text(trace.text, prompt_ids=trace.prompt_ids, error=error)
        return replace(trace, scores=scored.columns())

"""Weighing traces: a pair, and what its models make of every step.

All decoding is the engine's. With threshold 1 nothing of the teacher's stands: a greedy trace is the student's own, and
the teacher's log-probs of its tokens, a move's validity, are noted on the way. With threshold 0 the moves are the
teacher's. What is continued are the beginnings of one trace, which the engine reads once.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

from rsd.answers.verifier import Verifier, resolve
from rsd.decoding.groups import Decoder
from rsd.decoding.loading import Models, engine_of, find_pair, load_pair, memory_of
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Finished, Request
from rsd.models.loading import dtype_of, sampling_of
from rsd.scoring.naturalness import Reader
from rsd.scoring.responses import Response
from rsd.scoring.scorer import WINDOW
from rsd.scoring.steps import RULES
from rsd.scoring.texts import Texts
from rsd.scoring.verdicts import Judging
from rsd.settings import called
from rsd.traces.rows import answer_of
from rsd.weighing.columns import Weighed, weighed
from rsd.weighing.config import WeighConfig
from rsd.weighing.moves import Move, Put, StepEnd, TraceSteps
from rsd.weighing.reading import TraceReader, same_pair
from rsd.weighing.rollouts import Rollouts

WEIGHT_RULES = 1  # goes up when weights change, so that those made by others are not taken for the same


class Weigher:
    """A pair, and what it weighs by. Weights are loaded when something has to be read or decoded.

    Args:
        manifest: of the job that made the traces, if there is one: what it noted of tokens is used where its models
            were these.
        judging: how rollouts are judged.

    Raises:
        ValueError: a model is not found, the two do not fit together, or rollouts could not be judged.
    """

    def __init__(
        self,
        config: WeighConfig,
        *,
        manifest: Mapping[str, Any] | None = None,
        judging: Judging | None = None,
    ) -> None:
        self.config, self.judging = config, judging
        self.acting = config.decoding(threshold=1)
        self.pair = find_pair(self.acting)
        if not self.pair.student.tokenizer.is_fast:
            name = f"{called('student')} {config.student}"
            raise ValueError(f"{name}: weighing needs a fast tokenizer (a tokenizer.json)")
        self.texts = Texts(self.pair.student)
        self._readers: dict[str, Reader] = {}
        self._read_by: Decoder | None = None
        noted = manifest is not None and same_pair(self.pair, config, manifest)
        self.reading = TraceReader(
            self.pair, config, texts=self.texts, noted=noted, reader=self._reader, engine=self._reading
        )

    @property
    def weighing(self) -> dict[str, Any]:
        """What names weights, and all that they depend on beside the row."""
        of = {
            role: getattr(self.pair, role) if role == "student" or self.config.asks_teacher else None
            for role in ("teacher", "student")
        }
        models: dict[str, Any] = {role: source and source.label for role, source in of.items()}
        models |= {f"{role}_fingerprint": source and source.fingerprint() for role, source in of.items()}
        made = models | {"dtype": dtype_of(self.acting)} | self.config.how()
        if "verify" in made:
            made["verify"] = resolve(self.config.verify)
        return made | {"step_rules": RULES, "weight_rules": WEIGHT_RULES}

    @property
    def notices(self) -> list[str]:
        """What a user should be told of the pair. Moves are greedy; how rollouts are sampled, `weighing` says."""
        return [line for line in self.pair.notices if not line.startswith("sampling")]

    @cached_property
    def rows(self) -> int:
        return memory_of(self.pair, self.acting).rows

    @cached_property
    def models(self) -> Models:
        rows = self.rows  # before the weights take their part
        return load_pair(self.pair, self.acting, rows=rows)

    def _reader(self, role: str) -> Reader:
        if role not in self._readers:
            self._readers[role] = Reader(getattr(self.models, role))
        return self._readers[role]

    def _reading(self) -> Decoder:
        """One of its own: another one is in the midst of its rows when it needs the next trace."""
        if self._read_by is None:
            self._read_by = engine_of(self.pair, self.models, self.acting, rows=self.rows)
        return self._read_by

    @cached_property
    def student(self) -> Decoder:
        """It decodes as the student would alone."""
        return engine_of(self.pair, self.models, self.acting, rows=self.rows)

    @cached_property
    def teacher(self) -> Decoder:
        """It decodes as the teacher would, in the student's tokens."""
        return engine_of(self.pair, self.models, self.config.decoding(threshold=0), rows=self.rows)

    def rollouts(self, verifier: Verifier, judging: Judging) -> Rollouts:
        c = self.config
        how = c.decoding(threshold=0 if c.rollout_by == "teacher" else 1, greedy=False)
        pair = replace(self.pair, sampling=sampling_of(how, self.pair.student)[0])
        engine = engine_of(pair, self.models, how, rows=self.rows)
        return Rollouts(pair, engine, self.texts, count=c.rollouts, config=how, verifier=verifier, judging=judging)

    def weigh(self, todo: Iterable[Response]) -> Iterator[Weighed]:
        """Weights of responses, in order; one that cannot be weighed comes back with `error` set."""
        weighing = self.weighing
        for trace in self._moved(self.reading.read(todo)):
            yield weighed(trace, self.config, weighing)

    def _moved(self, traces: Iterator[TraceSteps]) -> Iterator[TraceSteps]:
        """Traces with all that their weights are made of."""
        if self.config.validity == "token":
            yield from traces
        elif self.config.validity == "likelihood" and not self.config.proposals:
            yield from self._continued(self.student, traces, "own")
        else:  # several engines, which take turns
            verifier = Verifier(resolve(self.config.verify))
            rolls = self.judging is not None and self.rollouts(verifier, self.judging)
            try:
                while window := list(islice(traces, WINDOW)):
                    if rolls:
                        for trace in window:
                            self._check_answer(trace, verifier)
                    window = list(self._continued(self.student, window, "own"))
                    if self.config.proposals:
                        window = list(self._continued(self.teacher, window, "proposed"))
                    if rolls:
                        rolls.run(window)
                    yield from window
            finally:
                verifier.stop()

    def _check_answer(self, trace: TraceSteps, verifier: Verifier) -> None:
        answer = self.judging and answer_of(trace.response.row, self.judging.columns)
        if trace.error is None and not verifier.judges(answer):
            trace.error = "the row has no answer that a rollout could be held against"

    def _continued(self, engine: Decoder, traces: Iterable[TraceSteps], into: str) -> Iterator[TraceSteps]:
        """Have an engine make a move in every step's place, which is put `into` the trace; in order."""
        waiting: deque[TraceSteps] = deque()

        def requests() -> Iterator[Request[Put]]:
            for trace in traces:
                made = self._requests(trace, getattr(trace, into)) if trace.error is None else []
                trace.left = len(made)
                waiting.append(trace)
                yield from made

        for finished in engine.run(requests()):
            finished.request.tag(finished)
            while waiting and not waiting[0].left:
                yield waiting.popleft()
        yield from waiting

    def _requests(self, trace: TraceSteps, moves: list[Move | None]) -> list[Request[Put]]:
        """From the last step to the first, so that each one's prompt is the beginning of the one before."""
        bounds = trace.bounds
        moves += [None] * len(bounds)
        prompts = trace.teacher_prompts(self.pair.vocabulary, [begin for begin, _ in bounds])
        made = []
        for step in reversed(range(len(bounds))):
            begin, end = bounds[step]
            room = self.pair.student.context - len(trace.prompt.student) - begin
            if begin >= end or room < 1 or len(prompts[begin]) >= self.pair.teacher.context:
                continue
            before = trace.ids[trace.first[step - 1] if step else 0 : begin]
            ends = StepEnd(self.texts, before, self.config.steps)
            made.append(
                Request(
                    student_prompt=[*trace.prompt.student, *trace.ids[:begin]],
                    teacher_prompt=prompts[begin],
                    key=row_key(self.config.seed, f"{trace.response.id}\0{step}", trace.response.generation),
                    max_new_tokens=min(trace.longest(step, self.texts.source.eos), room),
                    tag=_put(trace, moves, step, ends),
                    ends=ends,
                )
            )
        return made


def _put(trace: TraceSteps, moves: list[Move | None], step: int, ends: StepEnd) -> Put:
    def put(finished: Finished[Any]) -> None:
        trace.left -= 1
        if finished.error is not None:
            trace.error = finished.error
        else:
            moves[step] = ends.move(finished)

    return put

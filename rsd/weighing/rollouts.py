"""Rollouts: how often what goes on from a move comes to the right answer."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from rsd.answers.verifier import Judgement, Verifier
from rsd.config import GenerateConfig
from rsd.decoding.groups import Decoder
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Finished, Request
from rsd.pair.pair import DEFAULT_NEW_TOKENS, Pair
from rsd.pair.vocabulary import TeacherContext
from rsd.scoring.texts import Texts
from rsd.scoring.verdicts import Judging
from rsd.traces.rows import answer_of
from rsd.weighing.moves import Put, TraceSteps

TEACHER, STUDENT = 0, 1  # whose move

Verdicts = list["Future[Judgement] | None"]  # of a move's rollouts; None is one without an end


class Rollouts:
    """Continuations of both moves in every step's place, `count` of each.

    A rollout that comes to no end counts as wrong, and so does one whose answer cannot be judged. Of moves that are the
    same those of one count for both.
    """

    def __init__(
        self,
        pair: Pair,
        engine: Decoder,
        texts: Texts,
        *,
        count: int,
        config: GenerateConfig,
        verifier: Verifier,
        judging: Judging,
    ) -> None:
        self.pair, self.engine, self.texts, self.count, self.config = pair, engine, texts, count, config
        self.verifier, self.judging = verifier, judging

    def run(self, traces: Sequence[TraceSteps]) -> None:
        """Roll out all moves of these traces, and count in each trace's `right` how many were."""
        sound = [trace for trace in traces if trace.error is None]
        verdicts: dict[TraceSteps, dict[tuple[int, int], Verdicts]] = {trace: {} for trace in sound}
        requests = (request for trace in sound for request in self._requests(trace, verdicts[trace]))
        for finished in self.engine.run(requests):
            finished.request.tag(finished)
        for trace in sound:
            trace.right = [self._right(step, verdicts[trace]) for step in range(len(trace.first))]

    def _right(self, step: int, verdicts: dict[tuple[int, int], Verdicts]) -> tuple[int, int] | None:
        if (theirs := verdicts.get((step, TEACHER))) is None:
            return None
        both = theirs, verdicts.get((step, STUDENT), theirs)  # the same move
        counts = [sum(one is not None and one.result().correct is True for one in known) for known in both]
        return counts[0], counts[1]

    def _requests(self, trace: TraceSteps, verdicts: dict[tuple[int, int], Verdicts]) -> Iterator[Request[Put]]:
        begins = trace.teacher_prompts(self.pair.vocabulary, [begin for begin, _ in trace.bounds])
        # The trace's own moves first, the last one before the others: so their prompts are one text's beginnings.
        for whose, step in [
            (whose, step) for whose in (TEACHER, STUDENT) for step in reversed(range(len(trace.first)))
        ]:
            theirs, ours = trace.proposed[step] if trace.proposed else trace.move(step), trace.own[step]
            if theirs is None or ours is None or (whose == STUDENT and ours.ids == theirs.ids):
                continue
            move, begin = (theirs, ours)[whose], trace.bounds[step][0]
            said = [*trace.ids[:begin], *move.ids]
            if move.ids[-1] in self.texts.source.eos:  # nothing is left to be sampled: one verdict is all of them
                verdicts[step, whose] = [self._judged(trace, said)] * self.count
                continue
            verdicts[step, whose] = [None] * self.count
            context = self.pair.vocabulary.read(TeacherContext(begins[begin]), move.ids)
            room = self.pair.student.context - len(trace.prompt.student) - len(said)
            if room < 1 or len(context.ids) >= self.pair.teacher.context:
                continue
            name = f"{trace.response.id}\0{trace.response.generation}\0{step}\0{whose}"
            for number in range(self.count):
                yield Request(
                    student_prompt=[*trace.prompt.student, *said],
                    teacher_prompt=context.ids,
                    key=row_key(self.config.seed, name, number),
                    max_new_tokens=min(self.config.max_new_tokens or DEFAULT_NEW_TOKENS, room),
                    tag=self._put(trace, said, verdicts[step, whose], number),
                )

    def _put(self, trace: TraceSteps, said: list[int], verdicts: Verdicts, number: int) -> Put:
        def put(finished: Finished[Any]) -> None:
            if finished.error is not None:
                trace.error = finished.error
            elif finished.finish_reason == "stop":
                verdicts[number] = self._judged(trace, [*said, *finished.token_ids.tolist()])

        return put

    def _judged(self, trace: TraceSteps, ids: list[int]) -> "Future[Judgement]":
        response = trace.response
        given = {**response.row, "id": response.id, "prompt": response.messages}
        answer = answer_of(response.row, self.judging.columns)
        text = self.texts.decode(self.texts.without_eos(ids))
        return self.verifier.submit(text, given, answer, opened=trace.prompt.opened)

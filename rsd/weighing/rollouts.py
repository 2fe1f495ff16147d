"""Rollouts: how often what goes on from a move comes to the right answer."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from rsd.answers.verifier import Judgement, Verifier
from rsd.config import GenerateConfig
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Finished, Request
from rsd.pair.pair import DEFAULT_NEW_TOKENS, Pair
from rsd.pair.vocabulary import TeacherContext
from rsd.scoring.texts import Texts
from rsd.scoring.verdicts import Judging
from rsd.traces.rows import answer_of
from rsd.weighing.moves import Move, Put, TraceSteps

TEACHER, STUDENT = 0, 1  # whose move


class Rollouts:
    """Continuations of both moves in every step's place, `rollouts` of each.

    A rollout that comes to no end counts as wrong, and so does one whose answer cannot be judged. Of moves that are the
    same those of one count for both.
    """

    def __init__(
        self,
        pair: Pair,
        engine: Engine,
        texts: Texts,
        *,
        rollouts: int,
        config: GenerateConfig,
        verifier: Verifier,
        judging: Judging,
    ) -> None:
        self.pair, self.engine, self.texts, self.count, self.config = pair, engine, texts, rollouts, config
        self.verifier, self.judging = verifier, judging

    def run(self, traces: Sequence[TraceSteps]) -> None:
        """Roll out all moves of these traces, and have each one's `right` counted."""
        verdicts: dict[tuple[TraceSteps, int, int], list[Future[Judgement] | None]] = {}

        def requests() -> Iterator[Request[Put]]:
            for trace in traces:
                if trace.error is None:
                    yield from self._requests(trace, verdicts)

        for finished in self.engine.run(requests()):
            finished.request.tag(finished)
        for trace in traces:
            if trace.error is None:
                trace.right = [self._right(trace, step, verdicts) for step in range(len(trace.first))]

    def _right(self, trace: TraceSteps, step: int, verdicts: dict[Any, list[Any]]) -> tuple[int, int] | None:
        counts = []
        for whose in (TEACHER, STUDENT):
            known = verdicts.get((trace, step, whose))
            if known is None and whose == STUDENT and counts and trace.own[step] is not None:  # the same move
                counts.append(counts[0])
            elif known is None:
                return None
            else:
                right = sum(one is not None and one.result().correct is True for one in known)
                counts.append(right if len(known) > 1 else right * self.count)
        return counts[0], counts[1]

    def _requests(self, trace: TraceSteps, verdicts: dict[Any, list[Any]]) -> Iterator[Request[Put]]:
        # The trace's own moves first, the last one before the others: so their prompts are one text's beginnings.
        moves = [(whose, step) for whose in (TEACHER, STUDENT) for step in reversed(range(len(trace.first)))]
        begins = trace.teacher_prompts(self.pair.vocabulary, [begin for begin, _ in trace.bounds])
        for whose, step in moves:
            theirs = trace.proposed[step] if trace.proposed else trace.move(step)
            ours = trace.own[step]
            if theirs is None or ours is None or (whose == STUDENT and ours.ids == theirs.ids):
                continue
            move = theirs if whose == TEACHER else ours
            begin = trace.bounds[step][0]
            before = [*trace.ids[:begin], *move.ids]
            verdicts[trace, step, whose] = known = []
            if move.ids[-1] in self.texts.source.eos:  # nothing is left to be sampled: one verdict is all of them
                known.append(self._judged(trace, before))
                continue
            context = self.pair.vocabulary.read(TeacherContext(begins[begin]), move.ids)
            room = self.pair.student.context - len(trace.prompt.student) - len(before)
            if room < 1 or len(context.ids) >= self.pair.teacher.context:
                known.append(None)
                continue
            for number in range(self.count):
                yield self._request(trace, step, whose, move, before, context.ids, room, number, known)

    def _request(
        self,
        trace: TraceSteps,
        step: int,
        whose: int,
        move: Move,
        before: list[int],
        theirs: list[int],
        room: int,
        number: int,
        known: list[Any],
    ) -> Request[Put]:
        place = len(known)
        known.append(None)

        def put(finished: Finished[Any]) -> None:
            if finished.finish_reason == "stop":
                known[place] = self._judged(trace, [*before, *finished.token_ids.tolist()])
            elif finished.error is not None:
                trace.error = finished.error

        name = f"{trace.response.id}\0{trace.response.generation}\0{step}\0{whose}"
        return Request(
            student_prompt=[*trace.prompt.student, *before],
            teacher_prompt=theirs,
            key=row_key(self.config.seed, name, number),
            max_new_tokens=min(self.config.max_new_tokens or DEFAULT_NEW_TOKENS, room),
            tag=put,
        )

    def _judged(self, trace: TraceSteps, ids: list[int]) -> "Future[Judgement]":
        response = trace.response
        given = {**response.row, "id": response.id, "prompt": response.messages}
        answer = answer_of(response.row, self.judging.columns)
        text = self.texts.decode(self.texts.without_eos(ids))
        return self.verifier.submit(text, given, answer, opened=trace.prompt.opened)

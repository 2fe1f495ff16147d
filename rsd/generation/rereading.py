"""Soft targets of traces that anybody made: both models read them as they would have made them (`decoding.given`)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rsd.config import GenerateConfig
from rsd.decoding.groups import Decoder
from rsd.decoding.loading import engine_of, find_pair, load_pair, memory_of
from rsd.decoding.sequence import Request
from rsd.models.loading import dtype_of
from rsd.pair.pair import Pair
from rsd.scoring.config import ScoreConfig
from rsd.scoring.scorer import Scored, Scorer, check_fast
from rsd.scoring.texts import Texts
from rsd.terminal import say
from rsd.traces.rows import Row
from rsd.traces.soft import arrow, soft_targets


class Rereader:
    """A pair that reads what was scored. top: how many likeliest tokens of both models are kept in a place."""

    def __init__(self, pair: Pair, config: GenerateConfig, engine: Decoder) -> None:
        self.pair, self.config, self.engine = pair, config, engine
        self.texts = Texts(pair.student)
        self.top = config.top_logprobs

    def __call__(self, scored: Sequence[Scored]) -> list[Scored]:
        """The same with their soft targets, or with what is wrong with a trace that cannot be read."""
        made = list(scored)
        for finished in self.engine.run(self._requests(made)):
            i, request = finished.request.tag, finished.request
            if len(finished.tokens) == len(request.given):
                made[i] = replace(made[i], soft=soft_targets(request.student_prompt, finished.tokens))
            else:
                why = finished.error or "the trace does not fit into the teacher's context"
                made[i] = Scored(response=made[i].response, scoring=made[i].scoring, error=why)
        return made

    def _requests(self, made: list[Scored]) -> Iterator[Request[int]]:
        for i, one in enumerate(made):
            if one.error is not None:
                continue
            response = one.response
            try:
                prompt = self.pair.render(Row(id=response.id, messages=response.messages, columns={}), self.config)
                ids = self._ids(one)
                if (length := len(prompt.student) + len(ids)) > self.pair.student.context + 1:  # the EOS is not read
                    raise ValueError(f"prompt and trace have {length} tokens, more than the student's context")
            except Exception as e:  # a row must not be able to end a job
                error = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
                made[i] = Scored(response=response, scoring=one.scoring, error=error)
                continue
            yield Request(
                student_prompt=prompt.student,
                teacher_prompt=prompt.teacher,
                key=0,
                max_new_tokens=len(ids),
                tag=i,
                given=ids,
            )

    def _ids(self, one: Scored) -> list[int]:
        """The trace as it was sampled, where that is known; else as the student writes it, with an EOS at its end."""
        if (ids := self.texts.sampled(one.response, one.text)) is not None:
            return ids
        cut = one.response.row.get("finish_reason") in ("length", "loop")
        return [*one.token_ids.tolist(), *([] if cut else [self.pair.student.ends[0]])]


def load_rereader(config: ScoreConfig) -> tuple[Scorer, Rereader]:
    """A scorer, and the pair that keeps soft targets; the student is loaded once.

    Raises:
        ValueError: a model cannot be loaded or decoded, the two do not fit together, or pyarrow is not installed.
    """
    arrow()
    how = config.rereading()
    pair = find_pair(how)
    check_fast(pair.student, config)
    for notice in (line for line in pair.notices if not line.startswith("sampling")):
        say(notice)
    rows = memory_of(pair, how).rows
    models = load_pair(pair, how, rows=rows)
    scorer = Scorer(pair.student, models.student, config.scoring(), dtype=dtype_of(config), layout=config.layout())
    return scorer, Rereader(pair, how, engine_of(pair, models, how, rows=rows))

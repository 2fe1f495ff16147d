"""A pair at work: the teacher's raw traces, RSD's and the student's own, of the same problems; weights are loaded once.

All three are made by the one engine, as a job would make them: the raw ones at threshold 0, the student's own at
threshold 1. What is noted of every token besides are a = q(A) at other thresholds, exactly, and both models' likeliest
tokens.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rsd.answers.verifier import Verifier, resolve
from rsd.bar import Bar
from rsd.decoding.listed import COMPLETE
from rsd.decoding.loading import Models, engine_of, load_pair, memory_of, served_mode
from rsd.examining.config import TOP, DoctorConfig
from rsd.generation.generator import TraceGenerator
from rsd.generation.pipeline import Pipeline
from rsd.generation.schedule import Schedule
from rsd.models.loading import dtype_of
from rsd.pair.pair import DEFAULT_NEW_TOKENS, Pair
from rsd.reading import Scoring
from rsd.scoring.scorer import Scored, Scorer
from rsd.settings import called
from rsd.terminal import say
from rsd.traces.given import Given
from rsd.traces.rows import Rows
from rsd.traces.trace import Trace

THRESHOLDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
RAW, RSD, OWN = SETS = "raw", "rsd", "student"
TITLES = {RAW: "raw teacher", RSD: "RSD", OWN: "student alone"}


class Made(NamedTuple):
    """One set of traces, in the order of the problems, without those that could not be made.

    scores: of each trace, None where it could not be scored. seconds: that decoding took. tokens_per_round: committed
    to a row in a round. errors: what was wrong with the others.
    """

    traces: Sequence[Trace]
    scores: Sequence[Scored | None]
    seconds: float
    tokens_per_round: float
    errors: Sequence[str]


class Work:
    """A pair and some problems. Weights are loaded when the traces are made.

    thresholds: at which a is known. rows: the problems, spread evenly over all `of`. memory: what a job of it takes.

    Raises:
        ValueError: a model is not found, the two do not fit together, the problems cannot be read, or a server does not
            tell enough.
    """

    def __init__(self, config: DoctorConfig, problems: Given) -> None:
        self.config, self.how = config, config.decoding()
        self.generator = TraceGenerator(self.how)
        self.pair: Pair = self.generator.find()
        if config.served and served_mode(self.pair, self.how) != COMPLETE:
            raise ValueError(
                f"{called('teacher')} behind a server tells its {TOP} likeliest tokens, which are all that it may say "
                f"only with a {called('top_k')} of 1 to {TOP}: give one, or a teacher that is loaded here"
            )
        self.thresholds = tuple(sorted({*THRESHOLDS, config.threshold}))
        every = self.generator.prepare(problems)
        if not every:
            raise ValueError("there are no problems to look at")
        self.rows, self.of = spread(every, config.limit), len(every)
        usual = replace(self.pair, max_new_tokens=DEFAULT_NEW_TOKENS)
        self.memory = memory_of(usual, self.how).text

    def notices(self) -> list[str]:
        """What is to be said of the pair, and of answers that nothing can be held against."""
        return [*self.generator.notices, *self.generator.unreadable(self.rows)]

    def make(self) -> dict[str, Made]:
        """The three sets of traces.

        Raises:
            ValueError: the weights cannot be loaded or decoded.
        """
        together = self.generator.memory().rows  # before the weights take their part
        models = load_pair(self.pair, self.how, rows=together)
        scorer = self._scorer(models)
        verifier = Verifier(resolve(self.config.verify))
        verifier.start()
        try:
            made = {
                name: self._made(name, models, together, verifier, threshold)
                for name, threshold in zip(SETS, (0.0, self.config.threshold, 1.0), strict=True)
            }
        finally:
            verifier.stop()
        if scorer is None:
            return made
        with Bar(sum(len(one.traces) for one in made.values()), what="naturalness") as bar:
            for name, one in made.items():
                scores = []
                for trace in one.traces:
                    scores.append(score(scorer, trace))
                    bar.at(bar.done + 1)
                made[name] = one._replace(scores=scores)
        return made

    def _made(self, name: str, models: Models, together: int, verifier: Verifier, threshold: float) -> Made:
        how = self.config.decoding(threshold=threshold)
        thresholds = self.thresholds if name != OWN else ()
        engine = engine_of(self.pair, models, how, rows=together, thresholds=thresholds)
        schedule = Schedule(self.rows, generations=1, want=None, done={})
        pipeline = Pipeline(self.pair, how, schedule, verifier=verifier, scorer=None)
        made: dict[str, Trace] = {}
        started = time.monotonic()

        def rates() -> str:
            return f"{engine.blocks.tokens / (time.monotonic() - started):.0f} tok/s"

        with Bar(len(self.rows), rates=rates, what=TITLES[name]) as bar:
            for trace in pipeline.run(engine):
                made[str(trace.id)] = trace
                bar.at(len(made))
        seconds = time.monotonic() - started
        inorder = [made[str(row_id)] for row_id in self.rows.ids]
        traces = [trace for trace in inorder if trace.error is None]
        return Made(
            traces=traces,
            scores=[None] * len(traces),
            seconds=seconds,
            tokens_per_round=engine.blocks.tokens_per_round if traces else 0.0,
            errors=[f"{trace.id}: {trace.error}" for trace in inorder if trace.error is not None],
        )

    def _scorer(self, models: Models) -> Scorer | None:
        if not self.pair.student.tokenizer.is_fast:
            say(
                f"notice: {called('student')} has no fast tokenizer (a tokenizer.json): nothing is known of naturalness"
            )
            return None
        return Scorer(self.pair.student, models.student, Scoring(), dtype=dtype_of(self.how), layout={})


def spread(rows: Rows, count: int) -> Rows:
    """So many of the rows, at equal distances; all, where there are no more."""
    if count >= len(rows):
        return rows
    return rows.at((2 * i + 1) * len(rows) // (2 * count) for i in range(count))


def score(scorer: Scorer, trace: Trace) -> Scored | None:
    """How natural a trace is for the student, if that can be found out."""
    made = scorer.score_text(trace.text, prompt_ids=trace.prompt_ids)
    return None if made.error else made

"""The class that jobs call: it finds and loads a pair, and makes traces of rows."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from rsd.answers.verifier import Judgement, Verifier, answer_columns, read_reference, resolve, verdict
from rsd.config import GenerateConfig
from rsd.decoding.block_size import BlockController
from rsd.decoding.engine import Watch
from rsd.decoding.groups import Decoder
from rsd.decoding.listed import MEANING
from rsd.decoding.loading import engine_of, find_pair, load_pair, load_part, memory_of, served_mode
from rsd.generation.pipeline import Pipeline
from rsd.generation.schedule import Schedule
from rsd.models import tensor_parallel
from rsd.models.loading import dtype_of
from rsd.models.memory import Estimate
from rsd.models.tensor_parallel import Group
from rsd.pair.pair import Pair
from rsd.pair.prompts import own_prompt, privileged
from rsd.reading import Scoring
from rsd.scoring.scorer import Scorer
from rsd.scoring.steps import RULES
from rsd.serving.told import TOP
from rsd.settings import amended
from rsd.traces.given import Given, columns_of, rows_of
from rsd.traces.rows import Row, Rows, prepare
from rsd.traces.trace import Trace


class TraceGenerator:
    """Makes traces by reverse speculative decoding.

    The constructor does no I/O and the object pickles (without its models), so that it can be sent to
    the workers of a job. `find` reads configurations and tokenizers, `load` the weights; both are
    idempotent and called when needed.

        generator = TraceGenerator(teacher="...", student="...")
        for trace in generator.stream(["What is 6 * 7?"]):
            print(trace.text)

    Args:
        config: what is made, and how; by default as the commands do. settings: of `GenerateConfig`; they amend it.
        group: of `tensor_parallel` processes that hold the teacher together, this one and others.

    Raises:
        ValueError: there is no such setting, or no such value of it.
        ValueError (from `find` and `load`): a model cannot be loaded, or the pair does not fit together.
    """

    kind: ClassVar[type[GenerateConfig]] = GenerateConfig  # of configuration

    def __init__(self, config: GenerateConfig | None = None, *, group: Group | None = None, **settings: Any) -> None:
        self.config, self.group = amended(self.kind, config, settings), group
        self._pair: Pair | None = None
        self._engine: Decoder | None = None
        self._memory: Estimate | None = None
        self._scorer: Scorer | None = None
        self._verifier: Verifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def find(self) -> Pair:
        """The pair, without its weights."""
        if self._pair is None:
            self._pair = find_pair(self.config)
        return self._pair

    @property
    def notices(self) -> list[str]:
        """What a user should be told of the pair and how it will be decoded with."""
        lines = list(self.find().notices)
        if self.config.served:
            of, mode = self.find().teacher, served_mode(self.find(), self.config)
            where = ", ".join(self.config.teachers)
            lines.append(
                f"teacher: {of.name}, served at {where} ({of.api}); {mode}: it proposes from {MEANING[mode]}; "
                f"log-probs beyond the {TOP} are null"
            )
        return lines

    def load(self) -> "TraceGenerator":
        """Load the weights. Idempotent; returns itself."""
        if self._engine is None:
            pair, c = self.find(), self.config
            self._judges().start()
            rows = self.memory().rows  # before the weights take their part
            models = load_pair(pair, c, rows=rows, group=self.group)
            if c.score:
                layout = {"chat_template_kwargs": dict(c.chat_template_kwargs)} if c.chat_template_kwargs else {}
                self._scorer = Scorer(pair.student, models.student, Scoring(), dtype=dtype_of(c), layout=layout)
            self._engine = engine_of(pair, models, c, rows=rows)
        return self

    def follow(self) -> None:
        """Hold a part of the teacher for the first process of the group, until that ends."""
        if self.group is not None:
            tensor_parallel.follow(self.group, lambda: load_part(self.find(), self.config))

    @property
    def blocks(self) -> BlockController:
        """How the rounds of the last `make`, `run` or `stream` went."""
        self.load()
        return self._engine.blocks  # type: ignore[union-attr]

    @property
    def known(self) -> Mapping[str, int]:
        """In how many places of these a served teacher's distribution was known, and how (`listed`)."""
        self.load()
        return dict(self._engine.teacher.counts)  # type: ignore[union-attr]

    def memory(self) -> Estimate:
        """What the pair will take, and the rows that are decoded together; reads no weights."""
        if self._memory is None:
            self._memory = memory_of(self.find(), self.config)
        return self._memory

    def identity(self) -> dict[str, Any]:
        """Everything that shapes a trace and its row, as JSON values: the same identity, the same traces (in fp32)."""
        pair, c = self.find(), self.config
        s = pair.sampling
        return (
            {
                "teacher": pair.teacher.fingerprint(),
                "student": pair.student.fingerprint(),
                "vocabularies": pair.vocabulary.case,
                "temperature": s.temperature,
                "top_p": s.top_p,
                "top_k": s.top_k,
                "threshold": c.threshold,
                "threshold_on": c.threshold_on,
                "trials": str(c.trials),
                "accept_top_k": c.accept_top_k,
                "max_new_tokens": pair.max_new_tokens,
                "seed": c.seed,
                "loop_check": c.loop_check,
                "verify": resolve(c.verify),
                "answer_column": c.answer_column,
                "teacher_prompt": "own" if own_prompt(c, pair.vocabulary) else "student",
                "teacher_prompt_column": c.teacher_prompt_column,
                "teacher_template": c.teacher_template,
                "completion_prefix": c.completion_prefix,
                "suppressed": sorted(pair.suppressed),
                "system_prompt": c.system_prompt,
                "chat_template_kwargs": dict(c.chat_template_kwargs),
                "dtype": dtype_of(c),
            }
            | ({"score": asdict(Scoring()) | {"step_rules": RULES}} if c.score else {})
            | ({"teacher_top_logprobs": TOP, "teacher_q": served_mode(pair, c)} if c.served else {})
            | ({"top_logprobs": c.top_logprobs} if c.top_logprobs else {})
        )

    def prepare(self, rows: Given) -> Rows:
        """Find the prompts and ids of input rows (see `rows.prepare`), the teacher's prompts and the answers.

        Args:
            rows: a prompt, a row, a list or table of these, or a path; see `given.rows_of`.

        Raises:
            ValueError: they are none of these; no row has a column that is needed, or ids repeat.
        """
        return privileged(self.read(rows), self.config)

    def read(self, rows: Given) -> Rows:
        """The prompts and ids of input rows, and their answers; as `prepare` says."""
        return self.of_rows(rows_of(rows), self.config.prompt_column)

    def of_rows(self, rows: Iterable[Mapping[str, Any]], prompt_column: str | None) -> Rows:
        """The same of rows whose prompt is in this column, or in one of those that are usual."""
        c = self.config

        def answers(columns: Collection[str]) -> tuple[str, ...]:
            found = answer_columns(columns, c.verify, c.answer_column)
            if c.until_correct and c.verify == "auto" and not found:
                answer_columns(columns, "boxed", None)  # says what was looked for
            return found

        return prepare(rows, prompt_column=prompt_column, system_prompt=c.system_prompt, answer_columns=answers)

    def unreadable(self, rows: Rows, *, looked_at: int = 1000) -> list[str]:
        """What is to be said of reference answers that no trace can be held against, if there are such."""
        some = [rows[i] for i in range(min(len(rows), looked_at))]
        wanted = [row for row in some if row.answer_columns and row.error is None]
        bad = [row for row in wanted if not self._judges().judges(row.answer)]
        if not bad or ":" in self.config.verify or self.config.verify == "none":
            return []
        why = "the reference answer is missing" if bad[0].answer is None else read_reference(bad[0].answer)[1]
        less = f", so that {self.config.want} of each are made" if self.config.until_correct else ""
        of = f"{len(rows)}" if len(rows) <= looked_at else f"the first {looked_at}"
        return [
            f"notice: the traces of {len(bad)} of {of} rows cannot be judged{less}; the first, {bad[0].id!r}: {why}"
        ]

    def stream(self, rows: Given) -> Iterator[Trace]:
        """Yield traces as they finish, `num_generations` a row or fewer with `until_correct`.

        A bad row yields traces with `error` set. rows: as of `prepare`, which raises ValueError.
        """
        yield from self.make(self.schedule(self.prepare(rows), {}))

    def run(self, rows: Given) -> list[Trace]:
        """All traces, in the order of the rows and of their generations."""
        prepared = self.prepare(rows)
        made = {trace.key: trace for trace in self.make(self.schedule(prepared, {}))}
        keys = ((str(row_id), g) for row_id in prepared.ids for g in range(self.config.num_generations))
        return [made[key] for key in keys if key in made]

    def schedule(self, rows: Rows, done: Mapping[tuple[str, int], bool]) -> Schedule:
        """Which traces of these rows are to be made, where `done` exist, and are right or not."""
        c = self.config
        judged = self._judges().judges
        want = c.want if c.until_correct else None
        return Schedule(
            rows, generations=c.num_generations, want=want, done=done, judged=lambda row: judged(row.answer)
        )

    def make(self, schedule: Schedule, *, watch: Watch | None = None) -> Iterator[Trace]:
        """Yield the traces that are scheduled, as they are finished and judged. watch: is shown the live rows."""
        self.load()
        self._engine.watch = watch  # type: ignore[union-attr]
        verifier = self._judges()
        pipeline = Pipeline(self.find(), self.config, schedule, verifier=verifier, scorer=self._scorer)
        try:
            yield from pipeline.run(self._engine)  # type: ignore[arg-type]
        except BaseException:  # an interrupt, say: nobody waits for a verdict any more
            verifier.stop()
            raise

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out: for Ray Data's `map_batches` and `datasets.map(batched=True)`.

        Raises:
            ValueError: these are no columns, or their lengths differ; or as of `prepare`.
        """
        columns = columns_of(batch)
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        made = [trace.row() for trace in self.run(rows)]
        return {k: [row.get(k) for row in made] for k in (made[0] if made else ())}

    def judge_again(self, texts: Iterable[tuple[Row, str]]) -> list[Judgement]:
        """Whether the answers of stored completions of these rows are right; loads no weights."""
        pair, verifier = self.find(), self._judges()
        verifier.start()
        try:
            asked = [verdict(verifier, row, text, opened=pair.render(row, self.config).opened) for row, text in texts]
            return [future.result() for future in asked]
        except BaseException:
            verifier.stop()
            raise

    def _judges(self) -> Verifier:
        if self._verifier is None:
            self._verifier = Verifier(resolve(self.config.verify))
        return self._verifier

"""Rows to prompts, prompts to the engine, what it commits to traces: the class that jobs call."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rsd.answers.verifier import Judgement, Verifier, answer_column, resolve
from rsd.config import GenerateConfig, Scoring
from rsd.decoding.block_size import Pace
from rsd.decoding.engine import Engine, Request
from rsd.decoding.sampling import row_key
from rsd.decoding.teacher import TOP, Teacher
from rsd.generation.pipeline import Requests
from rsd.generation.schedule import Schedule
from rsd.models.loading import dtype_of, find, load, one_model, sampling_of
from rsd.models.memory import PROMPT, Estimate, estimate, need_of
from rsd.models.selfcheck import check_decoding
from rsd.models.source import Source
from rsd.pair.prompts import Prompt, notices, own_prompt, privileged, render
from rsd.pair.vocabulary import Vocabulary, meet, token_ids
from rsd.scoring.responses import Response
from rsd.scoring.scorer import Scorer
from rsd.scoring.steps import RULES
from rsd.traces import rows as data
from rsd.traces.rows import Row
from rsd.traces.trace import Trace

DEFAULT_NEW_TOKENS = 2048


class TraceGenerator:
    """Makes traces by reverse speculative decoding.

    The constructor does no I/O and the object pickles (without its models), so that it can be sent to
    the workers of a job. `find` reads configurations and tokenizers, `load` the weights; both are
    idempotent and called when needed.

        generator = TraceGenerator(GenerateConfig(teacher="...", student="..."))
        for trace in generator.stream([{"prompt": "What is 6 * 7?"}]):
            print(trace.text)

    Raises:
        ValueError (from `find` and `load`): a model cannot be loaded, or the pair does not fit together.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self.config = config
        self.notices: list[str] = []
        self._pair: tuple[Source, Source, Vocabulary] | None = None
        self._engine: Engine | None = None
        self._memory: Estimate | None = None
        self._scorer: Scorer | None = None
        self._verifier: Verifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def find(self) -> tuple[Source, Source, Vocabulary]:
        """Teacher, student and how their vocabularies meet; reads no weights."""
        if self._pair is None:
            c = self.config
            code = c.trust_remote_code
            if c.served:
                from rsd.decoding.probe import find_served  # needs httpx

                name = str(c.teacher_model)
                teacher = find_served(c.teacher, name, c.teacher_tokenizer or name, trust_remote_code=code)
            else:
                teacher = find(
                    "teacher", c.teacher, c.teacher_revision, trust_remote_code=code, load_in=c.teacher_load_in
                )
            if (c.student, c.student_revision, c.student_load_in) == (c.teacher, c.teacher_revision, c.teacher_load_in):
                student = replace(teacher, role="student")
            else:
                student = find(
                    "student", c.student, c.student_revision, trust_remote_code=code, load_in=c.student_load_in
                )
            vocabulary = meet(
                teacher.tokenizer,
                student.tokenizer,
                teacher_width=teacher.width,
                student_width=student.width,
                teacher_eos=teacher.ends,
                student_eos=student.ends[0],
            )
            context = min(teacher.context, student.context)
            self.max_new_tokens = c.max_new_tokens or DEFAULT_NEW_TOKENS
            if c.max_new_tokens is not None and c.max_new_tokens >= context:
                raise ValueError(
                    f"max-new-tokens {c.max_new_tokens} leaves no room for a prompt in a context of {context} "
                    f"positions: choose less than {context}"
                )
            self.sampling, lines = sampling_of(c, student)
            self.notices = [f"vocabularies: {vocabulary.describe()}", *lines]
            self.notices += notices(c, teacher=teacher, student=student, vocabulary=vocabulary)
            if c.served:
                self.notices.append(
                    f"teacher: {teacher.name}, served at {c.teacher}; it proposes from its {TOP} likeliest tokens, "
                    "renormalised, and log-probs of others are null"
                )
            self.suppressed = token_ids([*c.suppress, *(student.generation.suppress_tokens or ())], student.tokenizer)
            for source in (teacher, student):
                whole = source.config.get_text_config().max_position_embeddings
                if source.context < whole:
                    self.notices.append(
                        f"notice: of the {source.role}'s context of {whole} positions the first {source.context} are "
                        "used: a longer row has other LongRoPE factors from its beginning"
                    )
            if self.suppressed:
                vocabulary = vocabulary.without(self.suppressed)
                self.notices.append(f"suppressed: {len(self.suppressed)} tokens, which no trace will hold")
            if student.eos <= self.suppressed:
                raise ValueError("suppress holds every token that ends a trace: leave one of them out")
            self.verify = resolve(c.verify)
            self._pair = teacher, student, vocabulary
        return self._pair

    def load(self) -> "TraceGenerator":
        """Load the weights. Idempotent; returns itself."""
        if self._engine is None:
            teacher, student, vocabulary = self.find()
            if self.config.compile and not shutil.which(os.environ.get("CXX", "g++")):
                raise ValueError("compile needs a C++ compiler: install g++, name one in CXX, or leave it out")
            self._judges().start()
            rows = self.memory().rows  # before the weights take their part
            packed = not self.config.compile
            student_model = self._load(student, packed=packed)
            one = one_model(teacher, student, self.config)
            if self.config.score:
                kwargs = self.config.chat_template_kwargs
                reading = {"chat_template_kwargs": dict(kwargs)} if kwargs else {}
                self._scorer = Scorer(student, student_model, Scoring(), dtype=dtype_of(self.config), reading=reading)
            self._engine = Engine(
                student_model if one else self._load_teacher(teacher, packed=packed),
                student_model,
                vocabulary,
                sampling=self.sampling,
                acceptance=self.config.acceptance(),
                eos=student.eos | vocabulary.of_teacher(teacher.eos),
                rows=rows,
                block=self.config.block_size,
                loop_check=self.config.loop_check,
                compile=self.config.compile,
            )
        return self

    def _load_teacher(self, teacher: Source, *, packed: bool) -> PreTrainedModel | Teacher:
        if not self.config.served:
            return self._load(teacher, packed=packed)
        from rsd.decoding.served_teacher import ServedTeacher

        return ServedTeacher(teacher.path, teacher.name, width=teacher.width, context=teacher.context)

    def _load(self, source: Source, *, packed: bool) -> PreTrainedModel:
        model = load(source, self.config, packed=packed)
        if not self.config.skip_check:
            check_decoding(model, f"--{source.role} {source.name}")
        return model

    @property
    def pace(self) -> Pace:
        """How the rounds of the last `make`, `run` or `stream` went."""
        self.load()
        return self._engine.pace  # type: ignore[union-attr]

    def memory(self) -> Estimate:
        """What the pair will take, and the rows that are decoded together; reads no weights."""
        if self._memory is not None:
            return self._memory
        teacher, student, _ = self.find()
        tokens = min(teacher.context, student.context, self.max_new_tokens + PROMPT)
        needs = [need_of(s, self.config, tokens) for s in ([student] if self.config.served else [teacher, student])]
        one = one_model(teacher, student, self.config)
        self._memory = estimate(*needs, tokens=tokens, rows=self.config.batch_size, one=one)
        return self._memory

    def identity(self) -> dict[str, Any]:
        """Everything that shapes a trace and its row, as JSON values: the same identity, the same traces (in fp32)."""
        teacher, student, vocabulary = self.find()
        c, s = self.config, self.sampling
        return (
            {
                "teacher": teacher.fingerprint(),
                "student": student.fingerprint(),
                "vocabularies": vocabulary.case,
                "temperature": s.temperature,
                "top_p": s.top_p,
                "top_k": s.top_k,
                "threshold": c.threshold,
                "threshold_on": c.threshold_on,
                "trials": str(c.trials),
                "accept_top_k": c.accept_top_k,
                "max_new_tokens": self.max_new_tokens,
                "seed": c.seed,
                "loop_check": c.loop_check,
                "verify": self.verify,
                "answer_column": c.answer_column,
                "teacher_prompt": "own" if own_prompt(c, vocabulary) else "student",
                "teacher_prompt_column": c.teacher_prompt_column,
                "teacher_template": c.teacher_template,
                "completion_prefix": c.completion_prefix,
                "suppressed": sorted(self.suppressed),
                "system_prompt": c.system_prompt,
                "chat_template_kwargs": dict(c.chat_template_kwargs),
                "dtype": dtype_of(c),
            }
            | ({"score": asdict(Scoring()) | {"step_rules": RULES}} if c.score else {})
            | ({"teacher_top_logprobs": TOP} if c.served else {})
        )

    def prepare(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Find the prompts and ids of input rows (see `data.prepare`), the teacher's prompts and the answers.

        Raises:
            ValueError: no row has a column that is needed, or ids repeat.
        """
        c = self.config
        prepared = data.prepare(rows, prompt_column=c.prompt_column, system_prompt=c.system_prompt)
        column = answer_column(prepared, c.verify, c.answer_column)
        if c.until_correct and c.verify == "auto" and column is None and prepared:
            answer_column(prepared, "boxed", None)  # says what was looked for
        return privileged([replace(row, answer_column=column) for row in prepared], c)

    def stream(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Trace]:
        """Yield traces as they finish, `num_generations` a row or fewer with `until_correct`.

        A bad row yields traces with `error` set.

        Raises:
            ValueError: no row has a prompt column, or ids repeat.
        """
        yield from self.make(self.schedule(self.prepare(rows), {}))

    def run(self, rows: Iterable[Mapping[str, Any]]) -> list[Trace]:
        """All traces, in the order of the rows and of their generations."""
        prepared = self.prepare(rows)
        made = {trace.key: trace for trace in self.make(self.schedule(prepared, {}))}
        keys = ((str(row.id), g) for row in prepared for g in range(self.config.num_generations))
        return [made[key] for key in keys if key in made]

    def schedule(self, rows: Iterable[Row], done: Mapping[tuple[str, int], bool]) -> Schedule:
        """Which traces of these rows are to be made, where `done` exist, and are right or not."""
        c = self.config
        return Schedule(rows, generations=c.num_generations, want=c.want if c.until_correct else None, done=done)

    def make(self, schedule: Schedule) -> Iterator[Trace]:
        """Yield the traces that are scheduled, as they are finished and judged."""
        self.load()
        requests = Requests(self, schedule)
        try:
            for finished in self._engine.run(requests):  # type: ignore[union-attr]
                requests.judge(finished)
                yield from requests.judged()
            yield from requests.judged()
        except BaseException:  # an interrupt, say: nobody waits for a verdict any more
            self._judges().stop()
            raise

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out: for Ray Data's `map_batches` and `datasets.map(batched=True)`."""
        names, columns = list(batch), [list(v) for v in batch.values()]
        rows = [
            {k: v.item() if isinstance(v, np.generic) else v for k, v in zip(names, values, strict=True)}
            for values in zip(*columns, strict=True)
        ]
        made = [trace.row() for trace in self.run(rows)]
        return {k: [row.get(k) for row in made] for k in (made[0] if made else ())}

    def render(self, row: Row) -> Prompt:
        """The prompt's ids as the student and as the teacher read them.

        Raises:
            ValueError: the prompt cannot be rendered or does not fit into a context.
        """
        teacher, student, vocabulary = self.find()
        return render(row, self.config, teacher=teacher, student=student, vocabulary=vocabulary)

    def request(self, row: Row, generation: int, prompt: Prompt) -> Request:
        _, student, _ = self.find()
        ids = prompt.student + prompt.prefix
        return Request(
            student_prompt=ids,
            teacher_prompt=prompt.teacher,
            key=row_key(self.config.seed, str(row.id), generation),
            max_new_tokens=min(self.max_new_tokens, student.context - len(ids)),
            tag=(row, generation, prompt),
        )

    def decode(self, ids: list[int]) -> str:
        """The text of the student's ids, special tokens kept."""
        return str(self.find()[1].tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def judge(self, trace: Trace, row: Row) -> "Future[Judgement]":
        """Whether a trace's answer is right, as soon as that is known."""
        if trace.error is None:
            return self._verdict(row, trace.text, opened=trace.thinking_opened)
        future: Future[Judgement] = Future()
        future.set_result(Judgement(None))
        return future

    def judge_again(self, texts: Iterable[tuple[Row, str]]) -> list[Judgement]:
        """Whether the answers of stored completions of these rows are right; loads no weights."""
        self._judges().start()
        try:
            asked = [self._verdict(row, text, opened=self.render(row).opened) for row, text in texts]
            return [future.result() for future in asked]
        except BaseException:
            self._judges().stop()
            raise

    def _verdict(self, row: Row, text: str, *, opened: bool) -> "Future[Judgement]":
        given = {"id": row.id, "prompt": row.messages, **row.columns}
        return self._judges().submit(text, given, row.answer, opened=opened)

    def _judges(self) -> Verifier:
        if self._verifier is None:
            self.find()
            self._verifier = Verifier(self.verify)
        return self._verifier

    def with_scores(self, trace: Trace) -> Trace:
        if self._scorer is None:
            return trace
        response = Response(
            row={},
            id=str(trace.id),
            own_id=True,
            generation=trace.generation,
            messages=trace.prompt,
            text=trace.text,
            error=trace.error and f"the row is an error itself: {trace.error}",
        )
        return replace(trace, scores=self._scorer.score(response, prompt_ids=trace.prompt_ids).columns())

"""Rows to prompts, prompts to the engine, what it commits to traces: the class that jobs call."""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from rsd import data
from rsd.config import GenerateConfig, Scoring
from rsd.data import Row
from rsd.engine import Engine, Finished, Request
from rsd.memory import PROMPT, Estimate, estimate, need
from rsd.models import Source, device_of, dtype_of, find, load, sampling_of
from rsd.pace import Pace
from rsd.responses import Response
from rsd.sampling import row_key
from rsd.scoring import Scorer
from rsd.trace import Trace
from rsd.vocabulary import Vocabulary, meet

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

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def find(self) -> tuple[Source, Source, Vocabulary]:
        """Teacher, student and how their vocabularies meet; reads no weights."""
        if self._pair is None:
            c = self.config
            teacher = find("teacher", c.teacher, c.teacher_revision, trust_remote_code=c.trust_remote_code)
            student = find("student", c.student, c.student_revision, trust_remote_code=c.trust_remote_code)
            vocabulary = meet(
                teacher.tokenizer, student.tokenizer, teacher_width=teacher.width, student_width=student.width
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
            self._pair = teacher, student, vocabulary
        return self._pair

    def load(self) -> "TraceGenerator":
        """Load the weights. Idempotent; returns itself."""
        if self._engine is None:
            teacher, student, vocabulary = self.find()
            if self.config.compile and not shutil.which(os.environ.get("CXX", "g++")):
                raise ValueError("compile needs a C++ compiler: install g++, name one in CXX, or leave it out")
            rows = self.memory().rows  # before the weights take their part
            packed = not self.config.compile
            student_model = load(student, self.config, packed=packed)
            if self.config.score:
                kwargs = self.config.chat_template_kwargs
                reading = {"chat_template_kwargs": dict(kwargs)} if kwargs else {}
                self._scorer = Scorer(student, student_model, Scoring(), dtype=dtype_of(self.config), reading=reading)
            self._engine = Engine(
                load(teacher, self.config, packed=packed),
                student_model,
                vocabulary,
                sampling=self.sampling,
                acceptance=self.config.acceptance(),
                eos=student.eos | {i for i in teacher.eos if i < vocabulary.width and vocabulary.shared[i]},
                rows=rows,
                block=self.config.block_size,
                compile=self.config.compile,
            )
        return self

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
        needs = (
            need(
                source.config,
                dtype=dtype_of(self.config),
                device=device_of(self.config, source.role),
                tokens=tokens,
                trust_remote_code=self.config.trust_remote_code,
            )
            for source in (teacher, student)
        )
        self._memory = estimate(*needs, tokens=tokens, rows=self.config.batch_size)
        return self._memory

    def identity(self) -> dict[str, Any]:
        """Everything that shapes a trace and its row, as JSON values: the same identity, the same traces (in fp32)."""
        teacher, student, _ = self.find()
        c, s = self.config, self.sampling
        return {
            "teacher": teacher.fingerprint(),
            "student": student.fingerprint(),
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "threshold": c.threshold,
            "threshold_on": c.threshold_on,
            "trials": str(c.trials),
            "accept_top_k": c.accept_top_k,
            "max_new_tokens": self.max_new_tokens,
            "seed": c.seed,
            "teacher_prompt": c.teacher_prompt,
            "system_prompt": c.system_prompt,
            "chat_template_kwargs": dict(c.chat_template_kwargs),
            "dtype": dtype_of(c),
        } | ({"score": asdict(Scoring())} if c.score else {})

    def prepare(self, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
        """Find the prompts and ids of input rows (see `data.prepare`)."""
        return data.prepare(rows, prompt_column=self.config.prompt_column, system_prompt=self.config.system_prompt)

    def stream(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Trace]:
        """Yield `num_generations` traces a row, as they finish; a bad row yields traces with `error` set.

        Raises:
            ValueError: no row has a prompt column, or ids repeat.
        """
        yield from self.make(self.prepare(rows))

    def run(self, rows: Iterable[Mapping[str, Any]]) -> list[Trace]:
        """All traces, in the order of the rows and of their generations."""
        prepared = self.prepare(rows)
        made = {trace.key: trace for trace in self.make(prepared)}
        return [made[str(row.id), g] for row in prepared for g in range(self.config.num_generations)]

    def make(self, rows: Iterable[Row], *, skip: Collection[tuple[str, int]] = ()) -> Iterator[Trace]:
        """`stream` for prepared rows, without the traces whose (id, generation) is in `skip`."""
        wanted = [(row, g) for row in rows for g in range(self.config.num_generations) if (str(row.id), g) not in skip]
        self.load()
        failed: list[Trace] = []
        for finished in self._engine.run(self._requests(wanted, failed)):  # type: ignore[union-attr]
            while failed:
                yield self._with_scores(failed.pop(0))
            yield self._with_scores(self._trace(finished))
        yield from map(self._with_scores, failed)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Columns in, columns out: for Ray Data's `map_batches` and `datasets.map(batched=True)`."""
        names, columns = list(batch), [list(v) for v in batch.values()]
        rows = [
            {k: v.item() if isinstance(v, np.generic) else v for k, v in zip(names, values, strict=True)}
            for values in zip(*columns, strict=True)
        ]
        made = [trace.row() for trace in self.run(rows)]
        return {k: [row.get(k) for row in made] for k in (made[0] if made else ())}

    def render(self, row: Row) -> tuple[list[int], list[int]]:
        """The prompt's ids as the student and as the teacher read them.

        Raises:
            ValueError: the prompt cannot be rendered or does not fit into a context.
        """
        teacher, student, vocabulary = self.find()
        ids = student.prompt_ids(row.messages, self.config.chat_template_kwargs)
        if self.config.teacher_prompt == "own":
            theirs = teacher.prompt_ids(row.messages, self.config.chat_template_kwargs)
        else:
            theirs = vocabulary.for_teacher(ids)
        for source, prompt in ((student, ids), (teacher, theirs)):
            if len(prompt) >= source.context:
                raise ValueError(
                    f"the prompt has {len(prompt)} tokens and the {source.role}'s context {source.context}: "
                    "there is no room for a trace"
                )
        return ids, theirs

    def _requests(self, wanted: list[tuple[Row, int]], failed: list[Trace]) -> Iterator[Request]:
        """Requests for good rows; the error traces of bad ones are put into `failed`."""
        _, student, _ = self.find()
        last: Row | None = None
        for row, generation in wanted:
            if row is not last:
                error = row.error
                if error is None:
                    try:
                        ids, theirs = self.render(row)
                    except Exception as e:  # a prompt must not be able to end a job
                        error = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
                last = row
            if error is not None:
                failed.append(
                    Trace(id=row.id, generation=generation, prompt=row.messages, error=error, columns=row.columns)
                )
                continue
            yield Request(
                student_prompt=ids,
                teacher_prompt=theirs,
                key=row_key(self.config.seed, str(row.id), generation),
                max_new_tokens=min(self.max_new_tokens, student.context - len(ids)),
                tag=(row, generation),
            )

    def _trace(self, finished: Finished) -> Trace:
        _, student, _ = self.find()
        row, generation = finished.request.tag
        ids = finished.token_ids
        shown = ids[:-1] if finished.finish_reason == "stop" else ids
        return Trace(
            id=row.id,
            generation=generation,
            prompt=row.messages,
            text=str(student.tokenizer.decode(shown.tolist(), clean_up_tokenization_spaces=False)),
            prompt_ids=finished.request.student_prompt,
            token_ids=ids,
            teacher_logprobs=finished.teacher_logprobs,
            student_logprobs=finished.student_logprobs,
            from_teacher=finished.from_teacher,
            accepted=finished.accepted,
            proposals=finished.proposals,
            finish_reason=finished.finish_reason,
            error=finished.error,
            columns=row.columns,
        )

    def _with_scores(self, trace: Trace) -> Trace:
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

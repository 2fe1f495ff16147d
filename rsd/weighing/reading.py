"""Traces in steps, with both models' log-probs of their tokens where weights are made of these."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from rsd.decoding.groups import Decoder
from rsd.decoding.sequence import Request
from rsd.pair.pair import Pair
from rsd.pair.prompts import own_prompt
from rsd.pair.vocabulary import DIFFERENT, SAME, TeacherContext
from rsd.scoring.naturalness import Reader, TraceIds
from rsd.scoring.responses import Response
from rsd.scoring.scorer import WINDOW, token_steps
from rsd.scoring.steps import split
from rsd.scoring.texts import Texts
from rsd.traces.rows import Row
from rsd.weighing.config import WeighConfig
from rsd.weighing.moves import TraceSteps, shared_out


class TraceReader:
    """Reads traces for one pair.

    Args:
        noted: what the job that made the traces noted of their tokens is what these models say of them.
        reader, engine: of one of the models, and of both; these are loaded when they are asked for.
    """

    def __init__(
        self,
        pair: Pair,
        config: WeighConfig,
        *,
        texts: Texts,
        noted: bool,
        reader: Callable[[str], Reader],
        engine: Callable[[], Decoder],
    ) -> None:
        self.pair, self.config, self.texts, self.noted = pair, config, texts, noted
        self.reader, self.engine = reader, engine
        self.acting = config.decoding(threshold=1)

    def read(self, todo: Iterable[Response]) -> Iterator[TraceSteps]:
        """Traces in steps, with the log-probs of their tokens where these are asked for; read many at once."""
        left, c = iter(todo), self.config
        wanted = ["teacher"] * (c.validity == "token" or (c.validity == "likelihood" and not c.proposals))
        wanted += ["student"] * (c.validity == "token")
        while window := [self._prepared(one) for one in islice(left, WINDOW)]:
            for role in wanted:
                self._have_read(role, [t for t in window if t.error is None and getattr(t, role) is None])
            yield from window

    def _prepared(self, response: Response) -> TraceSteps:
        trace = TraceSteps(response=response)
        try:
            if response.error is not None:
                raise ValueError(response.error)
            row = Row(id=response.id, messages=response.messages, columns={})
            trace.prompt = self.pair.render(row, self.acting)
            self._in_tokens(trace)
            length, most = len(trace.prompt.student) + len(trace.ids), self.pair.student.context
            if length > most + 1:  # the EOS is not read
                raise ValueError(f"prompt and trace have {length} tokens, the student's context {most}")
            spans = split(trace.text, steps=self.config.steps)
            trace.spans, trace.first = token_steps(spans, trace.starts, len(trace.text))
        except Exception as e:  # a row must not be able to end a job
            trace.error = line(e)
        return trace

    def _in_tokens(self, trace: TraceSteps) -> None:
        """The ids that were sampled, where they are known and spell the text; else the tokenizer's, and an EOS."""
        response, texts = trace.response, self.texts
        ids = texts.sampled(response, response.text)
        if ids is not None and response.tokens is not None:
            trace.text, trace.ids, trace.starts = response.text, ids, texts.starts(texts.without_eos(ids))
            by = response.tokens["from_teacher"]
            trace.written = int(np.argmax(by >= 0)) if (by >= 0).any() else 0
            if self.noted:
                trace.teacher = response.tokens["teacher_logprobs"].astype(np.float64)
                trace.student = response.tokens["student_logprobs"].astype(np.float64)
        if not trace.ids:
            trace.text, shown, trace.starts = texts.tokens(response)
            ended = response.row.get("finish_reason") not in ("length", "loop")
            whole = [*shown, self.pair.student.ends[0]] if ended else shown
            trace.ids = whole if response.token_ids is None else list(response.token_ids)
        trace.starts += [len(trace.text)] * (len(trace.ids) - len(trace.starts))

    def _have_read(self, role: str, traces: list[TraceSteps]) -> None:
        """Have one of the models read traces, and note its log-probs of their tokens."""
        if not traces:
            return
        if self.pair.vocabulary.case == DIFFERENT:
            self._as_decoded(traces)
            return
        ids = [self._ids_for(role, trace) for trace in traces]
        reader = self.reader(role)
        for batch in reader.together(ids):
            scores: list[np.ndarray | None]
            try:
                scores = [score.logprobs for score in reader.read_all([ids[i] for i in batch])]
            except Exception:  # of one of them, or of so many at once
                scores = [self._read_alone(reader, traces[i], ids[i]) for i in batch]
            for i, logprobs in zip(batch, scores, strict=True):
                if logprobs is not None:
                    made = self._by_token(role, traces[i], ids[i].tokens, logprobs.astype(np.float64))
                    setattr(traces[i], role, made)

    @staticmethod
    def _read_alone(reader: Reader, trace: TraceSteps, ids: TraceIds) -> np.ndarray | None:
        try:
            return reader.read_all([ids])[0].logprobs
        except Exception as e:
            trace.error = line(e)
            return None

    def _as_decoded(self, traces: list[TraceSteps]) -> None:
        """The same by an engine, for both: with other tokenizers a teacher's log-prob of the student's token depends
        on how the engine puts it, and those of moves are the engine's, too."""
        requests = [
            Request(t.prompt.student, t.prompt.teacher, 0, len(t.ids), tag=t, given=t.ids) for t in traces if t.ids
        ]
        for finished in self.engine().run(requests):
            trace = finished.request.tag
            trace.error = finished.error
            missing = np.full(len(trace.ids) - len(finished.tokens), np.nan)  # beyond the teacher's context
            trace.teacher = np.concatenate([finished.teacher_logprobs, missing])
            trace.student = np.concatenate([finished.student_logprobs, missing])

    def _ids_for(self, role: str, trace: TraceSteps) -> TraceIds:
        """A trace as one of the models reads it, all in one."""
        if role == "student":
            return TraceIds(trace.prompt.student, trace.ids, [0], [0])
        before = trace.prompt.teacher
        context = self.pair.vocabulary.read(TeacherContext(before), trace.ids)
        return TraceIds(before, context.ids[len(before) :], [0], [0])

    def _by_token(self, role: str, trace: TraceSteps, ids: list[int], logprobs: np.ndarray) -> np.ndarray:
        """What a model said of its own tokens as of the student's; NaN where the teacher has no such token."""
        vocabulary = self.pair.vocabulary
        if role == "student" or vocabulary.case == SAME:
            return logprobs
        theirs = Texts(self.pair.teacher)
        shown = theirs.without_eos(ids)
        starts = [*theirs.starts(shown), *[len(trace.text)] * (len(ids) - len(shown))]
        made = shared_out(logprobs, starts, trace.starts)
        made[vocabulary.shared.numpy()[trace.ids] == 0] = np.nan
        return made


def same_pair(pair: Pair, config: WeighConfig, manifest: Mapping[str, Any]) -> bool:
    """Whether the models that made traces, and what they read before these, are those that weigh them."""
    identity, acting = manifest["identity"], config.decoding(threshold=1)
    return (
        identity.get("teacher") == pair.teacher.fingerprint()
        and identity.get("student") == pair.student.fingerprint()
        and identity.get("teacher_prompt") == ("own" if own_prompt(acting, pair.vocabulary) else "student")
        and not (identity.get("teacher_prompt_column") or identity.get("teacher_template"))
        and (identity.get("chat_template_kwargs") or {}) == dict(config.chat_template_kwargs)
        and config.system_prompt in (None, identity.get("system_prompt"))
    )


def line(error: BaseException) -> str:
    return f"{error}".splitlines()[0] if f"{error}" else type(error).__name__

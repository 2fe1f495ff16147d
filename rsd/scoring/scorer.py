"""Scoring responses under a student: text to ids and steps, the student's log-probs to scores.

The short traces in a *window*, `WINDOW` neighbouring rows of the input, are read in batches. What a sum is in its last
bits depends on what is computed beside it, so a batch is made of one window's rows alone, by their lengths. Whoever
needs a row of it reads all: a file is the same to the byte wherever a run was cut off and whoever shared its windows.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from rsd.config import StudentConfig
from rsd.models.loading import Source, dtype_of, find, load
from rsd.models.selfcheck import check_decoding
from rsd.reading import Scoring
from rsd.scoring.measure import measure
from rsd.scoring.metrics import METRICS
from rsd.scoring.naturalness import Reader, TokenScores, TraceIds
from rsd.scoring.responses import Response
from rsd.scoring.steps import RULES, split
from rsd.scoring.texts import Texts
from rsd.settings import called
from rsd.traces.columns import is_number
from rsd.traces.pieces import pieces
from rsd.traces.soft import SoftTargets
from rsd.traces.tokens import unknown

NO_IDS = np.empty(0, dtype=np.int32)
WINDOW = 32  # rows
SHORT = 1 << 12  # characters of prompt and trace, or ids, up to which a row is prepared before its turn


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Scored:
    """A response and its scores, or the error that stands in their place.

    metrics: by the names of `METRICS`; a score that is not defined for this trace is None.
    text, token_ids: the trace without its final EOS. starts: the character at which each token begins.
    spans: the steps as character offsets. steps: the index of each one's first token.
    token_scores: the student's log-probs, one entry a token.
    tokens: what `rsd generate` noted of these tokens, where its sidecar is there; records of `traces.tokens.TOKEN`.
    soft: what both models found likeliest, where that was asked for.
    """

    response: Response
    scoring: Mapping[str, Any]
    error: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    text: str = ""
    token_ids: np.ndarray = field(default_factory=lambda: NO_IDS)
    starts: np.ndarray = field(default_factory=lambda: NO_IDS)
    spans: Sequence[tuple[int, int]] = ()
    steps: Sequence[int] = ()
    token_scores: TokenScores | None = None
    tokens: np.ndarray | None = None
    soft: SoftTargets | None = None

    def pieces(self) -> list[str]:
        """The text of each token; joined, the trace's."""
        return pieces(self.text, self.starts.tolist())

    def columns(self) -> dict[str, Any]:
        """What is added to the row."""
        spans = None if self.error else [list(span) for span in self.spans]
        return {name: self.metrics.get(name) for name in METRICS} | {
            "step_spans": spans,
            "scoring": dict(self.scoring),
            "score_error": self.error,
        }


class Prepared(NamedTuple):
    """A response as the student reads it. text, starts, spans: as of `Scored`."""

    response: Response
    text: str
    starts: list[int]
    spans: list[tuple[int, int]]
    ids: TraceIds


class Scorer:
    """A student, loaded, and what it scores by."""

    def __init__(
        self,
        source: Source,
        model: PreTrainedModel,
        scoring: Scoring,
        *,
        dtype: str,
        layout: Mapping[str, Any],
    ) -> None:
        """dtype: the model's. layout: as of `StudentConfig.layout`."""
        self.source, self.how = source, scoring
        self.template_kwargs = layout.get("chat_template_kwargs", {})
        self.reader = Reader(model)
        self.scoring = rules(source, scoring, dtype=dtype, layout=layout)
        self.texts = Texts(source)
        self._last: tuple[list[dict[str, str]] | None, list[int]] = None, []  # messages, and the prompt they make

    def score(self, response: Response, *, prompt_ids: list[int] | None = None) -> Scored:
        """Scores of one response; one that cannot be scored comes back with `error` set.

        Args:
            prompt_ids: the prompt as the student read it; by default the messages in its chat template.
        """

        def made() -> Scored:
            ready = self._prepared(response, prompt_ids)
            return self._scored(ready, self.reader.read(*ready.ids))

        return self._or_error(response, made)

    def score_text(self, text: str, *, prompt_ids: list[int], error: str | None = None) -> Scored:
        """Scores of a text after a prompt as the student reads it, or what is wrong with it."""
        response = Response(row={}, id="", own_id=False, generation=0, messages=[], text=text, error=error)
        return self.score(response, prompt_ids=prompt_ids)

    def score_all(self, responses: Iterable[Response]) -> Iterator[Scored]:
        """Scores of responses, in order."""
        left = iter(responses)
        while window := list(islice(left, WINDOW)):
            yield from self.score_window(window, range(WINDOW))

    def score_window(self, window: Sequence[Response], wanted: Container[int]) -> Iterator[Scored]:
        """Scores of those of a window's responses whose places are wanted, in order.

        A batch is read when the first of its rows is wanted, a long trace by itself when it is its turn.
        """
        short = {place: ready for place, one in enumerate(window) if (ready := self._if_short(one)) is not None}
        places = [*short]
        batch_of: dict[int, list[int]] = {}
        for batch in self.reader.together([ready.ids for ready in short.values()]):
            together = [places[i] for i in batch]
            batch_of.update((place, together) for place in together)
        made: dict[int, Scored] = {}
        for place, one in enumerate(window):
            if place not in wanted:
                continue
            if place in batch_of and place not in made:
                together = batch_of[place]
                made.update(zip(together, self._read([short[i] for i in together]), strict=True))
            yield made.pop(place) if place in made else self.score(one)

    def _if_short(self, response: Response) -> Prepared | None:
        """A response to be read with others. What is wrong with one that cannot be is found when it is its turn."""
        if response.error is not None:
            return None
        characters = len(response.text) + sum(len(message["content"]) for message in response.messages)
        if max(characters, len(response.token_ids or ())) > SHORT:
            return None
        try:
            return self._prepared(response)
        except Exception:
            return None

    def _read(self, batch: Sequence[Prepared]) -> list[Scored]:
        try:
            scores = self.reader.read_all([one.ids for one in batch])
        except Exception:  # of one of them, or of so many at once
            scores = None
        if scores is None:
            return [self.score(one.response) for one in batch]
        pairs = zip(batch, scores, strict=True)
        return [self._or_error(one.response, partial(self._scored, one, of)) for one, of in pairs]

    def _or_error(self, response: Response, made: Callable[[], Scored]) -> Scored:
        try:
            return made()
        except Exception as e:  # a row must not be able to end a job
            error = f"{e}".splitlines()[0] if f"{e}" else type(e).__name__
        return Scored(response=response, scoring=self.scoring, error=error)

    def _prepared(self, response: Response, prompt: list[int] | None = None) -> Prepared:
        if response.error is not None:
            raise ValueError(response.error)
        prompt = self._prompt(response.messages) if prompt is None else prompt
        text, ids, starts = self.texts.tokens(response)
        if len(prompt) + len(ids) > self.source.context:
            raise ValueError(
                f"prompt and trace have {len(prompt) + len(ids)} tokens, the student's context {self.source.context}"
            )
        spans, steps = token_steps(split(text, steps=self.how.steps), starts, len(text))
        first = [self.how.first(i) for i in range(len(steps))]
        return Prepared(response, text, starts, spans, TraceIds(prompt, ids, steps, first))

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The prompt as the student reads it, rendered once for traces of one problem in a row."""
        if messages != self._last[0]:
            self._last = messages, self.source.prompt_ids(messages, self.template_kwargs)
        return self._last[1]

    def _scored(self, ready: Prepared, scores: TokenScores) -> Scored:
        response, ids, steps = ready.response, ready.ids.tokens, ready.ids.steps
        broken = np.flatnonzero(~np.isfinite(scores.logprobs + scores.local))
        if len(broken):
            raise ValueError(f"the student gives token {broken[0]} (id {ids[broken[0]]}) no finite log-probability")
        noted = response.tokens
        return Scored(
            response=response,
            scoring=self.scoring,
            metrics=measure(scores, steps, self.how),
            tokens=None if noted is None else self._noted(noted, ready.text, ids, ready.starts),
            text=ready.text,
            token_ids=np.array(ids, dtype=np.int32),
            starts=np.array(ready.starts, dtype=np.int32),
            spans=ready.spans,
            steps=steps,
            token_scores=scores,
        )

    def _noted(self, tokens: np.ndarray, text: str, ids: list[int], starts: list[int]) -> np.ndarray | None:
        """The sidecar's records for the scored tokens; nothing is known of a token that was sampled otherwise
        than the tokenizer spells it. None if the sidecar's ids do not spell the text: they are another student's.
        """
        sampled = self.texts.without_eos(tokens["token_ids"].tolist())
        if sampled == ids:
            at = np.arange(len(ids))
        elif self.texts.unknown(sampled) is not None or self.texts.decode(sampled) != text:
            return None
        else:
            place = {token: i for i, token in enumerate(zip(self.texts.starts(sampled), sampled, strict=True))}
            at = np.array([place.get(token, -1) for token in zip(starts, ids, strict=True)])
        made = unknown(ids)
        made[at >= 0] = tokens[at[at >= 0]]
        return made


def token_steps(
    spans: Sequence[tuple[int, int]], starts: Sequence[int], length: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Steps of tokens: a token belongs to the step of its first character.

    Args:
        spans: the steps as character offsets. starts: the character at which each token begins.

    Returns:
        The steps that a token begins in, as character offsets (a step without one is part of the step
        before), and the index of each one's first token.
    """
    step = np.searchsorted([a for a, _ in spans], starts, side="right") - 1
    firsts = np.flatnonzero(np.diff(step, prepend=-1))
    begins = [0, *(spans[i][0] for i in step[firsts][1:])]
    return list(zip(begins, [*begins[1:], length], strict=True)), firsts.tolist()


def rules(source: Source, scoring: Scoring, *, dtype: str, layout: Mapping[str, Any]) -> dict[str, Any]:
    """What names a score, and all that it depends on beside the row."""
    student = {"student": source.label, "fingerprint": source.fingerprint(), "dtype": dtype}
    return student | asdict(scoring) | {"step_rules": RULES} | dict(layout)


def stored(response: Response, scoring: Mapping[str, Any]) -> Scored | None:
    """The scores that the row already has, if they were made by the same rules and, it seems, of the same text."""
    row, made = response.row, {name: response.row.get(name) for name in METRICS}
    try:
        same = (
            row["scoring"] == scoring and row["score_error"] is None and row["step_spans"][-1][1] == len(response.text)
        )
        spans = [(int(start), int(end)) for start, end in row["step_spans"]]
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    if response.error or not same or not all(v is None or is_number(v) for v in made.values()):
        return None
    return Scored(response=response, scoring=scoring, metrics=made, spans=spans)


def find_student(config: StudentConfig) -> Source:
    """The student without its weights.

    Raises:
        ValueError: there is none, or its tokenizer gives no character offsets.
    """
    source = find("student", config.student, config.student_revision, trust_remote_code=config.trust_remote_code)
    check_fast(source, config)
    return source


def check_fast(source: Source, config: StudentConfig) -> None:
    """Raises ValueError where a student's tokenizer gives no character offsets."""
    if not source.tokenizer.is_fast:
        raise ValueError(f"{called('student')} {config.student}: scoring needs a fast tokenizer (a tokenizer.json)")


def load_scorer(config: StudentConfig) -> Scorer:
    """Load the student.

    Raises:
        ValueError: it cannot be loaded, or decoded.
    """
    source = find_student(config)
    model = load(source, config)
    if not config.skip_check:
        check_decoding(model, f"{called('student')} {source.name}")
    return Scorer(source, model, config.scoring(), dtype=dtype_of(config), layout=config.layout())

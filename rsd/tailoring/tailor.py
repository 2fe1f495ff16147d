"""Traces made after raw responses: the teacher, who may be the student itself, has the response in its prompt."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rsd.answers.verifier import ANSWER_COLUMNS
from rsd.generation import raw
from rsd.generation.generator import TraceGenerator
from rsd.pair.prompts import TeacherTemplate
from rsd.scoring import metrics
from rsd.scoring.responses import FORMATS, Response, Responses, responses
from rsd.scoring.steps import split
from rsd.tailoring.config import TailorConfig
from rsd.traces import trace
from rsd.traces.given import Given, rows_of
from rsd.traces.rows import PROMPT_COLUMNS, Raw, Row, Rows

CUT = "\n..."  # what stands for the steps that are left out of a reference
TEMPLATES = 4096  # bytes of a chat template that are certainly enough
# What a row says of its raw response, and what is said of it anew.
OLD = {*trace.COLUMNS, *metrics.COLUMNS, *raw.COLUMNS, *FORMATS}


class Tailor(TraceGenerator):
    """Makes traces after raw responses, as `TraceGenerator` makes them of prompts.

        for trace in Tailor(student="...").stream([{"prompt": "What is 6 * 7?", "completion": "Well, 6 * 7 is 42."}]):
            print(trace.text)

    Args and errors: as of `TraceGenerator`; config is a `TailorConfig`.
    """

    config: TailorConfig
    kind = TailorConfig

    def read(self, rows: Given) -> Rows:
        """Prompts, ids and answers of raw responses, in any format that `rsd score` reads; see `prepare`.

        Raises:
            ValueError: no row has a response, or an id has several.
        """
        c = self.config
        todo = responses(rows_of(rows), c.reading())
        own = Counter(str(row["id"]) for row in todo.rows if row.get("id") is not None)
        if (many := next((name for name, count in own.items() if count > 1), None)) is not None:
            raise ValueError(
                f"id {many!r} has {own[many]} raw responses: keep one of each, as rsd select does, or leave the ids out"
            )
        base = self.of_rows(_plain(todo, c), "prompt")
        return Rows(base.ids, lambda i: _with_response(base[i], todo[i]))

    def prepare(self, rows: Given) -> Rows:
        """As `TraceGenerator.prepare`, with the teacher's prompts cut to what its context holds."""
        base, template = super().prepare(rows), TeacherTemplate(self.config.teacher_template or "")
        return Rows(base.ids, lambda i: self._fitted(base[i], template))

    def _fitted(self, row: Row, template: TeacherTemplate) -> Row:
        """A row whose reference has as many of its steps as leave the teacher room for a trace."""
        if row.error is not None or row.raw is None or self._fits(row):
            return row
        whole = reference(row.raw.text)

        def cut(kept: str, left_out: int) -> Row:
            filled = template.fill(replace(row, asked={**row.asked, "reference": kept}))
            return replace(filled, raw=row.raw and row.raw._replace(left_out=left_out))

        return cut(*shortened(whole, lambda kept: self._fits(cut(kept, 0))))

    def _fits(self, row: Row) -> bool:
        """Whether the teacher's prompt leaves room for as long a trace as the student's does."""
        pair = self.find()
        # A token is a byte at the least: what is short for certain is not read for this.
        text = sum(len(m["content"].encode("utf-8", "replace")) for m in row.teacher or ())
        if text + TEMPLATES + pair.max_new_tokens <= pair.teacher.context:
            return True
        try:
            prompt = pair.render(row, self.config)
        except ValueError:
            return False
        room = min(pair.max_new_tokens, pair.student.context - len(prompt.student) - len(prompt.prefix))
        return len(prompt.teacher) + room <= pair.teacher.context

    def identity(self) -> dict[str, Any]:
        """As `TraceGenerator.identity`."""
        c = self.config
        return super().identity() | {"tailored": {"response": c.response_column, "thinking": c.thinking_column}}


def _plain(todo: Responses, config: TailorConfig) -> Iterator[dict[str, Any]]:
    """The rows as those of a job: their prompts, and what is not of the raw responses."""
    prompt = config.prompt_column or next((c for c in PROMPT_COLUMNS if c in todo.columns), None)
    kept = {*ANSWER_COLUMNS, config.answer_column}
    dropped = {"id", *OLD, prompt, config.response_column, config.thinking_column} - kept
    for response in todo:
        row = {k: v for k, v in response.row.items() if k not in dropped}
        yield {"id": response.row.get("id"), "prompt": response.messages} | row


def _with_response(row: Row, response: Response) -> Row:
    error = response.error
    if error is None and not response.text.strip():
        error = "the raw response is empty"
    verdict = response.row.get("is_correct")
    raw = Raw(response.text, verdict if isinstance(verdict, bool) else None)
    asked: Mapping[str, Any] = {"reference": reference(response.text)}
    return replace(row, raw=raw, asked=asked, error=error or row.error)


def reference(text: str) -> str:
    """A raw response as the teacher reads it: without the marks of thinking, which would open its own."""
    return text.replace("<think>", "").replace("</think>", "").strip()


def shortened(text: str, fits: Callable[[str], bool]) -> tuple[str, int]:
    """The beginning of a text, and its last step, that fit; and how many steps between them are left out.

    The last step is where an answer stands. Where even the first and the last do not fit, nothing is left of it.
    """
    steps = [text[a:b] for a, b in split(text)]

    def kept(count: int) -> str:
        return "".join(steps[:count]).rstrip() + CUT + "\n" + steps[-1].strip()

    least, most = 0, len(steps) - 1  # steps before the last one that fit, and of which one does not
    if most == 0 or not fits(kept(0)):
        return "", len(steps)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(kept(middle)) else (least, middle)
    return kept(least), len(steps) - 1 - least

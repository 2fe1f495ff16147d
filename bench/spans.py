"""A trial: keep of a raw response what is natural already, and have only the rest written (left out of rsd, see below).

A raw response is kept up to the first token below the threshold. From there the engine writes by r, with the response
in the teacher's prompt, as `rsd tailor` does, until one of its steps comes back to the response; then that goes on,
read anew in the light of what was written. Three rules of coming back, the nearest step first, not before the one that
was left: a step whose `last` number is the same, one of the same `letters` and digits, or simply the `next` one.

    python bench/spans.py --json bench/spans.json      # SmolLM2-135M writes after grade-school solutions (fetch.py)

What is counted: tokens that were kept, how often the text came back, and how many traces end with the right number, of
which all raw ones do. `tailor` is the same job without spans.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import machine, write
from fetch import PROBLEMS, SMOLLM2

from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Request
from rsd.pair.vocabulary import TeacherContext
from rsd.scoring.naturalness import Reader
from rsd.scoring.responses import Response
from rsd.scoring.scorer import token_steps
from rsd.scoring.steps import split, step_end
from rsd.scoring.texts import Texts
from rsd.tailoring.tailor import Tailor
from rsd.traces.rows import Row

RULES = ("last", "letters", "next")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
TEMPLATE = "{{ prompt }}\n\nA solution:\n{{ reference }}\n\nWrite down this solution, word for word."


def last_number(text: str) -> str | None:
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def says(step: str, rule: str) -> str:
    letters = re.sub(r"[\W_]+", "", step.casefold())
    return letters if rule == "letters" else last_number(step) or letters


@dataclass(eq=False)
class Going:
    """A trace on its way. raw: the response's ids, with an EOS; first: where its steps begin in them, and last the EOS;
    said: what they say. at: where it goes on. ids, kept: what there is of the trace."""

    row: Row
    prompt: Any
    raw: list[int]
    first: list[int]
    said: list[str]
    at: int = 0
    ids: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    spans: int = 0
    back: int = 0

    @property
    def step(self) -> int:
        return int(np.searchsorted(self.first, self.at, side="right")) - 1


class Back:
    """Whether what is written has come back: the engine asks after every token. to: the step that is next."""

    def __init__(self, texts: Texts, going: Going, rule: str) -> None:
        self.texts, self.rule, self.step = texts, rule, going.step
        begun = max(0, len(going.ids) - (going.at - going.first[going.step]))  # of the step that is gone on with
        self.before, self.begun, self.all = begun, begun, going.ids
        self.places = {said: i for i, said in reversed([*enumerate(going.said)][going.step :])}
        self.to: int | None = None

    def __call__(self, ids: Sequence[int]) -> int | None:
        if not self.places or ids[-1] in self.texts.source.eos or self.texts.plain(ids[-1]):
            return None
        while True:
            written = [*self.all, *ids][self.before :]
            text, start = self.texts.decode(written), len(self.texts.decode(written[: self.begun - self.before]))
            if (end := step_end(text, start)) is None:
                return None
            count = int(np.searchsorted(self.texts.starts(written), end, side="left"))
            self.before, self.begun = self.begun, max(self.begun + 1, self.before + count)
            at = self.step if self.rule == "next" else self.places.get(says(text[start:end], self.rule))
            if at is not None:
                self.to = at + 1
                return max(1, self.begun - len(self.all))


class Spans:
    def __init__(self, tailor: Tailor, rule: str) -> None:
        self.pair, self.config, self.rule = tailor.find(), tailor.config, rule
        self.engine, self.reader = tailor.load()._engine, Reader(tailor._scorer.reader.model)
        self.texts = Texts(self.pair.student)
        self.todo: list[Request] = []
        self.done: list[Going] = []

    def run(self, rows: Sequence[Row]) -> list[Going]:
        for row in rows:
            self.go_on(self.begun(row))
        for finished in self.engine.run(self):
            going, back = finished.request.tag
            ids = finished.token_ids.tolist()
            going.ids += ids
            going.kept += [False] * len(ids)
            if finished.finish_reason == "cut":
                going.at, going.back = going.first[back.to], going.back + 1
                self.go_on(going)
            else:
                self.done.append(going)
        return self.done

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        if not self.todo:
            raise StopIteration
        return self.todo.pop(0)

    def begun(self, row: Row) -> Going:
        text, ids, starts = self.texts.tokens(_response(row))
        spans, first = token_steps(split(text), starts, len(text))
        of = [says(text[a:b], self.rule) for a, b in spans]
        return Going(row, self.pair.render(row, self.config), [*ids, self.pair.student.ends[0]], [*first, len(ids)], of)

    def go_on(self, going: Going) -> None:
        """Keep what is natural of the rest; have what follows written, if anything does."""
        rest, student = going.raw[going.at :], [*going.prompt.student, *going.ids]
        logprobs = self.reader.read(student, rest, [0], [0]).logprobs
        falls = np.flatnonzero(logprobs < np.log(self.config.threshold))
        count = int(falls[0]) if len(falls) else len(rest)
        going.ids, going.kept, going.at = going.ids + rest[:count], going.kept + [True] * count, going.at + count
        left = self.pair.max_new_tokens - len(going.ids)
        if count == len(rest) or left <= 0:
            self.done.append(going)
            return
        going.spans += 1
        back = Back(self.texts, going, self.rule)
        theirs = self.pair.vocabulary.read(TeacherContext(list(going.prompt.teacher)), going.ids).ids
        key = row_key(self.config.seed, f"{going.row.id}/{going.spans}", 0)
        student = [*going.prompt.student, *going.ids]
        self.todo.append(Request(student, theirs, key, left, tag=(going, back), ends=back))


def figures(texts: Texts, rows: Sequence[tuple[list[int], str]]) -> dict[str, float]:
    right = [last_number(texts.decode(texts.without_eos(ids))) == answer for ids, answer in rows]
    return {"right": float(np.mean(right)), "tokens": float(np.mean([len(ids) for ids, _ in rows]))}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--problems", type=int, default=16)
    ap.add_argument("--tokens", type=int, default=256, help="of a trace at the most")
    ap.add_argument("--json")
    args = ap.parse_args()
    rows = [json.loads(line) for line in PROBLEMS.read_text(encoding="utf-8").splitlines()][: args.problems]
    answers = {row["id"]: row["answer"] for row in rows}
    how = {"prompt_column": "question", "response_column": "solution", "max_new_tokens": args.tokens}
    tailor = Tailor(student=str(SMOLLM2), teacher_template=TEMPLATE, temperature=0.7, **how)
    texts, made = Texts(tailor.find().student), {}
    print("| | kept | written spans | came back | right | tokens |\n|---|---|---|---|---|---|", flush=True)
    prepared = list(tailor.prepare(rows))
    raw = [(texts.tokens(_response(row))[1], answers[row.id]) for row in prepared]
    made["raw"] = {"kept": 1.0, "spans": 0.0, "back": 0.0} | figures(texts, raw)
    show("raw", made["raw"])
    traces = [(trace.token_ids.tolist(), answers[trace.id]) for trace in tailor.run(rows)]
    made["tailor"] = {"kept": 0.0, "spans": 1.0, "back": 0.0} | figures(texts, traces)
    show("tailor", made["tailor"])
    for rule in RULES:
        done = Spans(tailor, rule).run(prepared)
        tokens = sum(len(going.ids) for going in done)
        made[rule] = {
            "kept": sum(sum(going.kept) for going in done) / tokens,
            "spans": float(np.mean([going.spans for going in done])),
            "back": float(np.mean([going.back for going in done])),
        } | figures(texts, [(going.ids, answers[going.row.id]) for going in done])
        show(rule, made[rule])
    write(args.json, [{"problems": args.problems, "tokens": args.tokens, **made}])
    print(f"\n{json.dumps(machine())}")


def _response(row: Row) -> Response:
    return Response(row={}, id=str(row.id), own_id=True, generation=0, messages=[], text=row.raw.text)


def show(name: str, of: dict[str, float]) -> None:
    counts = f"{of['kept']:.1%} | {of['spans']:.2f} | {of['back']:.2f} | {of['right']:.1%} | {of['tokens']:.0f}"
    print(f"| {name} | {counts} |", flush=True)


if __name__ == "__main__":
    main()

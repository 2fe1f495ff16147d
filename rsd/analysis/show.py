"""One trace in the terminal, perhaps beside another one of the same problem."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.analysis.columns import BETWEEN, beside, wrapped
from rsd.analysis.marks import Token, legend, marked_steps, marked_tokens, tokens_of, verdict
from rsd.models.noted import noted_tokenizer
from rsd.reading import Columns
from rsd.scoring.finding import find_response
from rsd.scoring.metrics import LN
from rsd.scoring.responses import Response
from rsd.scoring.steps import split
from rsd.terminal import BAD, HEADING, Painted, joined, one_line, paint
from rsd.traces.columns import is_number
from rsd.traces.lines import files_of, made_of, read_manifest
from rsd.traces.pieces import pieces, token_starts

WIDE = 100  # columns of a terminal in which two traces stand side by side
LONGEST = 1500  # characters of a prompt
FIGURES = (
    ("num_tokens", "{:.0f} tokens"),
    ("acceptance_rate", "acceptance {:.1%}"),
    ("fallback_rate", "fallback {:.1%}"),
    (LN, "LN {:.3g}"),
)
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A trace, of which tokens are known or, if not, `note` says why.

    file: whose row it is. tokens: those of its text, and a last one that ended it if there is something to be marked.
    """

    file: str
    response: Response
    tokens: list[Token] | None
    note: str | None

    def head(self) -> Painted:
        """What is known of the trace."""
        row = self.response.row
        facts: list[str] = [verdict(row["is_correct"])] if "is_correct" in row else []
        if isinstance(reason := row.get("finish_reason"), str):
            facts.append(f"ended by {one_line(reason)}")
        facts += [form.format(row[name]) for name, form in FIGURES if is_number(row.get(name))]
        file = paint(f"--- {one_line(Path(self.file).name)}", HEADING)
        return joined([file, ": ", joined(facts, ", ")]) if facts else file

    def trace(self, *, colours: bool) -> Painted:
        if self.response.error is not None:
            return paint(one_line(self.response.error), BAD)
        if self.tokens is not None:
            return marked_tokens(self.tokens, colours=colours)
        return marked_steps(self.response.text, split(self.response.text), colours=colours)


def read_shown(file: str, config: Columns, **which: Any) -> Shown:
    """The trace of a file, and its tokens where they can be spelled. which: as of `find_response`, which raises."""
    one = find_response(file, config, **which)
    if one.error is not None:
        return Shown(file=file, response=one, tokens=None, note=None)
    if one.tokens is None:
        return Shown(file=file, response=one, tokens=None, note="no tokens of it are known: ⟨n⟩ numbers its steps")
    try:
        manifests = (read_manifest(files_of(name)[1]) for name in made_of(file) if files_of(name)[1].is_file())
        student = (next(manifests, None) or {}).get("student")
        if not isinstance(student, dict):
            raise ValueError("no manifest names the student")
        tokenizer = noted_tokenizer(student)

        def decode(ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=False))

        replacement = tokenizer.encode("\ufffd", add_special_tokens=False).ids
        return Shown(file=file, response=one, tokens=spelled(one, decode, replacement), note=None)
    except ValueError as e:
        return Shown(file=file, response=one, tokens=None, note=f"its tokens are not shown: {one_line(e)}")


def spelled(one: Response, decode: Decode, replacement: list[int]) -> list[Token]:
    """The tokens of a response that has records of them.

    Raises:
        ValueError: these do not spell its text.
    """
    records = one.tokens
    ids: list[int] = records["token_ids"].tolist()  # type: ignore[index]
    count = next((n for n in (len(ids), len(ids) - 1) if n >= 0 and decode(ids[:n]) == one.text), None)
    if records is None or count is None:
        raise ValueError("they do not spell its text")
    texts = pieces(one.text, token_starts(ids[:count], decode, replacement)) if count else []
    texts += [decode([i]) for i in ids[count:]]
    tokens = tokens_of(texts, records, [decode([i]) if i >= 0 else None for i in records["proposals"].tolist()])
    ended = tokens[count:]
    return tokens[:count] + [end for end in ended if marked_tokens([end], colours=False) != end.text]


def screenful(shown: Shown, raw: Shown | None, *, colours: bool, columns: int | None) -> Painted:
    """All that is said of a trace. raw: another one, to stand beside it. columns: of the terminal, if it is one."""
    one = shown.response
    sides = [side for side in (raw, shown) if side is not None]
    top = [paint(f"--- {one_line(one.id)}, generation {one.generation}", HEADING), _cut(one.prompt), ""]
    lines = [line for text in top for line in wrapped(text, columns)]
    if raw is not None and columns is not None and columns >= WIDE:
        half = (columns - len(BETWEEN)) // 2
        lines += beside(wrapped(raw.head(), half), wrapped(shown.head(), half), half)
        traces = [wrapped(side.trace(colours=colours), half) for side in (raw, shown)]
        lines += [*beside(traces[0], traces[1], half), joined([])]
    else:
        for side in sides:
            lines += [*wrapped(side.head(), columns), *wrapped(side.trace(colours=colours), columns), joined([])]
    notes = list(dict.fromkeys(f"{Path(side.file).name}: {side.note}" for side in sides if side.note))
    last = [legend(colours=colours)] if any(side.tokens is not None for side in sides) else []
    return joined([*lines, *(line for text in [*notes, *last] for line in wrapped(text, columns))], "\n")


def _cut(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST else f"{prompt[: LONGEST * 2 // 3]} ... {prompt[-LONGEST // 3 :]}"

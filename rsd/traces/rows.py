"""Reading rows and turning them into prompts."""

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rsd.settings import called
from rsd.strictjson import finite
from rsd.traces.spool import OnDemand, Spool

PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")


Messages = list[dict[str, str]]


class Raw(NamedTuple):
    """A response that is there already, after which a row's traces are made (`rsd tailor`).

    is_correct: the verdict that came with it. left_out: steps of it that are not in the teacher's prompt, for want of
    room.
    """

    text: str
    is_correct: bool | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Row:
    """One prompt: a stable id, chat messages, the columns that are merely kept, or what is wrong.

    teacher: the messages that the teacher reads in their place, if it has some of its own.
    answer_columns: where the problem's reference answer may be; the first that is not empty has it.
    asked: the prompt as it was given, by its column; for templates, and not kept.
    raw: the response that its traces are made after, if there is one.
    """

    id: str | int
    messages: Messages
    columns: Mapping[str, Any]
    error: str | None = None
    teacher: Messages | None = None
    answer_columns: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    raw: Raw | None = None

    @property
    def answer(self) -> Any:
        return answer_of(self.columns, self.answer_columns)


Rows = OnDemand[Row]


def answer_of(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """A row's reference answer: of these columns the first that is not empty; else what the first holds."""
    held = [row.get(column) for column in columns]
    filled = (v for v in held if v not in (None, []) and not (isinstance(v, str) and not v.strip()))
    return next(filled, held[0] if held else None)


def in_memory(rows: Iterable[Row]) -> Rows:
    """Rows that are there already."""
    made = list(rows)
    return Rows([row.id for row in made], made.__getitem__)


def prepare(
    rows: Iterable[Mapping[str, Any]],
    *,
    prompt_column: str | None = None,
    system_prompt: str | None = None,
    answer_columns: Callable[[Collection[str]], tuple[str, ...]] = lambda _: (),
) -> Rows:
    """Find the prompts and give every row an id: its own, else a hash of its prompt.

    The rows are read once and lie on disk from then on. A bad row (no prompt, or one of a wrong type) comes back with
    `error` set. NaN, which tables have for what is missing, is None.

    Args:
        answer_columns: the columns of the reference answers, by the names of all columns.

    Raises:
        ValueError: no row has a prompt column, or two rows were given the same id.
    """
    columns: dict[str, None] = {}
    given: list[Any] = []

    def read() -> Iterator[dict[str, Any]]:
        for row in rows:
            columns.update(dict.fromkeys(row))
            row = finite(dict(row))
            given.append(row.get("id"))
            yield row

    raw = Spool(read())
    if not raw:
        return in_memory([])
    wanted = (prompt_column,) if prompt_column else PROMPT_COLUMNS
    column = next((c for c in wanted if c in columns), None)
    if column is None:
        raise ValueError(
            f"no prompt column: looked for {', '.join(wanted)}, {found(columns, prompt_column)}; "
            f"name yours with {called('prompt_column')}"
        )
    ids, bad = _ids(given, lambda i: read_prompt(raw[i].get(column), column)[0] or raw[i])
    answers = answer_columns([c for c in columns if c not in ("id", column)])

    def made(i: int) -> Row:
        row = raw[i]
        messages, error = read_prompt(row.get(column), column)
        if system_prompt is not None and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        kept = {k: v for k, v in row.items() if k not in ("id", column)}
        asked = {column: row.get(column)}
        return Row(ids[i], messages, kept, bad.get(i, error), answer_columns=answers, asked=asked)

    return Rows(ids, made)


def found(columns: Iterable[Any], named: str | None = None) -> str:
    """What a message says of the columns that there are, where one that was named is none of them."""
    names = [name if (name := str(column)).isprintable() else repr(name) for column in columns]
    near = difflib.get_close_matches(named or "", names, 1)
    return f"found {', '.join(names) or 'none'}" + (f" (did you mean {near[0]}?)" if near else "")


def _ids(given: Sequence[Any], content: Callable[[int], Any]) -> tuple[list[str | int], dict[int, str]]:
    """The ids of rows, where they have none made of their content; and by place those that are of a wrong type.

    Raises:
        ValueError: two rows were given the same id.
    """
    taken = {str(row_id) for row_id in given if row_id is not None}
    ids: list[str | int] = []
    bad: dict[int, str] = {}
    seen: dict[str, int] = {}
    for i, row_id in enumerate(given):
        if row_id is None:
            row_id = _free_id(content(i), taken)
            taken.add(row_id)
        elif isinstance(row_id, bool) or not isinstance(row_id, str | int):
            bad[i] = f"id must be a string or a whole number, not {type(row_id).__name__}"
            row_id = str(row_id)
        if (first := seen.setdefault(str(row_id), i)) != i:
            raise ValueError(f"duplicate id {row_id!r} in rows {first + 1} and {i + 1}: ids must be unique")
        ids.append(row_id)
    return ids, bad


def read_prompt(value: Any, column: str) -> tuple[Messages, str | None]:
    """The chat messages of a string or a list of messages, or what is wrong with it."""
    if isinstance(value, str):
        if not value.strip():
            return [], f"{column} is empty"
        return [{"role": "user", "content": value}], None
    if not isinstance(value, list):
        return [], f"{column} must be a string or a list of messages, not {type(value).__name__}"
    messages = []
    for m in value:
        if not (isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)):
            return [], f"{column} holds a message that is not {{'role': string, 'content': string}}"
        messages.append({"role": m["role"], "content": m["content"]})
    # Training data often holds the answer too: a prompt ends before the last assistant's turn.
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not any(m["content"].strip() for m in messages):
        return [], f"{column} is empty"
    return messages, None


def digest(content: Any) -> str:
    """A short name for any JSON value, equal on every machine."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _free_id(content: Any, taken: Collection[str]) -> str:
    candidate, n = digest(content), 1
    while candidate in taken:
        n += 1
        candidate = f"{digest(content)}-{n}"
    return candidate

"""Reading rows and turning them into prompts."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rsd.strictjson import finite

PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")


Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Row:
    """One prompt: a stable id, chat messages, the columns that are merely kept, or what is wrong.

    teacher: the messages that the teacher reads in their place, if it has some of its own.
    answer_column: where the problem's reference answer is, if there is one.
    asked: the prompt as it was given, by its column; for templates, and not kept.
    """

    id: str | int
    messages: Messages
    columns: Mapping[str, Any]
    error: str | None = None
    teacher: Messages | None = None
    answer_column: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answer(self) -> Any:
        return None if self.answer_column is None else self.columns.get(self.answer_column)


def prepare(
    rows: Iterable[Mapping[str, Any]], *, prompt_column: str | None = None, system_prompt: str | None = None
) -> list[Row]:
    """Find the prompts and give every row an id: its own, else a hash of its prompt.

    A bad row (no prompt, or one of a wrong type) comes back with `error` set. NaN, which tables have for what is
    missing, is None.

    Raises:
        ValueError: no row has a prompt column, or two rows were given the same id.
    """
    rows = [finite(dict(row)) for row in rows]
    if not rows:
        return []
    columns = list(dict.fromkeys(c for row in rows for c in row))
    wanted = (prompt_column,) if prompt_column else PROMPT_COLUMNS
    column = next((c for c in wanted if c in columns), None)
    if column is None:
        raise ValueError(
            f"no prompt column: looked for {', '.join(wanted)}, found {', '.join(map(str, columns)) or 'none'}; "
            "name yours with --prompt-column"
        )
    seen: dict[str, int] = {}
    taken = {str(row["id"]) for row in rows if row.get("id") is not None}
    prepared = []
    for number, row in enumerate(rows, 1):
        messages, error = read_prompt(row.get(column), column)
        row_id = row.get("id")
        if row_id is None:
            row_id = _free_id(messages or dict(row), taken)
            taken.add(row_id)
        elif isinstance(row_id, bool) or not isinstance(row_id, str | int):
            row_id, error = str(row_id), f"id must be a string or a whole number, not {type(row_id).__name__}"
        if str(row_id) in seen:
            raise ValueError(f"duplicate id {row_id!r} in rows {seen[str(row_id)]} and {number}: ids must be unique")
        seen[str(row_id)] = number
        if system_prompt is not None and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        kept = {k: v for k, v in row.items() if k not in ("id", column)}
        prepared.append(Row(row_id, messages, kept, error, asked={column: row.get(column)}))
    return prepared


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

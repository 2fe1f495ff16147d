"""Reading files of responses: the formats that traces come in, and the sidecar of our own."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rsd.config import ScoreConfig
from rsd.traces.lines import files_of, whole_lines
from rsd.traces.readers import read_rows
from rsd.traces.rows import PROMPT_COLUMNS, digest, read_prompt
from rsd.traces.tokens import of_sidecar

FORMATS = ("completion", "messages", "conversations", "token_ids")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """One answer to a prompt, whatever format it came in, or what is wrong with its row.

    id: the row's own (`own_id`), else a hash of its prompt.
    generation: the row's own, else its number among the rows of that id.
    token_ids: the trace's, where the row holds them.
    tokens: records [T] of `traces.tokens.TOKEN` from the sidecar of `rsd generate`, where there is one. Scores are
        of the text as a student reads it in training, not of these tokens, which the tokenizer might not choose.
    """

    row: Mapping[str, Any]
    id: str
    own_id: bool
    generation: int
    messages: Messages
    text: str
    token_ids: list[int] | None = None
    tokens: np.ndarray | None = None
    error: str | None = None

    @property
    def prompt(self) -> str:
        """What the user asked last."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")


def read_responses(path: str | Path, config: ScoreConfig, *, named: bool = True) -> list[Response]:
    """The responses of a JSONL file, with the sidecar that stands beside a file of `rsd generate`.

    Args:
        named: the columns that `config` names are this file's, even if it is also in a known format (our
            own traces keep the other columns of their input, raw responses among them).

    Raises:
        ValueError: the file cannot be read, or no row has columns of a known format.
    """
    rows = read_rows(path, split=config.split)
    if not named and any(c in row for row in rows for c in FORMATS):
        config = replace(config, prompt_column=None, response_column=None, thinking_column=None)
    try:
        return responses(rows, config, read_sidecar(path))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def responses(
    rows: Sequence[Mapping[str, Any]], config: ScoreConfig, sidecar: Mapping[tuple[str, int], np.ndarray] | None = None
) -> list[Response]:
    """Find prompt and response in every row.

    Rows are read by the columns that `config` names; else by `completion` with a prompt; else as chat
    `messages`, whose last assistant's turn is the response; else as ShareGPT's `conversations`; else by
    `token_ids` with a prompt. Thinking in a column or a field of its own is put between <think> and
    </think>. A row that does not have what the others have, or of a wrong type, comes back with `error`.

    Raises:
        ValueError: no row has such columns; the message says what was looked for.
    """
    find = _finder(rows, config)
    counts: Counter[str] = Counter()
    read = []
    for row in rows:
        messages: Messages = []
        text, error = "", None
        try:
            if row.get("error"):
                raise ValueError(f"the row is an error itself: {row['error']}")
            messages, text = find(row)
            ids = row.get("token_ids")
            if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
                raise ValueError("token_ids must be a list of whole numbers")
        except ValueError as e:
            ids, error = None, str(e)
        own = isinstance(row.get("id"), str | int) and not isinstance(row.get("id"), bool)
        row_id = str(row["id"]) if own else digest(messages or dict(row))
        generation = row.get("generation")
        if type(generation) is not int:
            generation = counts[row_id]
        counts[row_id] += 1
        if config.system_prompt is not None and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": config.system_prompt}, *messages]
        read.append(
            Response(
                row=row,
                id=row_id,
                own_id=own,
                generation=generation,
                messages=messages,
                text=text,
                token_ids=ids,
                tokens=sidecar.get((row_id, generation)) if sidecar else None,
                error=error,
            )
        )
    return read


def read_sidecar(path: str | Path) -> dict[tuple[str, int], np.ndarray]:
    """The tokens that `rsd generate` wrote beside its rows, records [T] of `TOKEN`; none if there is no such file."""
    read = {}
    for line in whole_lines(files_of(path)[0]):
        with suppress(ValueError, TypeError, LookupError, OverflowError):  # a line that is not ours
            # What was written before the trace is a part of its completion, of which nothing is known.
            prefix = of_sidecar({"token_ids": line.get("prefix_ids") or []})
            read[str(line.get("id")), line["generation"]] = np.concatenate([prefix, of_sidecar(line)])
    return read


def _finder(
    rows: Sequence[Mapping[str, Any]], config: ScoreConfig
) -> Callable[[Mapping[str, Any]], tuple[Messages, str]]:
    """How prompt and response are found in a row of this file."""
    columns = list(dict.fromkeys(c for row in rows for c in row))
    found = f"found {', '.join(map(str, columns)) or 'none'}"
    thinking, answer, prompt = config.thinking_column, config.response_column, config.prompt_column
    for name in (thinking, answer, prompt):
        if name is not None and name not in columns:
            raise ValueError(f"no column {name}: {found}")
    kind = next((c for c in FORMATS if c in columns), None)
    if thinking or answer:
        kind = "columns"
    if kind is None:
        raise ValueError(
            f"no responses: looked for {', '.join(FORMATS)}, {found}; name yours with --response-column "
            "(and --prompt-column)"
        )
    if prompt is None and kind not in ("messages", "conversations"):
        prompt = next((c for c in PROMPT_COLUMNS if c in columns), None)
        if prompt is None:
            looked = ", ".join(PROMPT_COLUMNS)
            raise ValueError(f"no prompts: looked for {looked}, {found}; name yours with --prompt-column")

    def find(row: Mapping[str, Any]) -> tuple[Messages, str]:
        turns, text = None, ""
        if kind == "columns":
            text = _thought(*(_string(row.get(c), c) if c else None for c in (thinking, answer)))
        elif kind == "completion":
            text = _completion(row.get(kind))
        elif kind != "token_ids":
            turns, text = _conversation(row.get(kind), kind)
        messages, error = read_prompt(row.get(prompt) if prompt else turns, prompt or kind)
        if error:
            raise ValueError(error)
        return messages, text

    return find


def _completion(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return _content(value[0], "completion")
    if isinstance(value, str):
        return value
    raise ValueError("completion must be a string or a list of one assistant's message")


def _conversation(value: Any, column: str) -> tuple[list[dict[str, Any]], str]:
    """The turns before the last assistant's turn, and what that one says."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"{column} must be a list of turns")
    turns = value
    if column == "conversations":
        turns = [{"role": ROLES.get(str(t.get("from"))), "content": t.get("value")} for t in value]
    last = next((i for i in reversed(range(len(turns))) if turns[i].get("role") == "assistant"), None)
    if last is None:
        raise ValueError(f"{column} holds no assistant's turn")
    return turns[:last], _content(turns[last], column)


def _content(message: Mapping[str, Any], column: str) -> str:
    thinking = message.get("reasoning_content") or message.get("thinking")
    content = message.get("content")
    if not isinstance(content, str) or not isinstance(thinking, str | None):
        raise ValueError(f"{column} holds a message that is not {{'role': string, 'content': string}}")
    return _thought(thinking, content)


def _string(value: Any, column: str) -> str:
    if isinstance(value, list) and len(value) == 1:  # s1K keeps its trajectories in lists of one
        value = value[0]
    if not isinstance(value, str):
        raise ValueError(f"{column} must be a string, not {type(value).__name__}")
    return value


def _thought(thinking: str | None, answer: str | None) -> str:
    if thinking is None:
        return answer or ""
    return f"<think>\n{thinking.strip()}\n</think>\n\n{(answer or '').lstrip()}"

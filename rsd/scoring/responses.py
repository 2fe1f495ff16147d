"""Reading files of responses: the formats that traces come in, and the sidecar of our own."""

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rsd.reading import Reading
from rsd.settings import called
from rsd.traces.given import Given, file_of, read
from rsd.traces.lines import Key, files_of, made_of
from rsd.traces.rows import PROMPT_COLUMNS, digest, found, read_prompt
from rsd.traces.sidecar import Sidecar
from rsd.traces.spool import OnDemand, Spool
from rsd.traces.tokens import of_sidecar
from rsd.traces.trace import Trace

FORMATS = ("completion", "messages", "conversations", "token_ids")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
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


class Responses(OnDemand[Response]):
    """Responses, each made when it is asked for.

    rows: theirs, which are there without making these. columns: the names of all their columns.
    """

    def __init__(
        self,
        ids: Sequence[str | int],
        made: Callable[[int], Response],
        rows: Sequence[Mapping[str, Any]],
        columns: Collection[str],
    ) -> None:
        super().__init__(ids, made)
        self.rows, self.columns = rows, columns

    def at(self, places: Iterable[int]) -> "Responses":
        some = array("Q", places)
        ids = [self.ids[i] for i in some]
        return Responses(ids, lambda i: self[some[i]], OnDemand(ids, lambda i: self.rows[some[i]]), self.columns)

    def only(self, chosen: Callable[[str | int], bool]) -> "Responses":
        return self.at(i for i, name in enumerate(self.ids) if chosen(name))


def read_responses(source: Given, config: Reading, *, named: bool = True, strict: bool = False) -> Responses:
    """The responses of a file, or of rows, with what `rsd generate` noted of their tokens: in the sidecar that stands
    beside its files, and in a `Trace` itself.

    Args:
        source: see `given.read`, and strict, too.
        named: the columns that `config` names are this file's, even if it is also in a known format (our
            own traces keep the other columns of their input, raw responses among them).

    Raises:
        ValueError: the file cannot be read, or no row has columns of a known format.
    """
    name, traces = file_of(source), dict[Key, Trace]()
    rows = _Table(read(source, split=config.split, strict=strict, traces=traces))
    if not named and any(c in rows.columns for c in FORMATS):
        config = replace(config, prompt_column=None, response_column=None, thinking_column=None)
    if name is None:
        return _responses(rows, config, lambda key: traces[key].sidecar() if key in traces else None)
    try:
        return _responses(rows, config, Sidecar(sidecar_of(name)).record)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def sidecar_of(name: str) -> Path:
    """The sidecar of a file of rows, or of those that it was made of: the first that is there."""
    beside = [files_of(file)[0] for file in made_of(name)]
    return next((file for file in beside if file.is_file()), beside[0])


def responses(rows: Iterable[Mapping[str, Any]], config: Reading) -> Responses:
    """Find prompt and response in every row.

    Rows are read by the columns that `config` names; else by `completion` with a prompt; else as chat
    `messages`, whose last assistant's turn is the response; else as ShareGPT's `conversations`; else by
    `token_ids` with a prompt. Thinking in a column or a field of its own is put between <think> and
    </think>. A row that does not have what the others have, or of a wrong type, comes back with `error`.

    Raises:
        ValueError: no row has such columns; the message says what was looked for.
    """
    return _responses(_Table(rows), config, lambda _: None)


class _Table:
    """Rows on disk, the names of all their columns, and what each says of its id and generation."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.columns: dict[str, None] = {}
        self.named: list[tuple[Any, Any]] = []
        self.rows = Spool(self._read(rows))

    def _read(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            self.columns.update(dict.fromkeys(row))
            self.named.append((row.get("id"), row.get("generation")))
            yield dict(row)


def _responses(table: _Table, config: Reading, record: Callable[[Key], Mapping[str, Any] | None]) -> Responses:
    find = _finder(list(table.columns), config)

    def found(row: Mapping[str, Any]) -> tuple[Messages, str, str | None]:
        """Prompt and response of a row, or what is wrong with it."""
        messages: Messages = []
        try:
            if row.get("error"):
                raise ValueError(f"the row is an error itself: {row['error']}")
            messages, text = find(row)
            ids = row.get("token_ids")
            if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
                raise ValueError("token_ids must be a list of whole numbers")
        except ValueError as e:
            return messages, "", str(e)
        return messages, text, None

    counts: Counter[str] = Counter()
    names: list[str] = []
    generations: list[int] = []
    owns = bytearray()
    for i, (given, generation) in enumerate(table.named):
        owns.append(own := isinstance(given, str | int) and not isinstance(given, bool))
        name = str(given) if own else digest(found(row := table.rows[i])[0] or row)
        names.append(name)
        generations.append(generation if type(generation) is int else counts[name])
        counts[name] += 1

    def made(i: int) -> Response:
        row = table.rows[i]
        messages, text, error = found(row)
        if config.system_prompt is not None and messages and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": config.system_prompt}, *messages]
        return Response(
            row=row,
            id=names[i],
            own_id=bool(owns[i]),
            generation=generations[i],
            messages=messages,
            text=text,
            token_ids=None if error else row.get("token_ids"),
            tokens=noted_tokens(record((names[i], generations[i]))),
            error=error,
        )

    return Responses(names, made, table.rows, table.columns)


def noted_tokens(record: Mapping[str, Any] | None) -> np.ndarray | None:
    """A trace's records [T] of `TOKEN`, if there are any."""
    with suppress(ValueError, TypeError, LookupError, OverflowError):  # a line that is not ours
        if record is not None:
            # What was written before the trace is a part of its completion, of which nothing is known.
            prefix = of_sidecar({"token_ids": record.get("prefix_ids") or []})
            return np.concatenate([prefix, of_sidecar(record)])
    return None


def _finder(columns: Sequence[str], config: Reading) -> Callable[[Mapping[str, Any]], tuple[Messages, str]]:
    """How prompt and response are found in a row of a file with these columns."""
    thinking, answer, prompt = config.thinking_column, config.response_column, config.prompt_column
    for name in (thinking, answer, prompt):
        if name is not None and name not in columns:
            raise ValueError(f"no column {name}: {found(columns, name)}")
    kind = next((c for c in FORMATS if c in columns), None)
    if thinking or answer:
        kind = "columns"
    if kind is None:
        raise ValueError(
            f"no responses: looked for {', '.join(FORMATS)}, {found(columns)}; name yours with "
            f"{called('response_column')} (and {called('prompt_column')})"
        )
    if prompt is None and kind not in ("messages", "conversations"):
        prompt = next((c for c in PROMPT_COLUMNS if c in columns), None)
        if prompt is None:
            looked = ", ".join(PROMPT_COLUMNS)
            name = called("prompt_column")
            raise ValueError(f"no prompts: looked for {looked}, {found(columns)}; name yours with {name}")

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

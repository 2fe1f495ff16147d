"""Reading back what a job wrote: its rows, with whatever is the matter with them, their tokens, its manifest."""

import json
import reprlib
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsd.dataset.formats import Ids, Row
from rsd.files import first_row
from rsd.reading import Reading
from rsd.scoring.responses import read_responses
from rsd.strictjson import finite
from rsd.traces.columns import is_chat, not_ours
from rsd.traces.given import Given, file_of, rows_of
from rsd.traces.lines import Key, files_of, key_of, made_of, whole_lines
from rsd.traces.rows import Messages
from rsd.traces.soft import SoftFile, SoftTargets, soft_file, soft_targets
from rsd.traces.trace import Trace


class Gathered(NamedTuple):
    """Traces, how many torn lines are not among them, their tokens, what is wrong with tokens that are none, what the
    teacher read where it had a prompt of its own (None: that it had one is all that is known), and the manifest of the
    job that made them. name: what a message calls their source. soft: their soft targets, if these were asked for."""

    name: str
    rows: list[Row]
    torn: int
    tokens: Mapping[Key, Ids]
    broken: Mapping[Key, str]
    teacher: Mapping[Key, Messages | None]
    soft: Callable[[Key], SoftTargets | None]
    manifest: Row


def gathered(source: Given, *, soft: bool = False) -> Gathered:
    """What is known of the traces in a file, or of those that are given.

    Raises:
        ValueError: they are no rows of ours, or there are none; or no soft targets, which were asked for.
    """
    file = file_of(source)
    if file is not None and soft and (scoring := anybodys(Path(file))) is not None:
        rows = scored_rows(file, scoring)
        return Gathered(file, rows, 0, {}, {}, {}, _soft(file), as_manifest(scoring))
    if file is not None:
        rows, torn = read_traces(Path(file))
        tokens, broken, teacher, manifest = beside(file)
        return Gathered(file, rows, torn, tokens, broken, teacher, _soft(file) if soft else _none, manifest)
    return Gathered("the rows", *_given(source))


def _none(_: Key) -> None:
    return None


def _soft(path: str) -> Callable[[Key], SoftTargets | None]:
    """The soft targets beside a file of rows, or beside one that it was made of.

    Raises:
        ValueError: there are none.
    """
    files = [soft_file(name) for name in made_of(path)]
    return SoftFile(next((file for file in files if file.is_file()), files[-1])).get


def anybodys(path: Path) -> Row | None:
    """By what `rsd score` scored a file of anybody's rows; None if it is no such file, or its rows are a job's."""
    row = first_row(path)
    scoring = row.get("scoring")
    return scoring if isinstance(scoring, dict) and not_ours(row) is not None else None


def scored_rows(path: str, scoring: Row) -> list[Row]:
    """Anybody's rows in the shape of ours, by the names that they had when they were scored.

    Raises:
        ValueError: they cannot be read.
    """
    names = {f.name for f in fields(Reading)}
    made: list[Row] = []
    for one in read_responses(path, Reading(**{name: of for name, of in scoring.items() if name in names})):
        row = one.row
        told = {"id": one.id, "generation": one.generation, "num_tokens": row.get("scored_tokens")}
        told |= {"is_correct": row.get("is_correct"), "error": row.get("score_error") or one.error}
        score = {"local_naturalness": row.get("local_naturalness")}
        texts = {"prompt": one.messages, "completion": [{"role": "assistant", "content": one.text}]}
        made.append(texts | told | score)
        if (what := not_ours(made[-1])) is not None:
            raise ValueError(f"{path}, row {len(made)}: {what}")
    return made


def as_manifest(scoring: Row) -> Row:
    """What a job's manifest would say of the student that scored, and of its template."""
    name = str(scoring.get("student"))
    identity = {"chat_template_kwargs": scoring.get("chat_template_kwargs") or {}}
    student = {"name": name, "path": name, "revision": None}
    return {"scored": True, "student": student, "teacher": {}, "identity": identity}


def read_traces(path: Path) -> tuple[list[Row], int]:
    """The rows of a file, and whether a last line that a killed job has torn was left out (0 or 1)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is no file of traces")
        with open(path, "rb") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as e:
        raise ValueError(f"{path}: cannot be read: {e.strerror}") from e
    rows: list[Row] = []
    wrong: list[tuple[int, str]] = []
    torn = 0
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if (number, line) == lines[-1] and not line.endswith(b"\n"):
                torn = 1
                continue
            row = None
        if (what := not_ours(row)) is not None:
            wrong.append((number, what))
        else:
            rows.append(row)
    if wrong:
        number, what = wrong[0]
        raise ValueError(
            f"{path}, line {number}: {what}; {len(wrong)} of {len(lines)} lines are no rows of rsd generate"
        )
    if not rows:
        raise ValueError(f"{path}: holds no rows of rsd generate")
    return rows, torn


def _given(given: Given) -> tuple[Any, ...]:
    """As in `Gathered`, but for the name."""
    traces: dict[Key, Trace] = {}
    rows: list[Row] = []
    for number, row in enumerate(rows_of(given, strict=True, traces=traces), 1):
        row = finite(row)
        if (what := not_ours(row)) is not None:
            raise ValueError(f"row {number}: {what}; traces, or rows of rsd generate, are needed")
        rows.append(row)
    if not rows:
        raise ValueError("there are no rows to export")
    made = [t for t in traces.values() if t.error is None]
    ids = {t.key: Ids(np.array(t.prompt_ids), np.array(t.prefix_ids, np.int64), t.token_ids) for t in made}
    teacher = {t.key: t.teacher_messages for t in made if t.teacher_messages}
    soft = {t.key: soft_targets([*t.prompt_ids, *t.prefix_ids], t.tokens) for t in made}
    return rows, 0, ids, {}, teacher, soft.get, {}


def beside(path: str | Path) -> tuple[dict[Key, Ids], dict[Key, str], dict[Key, Messages | None], Row]:
    """The tokens and the manifest of the job that made a file, or the one that it was scored, weighed or filtered from.

    Between them, what is wrong with the tokens that are none, and the teacher's own prompts.
    """
    for name in made_of(path):
        sidecar, file = files_of(name)
        if sidecar.exists() or file.exists():
            tokens: dict[Key, Ids] = {}
            broken: dict[Key, str] = {}
            teacher: dict[Key, Messages | None] = {}
            manifest = _manifest(file)
            widths = manifest.get("widths")
            width = widths.get("student") if isinstance(widths, dict) else None
            for line in whole_lines(sidecar):
                if "id" not in line:  # a line that is not ours
                    continue
                columns = [line.get(c) or [] for c in Ids._fields]
                checked = zip(Ids._fields, columns, strict=True)
                what = next((what for c, ids in checked if (what := _no_ids(c, ids, width))), None)
                if line.get("teacher_prompt"):
                    read = line.get("teacher_messages")
                    teacher[key_of(line)] = read if is_chat(read) else None
                if what is None:
                    tokens[key_of(line)] = Ids(*(np.array(ids, dtype=np.int64) for ids in columns))
                else:
                    broken[key_of(line)] = what
            return tokens, broken, teacher, manifest
    return {}, {}, {}, {}


def _no_ids(column: str, ids: Any, width: Any) -> str | None:
    """Why these are no token ids of a student of this width, where that is known; only a prefix may be empty."""
    if not isinstance(ids, list):
        return f"{column} must be a list of token ids"
    if not ids:
        return None if column == "prefix_ids" else f"{column} is empty"
    least = width if type(width) is int else 2**31  # wider than any vocabulary
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < least:
        return None
    first = next(i for i in ids if type(i) is not int or not 0 <= i < least)
    known = f" (the student has {width} tokens)" if type(width) is int else ""
    return f"{column} holds {reprlib.repr(first)}, which is no token id{known}"


def _manifest(file: Path) -> Row:
    """What a job says of itself; nothing, if that is no manifest."""
    with suppress(OSError, ValueError, RecursionError):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(manifest, dict) and all(
            isinstance(manifest.get(c), dict) for c in ("teacher", "student", "identity")
        ):
            return manifest
    return {}

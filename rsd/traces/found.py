"""What is there of a job when it begins, or goes on: the traces that need not be made again.

A trace is one whose row and record are whole, and are what the job would have written. As far as the manifest's note of
both files holds (`Store`), that is known at once; what comes behind it, or all of it where the note does not hold, is
looked at closely.
"""

import hashlib
import json
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rsd.files import encode, first_row
from rsd.outputs import anew
from rsd.settings import called
from rsd.traces import ours
from rsd.traces.columns import not_ours
from rsd.traces.filters import is_right
from rsd.traces.lines import Key, files_of, hash_of, key_of, read_manifest, whole
from rsd.traces.rows import Row, Rows, answer_of, digest
from rsd.traces.soft import SoftFile, is_beginning, soft_file
from rsd.traces.tokens import SIDECAR, of_sidecar
from rsd.traces.trace import COLUMNS, FINISH_REASONS

HEAD = b'{\n  "format": 1,'  # of a manifest
Spelled = Callable[[list[int]], str]


@dataclass(eq=False)
class Found:
    """The traces that are there, and whether each is right (`filters.is_right`).

    lines, hashes: how many the sidecar (0) and the rows (1) have, and the hashes of these files. odd: the numbers of
    those that are whole, and not what the job would have written. why: what is the matter with the first of these.
    unjudged: by key the rows that have no verdict since the judge failed. lost: the manifest is gone, empty or torn,
    and with it the settings that they were made with. soft: their soft targets, if they have any.
    """

    done: dict[Key, bool] = field(default_factory=dict)
    lines: list[int] = field(default_factory=lambda: [0, 0])
    hashes: list[Any] = field(default_factory=lambda: [hashlib.blake2b(), hashlib.blake2b()])
    odd: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    why: str = ""
    unjudged: dict[Key, dict[str, Any]] = field(default_factory=dict)
    lost: bool = False
    soft: SoftFile | None = None

    def add_odd(self, i: int, why: str) -> None:
        """The last line that was counted is odd."""
        self.odd[i].add(self.lines[i])
        self.why = self.why or why


def look(
    out: Path,
    identity: Mapping[str, Any],
    rows: Rows,
    *,
    new: bool,
    overwrite: bool,
    max_fallback_rate: float = 1.0,
    spelled: Spelled | None = None,
    top: int = 0,
) -> Found:
    """Look at a job's files. Writes nothing.

    Args:
        identity: what shapes the traces; must be what the manifest holds.
        rows: the job's; their prompts and answers must be the stored ones.
        new: the output is not there yet.
        overwrite: no trace counts; any job's files will do, but never a file that is no job's.
        spelled: the text of ids, to tell a record by that is not its row's.
        top: how many likeliest tokens the soft targets of a trace have; 0: it needs none.

    Raises:
        ValueError: the files are another job's.
    """
    before = _identity(out, new=new)
    if not _ours(out, torn=before is not None):
        which = "has no manifest" if before is None else "is not what its manifest is of"
        raise ValueError(f"{out} exists and {which}: it is not this job's; use another {called('output')}")
    own = not top or is_beginning(soft_file(out), top)
    strange = f"{soft_file(out)} holds no soft targets of this job: use another {called('output')}"
    if not own and not ours.soft(soft_file(out)):
        raise ValueError(strange)
    if overwrite:
        return Found()
    differing = [
        f"{k} (there {before.get(k)!r}, now {identity.get(k)!r})"
        for k in dict.fromkeys([*(before or {}), *identity])
        if before is not None and before.get(k) != identity.get(k)
    ]
    if differing:
        raise ValueError(f"{out} was made with other settings: {'; '.join(differing)}; {anew()}")
    if not own:
        raise ValueError(strange)
    own_prompts = any(identity.get(k) for k in ("teacher_prompt_column", "teacher_template"))
    found = scan(out, rows, own_prompts=own_prompts, max_fallback_rate=max_fallback_rate, spelled=spelled, top=top)
    found.lost = before is None and any(f.is_file() and f.stat().st_size for f in (out, files_of(out)[0]))
    if found.lost and not {str(i) for i in rows.ids} & {key[0] for key in found.done}:
        raise ValueError(
            f"{files_of(out)[1]} is lost, and with it what {out} was made with; no trace of this input is there "
            f"to tell by: {anew()}"
        )
    return found


def scan(
    out: Path,
    rows: Rows,
    *,
    own_prompts: bool = False,
    max_fallback_rate: float = 1.0,
    spelled: Spelled | None = None,
    top: int = 0,
) -> Found:
    """The traces that are in all files, whatever job's they are.

    Args:
        own_prompts: whether the teacher had prompts of its own. The rest: as of `look`.

    Raises:
        ValueError: one is of another prompt or answer than its row has.
    """
    return _Look(out, rows, spelled, top).found(max_fallback_rate, own_prompts=own_prompts)


class _Look:
    """One look at the lines of both files, and at the soft targets."""

    def __init__(self, out: Path, rows: Rows, spelled: Spelled | None, top: int) -> None:
        self.out, self.rows, self.spelled, self.top = out, rows, spelled, top
        self.sidecar, self.manifest = files_of(out)
        self.at = {str(row_id): i for i, row_id in enumerate(rows.ids)}
        self.made = Found()
        self.tokens: dict[Key, int | None] = {}  # that rows say they have
        self.unsure: dict[Key, _Expected] = {}  # what must be the record of a row that is not known to be as written

    def found(self, max_fallback_rate: float, *, own_prompts: bool) -> Found:
        tokens, rows = self._as_written()
        self._read_rows(rows, max_fallback_rate)
        sure, prompts = self._read_tokens(tokens, all_prompts=own_prompts)
        made = self.made
        made.done = {key: right for key, right in made.done.items() if key not in self.unsure or key in sure}
        if self.top:
            with suppress(ValueError):  # nothing is there yet
                made.soft = SoftFile(soft_file(self.out))
            there = made.soft
            made.done = {
                key: right for key, right in made.done.items() if there and there.tokens(key) == self.tokens[key]
            }
        made.unjudged = {key: line for key, line in made.unjudged.items() if key in made.done}
        if own_prompts:
            self._check_prompts(prompts)
        return made

    def _as_written(self) -> tuple[int, int]:
        """How many bytes of sidecar and rows are known to be as they were written: those that the manifest notes."""
        noted = (read_manifest(self.manifest) or {}).get("files") or {}
        sizes = [0, 0]
        for i, (name, file) in enumerate((("tokens", self.sidecar), ("rows", self.out))):
            of = noted.get(name)
            told = of if isinstance(of, dict) else {}
            size = told["bytes"] if type(told.get("bytes")) is int else 0
            if file.exists():
                begins, self.made.hashes[i] = hash_of(file, size)
                sizes[i] = size if begins.hexdigest() == told.get("blake2b") else 0
        return (sizes[0], sizes[1]) if all(sizes) else (0, 0)

    def _read_rows(self, known: int, max_fallback_rate: float) -> None:
        """The traces that have a row; of those behind the first `known` bytes their record is to be looked at."""
        made = self.made
        for line, sure in self._each_line(1, known):
            if (row := whole(line)) is None:
                continue
            if not sure and (what := _not_written(row)) is not None:
                made.add_odd(1, what)
                continue
            key = key_of(row)
            if row.get("error") is not None or key in made.done:
                continue
            if (i := self.at.get(key[0])) is not None and (what := _differing(row, self.rows[i])):
                self._refuse(what, key)
            made.done[key] = is_right(row, max_fallback_rate=max_fallback_rate)
            if self.top:
                self.tokens[key] = row.get("num_tokens")
            if row.get("verify_error") is not None:
                made.unjudged[key] = row
            if not sure:
                self.unsure[key] = _Expected.of(row)

    def _read_tokens(self, known: int, *, all_prompts: bool) -> tuple[set[Key], dict[Key, Any]]:
        """Which of the unsure traces have the record that they must have, and hashes of the teacher's own prompts."""
        have: set[Key] = set()
        prompts: dict[Key, Any] = {}
        for line, sure in self._each_line(0, known):
            if (sure and not all_prompts) or (record := whole(line)) is None:
                continue
            key = key_of(record)
            if all_prompts:
                prompts.setdefault(key, record.get("teacher_prompt"))
            if key in self.unsure and key not in have:
                if (what := self.unsure[key].differs(record, self.spelled)) is None:
                    have.add(key)
                else:
                    self.made.add_odd(0, what)
        return have, prompts

    def _each_line(self, i: int, known: int) -> Iterator[tuple[bytes, bool]]:
        """The lines of sidecar (0) or rows (1), each with whether it lies in the first `known` bytes; counts them."""
        file, at = (self.sidecar, self.out)[i], 0
        if file.exists():
            with open(file, "rb") as f:
                for line in f:
                    self.made.lines[i] += 1
                    at += len(line)
                    yield line, at <= known

    def _check_prompts(self, prompts: Mapping[Key, Any]) -> None:
        """Raises ValueError where a trace was made with another prompt of the teacher."""
        for key in self.made.done:
            if (i := self.at.get(key[0])) is not None:
                teacher = self.rows[i].teacher
                if prompts.get(key) != (digest(teacher) if teacher else None):
                    self._refuse("prompt of the teacher", key)

    def _refuse(self, what: str, key: Key) -> NoReturn:
        raise ValueError(f"{self.out} holds another {what} for id {key[0]!r} than the input: {anew()}")


def _identity(out: Path, *, new: bool) -> dict[str, Any] | None:
    """What the manifest says that shapes the traces; None if it is not there, or lost.

    Raises:
        ValueError: it is another file's, or no manifest.
    """
    sidecar, manifest_file = files_of(out)
    manifest = read_manifest(manifest_file)
    base = Path(str(out).removesuffix(".jsonl"))
    twin = base if base != out else Path(f"{base}.jsonl")  # traces and traces.jsonl
    if manifest is None:
        with suppress(FileNotFoundError):
            text = manifest_file.read_bytes()
            if text.strip(b"\0 \r\n") and (text[: len(HEAD)] != HEAD[: len(text)] or _is_json(text)):
                raise ValueError(f"{manifest_file} is not a manifest of rsd; use another {called('output')}")
        return None
    # Manifests of old do not say whose they are: of an output that is not there yet, they are not.
    named = manifest["settings"].get("output", None if new else out.name)
    if twin.is_file() and named != out.name:
        raise ValueError(f"{manifest_file} and {sidecar} belong to {twin}: use another {called('output')}")
    return dict(manifest["identity"])


def _ours(out: Path, *, torn: bool) -> bool:
    """Whether rows and sidecar begin as a job's do, or are empty, or hold (`torn`) no whole line."""
    kinds = {out: ("prompt", "completion", "generation"), files_of(out)[0]: ("generation", "token_ids")}
    return all(
        not f.is_file() or not f.stat().st_size or first_row(f).keys() >= set(columns) or (torn and not _lines(f))
        for f, columns in kinds.items()
    )


def _is_json(text: bytes) -> bool:
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return True
    return False


def _not_written(row: Mapping[str, Any]) -> str | None:
    """What in a row a job would not have written; None if it might be one of its own."""
    if (what := not_ours(row)) is not None:
        return what
    if missing := [column for column in COLUMNS if column not in row]:
        return f"{missing[0]} is missing"
    if row["finish_reason"] not in FINISH_REASONS:
        return f"finish_reason is {reprlib.repr(row['finish_reason'])}"
    if row["error"] is None:
        if not row["num_tokens"]:
            return "num_tokens is missing"
        for column in ("acceptance_rate", "fallback_rate"):
            if row[column] is None or not 0 <= row[column] <= 1:
                return f"{column} is {reprlib.repr(row[column])}"
    return None


def _differing(line: Mapping[str, Any], row: Row) -> str | None:
    """What of a stored row is not what its input says now, though it shaped the trace or its verdict."""
    if line.get("prompt") != row.messages:
        return "prompt"
    stored = {column: line.get(f"input_{column}", line.get(column)) for column in row.answer_columns}
    if encode({"": answer_of(stored, row.answer_columns)}) != encode({"": row.answer}):
        return "answer"
    return None


class _Expected(NamedTuple):
    """What a row says of its trace's record: how many tokens, how it ended, a hash of its text."""

    tokens: int
    finish_reason: str
    text: bytes

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Expected":
        return cls(row["num_tokens"], row["finish_reason"], _digest(row["completion"][0]["content"]))

    def differs(self, record: Mapping[str, Any], spelled: Callable[[list[int]], str] | None) -> str | None:
        """What in a sidecar's record is not of this trace; None if it is."""
        ids = record.get("token_ids")
        if not (isinstance(ids, list) and ids) or self.tokens != len(ids):
            return "a record has not the tokens of its row"
        try:
            if any(len(record[column]) != len(ids) for column in SIDECAR):
                return "a record has not one entry a token"
            of_sidecar(record)
            before = of_sidecar({"token_ids": record.get("prefix_ids") or []})["token_ids"].tolist()
            shown = ids[:-1] if self.finish_reason == "stop" else ids
            if spelled and _digest(spelled(before + shown)) != self.text:
                return "a record's tokens do not spell its row's text"
        except (ValueError, TypeError, LookupError, OverflowError):
            return "a record holds what no record does"
        return None


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def kept(
    file: Path, keep: Collection[Key], odd: Collection[int], changed: Mapping[Key, Mapping[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """The lines of these traces, each once, with what is changed; those of an odd number are none."""
    left = set(keep)
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            row = None if number in odd else whole(line)
            if row is not None and (key := key_of(row)) in left and row.get("error") is None:
                left.discard(key)
                yield {**row, **(changed or {}).get(key, {})}


def _lines(file: Path) -> int:
    with open(file, "rb") as f:
        return sum(line.endswith(b"\n") for line in f)

"""The lines of a job's files: what names a trace, what is whole, and how files of old are known again."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsd.files import read_json

Key = tuple[str, int]
MADE = (".kept", ".scored", ".weighed", ".verified")  # how files end that are made of a job's, trace by trace


def files_of(out: str | Path) -> tuple[Path, Path]:
    """The sidecar and the manifest that belong to a file of rows."""
    base = str(out).removesuffix(".jsonl")
    return Path(f"{base}.tokens.jsonl"), Path(f"{base}.meta.json")


def made_of(path: str | Path) -> Iterator[str]:
    """A file of rows, and those that it may have been made of."""
    name = str(path).removesuffix(".jsonl")
    yield f"{name}.jsonl"
    while (end := Path(name).suffix) in MADE:
        name = name.removesuffix(end)
        yield f"{name}.jsonl"


def key_of(line: Mapping[str, Any]) -> Key:
    """Which trace a line of rows, or of the sidecar, is of."""
    return str(line.get("id")), line["generation"]


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may have been torn by a crash."""
    if file.exists():
        with open(file, "rb") as f:
            for line in f:
                if (row := whole(line)) is not None:
                    yield row


def whole(line: bytes) -> dict[str, Any] | None:
    """The row or record of a line; None if it is torn, or none."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line.decode())
        if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("generation"), int):
            return row
    return None


def hash_of(file: Path, *sizes: int) -> "list[hashlib.blake2b]":
    """The hashes of a file's first so many bytes, in ascending order, and last that of all of it; in one reading."""
    made, at, hashes = hashlib.blake2b(), 0, []
    with open(file, "rb") as f:
        for size in (*sizes, None):
            while piece := f.read(1 << 20 if size is None else min(1 << 20, size - at)):
                made.update(piece)
                at += len(piece)
            hashes.append(made.copy())
    return hashes


def read_manifest(file: Path) -> dict[str, Any] | None:
    """A job's manifest; None if the file is none, or torn."""
    made = read_json(file)
    if made is None or not all(isinstance(made.get(name), dict) for name in ("identity", "settings")):
        return None
    others = {"decoding": dict, "totals": dict, "process": dict, "files": dict, "processes": list, "sessions": list}
    if not all(isinstance(made[name], kind) for name, kind in others.items() if made.get(name) is not None):
        return None
    processes = [*(made.get("processes") or ()), made.get("process") or {}]
    started = all(isinstance(one, dict) and isinstance(one.get("started", 0), int | float) for one in processes)
    return made if started and all(isinstance(one, dict) for one in made.get("sessions") or ()) else None

"""Files of rows: JSONL lines, files written whole or not at all, files that nobody else writes meanwhile."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

# Characters that JSON allows in a string and `str.splitlines` takes for the end of a line.
LINE_ENDS = {i: f"\\u{i:04x}" for i in (0x85, 0x2028, 0x2029)}


def encode(line: Mapping[str, Any]) -> bytes:
    """One line of JSONL."""
    # A lone surrogate in an input is no UTF-8, but its escape is JSON.
    return (json.dumps(line, ensure_ascii=False).translate(LINE_ENDS) + "\n").encode("utf-8", "backslashreplace")


def write_rows(rows: Iterable[Mapping[str, Any]], out: str | Path) -> None:
    """Write a file of rows, whole or not at all."""
    temporary = Path(f"{out}.tmp")
    with open(temporary, "wb") as file:
        for row in rows:
            file.write(encode(row))
    os.replace(temporary, out)


def write_text(out: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = Path(f"{out}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, out)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def locked(file: Path) -> BinaryIO:
    """A file opened for appending, that nobody else writes meanwhile.

    Raises:
        ValueError: another process is writing it.
    """
    handle = open(file, "ab")  # noqa: SIM115 (closed by Store.end)
    with suppress(ImportError):  # a platform without file locks does without this guard
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            handle.close()
            raise ValueError(f"{file} is being written by another process: wait for it, or use another -o") from e
    return handle


def check_overwrite(file: Path, column: str) -> None:
    """Let a file be replaced only if it is empty or its first row has this column of ours.

    Raises:
        ValueError: it is a file of something else.
    """
    if not file.exists() or not file.stat().st_size:
        return
    with open(file, "rb") as f:
        try:
            ours = column in json.loads(f.readline())
        except (ValueError, TypeError):
            ours = False
    if not ours:
        raise ValueError(f"{file} is not a file that this command wrote: it is not overwritten; use another -o")

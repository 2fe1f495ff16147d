"""A sidecar's records by trace, each read when it is asked for."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rsd.traces.lines import Key, key_of, whole

# How our records begin; whatever else a line is, it is read whole.
HEAD = re.compile(rb'\{"id": ("(?:[^"\\]|\\.)*"|-?[0-9]+), "generation": ([0-9]+), ')


class Sidecar:
    """The records of a file by their traces, of which only the places are in memory; none if there is no such file.

    Of two records of a trace the last one counts.
    """

    def __init__(self, file: Path) -> None:
        # Open from now on: a temporary file may have lost its name when a record is asked for.
        self._lines: BinaryIO | None = open(file, "rb") if file.is_file() else None  # noqa: SIM115
        self._places = dict(self._read(self._lines)) if self._lines is not None else {}

    def _read(self, lines: BinaryIO) -> Iterator[tuple[Key, int]]:
        at = 0
        for line in lines:
            if (head := HEAD.match(line)) and line.endswith(b"}\n"):
                with suppress(ValueError):
                    yield (str(json.loads(head[1])), int(head[2])), at
            elif (record := whole(line)) is not None:
                yield key_of(record), at
            at += len(line)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def record(self, key: Key) -> dict[str, Any] | None:
        """A trace's record, as it stands there; None if there is none, or its line is torn."""
        if self._lines is None or (at := self._places.get(key)) is None:
            return None
        self._lines.seek(at)
        return whole(self._lines.readline())

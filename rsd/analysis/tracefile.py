"""What a page shows of scored traces, in a file until the page is written: no tokens of theirs stay in memory."""

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsd.analysis.compare import summary
from rsd.analysis.packed import packed
from rsd.scoring.metrics import COLUMNS
from rsd.scoring.scorer import Scored

VALUES = 20  # that a column may have at the most to be one to filter by
LONGEST = 60  # characters of such a value
NAMES = 100  # of columns
A_TOKEN = 12  # characters of what is kept of weights that take the room of a token in a page
# Columns with a filter of their own, and those that name a trace.
NOT_ASKED = {*COLUMNS, "id", "generation", "is_correct", "error", "prompt", "completion", "messages", "conversations"}


class Place(NamedTuple):
    """Where a trace is: its log-probs, and behind them the bytes of its header and of its columns.

    room: the tokens without weights that would take as much of a page.
    """

    at: int
    header: int
    columns: int
    room: int


class TraceFile:
    """A nameless temporary file of traces, which is gone when it is closed, or the process ends in any way.

    Of each trace it holds the log-probs of its tokens (float32), and what the page's script reads of it.
    """

    def __init__(self, folder: Path, decode: Callable[[int], str]) -> None:
        """folder: where the file lies. decode: the text of one token id, for what the teacher likes best."""
        folder.mkdir(parents=True, exist_ok=True)
        self.decode = cache(decode)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by who asked for it)
        self.places: dict[Scored, Place] = {}
        self.values: dict[str, set[str]] = {}  # of the rows' columns, while they are few
        self.many: set[str] = set()  # columns of which they were not

    def close(self) -> None:
        self.file.close()

    def keep(self, s: Scored) -> Scored:
        """Write a trace, and return what is left of it: what `compare` reads, and what it is found by here."""
        kept = summary(s)
        if s.token_scores is not None:
            header, columns = packed(s, self.decode, self._values(s.response.row))
            head, body = zlib.compress(json.dumps(header).encode("ascii"), 1), zlib.compress(columns, 1)
            weights = len(json.dumps(header["weighed"])) if "weighed" in header else 0
            room = len(s.token_ids) + weights // A_TOKEN
            self.places[kept] = Place(self.file.tell(), len(head), len(body), room)
            self.file.write(s.token_scores.logprobs.astype(np.float32).tobytes() + head + body)
        return kept

    def logprobs(self, kept: Scored) -> np.ndarray:
        """float32 [T], natural log: the student's log-prob of each token after all before it."""
        self.file.seek(self._place(kept).at)
        return np.frombuffer(self.file.read(_size(kept)), dtype=np.float32)

    def room(self, kept: Scored) -> int:
        """How much of a page a trace takes, in tokens."""
        return self._place(kept).room

    def shown(self, kept: Scored) -> tuple[dict[str, Any], bytes]:
        """The trace as of `packed`, of whose columns those are left that a page can filter by."""
        place = self._place(kept)
        self.file.seek(place.at + _size(kept))
        header = json.loads(zlib.decompress(self.file.read(place.header)))
        few = {name for name, values in self.values.items() if 1 < len(values) <= min(VALUES, len(self.places) // 2)}
        header["columns"] = {k: v for k, v in header["columns"].items() if k in few}
        return header, zlib.decompress(self.file.read(place.columns))

    def _values(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The values of a row that one may filter by, if they turn out to be few."""
        made = {}
        for name, value in row.items():
            if value is None or name in NOT_ASKED or name in self.many:
                continue
            seen = self.values.setdefault(name, set())
            text = str(value) if isinstance(value, str | bool | int) else None
            if text is None or len(text) > LONGEST or len(seen | {text}) > VALUES or len(self.values) > NAMES:
                self.many.add(name)
                del self.values[name]
            else:
                made[name] = text
                seen.add(text)
        return made

    def _place(self, kept: Scored) -> Place:
        if kept not in self.places:
            raise ValueError(
                "a report needs the log-probs of every token, not stored scores alone: score the rows anew"
            )
        return self.places[kept]


def _size(kept: Scored) -> int:
    """The bytes of its log-probs."""
    return int(kept.metrics["scored_tokens"] or 0) * np.dtype(np.float32).itemsize

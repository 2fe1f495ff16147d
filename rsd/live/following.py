"""What a page shows of a job's files, read on as these grow: sums over all rows, and the last traces' tokens."""

import codecs
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.traces.columns import not_ours
from rsd.traces.lines import Key, files_of, key_of, whole
from rsd.traces.shards import part_files
from rsd.traces.sidecar import HEAD
from rsd.traces.totals import Totals

SHOWN = 8  # traces
FIRST, LAST = 1500, 500  # tokens of a trace that has more than both
LONGEST = 4000  # characters of a prompt, and of a text without tokens
TRIES = 3
ROWS, TOKENS = 1 << 26, 1 << 25  # bytes that one look reads of rows; and, from a sidecar's end, of tokens


class Replaced(Exception):
    """A file is not the one that it was."""


class Grown:
    """The lines that are appended to a file, each once. It may not be there yet."""

    def __init__(self, file: Path) -> None:
        self.file, self.at = file, 0
        self.inode: int | None = None
        self.more = False  # whether there were more than was read last

    def lines(self, *, most: int | None = None, tail: int | None = None) -> Iterator[bytes]:
        """Those that are new and whole.

        Args:
            most: about so many bytes at once, the rest another time. tail: of what is new only the last bytes.

        Raises:
            Replaced: it was written anew; the next reading begins at its beginning.
        """
        try:
            file = open(self.file, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            if self.inode is not None:
                self.at, self.inode = 0, None
                raise Replaced from None
            return
        with file:
            now = os.fstat(file.fileno())
            if self.inode not in (None, now.st_ino) or now.st_size < self.at:
                self.at, self.inode = 0, None
                raise Replaced
            self.inode, self.more, until = now.st_ino, False, self.at + (most or now.st_size)
            if tail is not None and now.st_size - self.at > tail:
                file.seek(now.st_size - tail)
                file.readline()  # the end of a line
                self.at = file.tell()
            file.seek(self.at)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.at += len(line)
                yield line
                if self.at >= until:
                    self.more = self.at < now.st_size
                    return


@dataclass(eq=False)
class Shown:
    """One of the last traces. number: counts all that were seen."""

    number: int
    row: Mapping[str, Any]
    record: Mapping[str, Any] | None = None

    @property
    def key(self) -> Key:
        return key_of(self.row)


class Following:
    """A job's files as far as they are read.

    Args:
        out: its rows; those of other processes that share it lie beside them.
        pieces: by id what a token spells, bytes as characters of Latin-1.
    """

    def __init__(self, out: Path, pieces: Sequence[str | None], *, max_fallback_rate: float = 1.0) -> None:
        self.out, self.pieces, self.max_fallback_rate = out, pieces, max_fallback_rate
        self.number = 0
        self._begin()

    def _begin(self) -> None:
        self.totals = Totals(max_fallback_rate=self.max_fallback_rate)
        self.rows: dict[Path, Grown] = {}
        self.tokens: dict[Path, Grown] = {}
        self.last: deque[Shown] = deque(maxlen=SHOWN)

    def look(self) -> None:
        """Read on, so far as it takes no more than moments."""
        for _ in range(TRIES):
            try:
                for file in dict.fromkeys([*self.rows, self.out, *part_files(self.out).values()]):
                    self._read(file)
                return
            except Replaced:  # by a job that begins, or merges what several processes made: all is counted anew
                self._begin()

    @property
    def behind(self) -> bool:
        """Whether there are rows that are not counted yet."""
        return any(rows.more for rows in self.rows.values())

    def _read(self, file: Path) -> None:
        new = []
        rows = self.rows.setdefault(file, Grown(file))
        for line in rows.lines(most=ROWS):
            row = whole(line)
            if row is not None and not_ours(row) is None:
                self.totals.add(row)
                self.number += 1
                new.append(Shown(self.number, row))
                new = new[-SHOWN:]
        self.last.extend(new)
        wanted = {one.key: one for one in new if one.row.get("error") is None}
        if wanted and not rows.more:
            sidecar = self.tokens.setdefault(file, Grown(files_of(file)[0]))
            with suppress(Replaced):
                for line in sidecar.lines(tail=TOKENS):
                    if (one := wanted.pop(_key(line), None)) is not None:
                        one.record = whole(line)
                    if not wanted:  # records come before their rows, in the same order: what follows is for later rows
                        break

    def shown(self, after: int) -> list[dict[str, Any]]:
        """The last traces, from the first one on that has a greater number."""
        return [self._trace(one) for one in sorted(self.last, key=lambda one: one.number) if one.number > after]

    def _trace(self, one: Shown) -> dict[str, Any]:
        row = one.row
        made: dict[str, Any] = {
            "number": one.number,
            "id": str(row["id"]),
            "generation": row["generation"],
            "prompt": _cut("\n\n".join(turn["content"] for turn in row["prompt"])),
            "correct": row.get("is_correct"),
            "error": row.get("error"),
            **{name: row.get(name) for name in ("finish_reason", "num_tokens", "acceptance_rate", "fallback_rate")},
        }
        if one.record is not None:
            with suppress(LookupError, TypeError, ValueError, OverflowError):  # a line that is not ours
                return made | self._tokens(one.record)
        return made | {"text": _cut("".join(turn["content"] for turn in row["completion"]))}

    def _tokens(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record's tokens, of a long one the first and the last; log-probs in thousandths, null where not known."""
        count = len(record["token_ids"])
        parts = [slice(0, count)] if count <= FIRST + LAST else [slice(0, FIRST), slice(count - LAST, count)]
        columns = ("token_ids", "student_logprobs", "teacher_logprobs", "from_teacher", "teacher_proposals")
        ids, student, teacher, origin, proposed = (
            [value for part in parts for value in record[name][part]] for name in columns
        )
        if not len(ids) == len(student) == len(teacher) == len(origin) == len(proposed):
            raise ValueError("not one entry a token")
        return {
            "before": "".join(self._spelled(record.get("prefix_ids") or [])),
            "pieces": [piece for part in parts for piece in self._spelled(record["token_ids"][part])],
            "cut": FIRST if len(parts) == 2 else None,
            "left_out": count - len(ids),
            "student": [_thousandths(v) for v in student],
            "teacher": [_thousandths(v) for v in teacher],
            "own": [i for i, of in enumerate(origin) if of == 0],
            "wanted": {n: self._spelled([i])[0] for n, i in enumerate(proposed) if i is not None and i != ids[n]},
        }

    def _spelled(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; a character that several spell is the last one's."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self._bytes(i)) for i in ids]
        return [*texts[:-1], texts[-1] + decoder.decode(b"", final=True)] if texts else []

    def _bytes(self, i: int) -> bytes:
        piece = self.pieces[i] if 0 <= i < len(self.pieces) else None
        return f"<{i}>".encode() if piece is None else piece.encode("latin-1")


def _key(line: bytes) -> Key:
    """Which trace a sidecar's line is of."""
    if head := HEAD.match(line):
        with suppress(ValueError):
            return str(json.loads(head[1])), int(head[2])
    return "", -1  # none


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _thousandths(logprob: float | None) -> int | None:
    return None if logprob is None else round(max(float(logprob), -1e6) * 1000)

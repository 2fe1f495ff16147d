"""What a report shows of scored traces, in a file until the page is written: no tokens of theirs stay in memory."""

import json
import math
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rsd.analysis.compare import summary
from rsd.scoring.naturalness import TokenScores
from rsd.scoring.scorer import Scored


class TraceFile:
    """A nameless temporary file of traces, which is gone when it is closed, or the process ends in any way.

    Of each trace it holds the log-probs of its tokens (float32), and what the page's script reads of it.
    """

    def __init__(self, folder: Path, decode: Callable[[int], str]) -> None:
        """folder: where the file lies. decode: the text of one token id, for what the teacher proposed."""
        folder.mkdir(parents=True, exist_ok=True)
        self.decode = cache(decode)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by who asked for it)
        self.places: dict[Scored, tuple[int, int]] = {}  # where a trace begins, and the bytes after its log-probs

    def close(self) -> None:
        self.file.close()

    def keep(self, s: Scored) -> Scored:
        """Write a trace, and return what is left of it: what `compare` reads, and what it is found by here."""
        kept = summary(s)
        if s.token_scores is not None:
            shown = zlib.compress(page_json(_trace(s, s.token_scores, self.decode)).encode("ascii"), 1)
            self.places[kept] = self.file.tell(), len(shown)
            self.file.write(s.token_scores.logprobs.astype(np.float32).tobytes())
            self.file.write(shown)
        return kept

    def logprobs(self, kept: Scored) -> np.ndarray:
        """float32 [T], natural log: the student's log-prob of each token after all before it."""
        at, _ = self._place(kept)
        self.file.seek(at)
        return np.frombuffer(self.file.read(_size(kept)), dtype=np.float32)

    def shown(self, kept: Scored) -> str:
        """The trace as JSON, as the page's script reads it."""
        at, size = self._place(kept)
        self.file.seek(at + _size(kept))
        return zlib.decompress(self.file.read(size)).decode("ascii")

    def _place(self, kept: Scored) -> tuple[int, int]:
        if kept not in self.places:
            raise ValueError(
                "a report needs the log-probs of every token, not stored scores alone: score the rows anew"
            )
        return self.places[kept]


def _size(kept: Scored) -> int:
    """The bytes of its log-probs."""
    return int(kept.metrics["scored_tokens"] or 0) * np.dtype(np.float32).itemsize


def page_json(value: Any) -> str:
    """JSON that no HTML parser can take for markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so line separators are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _trace(s: Scored, scores: TokenScores, decode: Callable[[int], str]) -> dict[str, Any]:
    """One trace's tokens; log-probs in thousandths, null where there is none."""
    correct = s.response.row.get("is_correct")
    made: dict[str, Any] = {
        "ln": s.metrics["local_naturalness"],
        "correct": correct if isinstance(correct, bool) else None,
        "pieces": s.pieces(),
        "student": _thousandths(scores.logprobs),
        "local": _thousandths(scores.local),
        "steps": list(s.steps),
    }
    if s.tokens is not None:
        own = np.flatnonzero(s.tokens["from_teacher"] == 0)
        made["teacher"] = _thousandths(s.tokens["teacher_logprobs"])
        made["own"] = own.tolist()
        made["proposed"] = [decode(i) if i >= 0 else None for i in s.tokens["proposals"][own].tolist()]
        made["unknown"] = np.flatnonzero(s.tokens["from_teacher"] < 0).tolist()
    return made


def _thousandths(logprobs: np.ndarray) -> list[int | None]:
    values = np.clip(logprobs.astype(float), -1e9, 0) * 1000
    return [None if math.isnan(v) else round(v) for v in values.tolist()]

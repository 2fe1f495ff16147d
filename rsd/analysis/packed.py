"""A trace as the page's script (`page/data.js`) reads it: a header of JSON, and columns of a byte a token."""

import json
import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rsd.analysis.weighed import Weighed, weighed
from rsd.scoring.metrics import METRICS
from rsd.scoring.scorer import Scored

LEAST = -25.0  # natural log; what is below is told as this
LEVELS = 254  # a log-prob is LEAST (level / LEVELS)^2, so it is off by at most 0.1, and near 0 by less than 0.001
UNKNOWN = 255


def levels(logprobs: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
    """Log-probs [T], natural log, as a byte each. threshold: a probability of which each stays on its side."""
    exact = logprobs.astype(float)
    known = np.clip(np.nan_to_num(exact, nan=0.0, neginf=LEAST), LEAST, 0)
    made = np.rint(LEVELS * np.sqrt(known / LEAST))
    if math.exp(LEAST) < threshold < 1:
        below = math.floor(LEVELS * math.sqrt(math.log(threshold) / LEAST)) + 1  # the first level that is
        made = np.where(known < math.log(threshold), np.maximum(made, below), np.minimum(made, below - 1))
    return np.where(np.isnan(exact), UNKNOWN, made).astype(np.uint8)


def packed(s: Scored, decode: Callable[[int], str], columns: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """A scored trace's header and columns.

    Args:
        decode: the text of one token id, for what the teacher likes best. columns: of its row, to filter by.

    The columns [T]: low and high byte of the length of each token's text in UTF-16 units; the levels of the student's
    log-probs; what those in its window add to these, modulo 256; if the sidecar knows them, the teacher's; and, if it
    was weighed, `LEVELS` times each token's weight. Lists of places hold each one's distance from the one before.
    """
    scores = s.token_scores
    if scores is None:
        raise ValueError("the trace has no log-probs of its tokens")
    ends = np.append(s.starts[1:], len(s.text)).astype(np.int64)
    lengths = np.diff(_utf16(s.text, ends), prepend=0)
    correct = s.response.row.get("is_correct")
    header: dict[str, Any] = {
        "id": s.response.id,
        "generation": s.response.generation,
        "text": s.text,
        "n": len(ends),
        "right": correct if isinstance(correct, bool) else None,
        "scores": [figure(s.metrics[name]) for name in METRICS],
        "steps": _gaps(s.steps),
        "columns": dict(columns),
        "likes": [],
        "liked": [],
    }
    made = [(lengths & 255).astype(np.uint8).tobytes(), (lengths >> 8).astype(np.uint8).tobytes()]
    student = levels(scores.logprobs, threshold=float(s.scoring["threshold"]))
    made += [student.tobytes(), (levels(scores.local) - student).tobytes()]  # of which most are small
    if s.tokens is not None:
        likeliest = s.tokens["proposals"]
        differing = np.flatnonzero((likeliest >= 0) & (likeliest != s.tokens["token_ids"]))
        header["likes"], header["liked"] = _gaps(differing), [decode(i) for i in likeliest[differing].tolist()]
        header["own"] = _gaps(np.flatnonzero(s.tokens["from_teacher"] == 0))
        header["unknown"] = _gaps(np.flatnonzero(s.tokens["from_teacher"] < 0))
        made.append(levels(s.tokens["teacher_logprobs"]).tobytes())
    if (weights := weighed(s)) is not None:
        header["weighed"] = _steps(weights, s.text)
        of_tokens = np.rint(LEVELS * np.nan_to_num(weights.tokens))
        made.append(np.where(np.isnan(weights.tokens), UNKNOWN, of_tokens).astype(np.uint8).tobytes())
    return header, b"".join(made)


def _steps(w: Weighed, text: str) -> dict[str, Any]:
    """Of each step its ends in the text, its weight, the validities and the student's action."""
    return {
        "places": _gaps(_utf16(text, w.places)),
        "weights": [figure(value) for value in w.weights],
        "teacher": [figure(value) for value in w.teacher],
        "student": [figure(value) for value in w.student],
        "actions": w.actions,
        "proposals": w.proposals,
    }


def _utf16(text: str, places: np.ndarray) -> np.ndarray:
    """Places in a text in UTF-16 units, as a browser counts."""
    if not text or max(text) <= "\uffff":
        return places
    return np.cumsum([0, *(2 if c > "\uffff" else 1 for c in text)])[places]


def _gaps(places: Sequence[int] | np.ndarray) -> list[int]:
    """Ascending places, each from the one before."""
    made: list[int] = np.diff(places, prepend=0).tolist()
    return made


def figure(value: float | None) -> float | None:
    """A figure in the digits that anybody reads."""
    return None if value is None else float(f"{value:.5g}")


def block(header: Mapping[str, Any], columns: Iterable[bytes]) -> str:
    """A problem's header and the columns of all its traces, compressed, as text that means nothing in HTML."""
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b64encode(zlib.compress(struct.pack(">I", len(head)) + head + b"".join(columns), 9)).decode("ascii")


def page_json(value: Any) -> str:
    """JSON that no HTML parser can take for markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so line separators are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

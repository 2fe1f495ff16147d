"""What the columns that rsd adds to a row hold; rows come back from editors and other tools."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from rsd.strictjson import shallow


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300  # NaN is not


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


_TRUTH = (lambda value: isinstance(value, bool)), "true, false"
_TEXT = (lambda value: isinstance(value, str)), "a text"
_COUNT, _NUMBER = (_is_count, "a whole number"), (is_number, "a number")
# What our columns hold, unless they hold null.
_HOLDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "generation": _COUNT,
    "finish_reason": _TEXT,
    "is_correct": _TRUTH,
    "verify_error": _TEXT,
    "ended_by_eos": _TRUTH,
    "one_think_close": _TRUTH,
    "num_tokens": _COUNT,
    "acceptance_rate": _NUMBER,
    "fallback_rate": _NUMBER,
    "error": _TEXT,
}


def oddity(row: Mapping[str, Any]) -> str | None:
    """What of our columns in a row holds what rsd never writes there; of one that is missing nothing is known."""
    try:
        shallow(row)
    except ValueError as e:
        return str(e)
    if isinstance(row.get("id"), bool) or not isinstance(row.get("id"), str | int):
        return f"id must be a text or a whole number, not {_shown(row.get('id'))}"
    for name, (holds, words) in _HOLDS.items():
        if (value := row.get(name)) is not None and not holds(value):
            return f"{name} must be {words} or null, not {_shown(value)}"
    return None


def not_ours(row: Any) -> str | None:
    """Why a line is no row that rsd wrote; of what of our columns is missing nothing is known."""
    if not isinstance(row, dict):
        return "not a JSON object"
    if (what := oddity(row)) is not None:
        return what
    if row.get("generation") is None:
        return "generation is missing"
    for column in ("prompt", "completion"):
        turns = row.get(column)
        if not is_chat(turns):
            return f"{column} must be a list of {{'role': string, 'content': string}}"
        if row.get("error") is None and not turns:
            return f"{column} is empty"
    return None


def is_chat(turns: Any) -> bool:
    """Whether a JSON value is a list of messages; it may be empty."""
    return isinstance(turns, list) and all(
        isinstance(turn, dict) and all(isinstance(turn.get(c), str) for c in ("role", "content")) for turn in turns
    )


def _shown(value: Any) -> str:
    return "null" if value is None else reprlib.repr(value)

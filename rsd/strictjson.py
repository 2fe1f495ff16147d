"""Strict JSON: what it has no word for is refused where it is read, and null where it is written.

Python reads and writes NaN, Infinity and -Infinity, which are no JSON: other readers refuse the whole file.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

DEPTH = 100  # of lists and objects in each other; Python's own limit depends on who asks
NESTED = f"nested deeper than {DEPTH}"


class _NotFinite(Exception):
    """A number that JSON cannot hold."""


def loads(text: str | bytes) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is none, holds NaN, Infinity or a number that is more than a float can hold, has a name twice
            in one object, or is nested deeper than `DEPTH`; in one line.
    """
    try:
        value = json.loads(text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)
        shallow(value)
        return value
    except _NotFinite as e:
        where = next((f"{k!r} holds " for k, v in _members(json.loads(text)) if finite(v) != v), "")
        raise ValueError(f"{where}{e}, which JSON cannot hold: write null there") from e
    except RecursionError as e:
        raise ValueError(NESTED) from e


def dumps(value: Any) -> str:
    """A value as JSON, its letters as they are; what JSON cannot hold becomes null.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except ValueError:
            return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    except RecursionError as e:
        raise ValueError("a row is nested too deeply to be written") from e


def finite(value: Any) -> Any:
    """A value in which every NaN, as tables have it for what is missing, and every infinity is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def shallow(value: Any) -> None:
    """Refuse what is nested deeper than `DEPTH`.

    Raises:
        ValueError: it is.
    """
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            v for of in level if isinstance(of, dict | list) for v in (of.values() if isinstance(of, dict) else of)
        ]
        level = [v for v in level if isinstance(v, dict | list)]
        if not level:
            return
    raise ValueError(NESTED)


def _members(value: Any) -> Sequence[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _constant(name: str) -> float:
    raise _NotFinite(name)


def _float(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise _NotFinite(digits if len(digits) < 20 else f"{digits[:16]}...")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return made

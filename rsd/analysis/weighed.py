"""What `rsd weigh` wrote into a row. Rows come from anywhere: one of another shape has no weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rsd.scoring.scorer import Scored
from rsd.traces.columns import is_number

LONGEST = 2000  # characters of a student's action that are shown


class Weighed(NamedTuple):
    """A trace's weights: of its S steps, and of its T tokens.

    places: the characters at which each step begins and ends, ascending [2 S]. weights: in [0, 1]. teacher, student:
    the validities, None where there is none. actions: the student's own next step from where each begins, None where
    nothing was decoded. tokens: float [T] in [0, 1], NaN in no step. proposals: the teacher's own next steps, where
    its validity is theirs, and not of the trace's step.
    """

    places: np.ndarray
    weights: list[float]
    teacher: list[float | None]
    student: list[float | None]
    actions: list[str | None]
    tokens: np.ndarray
    proposals: list[str | None] | None


def weighed(s: Scored) -> Weighed | None:
    """The weights in a scored trace's row, if all that is there of them is what `rsd weigh` writes.

    A token has the weight of its own where the row's `token_ids` are the tokens that were scored, else its step's.
    """
    row = s.response.row
    weights = _list(row.get("step_weights"), _is_weight)
    if not weights:
        return None
    nothing: list[Any] = [None] * len(weights)
    spans = _list(row.get("step_spans"), _is_span)
    teacher, student, actions, proposals = (
        nothing if row.get(name) is None else _list(row[name], holds)
        for name, holds in (
            ("validity_teacher", _is_figure),
            ("validity_student", _is_figure),
            ("student_action", _is_text),
            ("teacher_action", _is_text),
        )
    )
    if spans is None or teacher is None or student is None or actions is None or proposals is None:
        return None
    places = [place for span in spans for place in span]
    same = all(len(values) == len(weights) for values in (spans, teacher, student, actions, proposals))
    if not same or places != sorted(places):
        return None
    tokens = _of_tokens(s, np.array(places).reshape(-1, 2), np.array(weights, dtype=float))
    if tokens is None or places[-1] > max(len(s.text), len(s.response.text)):
        return None
    own = None if row.get("teacher_action") is None else _short(proposals)
    return Weighed(np.minimum(places, len(s.text)), weights, teacher, student, _short(actions), tokens, own)


def _short(actions: list[str | None]) -> list[str | None]:
    return [a if a is None or len(a) <= LONGEST else f"{a[:LONGEST]}…" for a in actions]


def _of_tokens(s: Scored, spans: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """The weight of each token that was scored; None if the row's are of another shape."""
    ids, given, n = s.response.row.get("token_ids"), s.response.row.get("token_weights"), len(s.token_ids)
    if given is not None:
        of_ids = _list(given, _is_weight)
        if of_ids is None or (isinstance(ids, list) and len(ids) != len(of_ids)):
            return None
        if isinstance(ids, list) and n <= len(ids) <= n + 1 and ids[:n] == s.token_ids.tolist():  # with or without EOS
            return np.array(of_ids[:n], dtype=float)
    step = np.searchsorted(spans[:, 0], s.starts, side="right") - 1
    return np.where((step >= 0) & (s.starts < spans[step, 1]), weights[step], np.nan)


def _list(value: Any, holds: Callable[[Any], bool]) -> list[Any] | None:
    """A list of what it is to hold, or None."""
    return value if isinstance(value, list) and all(map(holds, value)) else None


def _is_weight(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_figure(value: Any) -> bool:
    return value is None or is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str | None)


def _is_span(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not all(type(c) is int for c in value):
        return False
    return bool(0 <= value[0] < value[1] < 2**31)  # none is empty: a text has no more steps than characters

"""Which traces are worth training on: the acceptance rules of the RSD authors, as far as rows tell.

Of a problem's traces they keep those with one `</think>`, an EOS, a fallback rate of at most 0.5 and a right
answer, and of these the shortest (arXiv 2509.22230). All traces stay in the file that `rsd generate` writes; a
filter makes another file.
"""

import math
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rsd.settings import called
from rsd.traces.columns import is_number, oddity
from rsd.traces.rows import digest

KEEP = ("all", "correct", "shortest-correct", "best-ln")
# By which column the best trace of a problem is found, and why a row without it is not taken.
BEST = {"shortest-correct": ("num_tokens", "length not known"), "best-ln": ("local_naturalness", "no score")}


def flaw(row: Mapping[str, Any], *, max_fallback_rate: float) -> str | None:
    """Why a row's structure makes it unfit for training; None if it is fit, as far as the row tells."""
    if row.get("error") is not None:
        return "error"
    ended = row.get("ended_by_eos")
    if ended is False or (ended is None and row.get("finish_reason") not in (None, "stop")):
        return "not ended by EOS"
    if row.get("one_think_close") is False:
        return "not exactly one </think>"
    rate = row.get("fallback_rate")
    if rate is not None and rate > max_fallback_rate:
        return "fallback rate too high"
    return None


def is_right(row: Mapping[str, Any], *, max_fallback_rate: float) -> bool:
    """Whether a row is a correct trace that is fit for training: what sampling until right waits for."""
    return row.get("is_correct") is True and flaw(row, max_fallback_rate=max_fallback_rate) is None


def keep(
    rows: Sequence[Mapping[str, Any]], how: str, *, max_fallback_rate: float
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """The rows that are kept, in their order, and why how many others are not; see `choose`."""
    places, dropped = choose(rows, how, max_fallback_rate=max_fallback_rate)
    return [rows[i] for i in places], dropped


def choose(
    rows: Iterable[Mapping[str, Any]], how: str, *, max_fallback_rate: float
) -> tuple[list[int], dict[str, int]]:
    """The places of the rows that are kept, in order, and why how many others are not; both add up to all rows.

    Which rows these are does not depend on the order, which a job's batch size and interruptions change. The rows are
    read once, and none is held.

    Args:
        how: one of `KEEP`. "all" drops errors alone; "shortest-correct" keeps one a problem, by `num_tokens`;
            "best-ln" one a problem, by `local_naturalness`. Of equals that of the lowest generation stays.

    Raises:
        ValueError: nothing is known to be correct, no correct row has the score, or a column of ours holds what rsd
            never writes there.
    """
    if how not in KEEP:
        raise ValueError(f"{called('keep')} must be one of {', '.join(KEEP)}, not {how!r}")
    dropped: dict[str, int] = defaultdict(int)
    kept: list[int] = []
    best: dict[str, tuple[tuple[float, float, str], int]] = {}  # by problem the lowest cost, and whose it is
    scored = 0
    for i, row in enumerate(rows):
        if (what := oddity(row)) is not None:
            raise ValueError(f"row {i + 1}: {what}")
        # Scores are checked where they count: an input may have a column of that name.
        if how in BEST and (value := row.get(BEST[how][0])) is not None and not is_number(value):
            raise ValueError(f"row {i + 1}: {BEST[how][0]} must be a number or null, not {reprlib.repr(value)}")
        if how == "all":
            why = "error" if row.get("error") is not None else None
        else:
            why = flaw(row, max_fallback_rate=max_fallback_rate)
            if why is None and row.get("is_correct") is not True:
                why = "wrong" if row.get("is_correct") is False else "not verified"
        if why is not None:
            dropped[why] += 1
            continue
        kept.append(i)
        if how in BEST and row.get(BEST[how][0]) is not None:
            scored += 1
            cost, key = _cost(row, BEST[how][0]), str(row["id"])
            if key not in best or cost < best[key][0]:
                best[key] = cost, i
    if how in BEST:
        column, unknown = BEST[how]
        if kept and not scored:
            tip = f": score them first, with rsd score or {called('score', True)}" if how == "best-ln" else ""
            raise ValueError(f"no correct row has {column}{tip}")
        if unscored := len(kept) - scored:
            dropped[unknown] += unscored
        if others := scored - len(best):
            dropped["another trace of the problem is kept"] += others
        kept = sorted(i for _, i in best.values())
    return kept, dict(dropped)


def _cost(row: Mapping[str, Any], column: str) -> tuple[float, float, str]:
    value, generation = row[column], row.get("generation")
    # The text decides where two jobs' rows were put into one file.
    return (
        value if column == "num_tokens" else -value,
        math.inf if generation is None else generation,
        digest(row.get("completion")),
    )

"""Which traces are worth training on: the acceptance rules of the RSD authors, as far as rows tell.

Of a problem's traces they keep those with one `</think>`, an EOS, a fallback rate of at most 0.5 and a right
answer, and of these the shortest (arXiv 2509.22230). All traces stay in the file that `rsd generate` writes; a
filter makes another file.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

KEEP = ("all", "correct", "shortest-correct", "best-ln")


def flaw(row: Mapping[str, Any], *, max_fallback_rate: float) -> str | None:
    """Why a row's structure makes it unfit for training; None if it is fit."""
    if row.get("error") is not None:
        return "error"
    if not row.get("ended_by_eos"):
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
    """The rows that are kept, in order, and why how many others are not; both add up to all rows.

    Args:
        how: one of `KEEP`. "all" drops errors alone; "shortest-correct" keeps one a problem, by `num_tokens`;
            "best-ln" one a problem, by `local_naturalness`. Of equals the first stays.

    Raises:
        ValueError: nothing is known to be correct, or no correct row has the score.
    """
    if how not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, not {how!r}")
    dropped: dict[str, int] = defaultdict(int)
    kept: list[Mapping[str, Any]] = []
    for row in rows:
        if how == "all":
            why = "error" if row.get("error") is not None else None
        else:
            why = flaw(row, max_fallback_rate=max_fallback_rate)
            if why is None and row.get("is_correct") is not True:
                why = "wrong" if row.get("is_correct") is False else "not verified"
        if why is None:
            kept.append(row)
        else:
            dropped[why] += 1
    if how in ("shortest-correct", "best-ln"):
        scored = [row for row in kept if how == "shortest-correct" or row.get("local_naturalness") is not None]
        if kept and not scored:
            raise ValueError("no correct row has local_naturalness: score them first, with rsd score or --score")
        best: dict[str, Mapping[str, Any]] = {}
        for row in scored:
            if (other := best.get(key := str(row["id"]))) is None or _cost(row, how) < _cost(other, how):
                best[key] = row
        if unscored := len(kept) - len(scored):
            dropped["no score"] += unscored
        if others := len(scored) - len(best):
            dropped["another trace of the problem is kept"] += others
        chosen = {id(row) for row in best.values()}
        kept = [row for row in kept if id(row) in chosen]
    return kept, dict(dropped)


def _cost(row: Mapping[str, Any], how: str) -> float:
    return row["num_tokens"] if how == "shortest-correct" else -row["local_naturalness"]

"""How the rounds of several runs, or of several processes, went together."""

from collections import Counter
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any


def combined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of several runs added up, and what they come to."""

    def lists(name: str) -> list[int]:
        return [a + b for a, b in zip_longest(before.get(name, []), now[name], fillvalue=0)]

    sizes = Counter(before.get("block_sizes", {})) + Counter(now["block_sizes"])
    judged, survived = lists("drafts_judged"), lists("drafts_survived")
    was = before.get("left_out", {})
    mass = {name: was.get(name, 0) + now["left_out"][name] for name in ("tokens", "mass")}
    made = {name: before.get(name, 0) + now[name] for name in ("rounds", "row_rounds", "tokens")}
    there = {**before.get("known", {}), **now.get("known", {})}
    known = {name: before.get("known", {}).get(name, 0) + now.get("known", {}).get(name, 0) for name in there}
    return {
        "tokens_per_round": round(made["tokens"] / made["row_rounds"], 3) if made["row_rounds"] else None,
        "left_out": mass | {"share": round(mass["mass"] / mass["tokens"], 6) if mass["tokens"] else None},
        "survival": [round(s / j, 4) for s, j in zip(survived, judged, strict=True)],
        **({"known": known} if known else {}),
        **made,
        "block_sizes": dict(sorted(sizes.items(), key=lambda item: int(item[0]))),
        "drafts_judged": judged,
        "drafts_survived": survived,
    }


def readable(decoding: Any) -> dict[str, Any]:
    """A manifest's statistics, or none where they are not what `combined` makes."""
    empty = {"rounds": 0, "row_rounds": 0, "tokens": 0, "block_sizes": {}, "drafts_judged": [], "drafts_survived": []}
    try:
        combined(decoding, {**empty, "left_out": {"tokens": 0, "mass": 0}})
    except (AttributeError, TypeError, ValueError, KeyError):
        return {}
    return dict(decoding)

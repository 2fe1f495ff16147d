"""Figures and differences as pages write them."""

import math
from dataclasses import dataclass

# What kind of difference one is, and its class in the styles.
BETTER, WORSE, UNCLEAR, BESIDE = "better", "worse", "unclear", "beside"


@dataclass(frozen=True)
class Difference:
    """One metric over the ids that have it on both sides, each id's generations averaged first.

    delta: candidate - baseline. ci: its 95 % interval, a percentile bootstrap over the ids. p_value: of
    the two-sided sign test over the ids, ties left out.
    """

    baseline: float
    candidate: float
    delta: float
    ci: tuple[float, float]
    p_value: float
    ids: int


def kind(difference: Difference, better: bool | None) -> str:
    """Whether a difference is for the better: one whose interval leaves out 0."""
    if better is None:
        return BESIDE
    low, high = difference.ci
    if low <= 0 <= high:
        return UNCLEAR
    return BETTER if (low > 0) == better else WORSE


def number(value: float | None, sign: str = "") -> str:
    """Three significant digits, or all before the point; `sign` "+" for differences."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    return minus(f"{value:{sign}{'.0f' if 1000 <= abs(value) < 1e6 else '#.3g'}}".rstrip("."))


def minus(text: str) -> str:
    return text.replace("-", "\u2212")


def percent(share: float | None) -> str:
    return "not known" if share is None else f"{number(100 * share)}\u00a0%"


def well_formed(text: str) -> str:
    """Text that UTF-8 can encode: a file name or an id may hold half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

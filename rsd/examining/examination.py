"""What came of an examination: what was found of a pair, and what follows from it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rsd.examining import words
from rsd.examining.findings import Findings
from rsd.examining.rules import Recommendation, begin_with, recommendations


@dataclass(frozen=True)
class Examination:
    """What `rsd doctor` has to say of a pair."""

    findings: Findings

    @cached_property
    def recommendations(self) -> Sequence[Recommendation]:
        """What follows, each with its rule and its source; the first one decides."""
        return recommendations(self.findings)

    @property
    def verdict(self) -> str:
        """All of it in a sentence."""
        return self.recommendations[0].verdict or ""

    @property
    def threshold(self) -> float | None:
        """The one to begin with; None where another rule decides than that RSD is worth a try."""
        return begin_with(self.findings) if any(one.name == "threshold" for one in self.recommendations) else None

    def text(self) -> str:
        """For a terminal of 80 columns."""
        return words.text(self.findings, self.recommendations)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values; numbers have six digits."""
        found = asdict(self.findings)
        advice = [asdict(one) | {"rule": one.why} for one in self.recommendations]
        made = {"verdict": self.verdict, "begin_with": self.threshold, "recommendations": advice}
        of: dict[str, Any] = plain({"examined": f"{self.findings.teacher} for {self.findings.student}"} | made | found)
        return of


def plain(value: Any) -> Any:
    """With numbers of six digits, infinity as a text, and keys that are texts."""
    if isinstance(value, dict):
        return {f"{k:g}" if isinstance(k, float) else k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value

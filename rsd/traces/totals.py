"""What the rows of a job add up to."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rsd.terminal import BAD, GOOD, Painted, joined, paint
from rsd.traces.filters import flaw

BIT = {None: 1, False: 2, True: 4}  # of a verdict


def totals(rows: Iterable[Mapping[str, Any]], *, max_fallback_rate: float = 1.0) -> dict[str, Any]:
    """What all these rows add up to (`Totals.sums`)."""
    made = Totals(max_fallback_rate=max_fallback_rate)
    for row in rows:
        made.add(row)
    return made.sums()


class Totals:
    """Counts and means over a job's rows, which come one after the other."""

    def __init__(self, *, max_fallback_rate: float = 1.0) -> None:
        self.max_fallback_rate = max_fallback_rate
        self.reasons: Counter[str] = Counter()
        self.verdicts: Counter[bool | None] = Counter()
        self.flaws: Counter[str] = Counter()
        self.problems: dict[str, int] = defaultdict(int)  # the verdicts on a problem's traces, each a bit
        self.first: dict[str, str | None] = {"error": None, "verify_error": None}
        self.tokens = self.verify_errors = 0
        self.accepted = self.fallback = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        correct, count = row.get("is_correct"), row.get("num_tokens") or 0
        self.verdicts[correct] += 1
        self.verify_errors += row.get("verify_error") is not None
        for column in self.first:
            self.first[column] = self.first[column] or row.get(column)
        why = flaw(row, max_fallback_rate=self.max_fallback_rate)
        self.flaws.update([why] if why else [])
        self.problems[str(row["id"])] |= BIT[correct if correct is not True or not why else False]
        self.reasons[row.get("finish_reason") or "not known"] += 1
        self.tokens += count
        self.accepted += count * (row.get("acceptance_rate") or 0)
        self.fallback += count * (row.get("fallback_rate") or 0)

    def sums(self) -> dict[str, Any]:
        """As JSON values. Each row is one of correct, wrong and not_verified; each problem one of solved (a correct
        trace that is fit for training), unsolved, and unknown (no verdict on any trace).
        """
        solved = sum(bool(of & BIT[True]) for of in self.problems.values())
        unknown = sum(of == BIT[None] for of in self.problems.values())
        tokens, verdicts = self.tokens, self.verdicts
        return {
            "rows": self.reasons.total(),
            "errors": self.reasons["error"],
            "tokens": tokens,
            "acceptance_rate": round(self.accepted / tokens, 4) if tokens else None,
            "fallback_rate": round(self.fallback / tokens, 4) if tokens else None,
            "finish_reasons": dict(sorted(self.reasons.items())),
            "correct": verdicts[True],
            "wrong": verdicts[False],
            "not_verified": verdicts[None],
            "verify_errors": self.verify_errors,
            "first_error": self.first["error"],
            "first_verify_error": self.first["verify_error"],
            "unfit": dict(sorted(self.flaws.items())),
            "problems": len(self.problems),
            "solved": solved,
            "unsolved": len(self.problems) - solved - unknown,
            "unknown": unknown,
        }


def answers(correct: int, wrong: int, unknown: int) -> Painted:
    """How many rows are right, wrong and neither, in a line."""
    right = paint(f"{correct} correct", GOOD) if correct else "0 correct"
    bad = paint(f"{wrong} wrong", BAD) if wrong else "0 wrong"
    return joined(["answers      ", right, ", ", bad, f", {unknown} not verified"])

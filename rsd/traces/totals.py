"""What the rows of a job add up to."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rsd.traces.filters import flaw


def totals(rows: Iterable[Mapping[str, Any]], *, max_fallback_rate: float = 1.0) -> dict[str, Any]:
    """Counts and means over a job's rows.

    Each row is one of correct, wrong and not_verified; each problem one of solved (a correct trace that is
    fit for training), unsolved, and unknown (no verdict on any trace).
    """
    reasons: Counter[str] = Counter()
    verdicts: Counter[bool | None] = Counter()
    flaws: Counter[str] = Counter()
    problems: dict[str, int] = defaultdict(int)  # the verdicts on a problem's traces, each a bit
    bit = {None: 1, False: 2, True: 4}
    first: dict[str, str | None] = {"error": None, "verify_error": None}
    tokens = verify_errors = 0
    accepted = fallback = 0.0
    for row in rows:
        correct, count = row.get("is_correct"), row.get("num_tokens") or 0
        verdicts[correct] += 1
        verify_errors += row.get("verify_error") is not None
        for column in first:
            first[column] = first[column] or row.get(column)
        why = flaw(row, max_fallback_rate=max_fallback_rate)
        flaws.update([why] if why else [])
        problems[str(row["id"])] |= bit[correct if correct is not True or not why else False]
        reasons[row.get("finish_reason") or "not known"] += 1
        tokens += count
        accepted += count * (row.get("acceptance_rate") or 0)
        fallback += count * (row.get("fallback_rate") or 0)
    solved = sum(bool(of & bit[True]) for of in problems.values())
    unknown = sum(of == bit[None] for of in problems.values())
    return {
        "rows": reasons.total(),
        "errors": reasons["error"],
        "tokens": tokens,
        "acceptance_rate": round(accepted / tokens, 4) if tokens else None,
        "fallback_rate": round(fallback / tokens, 4) if tokens else None,
        "finish_reasons": dict(sorted(reasons.items())),
        "correct": verdicts[True],
        "wrong": verdicts[False],
        "not_verified": verdicts[None],
        "verify_errors": verify_errors,
        "first_error": first["error"],
        "first_verify_error": first["verify_error"],
        "unfit": dict(sorted(flaws.items())),
        "problems": len(problems),
        "solved": solved,
        "unsolved": len(problems) - solved - unknown,
        "unknown": unknown,
    }

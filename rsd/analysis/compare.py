"""Two sets of scored traces side by side: aligned, paired, and how sure the difference is."""

import math
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rsd.analysis.figures import Difference
from rsd.analysis.templates import scores_table
from rsd.scoring.measure import set_rsr
from rsd.scoring.metrics import LN, METRICS, Figures
from rsd.scoring.scored_rows import named
from rsd.scoring.scorer import Scored
from rsd.terminal import BAD, GOOD, HEADING, in_lines, joined, marked, paint

RESAMPLES = 2000
SHOWN = 5  # best and worst rows
BY_CONSTRUCTION = (
    "A threshold on the student's probability raises log-probabilities, and most scores made of them, by construction: "
    "better scores of RSD traces show that the threshold works, not that training on them helps. Read length, step "
    "length and correctness beside them: longer steps score better, and a short or wrong trace can look natural."
)


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """One problem and its scored traces on both sides, at least one on each; deltas by metric."""

    key: str
    prompt: str
    baseline: Sequence[Scored]
    candidate: Sequence[Scored]
    deltas: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found.

    names: of the two sides. aligned_by: "id" or "prompt". missing, new: ids of the baseline or the
        candidate alone. unscored: ids of both without a scored trace on one side.
    errors: the rows that could not be scored, by side.
    rsr: the sets' own RSR. correct: the share of traces that are right, where that is known.
    splits: "correct" and "wrong": the same metrics over the traces that are right, or wrong, on both sides.
    """

    names: tuple[str, str]
    scoring: Mapping[str, Any]
    aligned_by: str
    pairs: Sequence[Pair]
    missing: int
    new: int
    unscored: int
    errors: tuple[Sequence[Scored], Sequence[Scored]]
    metrics: Mapping[str, Difference]
    rsr: tuple[float | None, float | None]
    correct: tuple[float | None, float | None]
    splits: Mapping[str, Mapping[str, Difference]]
    notices: Sequence[str]

    def _repr_html_(self) -> str:
        """Its scores as a table, in a notebook."""
        return scores_table(self.names, self.scoring, self.metrics, self.rsr, self.correct)

    def ranked(self, name: str = LN) -> list[Pair]:
        """The pairs that have a difference in this metric, the candidate's greatest gain first."""
        known = [p for p in self.pairs if p.deltas[name] is not None]
        return sorted(known, key=lambda p: (-(p.deltas[name] or 0), p.key))


def compare(baseline: Sequence[Scored], candidate: Sequence[Scored], *, names: tuple[str, str]) -> Comparison:
    """Align two sets of scored traces and compare them.

    Raises:
        ValueError: the sets share no problem, or none that could be scored on both sides.
    """
    key, aligned_by, notices = alignment([baseline, candidate])
    ours, theirs = _group(candidate, key), _group(baseline, key)
    shared = [k for k in theirs if k in ours]
    pairs = _pairs(theirs, ours)
    errors = [s for s in baseline if s.error], [s for s in candidate if s.error]
    if not pairs:
        raise ValueError(f"no problem was scored on both sides: {(errors[0] + errors[1])[0].error}")
    before = [s for p in pairs for s in p.baseline]
    after = [s for p in pairs for s in p.candidate]
    splits = {}
    for name, right in (("correct", True), ("wrong", False)):
        parts = ([s for s in side if s.response.row.get("is_correct") is right] for side in (before, after))
        if of := _pairs(*(_group(part, key) for part in parts)):
            splits[name] = _metrics(of)
    return Comparison(
        names=names,
        scoring=pairs[0].baseline[0].scoring,
        aligned_by=aligned_by,
        pairs=pairs,
        missing=len(theirs) - len(shared),
        new=len(ours) - len(shared),
        unscored=len(shared) - len(pairs),
        errors=errors,
        metrics=_metrics(pairs),
        rsr=(set_rsr(s.metrics for s in before), set_rsr(s.metrics for s in after)),
        correct=(_correct(before), _correct(after)),
        splits=splits,
        notices=notices,
    )


# What is left of a row: one object for all that are right, one for all that are wrong.
VERDICTS: Mapping[bool | None, Mapping[str, Any]] = {known: {"is_correct": known} for known in (True, False, None)}


def summary(s: Scored) -> Scored:
    """What `compare` reads of a scored trace: nothing of its tokens, which a page alone shows."""
    correct = s.response.row.get("is_correct")
    row = VERDICTS[correct if isinstance(correct, bool) else None]
    # A prompt is one object, however many traces of it both sides hold.
    messages = [{"role": "user", "content": sys.intern(s.response.prompt)}] if s.response.messages else []
    response = replace(s.response, row=row, messages=messages, text="", token_ids=None, tokens=None)
    metrics = Figures(s.metrics) if s.metrics else s.metrics
    return Scored(response=response, scoring=s.scoring, error=s.error, metrics=metrics)


def alignment(sides: Sequence[Sequence[Scored]]) -> tuple[Callable[[Scored], str], str, list[str]]:
    """What traces of the same problem have in common: the id, where ids name the same problems on all
    sides, else the prompt. Returns the key, "id" or "prompt", and what is to be said of it.

    Raises:
        ValueError: the sides share no problem.
    """

    def by_id(s: Scored) -> str:
        return s.response.id

    def by_prompt(s: Scored) -> str:
        return sys.intern(" ".join(s.response.prompt.split()))

    own = all(s.response.own_id for side in sides for s in side)
    prompts: dict[str, set[str]] = defaultdict(set)  # by id
    ids, texts = Counter[str](), Counter[str]()  # and on how many sides these are
    for side in sides:
        for s in side:
            prompts[by_id(s)].add(by_prompt(s))
        ids.update({by_id(s) for s in side})
        texts.update({by_prompt(s) for s in side if s.response.messages})
    shared = [i for i, count in ids.items() if count > 1]
    differing = sum(len({p for p in prompts[i] if p}) > 1 for i in shared)
    if (own and shared and not differing) or len(sides) == 1:
        return by_id, "id", []
    if any(count > 1 for count in texts.values()):
        why = [f"aligned by prompt: {differing} ids name different prompts in the files"] if own and shared else []
        return by_prompt, "prompt", why
    if own and shared:
        return by_id, "id", [f"the prompts of {differing} of the {len(shared)} ids differ between the files"]
    raise ValueError("the files share no problem: no id and no prompt of one is in another")


def _group(side: Sequence[Scored], key: Callable[[Scored], str]) -> dict[str, list[Scored]]:
    groups = defaultdict(list)
    for s in side:
        groups[key(s)].append(s)
    return dict(groups)


def _pairs(baseline: Mapping[str, list[Scored]], candidate: Mapping[str, list[Scored]]) -> list[Pair]:
    """The problems with a scored trace on both sides."""
    pairs = []
    for key in baseline:
        before, after = ([s for s in side.get(key, ()) if not s.error] for side in (baseline, candidate))
        if before and after:
            deltas = {}
            for name in METRICS:
                a, b = mean(before, name), mean(after, name)
                # Means of equal generations differ in the last digits: that is no difference.
                deltas[name] = None if a is None or b is None else round(b - a, 9)
            pairs.append(Pair(before[0].response.id, before[0].response.prompt, before, after, Figures(deltas)))
    return pairs


def mean(traces: Sequence[Scored], name: str) -> float | None:
    """The mean of a metric over the traces that have it."""
    known = [v for s in traces if (v := s.metrics[name]) is not None]
    return sum(known) / len(known) if known else None


def _metrics(pairs: Sequence[Pair]) -> dict[str, Difference]:
    """Every metric that any pair has."""
    names = [name for name in METRICS if any(p.deltas[name] is not None for p in pairs)]
    deltas = np.array([[p.deltas[name] for name in names] for p in pairs], dtype=float)  # None is NaN
    low, high = bootstrap(deltas, lambda sample: np.nansum(sample, 0) / (~np.isnan(sample)).sum(0))
    made = {}
    for i, name in enumerate(names):
        known = [p for p in pairs if p.deltas[name] is not None]
        baseline, candidate = (
            float(np.mean([mean(side, name) for side in sides]))
            for sides in ([p.baseline for p in known], [p.candidate for p in known])
        )
        made[name] = Difference(
            baseline=baseline,
            candidate=candidate,
            delta=candidate - baseline,
            ci=(float(low[i]), float(high[i])),
            p_value=sign_test(int((deltas[:, i] > 0).sum()), int((deltas[:, i] < 0).sum())),
            ids=len(known),
        )
    return made


def bootstrap(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of a statistic of rows [N, M], resampled with replacement; equal for equal input."""
    random = np.random.default_rng(seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = [statistic(values[random.integers(len(values), size=len(values))]) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins and losses if both are equally likely (exact binomial)."""
    n, k = wins + losses, min(wins, losses)
    tail = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * sum(map(math.exp, tail)))


def _correct(traces: Sequence[Scored]) -> float | None:
    known = [k for s in traces if isinstance(k := s.response.row.get("is_correct"), bool)]
    return sum(known) / len(known) if known else None


MARKS = {True: "higher is better", False: "lower is better", None: "read beside them"}


def table(c: Comparison) -> str:
    """The comparison as text for a terminal."""
    lines = [marked(f"notice: {notice}") for notice in c.notices]
    lines += [
        f"baseline     {c.names[0]}",
        f"candidate    {c.names[1]}",
        f"scored by    {named(c.scoring)}",
        f"problems     {len(c.pairs)} aligned by {c.aligned_by}, {c.missing} missing in the candidate, "
        f"{c.new} new in it, {c.unscored} not scored on both sides",
    ]
    lines += [
        joined([paint("errors", BAD), f"       {len(errors)} rows of the {side}, the first: {_first(errors)}"])
        for side, errors in zip(("baseline", "candidate"), c.errors, strict=True)
        if errors
    ]
    lines += ["", *_metric_lines(c.metrics)]
    if None not in c.rsr:
        lines.append(f"{'RSR (of the sets)':<22}{_short(c.rsr[0]):>10}{_short(c.rsr[1]):>11}")
    known = ["not known" if share is None else f"{share:.1%}" for share in c.correct]
    lines.append(f"{'correct':<22}{known[0]:>10}{known[1]:>11}")
    for name, metrics in c.splits.items():
        ids = max(m.ids for m in metrics.values())
        lines += ["", paint(f"{name} on both sides ({ids} problems)", HEADING), *_metric_lines(metrics)]
    ranked = c.ranked()
    lines.append("")
    for title, some in (("greatest gain", ranked[:SHOWN]), ("smallest gain", ranked[::-1][:SHOWN])):
        shown = ", ".join(f"{_line(p.key)} {_short(p.deltas[LN], signed=True)}" for p in some)
        lines.append(f"{title:<22}{shown}")
    lines += ["", *textwrap.wrap(BY_CONSTRUCTION, 110)]
    return in_lines(lines)


def _metric_lines(metrics: Mapping[str, Difference]) -> list[str]:
    heads = f"{'':<22}{'baseline':>10}{'candidate':>11}{'difference':>12}  {'95 % interval':<20}{'sign test':>10}"
    lines: list[str] = [paint(heads, HEADING)]
    for name, m in metrics.items():
        interval = f"[{_short(m.ci[0], signed=True)} .. {_short(m.ci[1], signed=True)}]"
        p = f"{m.p_value:.1g}" if m.p_value >= 1e-9 else "< 1e-9"
        better, delta = METRICS[name].better, f"{_short(m.delta, signed=True):>12}"
        if better is not None and m.p_value < 0.05 and (m.ci[0] > 0 or m.ci[1] < 0):  # what may be chance has none
            delta = paint(delta, GOOD if (m.delta > 0) is better else BAD)
        sides = f"{METRICS[name].heading:<22}{_short(m.baseline):>10}{_short(m.candidate):>11}"
        lines.append(joined([sides, delta, f"  {interval:<20}{p:>10}  {MARKS[better]}"]))
    return lines


def _first(errors: Sequence[Scored]) -> str:
    return f"{_line(errors[0].response.id)}: {errors[0].error}"


def _line(key: str) -> str:
    return textwrap.shorten(key, 40, placeholder="...")


def _short(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits; no exponent below a million."""
    if value is None:
        return "-"
    digits = 3 - math.ceil(math.log10(abs(value))) if value else 2
    text = f"{value:{'+' if signed else ''}.{min(max(digits, 0), 6)}f}"
    return text if abs(value) < 1e6 else f"{value:{'+' if signed else ''}.2e}"


def as_json(c: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""

    def rows(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        return [{"id": p.key, "delta": {k: _rounded(v) for k, v in p.deltas.items()}} for p in pairs]

    def of(metrics: Mapping[str, Difference]) -> dict[str, Any]:
        return {
            name: {k: [_rounded(x) for x in v] if k == "ci" else _rounded(v) for k, v in asdict(m).items()}
            | {"ids": m.ids}
            for name, m in metrics.items()
        }

    ranked = c.ranked()
    return {
        "baseline": c.names[0],
        "candidate": c.names[1],
        "scoring": dict(c.scoring),
        "aligned_by": c.aligned_by,
        "aligned": len(c.pairs),
        "missing": c.missing,
        "new": c.new,
        "unscored": c.unscored,
        "errors": {
            name: [{"id": s.response.id, "generation": s.response.generation, "error": s.error} for s in errors]
            for name, errors in zip(("baseline", "candidate"), c.errors, strict=True)
        },
        "metrics": of(c.metrics),
        "set_rsr": [_rounded(v) for v in c.rsr],
        "correct": [_rounded(v) for v in c.correct],
        "splits": {name: of(metrics) for name, metrics in c.splits.items()},
        "best": rows(ranked[:SHOWN]),
        "worst": rows(ranked[::-1][:SHOWN]),
        "notices": [*c.notices, BY_CONSTRUCTION],
    }


def _rounded(value: float | None) -> float | None:
    # Significant digits, since p-values are small; JSON has no word for what is not finite.
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")

"""What a page says first: a verdict in a sentence, and a few figures with their direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from rsd.analysis.compare import Comparison, Pair, bootstrap, mean
from rsd.analysis.figures import BESIDE, BETTER, UNCLEAR, WORSE, Difference, kind, number, percent
from rsd.scoring.metrics import LN, METRICS
from rsd.scoring.scorer import Scored

TILES = (LN, "low_prob_share", "rsr", "scored_tokens")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure: what kind of difference it is, and in which words."""

    label: str
    value: str
    kind: str
    words: str


def right_share(traces: Sequence[Scored]) -> float | None:
    """The share of traces that are right, of those where that is known."""
    known = [r for s in traces if isinstance(r := s.response.row.get("is_correct"), bool)]
    return sum(known) / len(known) if known else None


def correctness(pairs: Sequence[Pair]) -> Difference | None:
    """How many are right, as a difference over the problems where that is known on both sides."""
    shares = [(right_share(p.baseline), right_share(p.candidate)) for p in pairs]
    known = np.array([s for s in shares if None not in s], dtype=float)
    if not len(known):
        return None
    deltas = known[:, 1] - known[:, 0]
    low, high = bootstrap(deltas[:, None], lambda sample: sample.mean(0))
    before, after = known.mean(0).tolist()
    ci = float(low[0]), float(high[0])
    return Difference(baseline=before, candidate=after, delta=after - before, ci=ci, p_value=1.0, ids=len(known))


def short(names: Sequence[str]) -> list[str]:
    """File names without their folders, where that tells them apart."""
    made = [PurePath(name).name or name for name in names]
    return made if len(set(made)) == len(made) else list(names)


def verdict(c: Comparison, right: Difference | None) -> str:
    """The comparison in a sentence."""
    (before, after), student = short(c.names), str(c.scoring.get("student"))
    kinds = [kind(m, METRICS[name].better) for name, m in c.metrics.items()]
    better, worse = kinds.count(BETTER), kinds.count(WORSE)
    if LN not in c.metrics:
        return f"{after} and {before} have no trace whose naturalness for {student} could be compared"
    how = {BETTER: "read more naturally", WORSE: "read less naturally"}.get(kind(c.metrics[LN], True))
    said = f"{after} {how} to {student} than {before}" if how else f"{after} and {before} read alike to {student}"
    said += f": {_scores(better)} better, {worse} worse"
    if right is None:
        return said + "; which traces are right is not known."
    shares = f"{percent(right.candidate)} against {percent(right.baseline)}"
    more = {BETTER: "more of them are right", WORSE: "fewer of them are right"}.get(kind(right, True))
    return said + (f"; {more}, {shares}." if more else f"; {shares} are right, no clear difference.")


def _scores(count: int) -> str:
    return f"{count} score{'' if count == 1 else 's'}"


WRITTEN: Mapping[str, Callable[[float | None], str]] = {"low_prob_share": percent}  # all others as numbers


def tiles(c: Comparison, right: Difference | None) -> list[Tile]:
    """The figures at the top of a comparison."""
    made = [
        _tile(METRICS[name].label, m, better=METRICS[name].better, write=WRITTEN.get(name, number))
        for name in TILES
        if (m := c.metrics.get(name))
    ]
    if right is not None:
        made.insert(len(made) - 1, _tile("Right", right, better=True, write=percent))
    return made


def _tile(label: str, m: Difference, *, better: bool | None, write: Callable[[float | None], str]) -> Tile:
    what, before = kind(m, better), write(m.baseline)
    words = {UNCLEAR: f"no clear difference, from {before}", BESIDE: f"from {before}"}.get(
        what, f"{what}, from {before}"
    )
    if what == BESIDE and m.baseline:
        words += f" ({number(100 * (m.candidate / m.baseline - 1), '+')}\u00a0%)"
    return Tile(label=label, value=write(m.candidate), kind=what, words=words)


def set_verdict(scored: Sequence[Scored], name: str, scoring: Any) -> str:
    """One set of traces in a sentence."""
    threshold, of = scoring.get("threshold"), short([name])[0]
    said = f"Local Naturalness of {of} for {scoring.get('student')}: {number(mean(scored, LN))} nats a token"
    said += f"; {percent(mean(scored, 'low_prob_share'))} of the tokens are improbable, below {threshold}"
    right = right_share(scored)
    return f"{said}; " + ("which traces are right is not known." if right is None else f"{percent(right)} are right.")


def set_tiles(scored: Sequence[Scored]) -> list[Tile]:
    made = []
    for name in TILES:
        metric, write = METRICS[name], WRITTEN.get(name, number)
        words = {True: "higher is better", False: "lower is better", None: "a trace"}[metric.better]
        made.append(Tile(label=metric.label, value=write(mean(scored, name)), kind=BESIDE, words=words))
    tile = Tile(label="Right", value=percent(right_share(scored)), kind=BESIDE, words="of the traces")
    return [*made[:-1], tile, made[-1]]

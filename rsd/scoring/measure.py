"""From a trace's token log-probs to its scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rsd.reading import Scoring
from rsd.scoring.metrics import LN

if TYPE_CHECKING:  # which needs torch
    from rsd.scoring.naturalness import TokenScores

RANK_CAP = 100  # of RSR


def measure(scores: "TokenScores", steps: Sequence[int], scoring: Scoring) -> dict[str, float | None]:
    """The scores of one trace from its tokens' log-probs (natural log).

    LN and global log-prob: arXiv 2510.03988. RSR: 2601.14249. ASLEC-DROP: 2604.06834. The share of
    improbable tokens is the diagnosis of 2509.22230. A score without a denominator is None.
    """
    logprobs, local = scores.logprobs.astype(float), scores.local.astype(float)
    sizes = np.diff([*steps, len(logprobs)])
    by_step = np.add.reduceat(local, steps) / sizes
    later = np.ones(len(logprobs), bool)
    later[list(steps)] = False
    surprisal = -float(logprobs.sum())
    p50, p90, p99 = np.percentile(-logprobs, [50, 90, 99])
    mean = float(logprobs.mean())
    values = {
        LN: by_step.mean() if scoring.weighting == "step" else local.mean(),
        "global_logprob": mean,
        "perplexity": math.exp(-mean) if mean > -700 else None,
        "rsr": np.minimum(scores.ranks, RANK_CAP).sum() / surprisal if surprisal > 0 else None,
        "aslec_drop": logprobs[later].mean() if later.any() else None,
        "low_prob_share": (np.exp(logprobs) < scoring.threshold).mean(),
        "surprisal_p50": p50,
        "surprisal_p90": p90,
        "surprisal_p99": p99,
    }
    rounded = {k: None if v is None else round(float(v), 6) for k, v in values.items()}
    return rounded | {
        "scored_tokens": len(logprobs),
        "num_steps": len(steps),
        "tokens_per_step": round(len(logprobs) / len(steps), 6),
    }


class SetRsr:
    """RSR of a set of traces (arXiv 2601.14249): the sum of their mean ranks over that of their mean surprisals."""

    def __init__(self) -> None:
        self._ranks = self._surprisals = 0.0

    def add(self, metrics: Mapping[str, float | None]) -> None:
        """A trace more, by its own scores."""
        rsr, logprob = metrics["rsr"], metrics["global_logprob"]
        if rsr is not None and logprob is not None:
            self._ranks += rsr * -logprob
            self._surprisals -= logprob

    @property
    def value(self) -> float | None:
        return self._ranks / self._surprisals if self._surprisals > 0 else None


def set_rsr(scored: Iterable[Mapping[str, float | None]]) -> float | None:
    """RSR of a set of traces."""
    made = SetRsr()
    for metrics in scored:
        made.add(metrics)
    return made.value

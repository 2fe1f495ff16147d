"""From validities to weights. The formulas are this project's, after the idea of arXiv 2605.04078.

That paper weighs how hard a student is to learn each step of a teacher's trace: hard where the student's own move from
the same prefix is less valid than the teacher's, little where it is as valid. How it calibrates is not public. Here
V(a | h) is the validity of a move a, a step, after the prefix h, and a step's weight

    w = sigmoid((V(teacher's move) - V(student's own)) / temperature)

which is 0.5 for moves that are equally valid, and where nothing is known of one of them.
"""

import math
from collections.abc import Sequence

import numpy as np

HALF = 0.5
DIGITS = 6


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, dtype=np.float64)))


def mean(logprobs: np.ndarray) -> float | None:
    """The mean of those log-probs [T] that are known and finite; None if none is."""
    known = logprobs[np.isfinite(logprobs)]
    return float(known.mean()) if len(known) else None


def weight(teacher: float | None, student: float | None, temperature: float) -> float:
    """A step's weight from the validities of both moves."""
    if teacher is None or student is None:
        return HALF
    return float(sigmoid((teacher - student) / temperature))


def token_weights(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    """The same of single tokens [T], from both models' log-probs of them."""
    known = np.isfinite(teacher) & np.isfinite(student)
    gap = np.where(known, teacher, 0.0) - np.where(known, student, 0.0)
    return sigmoid(gap / temperature)


def rollout_weight(teacher: int, student: int, *, rollouts: int, temperature: float) -> float:
    """A step's weight from how many of so many rollouts of both moves were right.

    With d the difference of the shares and se its standard error,

        w = 0.5 + (sigmoid(d / temperature) - 0.5) d^2 / (d^2 + se^2)

    so that what may be noise weighs little. se^2 is the sum of both p (1 - p) / M, each p with Laplace's (k + 1) /
    (M + 2) in place of k / M, so that none is certain.
    """
    d = (teacher - student) / rollouts
    shares = [(right + 1) / (rollouts + 2) for right in (teacher, student)]
    variance = sum(p * (1 - p) for p in shares) / rollouts
    return HALF + (float(sigmoid(d / temperature)) - HALF) * d * d / (d * d + variance)


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """As rows hold them. A validity that is no number JSON has is None."""
    return [None if v is None or not math.isfinite(v) else round(float(v), DIGITS) for v in values]

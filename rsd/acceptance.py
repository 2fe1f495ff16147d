"""The values that decide which tokens stand: how both models are sampled from, and when a proposal is accepted."""

import math
from dataclasses import dataclass
from typing import Literal

from rsd.settings import called, check, check_share


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling values in force, for teacher and student alike.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 20

    def __post_init__(self) -> None:
        check(self)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"{called('temperature')} must be 0 (greedy) or positive, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{called('top_p')} must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"{called('top_k')} must be 0 (off) or positive, not {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """When a proposal of the teacher stands (RSD, arXiv 2509.22230, section 3).

    threshold: a proposal needs at least this student probability; 0 accepts every proposal (the raw
        teacher), 1 none (the student alone, by definition).
    threshold_on: the probability that is compared: "raw" is the student's softmax at temperature 1,
        "sampled" the student's distribution after temperature, top-k and top-p. Greedy always reads raw.
    trials: draws of the teacher before the student falls back on its own token; `math.inf` is allowed.
    top_k: the proposal must also be among this many likeliest tokens of the student; 0 is off.
    """

    threshold: float = 0.01
    threshold_on: Literal["raw", "sampled"] = "raw"
    trials: float = 5
    top_k: int = 0

    def __post_init__(self) -> None:
        check(self)
        check_share("threshold", self.threshold)
        if not (self.trials == math.inf or (self.trials >= 1 and self.trials == int(self.trials))):
            raise ValueError(f"{called('trials')} must be a whole number of at least 1, or inf, not {self.trials}")
        if self.top_k < 0:
            raise ValueError(f"{called('accept_top_k')} must be 0 (off) or positive, not {self.top_k}")

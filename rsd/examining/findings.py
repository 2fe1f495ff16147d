"""What was found of a pair: figures, each with what it is of. Nothing here is a judgement; those are in `rules`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OVERLAPS = (1, 5, 20)  # of the likeliest tokens
SHOWN = 20  # tokens that fall most often
INSTEAD = 3  # and what stands in the place of each


@dataclass(frozen=True, kw_only=True)
class SetFindings:
    """One set of traces, of `traces` problems.

    cut: traces that came to no end, by their length or in a loop. judged, solved: problems of which it is known whether
    the trace is right, and where it is, and came to an end. own: the share of tokens that are the student's own. below:
    by threshold, the share of tokens that the student gives less. ln: the mean Local Naturalness (arXiv 2510.03988),
    with the 95 % interval of a percentile bootstrap over the traces, None for one trace. A rate is None without tokens.
    """

    traces: int
    tokens: int
    cut: int
    judged: int
    solved: int
    own: float | None
    below: Mapping[float, float]
    ln: float | None
    ln_interval: tuple[float, float] | None
    tokens_per_second: float
    tokens_per_round: float

    @property
    def tokens_per_trace(self) -> float:
        return self.tokens / max(self.traces, 1)


@dataclass(frozen=True, kw_only=True)
class AtThreshold:
    """What a threshold does.

    raw_below: the share of raw tokens below it. raw_accepted, accepted: a = q(A), the mean chance that one proposal of
    the teacher stands, on its raw text and on that of RSD. fallback: the mean of (1-a)^n on that of RSD, with n trials;
    first_falls: the same for one trial, 1-a. At another threshold than the traces' own they are estimates, since its
    text would be another one.
    """

    threshold: float
    raw_below: float
    raw_accepted: float
    accepted: float
    fallback: float
    first_falls: float


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The mean share of the teacher's k likeliest tokens that are among the student's k: in the first third of the
    tokens of each trace, and in the last; None where nothing is known."""

    k: int
    early: float | None
    late: float | None


@dataclass(frozen=True, kw_only=True)
class Fallen:
    """A token of the raw text that is often below the threshold: how often, of how many times that it stands there, and
    what the student finds likeliest in these places, with how often."""

    token: str
    below: int
    of: int
    instead: Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Of the problems of which both sides are judged and came to an end: those that one side alone solves, and the
    two-sided p-value of a sign test that both are as likely."""

    wins: int
    losses: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was found.

    one_model: both roles have the same weights, and read the same prompt. notices: what is to be said of the pair.
    memory: what a job takes. problems, of: that were looked at, and that there are. errors: of problems that no trace
    could be made of, the first of each. left_out: the share of the teacher's mass that is no token of the student's, on
    raw text. thresholds: ascending. raw_overlaps, overlaps: on raw text, on that of RSD. fallen: the most frequent
    first; falls: how many raw tokens are below the threshold. teacher_student, teacher_rsd: who solves more.
    """

    teacher: str
    student: str
    one_model: bool
    vocabularies: str
    notices: Sequence[str]
    memory: str
    temperature: float
    top_p: float
    top_k: int
    threshold: float
    threshold_on: str
    trials: float
    max_new_tokens: int
    seed: int
    problems: int
    of: int
    errors: Sequence[str]
    left_out: float
    raw: SetFindings
    rsd: SetFindings
    student_alone: SetFindings
    thresholds: Sequence[AtThreshold]
    raw_overlaps: Sequence[Overlap]
    overlaps: Sequence[Overlap]
    falls: int
    fallen: Sequence[Fallen]
    teacher_student: Contest
    teacher_rsd: Contest

    def at(self, threshold: float) -> AtThreshold:
        return next(one for one in self.thresholds if one.threshold == threshold)

"""What follows from what was found: rules, each a number against a bound, in words, and whose rule it is.

None of them is proven. What a student learns from traces shows when it is trained, and not before.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rsd.examining.findings import Findings, SetFindings
from rsd.settings import called

PAPER = "arXiv 2509.22230"  # reverse speculative decoding
PAPERS_THRESHOLD = 0.01
MOST_FALLBACK = 0.5
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule holds where its value is on its side of the bound; a value of None is not known, and it says nothing.

    what: the value in words. says: what is recommended. verdict: of those that decide, what all comes to, in a
    sentence. Both are templates, of f (the findings) and the `words` of `recommendations`. source: whose rule it is.
    after: those of which one must have decided, if that matters.
    """

    name: str
    what: str
    value: Callable[[Findings], float | None]
    sign: str
    bound: float
    says: str
    source: str
    verdict: str | None = None
    after: Sequence[str] = ()

    def holds(self, f: Findings) -> bool:
        value = self.value(f)
        return value is not None and SIGNS[self.sign](value, self.bound)


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What a rule says of a pair: its value, where that was compared with the bound. verdict: as of `Rule`."""

    name: str
    says: str
    what: str
    value: float
    sign: str
    bound: float
    source: str
    verdict: str | None

    @property
    def why(self) -> str:
        """The number against the bound."""
        return f"{self.what}: {short(self.value)} {self.sign} {short(self.bound)}"


def short(value: float) -> str:
    return f"{value:.3g}"


def begin_with(f: Findings) -> float | None:
    """The threshold to begin with: the paper's, or else the largest one below it at which no more than half of the
    tokens are expected to be the student's own; None if there is none."""
    fit = [t.threshold for t in f.thresholds if t.threshold <= PAPERS_THRESHOLD and t.fallback <= MOST_FALLBACK]
    return max(fit, default=None)


def answered(*sets: SetFindings) -> bool:
    """Whether at least half of these traces came to an end, so that their answers say something; and are judged."""
    return all(s.judged and 2 * s.cut <= s.traces for s in sets)


def student_wins(f: Findings) -> float | None:
    """The p-value of a sign test, if the student solves more than the teacher; else 1."""
    contest = f.teacher_student
    if not answered(f.raw, f.student_alone):
        return None
    return contest.p_value if contest.losses > contest.wins else 1.0


def teacher_wins(f: Findings) -> float | None:
    """The same of the teacher; None where another rule says what it solves."""
    contest = f.teacher_student
    said = f.one_model or not f.raw.solved or (student_wins(f) or 0.0) < SURE
    return None if said else contest.p_value if contest.wins > contest.losses else 1.0


def rsd_loses(f: Findings) -> float | None:
    """The same of the raw traces, against RSD's."""
    contest = f.teacher_rsd
    if not answered(f.raw, f.rsd):
        return None
    return contest.p_value if contest.wins > contest.losses else 1.0


def raw_below(f: Findings) -> float:
    return f.at(PAPERS_THRESHOLD).raw_below


def drift(f: Findings) -> float | None:
    """By how much less the likeliest tokens agree late in RSD's text than early in it."""
    first = f.overlaps[0]
    return None if first.early is None or first.late is None else first.early - first.late


SURE = 0.05
ALONE = "{f.raw.solved} of {f.raw.judged} against the student's {f.student_alone.solved} of {f.student_alone.judged}"
# Of these the first one that holds decides; one always does.
VERDICTS: Sequence[Rule] = (
    Rule(
        name="one model",
        what="teacher and student are one model with one prompt (1: yes)",
        value=lambda f: float(f.one_model),
        sign=">=",
        bound=1,
        says="RSD changes nothing but what falls by chance. Give the teacher what the student does not know (such as a "
        "solution, by {teacher_template}), or take another one.",
        source="ours",
        verdict="Teacher and student are one model, and RSD changes next to nothing: nothing is gained by it.",
    ),
    Rule(
        name="swapped",
        what="sign test that both solve as many, the student solving more",
        value=student_wins,
        sign="<",
        bound=SURE,
        says="The teacher solves fewer problems by itself: " + ALONE + ". Are {teacher} and {student} swapped?",
        source="ours",
        verdict="The student solves more than the teacher: are the two swapped?",
    ),
    Rule(
        name="no answers",
        what="problems that the teacher solves alone",
        value=lambda f: float(f.raw.solved) if answered(f.raw) else None,
        sign="<=",
        bound=0,
        says="The teacher solves none of {f.raw.judged} problems ({f.raw.cut} of its traces were cut): look at its "
        "traces, its chat template, how long they may be ({max_new_tokens}), and what the answers look like.",
        source="ours",
        verdict="The teacher solves none of these problems: there is nothing to learn from its traces.",
    ),
    Rule(
        name="apart",
        what="expected share of the student's own tokens at the lowest threshold",
        value=lambda f: f.thresholds[0].fallback,
        sign=">",
        bound=MOST_FALLBACK,
        says="Even at a threshold of {f.thresholds[0].threshold:g} most tokens are the student's own: the two think in "
        "ways too different. Look for a teacher that is nearer to the student.",
        source=f"ours, after {PAPER}, which drops traces with more than 50% of the student's own tokens",
        verdict="Their ways of thinking differ too much: most tokens of RSD's traces would be the student's own.",
    ),
    Rule(
        name="strangers",
        what="how often both like the same token best, in the first third of RSD's text",
        value=lambda f: f.overlaps[0].early,
        sign="<",
        bound=0.2,
        says="Even on a text that the student accepts, the two seldom like the same token best: what stands of the "
        "teacher stands by chance. Look for a teacher that is nearer to the student.",
        source="ours",
        verdict="Their ways of thinking differ too much: what stands of the teacher stands by chance.",
    ),
    Rule(
        name="raw",
        what=f"share of raw tokens below {PAPERS_THRESHOLD:g}",
        value=raw_below,
        sign="<=",
        bound=0.01,
        says="The student agrees with {agreed} of the raw tokens: train on the raw traces ({threshold} 0), of which "
        "RSD would change little.",
        source=f"the share is the diagnosis of {PAPER}; the bound is ours",
        verdict="The student agrees with {agreed} of the raw tokens: train on the raw traces.",
    ),
    Rule(
        name="little",
        what=f"share of raw tokens below {PAPERS_THRESHOLD:g}",
        value=raw_below,
        sign="<=",
        bound=0.05,
        says="Only {below} of the raw tokens are improbable for the student, so RSD has little to change: train on the "
        "raw traces ({threshold} 0) first, and on RSD's beside them if that disappoints.",
        source=f"the share is the diagnosis of {PAPER}; the bound is ours",
        verdict="Only {below} of the raw tokens are improbable for the student: RSD has little to change.",
    ),
    Rule(
        name="worth it",
        what=f"share of raw tokens below {PAPERS_THRESHOLD:g}",
        value=raw_below,
        sign=">",
        bound=0.05,
        says="{below} of the raw tokens are improbable for the student: this is what RSD is for. Make both sets of "
        "traces, train on both, and measure: nothing here shows that it helps. The paper's one pair lost 20.5% on "
        "raw traces and gained 4.9% on RSD's.",
        source=f"the share is the diagnosis of {PAPER}; the bound is ours",
        verdict="{below} of the raw tokens are improbable for the student: RSD is worth a try.",
    ),
)
# Of these each one speaks that holds.
OTHERS: Sequence[Rule] = (
    Rule(
        name="threshold",
        what="expected share of the student's own tokens with it",
        value=lambda f: None if (t := begin_with(f)) is None else f.at(t).fallback,
        sign="<=",
        bound=MOST_FALLBACK,
        says="Begin with a {threshold} of {begin:g}, and try its neighbours.",
        source=f"{PAPER}: 0.01 was the best of its sweep (told by others, one pair), and traces with more than 50% of "
        "the student's own tokens are dropped; that a lower one is tried then is ours",
        after=("little", "worth it"),
    ),
    Rule(
        name="not better",
        what="sign test that both solve as many",
        value=teacher_wins,
        sign=">=",
        bound=SURE,
        says="It is not shown that the teacher solves more: " + ALONE + ". Look at more problems, or harder ones.",
        source="ours",
    ),
    Rule(
        name="fewer right",
        what="sign test that RSD solves as many as the teacher",
        value=rsd_loses,
        sign="<",
        bound=SURE,
        says="Fewer of RSD's traces are right: {f.rsd.solved} of {f.rsd.judged}, of the raw ones {f.raw.solved} of "
        "{f.raw.judged}. Sample until one is right ({until_correct}), or lower the threshold.",
        source="ours",
    ),
    Rule(
        name="student solves nothing",
        what="problems that the student solves alone",
        value=lambda f: float(f.student_alone.solved) if answered(f.student_alone) else None,
        sign="<=",
        bound=0,
        says="The student solves none of {f.student_alone.judged} problems alone ({f.student_alone.cut} of its traces "
        "were cut): easier problems may be a better beginning.",
        source="ours",
    ),
    Rule(
        name="cut",
        what="share of raw traces that were cut",
        value=lambda f: f.raw.cut / max(f.raw.traces, 1),
        sign=">",
        bound=0.25,
        says="{f.raw.cut} of {f.raw.traces} raw traces were cut at {f.max_new_tokens} tokens or in a loop, and count "
        "as not solved: late tokens are those of beginnings, and where more than half are cut, nothing is said of who "
        "solves more. Give more {max_new_tokens}.",
        source="ours",
    ),
    Rule(
        name="left out",
        what="share of the teacher's mass that is no token of the student's",
        value=lambda f: f.left_out,
        sign=">",
        bound=0.05,
        says="Much of what the teacher would say the student has no tokens for: look at what is only in the teacher.",
        source="ours",
    ),
    Rule(
        name="drift",
        what="fall of the share of places in which both like the same token best, from early to late",
        value=drift,
        sign=">",
        bound=0.1,
        says="The two part as RSD's traces go on: look at late parts of traces, and compare lengths.",
        source="ours",
    ),
    Rule(
        name="few problems",
        what="problems that were looked at",
        value=lambda f: float(f.rsd.traces),
        sign="<",
        bound=16,
        says="Of so few problems all figures are rough: give more.",
        source="ours",
    ),
)


def recommendations(f: Findings) -> list[Recommendation]:
    """What the rules say; the first one decides, and has the verdict."""
    words: dict[str, Any] = {
        "f": f,
        "begin": begin_with(f) or 0.0,
        "below": f"{raw_below(f):.1%}",
        "agreed": f"{1 - raw_below(f):.1%}",
    }
    names = ("teacher", "student", "threshold", "max_new_tokens", "teacher_template")
    words |= {name: called(name) for name in names} | {"until_correct": called("until_correct", True)}
    decides = next(rule for rule in VERDICTS if rule.holds(f))
    others = [rule for rule in OTHERS if rule.holds(f) and (not rule.after or decides.name in rule.after)]
    return [
        Recommendation(
            name=rule.name,
            says=rule.says.format(**words),
            what=rule.what,
            value=rule.value(f) or 0.0,
            sign=rule.sign,
            bound=rule.bound,
            source=rule.source,
            verdict=rule.verdict and rule.verdict.format(**words),
        )
        for rule in (decides, *others)
    ]

"""What follows from figures: one verdict, and advice with its number, bound and source."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.examining.examination import Examination
from rsd.examining.findings import AtThreshold, Contest, Findings, Overlap, SetFindings
from rsd.examining.rules import OTHERS, VERDICTS, begin_with, recommendations
from rsd.settings import as_flags

EVEN = Contest(wins=0, losses=0, p_value=1.0)
MADE = SetFindings(
    traces=32,
    tokens=3200,
    cut=0,
    judged=32,
    solved=30,
    own=0.02,
    below={0.001: 0.2, 0.01: 0.3},
    ln=-1.0,
    ln_interval=(-1.1, -0.9),
    tokens_per_second=100.0,
    tokens_per_round=3.0,
)


def at(threshold: float, *, below: float = 0.3, fallback: float = 0.05) -> AtThreshold:
    return AtThreshold(
        threshold=threshold,
        raw_below=below,
        raw_accepted=1 - below,
        accepted=1 - fallback,
        fallback=fallback,
        first_falls=fallback,
    )


def found(**other) -> Findings:
    """A pair that RSD is for."""
    overlap = Overlap(k=1, early=0.9, late=0.9)
    values = {
        "teacher": "t",
        "student": "s",
        "one_model": False,
        "vocabularies": "the same tokens",
        "notices": [],
        "memory": "memory: little",
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 20,
        "threshold": 0.01,
        "threshold_on": "raw",
        "trials": 5,
        "max_new_tokens": 256,
        "seed": 0,
        "problems": 32,
        "of": 256,
        "errors": [],
        "left_out": 0.0,
        "raw": MADE,
        "rsd": replace(MADE, solved=28),
        "student_alone": replace(MADE, solved=10),
        "thresholds": [at(0.001), at(0.01), at(0.1)],
        "raw_overlaps": [overlap],
        "overlaps": [overlap],
        "falls": 0,
        "fallen": [],
        "teacher_student": Contest(wins=20, losses=0, p_value=2e-6),
        "teacher_rsd": EVEN,
    }
    return Findings(**values | other)


def names(f: Findings) -> list[str]:
    return [one.name for one in recommendations(f)]


CASES = {
    "as it should be": ({}, ["worth it", "threshold"]),
    "one model": ({"one_model": True, "teacher_student": EVEN}, ["one model"]),
    "swapped": ({"teacher_student": Contest(wins=0, losses=9, p_value=0.004)}, ["swapped"]),
    "hardly worse": (
        {"teacher_student": Contest(wins=1, losses=3, p_value=0.6)},
        ["worth it", "threshold", "not better"],
    ),
    "not better": ({"teacher_student": EVEN}, ["worth it", "threshold", "not better"]),
    "nothing solved": ({"raw": replace(MADE, solved=0), "teacher_student": EVEN}, ["no answers"]),
    "nothing ended": (
        {"raw": replace(MADE, solved=0, cut=32), "teacher_student": Contest(wins=0, losses=9, p_value=0.004)},
        ["worth it", "threshold", "cut"],
    ),
    "no answers known": (
        {name: replace(MADE, judged=0, solved=0) for name in ("raw", "rsd", "student_alone")},
        ["worth it", "threshold"],
    ),
    "apart": ({"thresholds": [at(0.001, fallback=0.6), at(0.01, fallback=0.9)]}, ["apart"]),
    "strangers": ({"overlaps": [Overlap(k=1, early=0.1, late=0.1)]}, ["strangers"]),
    "agree": ({"thresholds": [at(0.001, below=0.001), at(0.01, below=0.01)]}, ["raw"]),
    "agree nearly": ({"thresholds": [at(0.001, below=0.001), at(0.01, below=0.05)]}, ["little", "threshold"]),
    "a lower threshold": (
        {"thresholds": [at(0.001, fallback=0.1), at(0.003, fallback=0.4), at(0.01, fallback=0.6)]},
        ["worth it", "threshold"],
    ),
    "fewer right": (
        {"teacher_rsd": Contest(wins=12, losses=1, p_value=0.003)},
        ["worth it", "threshold", "fewer right"],
    ),
    "a student that solves nothing": (
        {"student_alone": replace(MADE, solved=0)},
        ["worth it", "threshold", "student solves nothing"],
    ),
    "no tokens for it": ({"left_out": 0.2}, ["worth it", "threshold", "left out"]),
    "they part": ({"overlaps": [Overlap(k=1, early=0.9, late=0.5)]}, ["worth it", "threshold", "drift"]),
    "few": ({"rsd": replace(MADE, traces=4)}, ["worth it", "threshold", "few problems"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_follows_from_the_figures(case):
    other, said = CASES[case]
    assert names(found(**other)) == said


def test_every_rule_is_met_by_a_case():
    met = {name for other, _ in CASES.values() for name in names(found(**other))}
    assert met == {rule.name for rule in (*VERDICTS, *OTHERS)}


def test_the_threshold_is_the_papers_or_the_next_one_that_leaves_the_teacher_its_half():
    assert begin_with(found()) == 0.01  # not the higher one
    assert begin_with(found(**CASES["a lower threshold"][0])) == 0.003
    assert begin_with(found(**CASES["apart"][0])) is None


def test_advice_has_a_number_a_bound_and_a_source_and_calls_settings_as_they_are_given():
    for other, _ in CASES.values():
        for one in recommendations(found(**other)):
            assert one.source and one.sign in one.why and one.says.endswith((".", "?")) and "{" not in one.says
    says = recommendations(found(one_model=True))[0].says
    assert "teacher_template" in says and "--" not in says
    with as_flags():
        assert "--teacher-template" in recommendations(found(one_model=True))[0].says


shares = st.floats(0, 1)
counts = st.integers(0, 32)
sets = st.builds(
    lambda cut, judged, solved, ln: replace(MADE, cut=cut, judged=judged, solved=min(solved, judged), ln=ln),
    counts,
    st.sampled_from([0, 32]),
    counts,
    st.none() | st.floats(-20, 0),
)
contests = st.builds(lambda w, n, p: Contest(wins=w, losses=n, p_value=p), counts, counts, shares)
overlaps = st.builds(lambda a, b: [Overlap(k=1, early=a, late=b)], st.none() | shares, st.none() | shares)
thresholds = st.lists(st.tuples(shares, shares), min_size=3, max_size=3).map(
    lambda some: [at(t, below=b, fallback=f) for t, (b, f) in zip((0.001, 0.01, 0.1), some, strict=True)]
)


@given(
    st.fixed_dictionaries(
        {
            "raw": sets,
            "rsd": sets,
            "student_alone": sets,
            "thresholds": thresholds,
            "overlaps": overlaps,
            "teacher_student": contests,
            "teacher_rsd": contests,
            "left_out": shares,
            "one_model": st.booleans(),
        }
    )
)
def test_whatever_is_found_one_verdict_is_given_first_and_no_other(values):
    f = found(**values)
    made = recommendations(f)
    assert made[0].verdict and not any(one.verdict for one in made[1:])
    assert len({one.name for one in made}) == len(made)
    e = Examination(f)
    assert (e.threshold is not None) == ("threshold" in names(f))
    assert all(len(line) < 80 for line in e.text().splitlines())
    assert not {"swapped", "no answers", "fewer right"} & {*names(f)} or f.raw.cut <= f.raw.traces / 2

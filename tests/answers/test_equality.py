"""Which answers are the same: a table of pairs with their truth, and what holds for any two answers."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rsd.answers.equality import LONGEST, is_answer, same
from rsd.answers.verifier import Verifier

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text("utf-8").splitlines()]
EQUAL = sum(pair["equal"] for pair in PAIRS)


@pytest.fixture(scope="module", params=["boxed", "math"])
def wrong(request):
    """How answers are compared, and the pairs of the table that are judged wrongly."""
    verifier = Verifier(request.param)
    said = [verifier.submit(f"\\boxed{{{pair['answer']}}}", {}, pair["reference"]) for pair in PAIRS]
    judged = [(pair, verdict.result(60).correct) for pair, verdict in zip(PAIRS, said, strict=True)]
    verifier.stop()
    return request.param, [pair for pair, verdict in judged if (verdict is True) != pair["equal"]]


def test_different_answers_of_the_table_are_not_taken_for_equal(wrong):
    how, pairs = wrong
    taken = [(pair["answer"], pair["reference"]) for pair in pairs if not pair["equal"]]
    assert len(taken) <= {"boxed": 0, "math": 0.01}[how] * EQUAL, taken


def test_equal_answers_of_the_table_are_found(wrong):
    how, pairs = wrong
    missed = [(pair["answer"], pair["reference"]) for pair in pairs if pair["equal"]]
    assert len(missed) < {"boxed": 0.06, "math": 0.03}[how] * EQUAL, missed


def test_the_table_holds_enough_of_both():
    assert len(PAIRS) >= 250 and 0.3 * len(PAIRS) < EQUAL < 0.7 * len(PAIRS)


PARTS = st.sampled_from(
    [pair[side] for pair in PAIRS for side in ("answer", "reference")]
    + list("0123456789xyei+-*/^_=<>()[]{}.,;:|!%° $\\&'\"√½²")
    + r"\frac \sqrt \cup \pm \le \text{ \mathrm{ \left( \right) \{ \} \infty \in \log_".split()
)
ANSWERS = st.one_of(st.lists(PARTS, max_size=6).map("".join), st.text(max_size=20))


@given(ANSWERS)
def test_an_answer_is_itself_with_any_white_space_around_it(answer):
    assert same(answer, answer) is True
    assert same(f" {answer}\n\t", answer) is True


@given(ANSWERS, ANSWERS)
def test_the_two_answers_can_be_exchanged(a, b):
    assert same(a, b) is same(b, a)


@pytest.mark.parametrize("pair", PAIRS[::7], ids=lambda pair: pair["answer"])
def test_white_space_around_the_answers_of_the_table_does_not_matter(pair):
    assert same(f"  {pair['answer']} ", f"\n{pair['reference']}\u00a0") is same(pair["answer"], pair["reference"])


SPELLINGS = [
    "{n}/{d}",
    "{n} / {d}",
    r"\frac{{{n}}}{{{d}}}",
    r"$\dfrac{{{n}}}{{{d}}}$",
    r"x = \frac{{{n}}}{{{d}}}",
    r"{n} \cdot {d}^{{-1}}",
]
FRACTIONS = st.fractions(max_denominator=1000) | st.integers(-(10**40), 10**40).map(Fraction)


@given(FRACTIONS, FRACTIONS, st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS))
def test_fractions_are_the_same_when_they_are_equal_however_spelled(a, b, one, other):
    spelled = one.format(n=a.numerator, d=a.denominator)
    assert same(spelled, other.format(n=7 * a.numerator, d=7 * a.denominator)) is True
    assume(a != b)
    assert same(spelled, other.format(n=b.numerator, d=b.denominator)) is False


@given(st.integers(), st.integers())
def test_integers_are_the_same_when_they_are_equal(a, b):
    assert same(f"{a:,}", str(a)) is True
    assert same(str(a), f"+{b}" if b >= 0 else str(b)) is (a == b)


@given(st.integers(0, 999), st.integers(1, 98), st.integers(2, 99))
def test_white_space_between_digits_is_not_deleted(whole, n, d):
    assume(n < d)
    assume((whole + Fraction(n, d)) != Fraction(int(f"{whole}{n}"), d))  # 1 1/10 is 11/10
    assert same(f"{whole} {n}/{d}", f"{whole}{n}/{d}") is False
    assert same(f"{whole} {n}/{d}", f"{whole * d + n}/{d}") is True
    assert same(f"{whole} {n}", f"{whole}{n}") is False


@given(st.integers(1, 999), st.integers(100, 999))
def test_a_comma_in_brackets_stands_between_items(a, b):
    for opening, closing in ("()", "[]", (r"\{", r"\}")):
        assert same(f"{opening}{a},{b}{closing}", f"{opening}{a}, {b}{closing}") is True
        assert same(f"{opening}{a},{b}{closing}", f"{opening}{a}{b}{closing}") is False
    assert same(f"{a},{b}", f"{a}{b}") is True


@given(st.decimals(-1000, 1000, places=6), st.decimals(-1000, 1000, places=7))
def test_decimals_are_never_rounded(a, b):
    assume(a != b)
    assert same(f"{a:f}", f"{b:f}") is False
    assert same(f"{a:f}", str(Fraction(a))) is True


ENDLESS = {
    "zeros": "0" * 300_000 + "x",
    "decimals": "1." + "0" * 300_000 + "x",
    "texts": "\\text " * 50_000 + "x",
    "thousands": "1,111" * 60_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_is_compared_as_it_is(name):
    assert same(f" {ENDLESS[name]} ", ENDLESS[name]) is True
    assert same(ENDLESS[name], "1/2") is False


HOSTILE = {
    "braces": "{" * 900 + "1" + "}" * 900,
    "parentheses": "(" * 900 + "1" + ")" * 900,
    "tower": "9^{" * 490 + "9" + "}" * 490,
    "power": "9^{9^{9^{9^9}}}",
    "exponent": "9^{" + "9" * 1900 + "}",
    "factorials": "((999!)!)!",
    "roots": r"\sqrt" * 390 + "2",
    "great root": r"\sqrt{" + "9" * 1900 + "}",
    "fractions": "+".join(f"1/{i}" for i in range(101, 420)),
    "functions": r"\sin " * 390 + "x",
    "bars": "|" * 1990,
    "signs": r"\pm " * 480,
    "list": ", ".join(map(str, range(400))),
    "scientific": "1e9999",
    "divided by zero": r"\frac{1}{0}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_has_a_verdict(name):
    answer = HOSTILE[name]
    assert len(answer) < LONGEST
    assert same(answer, "x+1") is not True
    assert same(answer, answer + " ") is True


PROSE = [
    "Proof. Let $n$ be an integer. Then $n^2+n=n(n+1)$ is even.",
    "By AM-GM the expression is at least 2, with equality iff x=1",
    "Assume $a>b$. Then $f(a)>f(b)$ for all $f$ monotone.\n\nThus done.",
    "\u8bc1\u660e\uff1a\u8bben\u4e3a\u6574\u6570\u3002\u5219n(n+1)\u4e3a\u5076\u6570\u3002",
    "word " * 50_000,
]


def test_answers_are_told_from_proofs():
    told = [pair[side] for pair in PAIRS for side in ("reference", "answer") if not is_answer(str(pair[side]))]
    assert not told
    assert not any(map(is_answer, PROSE))

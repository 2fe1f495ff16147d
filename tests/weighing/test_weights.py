"""Weights from validities: what must hold whatever these are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.scoring.steps import STEPS, step_end
from rsd.weighing.moves import shared_out
from rsd.weighing.weights import mean, rollout_weight, token_weights, weight

LOGPROB = st.floats(-1e4, 0) | st.just(-math.inf) | st.just(math.nan)
TEMPERATURE = st.floats(1e-3, 1e3)


@given(st.floats(-1e4, 0), st.floats(-1e4, 0), st.floats(-1e4, 0), TEMPERATURE)
def test_the_more_valid_the_teachers_move_the_more_it_weighs(teacher, more, student, temperature):
    low, high = sorted((teacher, more))
    assert 0 <= weight(low, student, temperature) <= weight(high, student, temperature) <= 1
    assert weight(student, high, temperature) <= weight(student, low, temperature)
    assert weight(student, student, temperature) == 0.5
    assert (weight(low, student, temperature) - 0.5) * (low - student) >= 0


def test_weights_by_hand():
    assert weight(-1.0, -3.0, 1.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert weight(-1.0, -3.0, 4.0) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert weight(None, -3.0, 1.0) == weight(-1.0, None, 1.0) == 0.5
    assert mean(np.array([-1.0, math.nan, -3.0, -math.inf])) == -2.0
    assert mean(np.array([math.nan])) is mean(np.array([])) is None


@given(st.lists(st.tuples(LOGPROB, LOGPROB), min_size=1), TEMPERATURE)
def test_no_tokens_weight_is_nan(pairs, temperature):
    teacher, student = np.array(pairs).T
    made = token_weights(teacher, student, temperature)
    assert ((made >= 0) & (made <= 1)).all()
    unknown = ~np.isfinite(teacher) | ~np.isfinite(student)
    assert (made[unknown] == 0.5).all()
    known = [weight(a, b, temperature) for a, b in zip(teacher[~unknown], student[~unknown], strict=True)]
    assert made[~unknown].tolist() == pytest.approx(known)


@given(st.integers(1, 50), st.data(), st.floats(0.01, 10))
def test_what_may_be_noise_weighs_little(rollouts, data, temperature):
    teacher, student = (data.draw(st.integers(0, rollouts)) for _ in "ab")
    how = {"rollouts": rollouts, "temperature": temperature}
    made = rollout_weight(teacher, student, **how)
    plain = weight(teacher / rollouts, student / rollouts, temperature)
    assert 0 <= made <= 1 and (made == 0.5) == (teacher == student)
    assert abs(made - 0.5) <= abs(plain - 0.5)
    # The same shares of more rollouts are less noise, and both moves are treated alike.
    many = rollout_weight(10 * teacher, 10 * student, rollouts=10 * rollouts, temperature=temperature)
    assert abs(made - 0.5) <= abs(many - 0.5)
    assert rollout_weight(student, teacher, **how) == pytest.approx(1 - made)
    if teacher < rollouts and teacher >= student:
        assert rollout_weight(teacher + 1, student, **how) >= made


def test_a_rollout_weight_by_hand():
    # 3 of 4 against 1 of 4: d = 1/2, both p = 4/6 and 2/6, se^2 = 2 * (2/9) / 4 = 1/9.
    want = 0.5 + (1 / (1 + math.exp(-0.5)) - 0.5) * 0.25 / (0.25 + 1 / 9)
    assert rollout_weight(3, 1, rollouts=4, temperature=1.0) == pytest.approx(want)


def test_log_probs_of_other_tokens_are_shared_out_between_common_places():
    # "forty-two." as forty-two|. and as forty|-|two|. : three tokens share one log-prob, the stop has its own.
    made = shared_out(np.array([-6.0, -1.0]), [0, 9], [0, 5, 6, 9])
    assert made.tolist() == [-2.0, -2.0, -2.0, -1.0]
    # And the other way round: what spells one token is added up.
    assert shared_out(np.array([-1.0, -2.0, -3.0, -4.0]), [0, 5, 6, 9], [0, 9]).tolist() == [-6.0, -4.0]


@given(st.lists(st.integers(1, 30), unique=True), st.lists(st.integers(1, 30), unique=True), st.randoms())
def test_no_log_prob_is_lost_in_sharing(theirs, ours, random):
    theirs, ours = [0, *sorted(theirs)], [0, *sorted(ours)]
    logprobs = np.array([-random.random() for _ in theirs])
    assert shared_out(logprobs, theirs, ours).sum() == pytest.approx(logprobs.sum())


PIECES = '.|! |\n|\n\n|```|$|$$|\\[|1|a|The |Step 3|e.g|No|- |`|"|( |。|<think>'.split("|")
WORDS = ["a", "B", "The", "Step", "3", "12", " ", "Case", "No", "of"]


@given(st.lists(st.sampled_from(PIECES)), st.lists(st.sampled_from(WORDS), min_size=1), st.sampled_from(STEPS))
def test_no_step_ends_among_words_and_numbers(before, words, steps):
    """So nobody needs to look there (`texts.Texts.plain`)."""
    before = "".join(before)
    assert step_end(before + "".join(words), len(before), steps=steps) is None

"""How far a round drafts: what it learns, and what that is worth, on simulated machines; and what is looked up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.decoding.block_size import BlockController
from rsd.decoding.lookup import GRAM, LookUp


def regret(step, column, survival, *, rounds=600, rows=8, blind=False, noise=0.1, drift=0.0, seed=0):
    """Time a token of `BlockController` over that of the best constant length, on a simulated machine.

    step: seconds of a step of the student; column: of the teacher's pass over so many columns. survival: of drafts on
    average; how likely one is to stand is told by the student's probability as well as it can be.
    blind: drafts are looked at when all are made. noise: of a pass's time; drift: of the machine's speed.
    """
    random = np.random.default_rng(seed)
    blocks, took, made, speed, sizes = BlockController(), 0.0, 0, 0.0, set()
    for _ in range(rounds):
        most = blocks.plan(rows) if blind else blocks.most()
        sure, uniform = random.beta(4 * survival, 4 * (1 - survival), (rows, most)), random.random((rows, most))
        chance = blocks.chance(sure, uniform)
        reach = np.concatenate([np.ones((rows, 1)), chance.cumprod(1)], 1)
        k = most if blind else next((k for k in range(1, most) if not blocks.goes_on(reach[:, k])), most)
        counts = blocks.counts(reach[:, :k])
        k = int(counts.max())
        asked = np.arange(k) < counts[:, None]
        stood = (uniform < sure)[:, :k] & asked
        judged = asked & np.concatenate([np.ones((rows, 1), bool), stood[:, :-1].cumprod(1).astype(bool)], 1)
        tokens, columns = int(judged.sum()), int(counts.sum())
        speed = 0.97 * speed + random.normal(0, drift * (1 - 0.97**2) ** 0.5)
        drafting, verifying = (
            x * np.exp(speed + random.normal(0, noise)) * (1 if kind in sizes else 1.5)  # the first is cold
            for kind, x in (("step", k * step), (round(2 * math.log2(columns)), column(columns)))
        )
        sizes |= {"step", round(2 * math.log2(columns))}
        blocks.learn(
            drafting=drafting,
            verifying=verifying,
            steps=k,
            columns=columns,
            verified=judged,
            survived=judged & stood,
            ends=np.zeros((rows, k), bool),
            tokens=tokens,
        )
        blocks.judged(sure[:, :k][judged], np.ones(int(judged.sum())) * sure[:, :k][judged])
        took, made = took + k * step + column(columns), made + tokens
    best = min(
        (k * step + column(rows * k)) / (rows * (1 - survival**k) / (1 - survival)) for k in (1, 2, 3, 4, 6, 8, 12, 16)
    )
    assert blocks.tokens_per_round == pytest.approx(made / rounds / rows)
    return took / made / best


@pytest.mark.parametrize("survival", [0.3, 0.6, 0.75, 0.9, 0.98])
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize(
    ("step", "column"),
    [
        (0.25, lambda n: 1.0),  # a pass costs the same for any number of columns
        (0.07, lambda n: n / 8),  # many rows on a CPU: columns are what costs
        (0.07, lambda n: 0.4 + n / 16),
        (0.07, lambda n: max(1, n / 32)),  # memory-bound up to four columns a row
    ],
)
def test_the_pace_is_nearly_the_best(step, column, survival, blind):
    assert np.median([regret(step, column, survival, blind=blind, seed=seed) for seed in range(3)]) < 1.07


def test_the_pace_never_costs_much_against_lockstep():
    # Where lockstep is best, in a long run, learning included.
    for survival in (0.3, 0.6, 0.75, 0.9):
        assert regret(0.5, lambda n: n / 8, survival, rounds=1000) < 1.03


def test_doubtful_drafts_are_not_asked_for():
    # Where columns are what costs, to choose them by what is known of each draft beats every constant length.
    for seed in range(3):
        assert regret(0.02, lambda n: 0.4 + n / 10, 0.75, rounds=1500, seed=seed) < 0.95


def after_rounds(*, stood, rounds=40, rows=4):
    """What a controller has learned where tokens that were looked up stood, or fell."""
    blocks = BlockController()
    for _ in range(rounds):
        one = np.ones((rows, 1), bool)
        blocks.learn(
            drafting=0.5, verifying=1, steps=1, columns=rows, verified=one, survived=one, ends=~one, tokens=rows
        )
        streak, sure = np.full(rows, GRAM), np.full(rows, 0.9)
        blocks.judged_looked_up(streak, np.zeros(rows, bool), sure, sure, np.full(rows, stood))
    return blocks


def test_what_seldom_stands_is_looked_up_no_more():
    assert after_rounds(stood=True).look_up(4, GRAM) > 4
    assert after_rounds(stood=False).look_up(4, GRAM) == 0
    assert BlockController(3).look_up(4, GRAM) == 0  # a block of its own length is left as it was asked for


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_what_is_looked_up_followed_the_same_tokens_before(text, said, count):
    row = LookUp([text, []])
    row.say(said)
    found = row.ahead(count)
    assert len(found) <= count
    if found:  # somewhere in what was read it comes behind the last tokens
        assert any(
            read[i : i + GRAM + len(found)] == [*said[-GRAM:], *found]
            for read in (text, said)
            for i in range(len(read))
        )
    elif len(said) >= GRAM and not row.streak:  # and where it is not found, these tokens were never there before
        last = said[-GRAM:]
        assert all(said[i : i + GRAM] != last for i in range(len(said) - GRAM))


def test_a_text_that_is_said_again_is_looked_up_to_its_end():
    text = list(range(10, 30))
    row = LookUp([[1, 2, *text, 3, -1, 4], [5, 6]])
    row.say(text[:4])
    assert row.ahead(100) == [*text[4:], 3]  # up to what the student has no token for
    row.say([9])
    assert row.ahead(100) == []

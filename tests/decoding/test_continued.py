"""A served teacher that goes on by itself, for the student to read: the same traces, for less asking."""

import numpy as np
import pytest
from stub import Stub
from test_served import (  # noqa: F401 (fixtures)
    ROWS,
    SHORT,
    assert_full_contexts_end,
    assert_refused_alone,
    assert_same,
    config,
    local,
    stub,
    traces,
)

from rsd import GenerateConfig, TraceGenerator
from rsd.decoding.continued import AGAIN, LONGEST, TRIED, TRIES, WARM, Turns
from rsd.models.bundled import bundled


@pytest.fixture
def talking(monkeypatch):
    """Every round is the teacher's, of so many tokens."""

    def rounds(count):
        monkeypatch.setattr(Turns, "plan", lambda self, rows: count)

    return rounds


@pytest.mark.parametrize("count", [1, 5, 16])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_traces_are_those_of_the_teacher_at_hand(stub, local, talking, temperature, count):
    talking(count)
    assert_same(traces(config(stub, temperature=temperature)), local[temperature])
    assert {body["max_tokens"] for body in stub.bodies[4:]} >= {count}


def test_whoever_drafts_next(stub, local, monkeypatch):
    turn = iter([0, 3, 0, 0, 7, 1, 0] * 1000)
    monkeypatch.setattr(Turns, "plan", lambda self, rows: next(turn))
    assert_same(traces(config(stub)), local[0.7])


def test_one_request_a_round_and_no_context_twice(stub, talking):
    talking(6)
    generator = TraceGenerator(config(stub, batch_size=4))
    generator.run(ROWS)
    books = generator.blocks.statistics()
    asked = stub.bodies[4:]  # the first four find out about the server
    went_on = [body for body in asked if body["max_tokens"] > 1]
    assert len(went_on) <= books["rounds"] and max(len(body["prompt"]) for body in went_on) == 2  # two groups
    # Beside them, only what is spelled: by far fewer contexts than the drafts that were judged.
    contexts = sum(len(body["prompt"]) for body in asked if body["max_tokens"] == 1)
    assert contexts < sum(books["drafts_judged"]) / 4
    assert books["tokens"] / books["row_rounds"] > 2 and max(map(int, books["block_sizes"])) == 6


def test_a_trace_to_its_end_and_a_limit_midway(stub, talking):
    asked = {"max_new_tokens": 200, "temperature": 0}
    want = traces(GenerateConfig(**SHORT | asked))
    assert any(t.finish_reason == "stop" for t in want)
    talking(16)
    assert_same(traces(config(stub, **asked)), want)
    for most in (1, 2, 17):
        short = traces(config(stub, max_new_tokens=most))
        assert {len(t.token_ids) for t in short} == {most}


def test_a_context_that_is_full_ends_a_trace(stub, talking):
    talking(16)
    assert_full_contexts_end(stub)


def test_another_tokenizer(talking, monkeypatch):
    talking(5)
    with Stub(bundled("llama"), name="llama") as stub:
        made = traces(config(stub, teacher_model="llama", teacher_tokenizer="bundled-llama"))
        assert_same(made, traces(GenerateConfig(teacher="bundled-llama", **SHORT)))


def test_a_refused_row_is_an_error_and_the_others_go_on(stub, local, talking, monkeypatch):
    talking(4)
    assert_refused_alone(TraceGenerator(config(stub, batch_size=4)).load(), stub, local, monkeypatch)


def run(turns: Turns, rounds: int, *, seconds, rows: int = 16, stands: float = 0.9) -> list[int]:
    """Plans of so many rounds, where one of n of the teacher's tokens (0: of the student's) takes seconds(n)."""
    draw, plans = np.random.default_rng(0), []
    for _ in range(rounds):
        n = turns.plan(rows)
        stood = draw.random((rows, n or 6)) < (stands if n else 0.8)
        tokens = int(np.minimum(stood.cumprod(1).sum(1) + 1, n or 99).sum())
        for row in stood[:, : n or 0]:
            turns.judged(row[: int(row.cumprod().sum()) + 1])
        turns.learn(rows, n, tokens, seconds(n))
        plans.append(n)
    return plans


def test_who_makes_more_drafts_but_for_some_trials():
    by_teacher = run(Turns(), 400, seconds=lambda n: 0.05 + 0.01 * n if n else 0.5)
    assert by_teacher[:WARM] == [0] * WARM and {*by_teacher[WARM : WARM + TRIES * len(TRIED)]} == {*TRIED}
    late = by_teacher[WARM + TRIES * len(TRIED) :]
    assert sum(n > 0 for n in late) > 0.9 * len(late) and max(late) <= LONGEST
    by_student = run(Turns(), 400, seconds=lambda n: 0.05 + 0.1 * n if n else 0.1)
    late = by_student[WARM + TRIES * len(TRIED) :]
    assert sum(n == 0 for n in late) > 0.9 * len(late) and 0 < sum(n > 0 for n in late) <= TRIES * (
        len(late) // AGAIN + 1
    )


def test_how_much_is_said_follows_its_cost_and_how_often_it_stands():
    def late(**asked):
        return np.median(run(Turns(), 200, **asked)[-50:])

    assert late(seconds=lambda n: 0.2 + 0.001 * n if n else 9.0, stands=0.98) > 10
    assert late(seconds=lambda n: 0.02 + 0.02 * n if n else 9.0, stands=0.5) <= 3


def test_a_change_is_noticed():
    turns = Turns()
    run(turns, 100, seconds=lambda n: 0.05 + 0.01 * n if n else 0.5)
    plans = run(turns, 400, seconds=lambda n: 0.5 + 0.1 * n if n else 0.1)
    assert plans[0] > 0 and np.mean([n == 0 for n in plans[-100:]]) > 0.9

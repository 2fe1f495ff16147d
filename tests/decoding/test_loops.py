"""Traces that repeat themselves for ever are ended, where they do and only there."""

import numpy as np
import pytest
import torch
from conftest import SPECIALS, read, save_tokenizer, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import by_key, files, run
from pairs import decode, table_model

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.loops import EVERY, SPAN, TIMES, loops

GREEDY = Sampling(temperature=0.0)


@given(st.integers(1, 120), st.integers(0, 60), st.randoms(use_true_random=False))
def test_a_loop_is_found_whatever_came_before_and_nothing_shorter_is(period, before, r):
    gram = list(range(period))
    r.shuffle(gram)
    head = [1000 + i for i in range(before)]
    needed = max(SPAN, TIMES * period)
    looping = (gram * (needed // period + 2))[:needed]
    assert loops(np.array(head + looping))
    assert not loops(np.array([*head, 999, *looping[1:]]))
    assert not loops(np.array(head + looping[:-1] + [999]))


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros(SPAN - 1),
        np.arange(3000) % 700,  # longer than any n-gram that is looked for
        np.random.default_rng(0).integers(0, 4, 3000),
        np.concatenate([np.zeros(300), np.arange(100)]),
        np.array([7]),
        np.array([]),
    ],
)
def test_what_is_no_loop(tokens):
    assert not loops(tokens)


def cycle(width, period):
    """A model that says 0, 1, ... period - 1 and so on for ever."""
    table = torch.full((width, width), -20.0)
    for i in range(width):
        table[i, (i + 1) % period if i < period else i - 1] = 20.0
    return table_model(table)


@pytest.mark.parametrize("period", [1, 3, 19])
def test_a_greedy_trace_that_loops_ends_in_the_same_place_for_every_block_and_batch(period):
    model = cycle(24, period)
    prompts = [[23], [0], [20, 21], [5], [22]]
    made = {}
    for rows, block in ((1, 1), (4, 7), (5, 16)):
        of = decode(model, model, prompts, sampling=GREEDY, rows=rows, block=block, max_new_tokens=480)
        made[rows] = {i: (f.finish_reason, f.token_ids.tolist()) for i, f in of.items()}
    assert made[1] == made[4] == made[5]
    for reason, tokens in made[1].values():
        assert reason == "loop"
        assert len(tokens) % EVERY == 0 and SPAN <= len(tokens) <= SPAN + 2 * EVERY


def test_a_trace_that_varies_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    model = table_model(torch.randn(24, 24, generator=generator))
    made = decode(model, model, [[i] for i in range(6)], block=8, max_new_tokens=480)
    assert {f.finish_reason for f in made.values()} == {"length"}


@pytest.fixture
def repeating(tmp_path):
    """A pair on disk that repeats one byte for ever."""
    for name in ("teacher", "student"):
        tok = save_tokenizer(tmp_path / name, SPECIALS)
        table = torch.full((len(tok), len(tok)), -20.0)
        table[:, tok.convert_tokens_to_ids("a")] = 20.0
        model = table_model(table)
        model.generation_config.eos_token_id = tok.eos_token_id
        model.save_pretrained(tmp_path / name)
    return ["--teacher", tmp_path / "teacher", "--student", tmp_path / "student", "--temperature", "0"]


def test_the_command_says_so_and_can_be_told_not_to_look(repeating, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"id": i, "problem": f"{i}?", "answer": "1"} for i in range(3)])
    result = run(source, "-o", tmp_path / "out.jsonl", *repeating, "--max-new-tokens", 450)
    rows, _, meta = files(tmp_path / "out.jsonl")
    assert {(r["finish_reason"], r["num_tokens"], r["ended_by_eos"]) for r in rows} == {("loop", 256, False)}
    assert meta["totals"]["finish_reasons"] == {"loop": 3} and "finished by: 3 loop" in result.output
    run(source, "-o", tmp_path / "long.jsonl", *repeating, "--max-new-tokens", 450, "--no-loop-check")
    long = read(tmp_path / "long.jsonl")
    assert {(r["finish_reason"], r["num_tokens"]) for r in long} == {("length", 450)}
    # Whether loops are ended shapes the traces: files of both kinds are not mixed.
    refused = run(source, "-o", tmp_path / "long.jsonl", *repeating, "--max-new-tokens", 450, expect=2)
    assert "loop_check" in refused.output
    assert by_key(long) == by_key(read(tmp_path / "long.jsonl"))


def test_an_end_is_no_loop():
    # The table says 0 for ever; the end comes by chance: it is the trace's own.
    table = torch.full((24, 24), -20.0)
    table[:, 0], table[:, 1] = 5.0, -3.0
    model = table_model(table)
    accept_all = Acceptance(threshold=0.0)
    made = decode(model, model, [[0]] * 12, eos=(1,), acceptance=accept_all, block=8, max_new_tokens=480)
    reasons = {f.finish_reason for f in made.values()}
    assert reasons == {"stop", "loop"}
    for f in made.values():
        assert (f.token_ids[-1] == 1) == (f.finish_reason == "stop")

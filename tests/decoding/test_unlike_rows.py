"""Rows of unlike lengths lie in pools of their own: what is decoded there is what each row has alone."""

from dataclasses import replace

import numpy as np
import pytest
from pairs import CONFIGS, decode, full_logprobs, random_model, requests, spelled_vocabulary

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.models import row_cache, row_pools

LENGTHS = (60, 4, 21, 9, 44, 13, 70, 2)
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 9], list(range(1, 21)) * 2, [3, 1, 4], [1, 2, 3, 4, 5] * 3, [7], [5, 6]]


@pytest.fixture
def small_pools(monkeypatch):
    """Pools for each few tokens, so that short traces outgrow several; and which of these there were at once."""
    monkeypatch.setattr(row_cache, "GROW", 4)
    monkeypatch.setattr(row_pools, "GROW", 4)
    seen, parts = [0], row_pools.RowPools.parts

    def watched(self, rows, reach):
        made = parts(self, rows, reach)
        seen[0] = max(seen[0], len(made))
        return made

    monkeypatch.setattr(row_pools.RowPools, "parts", watched)
    return seen


def traces(teacher, student, vocabulary, **kwargs):
    todo = [
        replace(r, max_new_tokens=n) for r, n in zip(requests(PROMPTS, vocabulary=vocabulary), LENGTHS, strict=True)
    ]
    run = Engine(teacher, student, vocabulary, eos=(), acceptance=Acceptance(threshold=0.05), **kwargs)
    return {f.request.tag: f for f in run.run(todo)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_decodes_rows_that_lie_apart(kind, small_pools):
    teacher, student = random_model(kind, layers=3, seed=1), random_model(kind, seed=2)
    made = decode(teacher, student, PROMPTS, rows=4, block=3, max_new_tokens=30)
    # Models that attend by their own code (soft caps, sinks) have all rows in one buffer.
    assert small_pools[0] > 2 or student.config._attn_implementation == "eager"
    for i, f in made.items():
        for model, logprobs in ((teacher, f.teacher_logprobs), (student, f.student_logprobs)):
            want = full_logprobs(model, PROMPTS[i], f.token_ids)
            np.testing.assert_allclose(logprobs, want, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3", "deepseek_v2"])  # two kinds of masks; keys that a layer makes of its cache
@pytest.mark.parametrize("block", [1, None])
def test_a_row_has_the_trace_that_it_has_alone(kind, block, small_pools):
    # The teacher spells two tokens in pieces, so that its contexts branch, and are longer than the student's.
    vocabulary = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]})
    teacher, student = random_model(kind, vocab=22, seed=3), random_model("qwen3", seed=4)
    settings = {"sampling": Sampling(temperature=0.7, top_p=0.9, top_k=5)}
    made = traces(teacher, student, vocabulary, rows=3, block=block, **settings)
    assert small_pools[0] > 1
    alone = traces(teacher, student, vocabulary, rows=1, block=1, **settings)
    for i, f in alone.items():
        assert made[i].token_ids.tolist() == f.token_ids.tolist()
        np.testing.assert_allclose(made[i].teacher_logprobs, f.teacher_logprobs, atol=1e-3)


@pytest.mark.parametrize("limit", [0, 40])
def test_passes_over_some_of_the_rows(limit, small_pools, monkeypatch):
    # Where few logits are to be kept, the teacher reads neighbouring rows; they need not be neighbours in a pool.
    monkeypatch.setattr("rsd.decoding.teacher.LOGITS", limit * 4 * 24)
    vocabulary = spelled_vocabulary(24, {23: [1, 2, 3]})
    teacher, student = random_model(vocab=24, seed=3), random_model(seed=4)
    made = traces(teacher, student, vocabulary, rows=5, block=4, sampling=Sampling(top_k=6))
    alone = traces(teacher, student, vocabulary, rows=1, block=1, sampling=Sampling(top_k=6))
    assert small_pools[0] > 1
    assert {i: f.token_ids.tolist() for i, f in made.items()} == {i: f.token_ids.tolist() for i, f in alone.items()}


def test_memory_is_given_back_when_rows_end(small_pools):
    teacher, student = random_model(seed=1), random_model(seed=2)
    todo = [
        replace(r, max_new_tokens=n)
        for r, n in zip(
            requests([[1, 2]] * 6, vocabulary=spelled_vocabulary(24, {})), (8, 8, 8, 8, 8, 300), strict=True
        )
    ]
    run = Engine(
        teacher,
        student,
        spelled_vocabulary(24, {}),
        eos=(),
        sampling=Sampling(),
        acceptance=Acceptance(),
        rows=6,
        block=1,
    )
    size = []
    for f in run.run(todo):
        cache = run.student.cache
        size.append((len(f.token_ids), sum(cache.held().values()), {n: pool.rows for n, pool in cache.pools.items()}))
    # The long row is alone in the end, in the one pool that there is.
    assert size[-1][0] == 300 and size[-1][2] == {384: 1}
    assert not run.student.cache.held() and not run.teacher.model.cache.held()

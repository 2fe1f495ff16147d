"""The likeliest tokens in the place of each token of a trace: a plain forward's, or those of the teacher's own text."""

import numpy as np
import pytest
import torch
from pairs import decode, full_logits, random_model, spelled_vocabulary
from stub import Stub
from test_proposals import SPELLED, THEIRS, WIDTH, Oracle

from rsd import TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.models.bundled import bundled
from rsd.traces.soft import soft_targets
from rsd.traces.tokens import TOKEN

PROMPTS = [[5, 3], [1, 2, 3, 4, 5, 6, 7, 8], [9], [4, 4, 2, 1]]
FEW = Sampling(temperature=0.6, top_p=0.9, top_k=3)
ALL = Sampling(temperature=0.8, top_p=0.95, top_k=0)


@pytest.mark.parametrize("k", [1, 6, 60])
@pytest.mark.parametrize("block", [1, 5, None])
@pytest.mark.parametrize("sampling", [FEW, ALL, Sampling(temperature=0)])
def test_they_are_those_of_a_full_forward_before_any_filter(sampling, block, k):
    teacher, student = random_model("llama", seed=1), random_model(seed=2)
    how = {"sampling": sampling, "rows": 3, "block": block}
    made = decode(teacher, student, PROMPTS, top_logprobs=k, **how)
    plain = decode(teacher, student, PROMPTS, **how)
    for i, finished in made.items():
        soft = soft_targets(PROMPTS[i], finished.tokens)
        assert soft is not None and soft.token_ids.tolist() == plain[i].token_ids.tolist()
        for name in TOKEN.names:  # nothing else changes
            np.testing.assert_allclose(finished.tokens[name], plain[i].tokens[name], atol=1e-4)
        sides = ((teacher, soft.teacher_ids, soft.teacher_logprobs), (student, soft.student_ids, soft.student_logprobs))
        for model, ids, logprobs in sides:
            want = full_logits(model, PROMPTS[i], finished.token_ids).log_softmax(-1)
            known = min(k, want.shape[-1])
            np.testing.assert_allclose(logprobs[:, :known], want.topk(known).values.numpy(), atol=1e-4)
            assert [len({*row}) for row in ids[:, :known].tolist()] == [known] * len(ids)
            there = want.gather(1, torch.from_numpy(ids).long()[:, :known])
            np.testing.assert_allclose(logprobs[:, :known], there.numpy(), atol=1e-4)
            assert (ids[:, known:] == -1).all() and np.isnan(logprobs[:, known:]).all()


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("sampling", [Sampling(temperature=2.0, top_p=0.98, top_k=0), FEW])
def test_the_teachers_are_the_students_tokens_as_it_spells_them(sampling, block):
    teacher, student = random_model(vocab=THEIRS, seed=5), random_model(vocab=WIDTH, seed=6)
    prompt = [2, 0, 3]
    made = decode(
        teacher,
        student,
        [prompt] * 12,
        vocabulary=spelled_vocabulary(WIDTH, SPELLED),
        sampling=sampling,
        acceptance=Acceptance(threshold=0),
        block=block,
        top_logprobs=WIDTH,
        max_new_tokens=6,
    )
    oracle = Oracle(teacher, prompt, Sampling(temperature=1, top_p=1, top_k=0))
    for finished in made.values():
        soft = soft_targets(prompt, finished.tokens)
        for at, (ids, logprobs) in enumerate(zip(soft.teacher_ids, soft.teacher_logprobs, strict=True)):
            want = oracle.next_unit(finished.token_ids[:at].tolist())
            found = np.zeros(WIDTH)
            found[ids[ids >= 0]] = np.exp(logprobs[ids >= 0])
            np.testing.assert_allclose(found, want, atol=1e-5)


def test_they_do_not_depend_on_batch_or_block():
    rows = ["What is 6 * 7?", "Tom has 3 pens and buys 4 more. How many?", "Mia has 12 boxes."]
    made = []
    for how in ({}, {"batch_size": 1}, {"block_size": 1}, {"block_size": 7, "batch_size": 2}):
        generator = TraceGenerator(teacher="bundled-llama", max_new_tokens=60, top_logprobs=5, **how)
        made.append([trace.soft_targets for trace in generator.run(rows)])
    for others in made[1:]:
        for one, other in zip(made[0], others, strict=True):
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_allclose(mine, theirs, atol=3e-4)


def test_a_served_teachers_are_those_that_it_tells():
    row = ["Tom has 3 pens and buys 4 more. How many?"]
    (local,) = TraceGenerator(max_new_tokens=30, top_logprobs=40).run(row)
    with Stub(bundled("teacher"), name="teacher") as stub:
        there = {"teacher_model": "teacher", "teacher_tokenizer": str(bundled("teacher"))}
        (served,) = TraceGenerator(teacher=f"{stub.url}/v1", **there, max_new_tokens=30, top_logprobs=40).run(row)
    mine, want = served.soft_targets, local.soft_targets
    assert mine.token_ids.tolist() == want.token_ids.tolist()
    counts = (mine.teacher_ids >= 0).sum(1)
    assert counts.max() <= 22 and np.median(counts) >= 18  # and what it spells
    for i, n in enumerate(counts):
        n = min(n, 15)
        told, wanted = np.exp(mine.teacher_logprobs[i, :n]), np.exp(want.teacher_logprobs[i, :n])
        np.testing.assert_allclose(told, wanted, rtol=0.01, atol=1e-6)
    np.testing.assert_allclose(mine.student_logprobs, want.student_logprobs, atol=1e-3)

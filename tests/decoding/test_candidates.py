"""Few candidates in place of a whole vocabulary: the same traces, ties included, and no work as wide as that."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import USUAL, decode, random_model, requests, spelled_vocabulary, table_model, twin_vocabulary
from torch.utils._python_dispatch import TorchDispatchMode

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding import teacher as passes
from rsd.decoding.candidates import likeliest, placed, union
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import DRAFT, accept_mask, drafter, draw, rejection_sample, row_key, target, uniforms, warp
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5], [3, 5, 8], [9, 7, 9], [3, 2, 3, 8]]


@given(
    logits=st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 0.75, 2.0]), min_size=6, max_size=12),
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    top_k=st.integers(1, 5),
    top_p=st.sampled_from([0.3, 0.8, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_candidates_are_the_distribution(logits, temperature, top_k, top_p):
    # Against the definition, by hand; where likeliest tokens tie at the edge any of them may stay.
    ids, probs = likeliest(torch.tensor(logits), Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert (np.diff(ids) > 0).all() and float(probs.sum()) == pytest.approx(1)
    values = sorted(logits, reverse=True)
    if temperature == 0:
        assert logits[int(ids)] == values[0]
        return
    weights = np.exp(np.array(values[:top_k]) / temperature)
    weights /= weights.sum()
    kept = weights * (weights.cumsum() - weights < top_p - 1e-6)
    np.testing.assert_allclose(sorted(probs.tolist(), reverse=True), kept / kept.sum(), atol=1e-6)
    assert sorted((logits[i] for i in ids.tolist()), reverse=True) == values[:top_k]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_union_holds_each_id_once_and_all_mass(parts):
    tensors = [torch.tensor(part)[None] for part in parts]
    masses = torch.rand(1, sum(map(len, parts)))
    ids, places = union(*tensors)
    every = torch.cat(tensors, -1)
    assert torch.equal(ids.gather(-1, places), every)
    distinct = sorted(set(every[0].tolist()))
    assert ids[0, : len(distinct)].tolist() == distinct and set(ids[0].tolist()) == set(distinct)
    whole = torch.zeros(1, 10).scatter_add(-1, every, masses)
    got = placed(masses, places, ids.shape[-1])
    torch.testing.assert_close(got[0, : len(distinct)], whole[0, distinct])
    assert (got[0, len(distinct) :] == 0).all()


def over_all(teacher, student, prompt, key, *, sampling, acceptance, tokens):
    """One trace in lockstep, every distribution over the whole vocabulary, by plain forwards."""
    made = []
    for position in range(tokens):
        ids = torch.tensor([[*prompt, *made]])
        logits = student(ids).logits[:, -1:]
        logprobs, p = logits.log_softmax(-1), warp(logits, sampling)
        stands = accept_mask(logprobs, p, acceptance, sampling)
        d = drafter(p, stands)
        noise = torch.from_numpy(uniforms(np.array([key]), np.array([[position]])))
        goal = target(warp(teacher(ids).logits[:, -1:], sampling), p, stands, acceptance.trials)
        verdict = rejection_sample(draw(d, noise[..., DRAFT]), d, goal, noise)
        made.append(int(verdict.tokens))
    return made


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(
    ("sampling", "acceptance"),
    [
        (Sampling(temperature=0.7, top_p=0.95, top_k=5), USUAL),
        (Sampling(temperature=1.0, top_p=1.0, top_k=7), Acceptance(threshold=0.03, trials=2, top_k=4)),
        (Sampling(temperature=1.0, top_p=0.9, top_k=6), Acceptance(threshold=0.1, threshold_on="sampled")),
        (Sampling(temperature=0.0), Acceptance(threshold=0.03)),
    ],
)
def test_traces_are_those_over_the_whole_vocabulary_ties_included(sampling, acceptance, block):
    torch.manual_seed(0)
    # Rounded, so that a top-k nearly always cuts through several equal logits.
    teacher, student = (table_model((torch.randn(40, 40) * 2).round()) for _ in range(2))
    made = decode(teacher, student, PROMPTS, sampling=sampling, acceptance=acceptance, block=block, rows=4)
    with torch.inference_mode():
        for i, prompt in enumerate(PROMPTS):
            asked = {"sampling": sampling, "acceptance": acceptance, "tokens": 24}
            assert made[i].token_ids.tolist() == over_all(teacher, student, prompt, row_key(0, str(i), 0), **asked)


@pytest.mark.parametrize("block", [1, 3])
def test_with_and_without_a_bound_the_traces_are_the_same(block):
    # Without its least likely token a vocabulary is few candidates: spelled tokens and all.
    vocabulary = spelled_vocabulary(24, {21: [1, 2], 22: [1, 2, 3], 23: [4, 4]})
    vocabulary.merged.update({2: {7: (5,), 8: (1, 6)}, 4: {9: (23,)}})
    teacher, student = random_model(vocab=21, seed=5), random_model(vocab=24, seed=6)
    made = [
        decode(
            teacher,
            student,
            PROMPTS,
            vocabulary=vocabulary,
            sampling=Sampling(temperature=0.9, top_p=1, top_k=top_k),
            block=block,
        )
        for top_k in (0, 20)
    ]
    spelled = 0
    for few, every in zip(made[1].values(), made[0].values(), strict=True):
        assert few.token_ids.tolist() == every.token_ids.tolist()
        # (After what the teacher would hardly have said, a chance of 1e-8 or none makes a difference.)
        assert np.isclose(few.accepted, every.accepted, atol=1e-3).mean() > 0.9
        np.testing.assert_allclose(few.student_logprobs, every.student_logprobs, atol=1e-4)
        np.testing.assert_allclose(few.teacher_logprobs, every.teacher_logprobs, atol=1e-4)
        spelled += int((few.token_ids > 20).sum())
    assert spelled > 3


@pytest.mark.parametrize("top_k", [0, 5])
def test_however_many_rows_a_pass_may_judge_the_traces_are_the_same(top_k, monkeypatch):
    vocabulary = spelled_vocabulary(24, {21: [1, 2], 22: [1, 2, 3], 23: [4, 4]})
    teacher, student = random_model(vocab=21, seed=5), random_model(vocab=24, seed=6)
    asked = {"vocabulary": vocabulary, "sampling": Sampling(temperature=1, top_p=1, top_k=top_k), "block": 3, "rows": 6}
    made = []
    for columns in (1000, 9, 1):
        monkeypatch.setattr(passes, "LOGITS", 4 * 21 * columns)
        monkeypatch.setattr("rsd.decoding.proposer.WIDE", 4 * 24 * columns)
        made.append({i: f.token_ids.tolist() for i, f in decode(teacher, student, PROMPTS, **asked).items()})
    assert made[0] == made[1] == made[2]


def test_some_rows_after_the_other_where_all_tokens_are_candidates(monkeypatch):
    """Rows whose drafts differ in number, and fewer of them at a time than a round has."""
    rows = read_rows(bundled("problems.jsonl"))[:12]
    asked = GenerateConfig(top_k=0, top_p=0.95, max_new_tokens=60, batch_size=6, verify="none")
    want = TraceGenerator(asked).run(rows)
    generator = TraceGenerator(asked).load()
    monkeypatch.setattr("rsd.decoding.proposer.WIDE", 1)  # one by one
    made = generator.run(rows)
    assert [t.token_ids.tolist() for t in made] == [t.token_ids.tolist() for t in want]
    assert len(generator.blocks.statistics()["block_sizes"]) > 2


class Wide(TorchDispatchMode):
    """Counts what operations make that is as wide as the vocabulary: its entries, and how often it is float64."""

    def __init__(self, width):
        super().__init__()
        self.width, self.entries, self.doubles = width, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, list | tuple) else [out]:
            if isinstance(x, torch.Tensor) and x.shape[-1:] == (self.width,) and not func.is_view:
                self.entries += x.numel()
                self.doubles += x.dtype == torch.float64
        return out


def test_of_the_whole_vocabulary_a_round_makes_logits_and_their_logsoftmax_alone():
    width, rows, block = 5003, 4, 3
    teacher, student = (random_model(vocab=width, seed=s) for s in (1, 2))
    vocabulary = twin_vocabulary(width)
    made = Engine(
        teacher,
        student,
        vocabulary,
        sampling=Sampling(),
        acceptance=Acceptance(),
        eos=(),
        rows=rows,
        block=block,
        loop_check=False,
    )
    for _ in made.run(requests(PROMPTS[:rows], max_new_tokens=2, vocabulary=vocabulary)):
        pass  # libraries are loaded, caches there
    with Wide(width) as wide:
        for _ in made.run(requests(PROMPTS[:rows], max_new_tokens=12, vocabulary=vocabulary)):
            pass
    judged = made.blocks.row_rounds * block
    assert wide.doubles == 0
    # Of each model, at every position its logits and their log-softmax; and one position's logits of each prompt.
    assert wide.entries <= judged * width * 2 * 2 + rows * width * 2

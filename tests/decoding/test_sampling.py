"""The distribution r against the loop that it stands for, and the noise that makes traces repeatable."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import proposed
from scipy.stats import chisquare, kstest

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.sampling import accept_mask, drafter, draw, rejection_sample, row_key, target, uniforms, warp

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0)


def retry_loop(q, p, stands, trials, rng, count):
    """The paper's loop, literally: draw from q until a draw stands, at most `trials` times, else from p."""
    made = np.empty(count, dtype=int)
    by_teacher = np.zeros(count, dtype=bool)
    possible = (q * stands).sum() > 0
    for i in range(count):
        draws = 0
        while draws < trials and (possible or trials != math.inf) and q.sum() > 0:
            x = rng.choice(len(q), p=q)
            draws += 1
            if stands[x]:
                made[i], by_teacher[i] = x, True
                break
        if not by_teacher[i]:
            made[i] = rng.choice(len(p), p=p)
    return made, by_teacher


CASES = {
    "usual": ([0.5, 0.2, 0.2, 0.1, 0.0], [0.1, 0.3, 0.05, 0.25, 0.3], 0.1),
    "rarely accepted": ([0.9, 0.08, 0.0, 0.02, 0.0], [0.0, 0.02, 0.4, 0.3, 0.28], 0.015),
    "a = 0": ([0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.3, 0.2], 0.1),
    "A empty": ([0.2, 0.2, 0.2, 0.2, 0.2], [0.2, 0.3, 0.1, 0.2, 0.2], 0.9),
    "nothing shared": ([0.0, 0.0, 0.0, 0.0, 0.0], [0.2, 0.3, 0.1, 0.2, 0.2], 0.1),
    "all accepted": ([0.4, 0.3, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], 0.0),
}


@pytest.mark.parametrize("trials", [1, 5, math.inf])
@pytest.mark.parametrize("case", CASES)
def test_r_is_the_retry_loop(case, trials):
    q, p, threshold = CASES[case]
    q, p = torch.tensor(q, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    stands = accept_mask(p.log(), p, Acceptance(threshold=threshold), PLAIN).double()
    goal = target(q, p, stands, trials)
    assert torch.isfinite(goal.r).all()
    assert float(goal.r.sum()) == pytest.approx(1)
    count = 6000
    made, by_teacher = retry_loop(q.numpy(), p.numpy(), stands.numpy(), trials, np.random.default_rng(0), count)
    # Each (token, who) pair is a cell of its own.
    cells = torch.cat([goal.by_teacher, goal.r - goal.by_teacher]).clamp_min(0).numpy()
    seen = np.bincount(made + len(q) * ~by_teacher, minlength=len(cells))
    assert seen[cells < 1e-12].sum() == 0
    cells, seen = cells[cells > 1e-12], seen[cells > 1e-12]
    assert len(cells) == 1 or chisquare(seen, count * cells / cells.sum()).pvalue > 0.005


def test_the_chance_of_a_fallback_is_the_papers():
    q, p = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.005, 0.5, 0.495])
    goal = target(q, p, (p >= 0.01).float(), 5)
    assert float(goal.accepted) == pytest.approx(0.4)
    assert float((goal.r - goal.by_teacher).sum()) == pytest.approx(0.6**5, rel=1e-5)


def test_small_acceptance_does_not_cancel():
    q, p = torch.tensor([1e-6, 1 - 1e-6]), torch.tensor([0.5, 0.0])
    goal = target(q, p, torch.tensor([1.0, 0.0]), 5)
    assert float(goal.by_teacher[0]) == pytest.approx(5e-6, rel=1e-3)


@pytest.mark.parametrize("trials", [1, 5, math.inf])
def test_draft_and_residual_draw_exactly_r(trials):
    torch.manual_seed(0)
    q, p = torch.randn(2, 7).mul(1.5).softmax(-1)
    stands = (p >= 0.08).float()
    goal, d = target(q, p, stands, trials), drafter(p, stands)
    count = 40000
    noise = torch.from_numpy(uniforms(np.arange(count), np.zeros((count, 1), dtype=np.int64)))
    many = [x.expand(count, 1, 7) for x in (d, goal.r, goal.by_teacher)]
    drafts = draw(many[0], noise[..., 0])
    made = rejection_sample(drafts, many[0], goal._replace(r=many[1], by_teacher=many[2]), noise)
    seen = np.bincount(made.tokens[:, 0].numpy(), minlength=7)
    r = goal.r.double().numpy()
    assert seen[r == 0].sum() == 0
    assert chisquare(seen[r > 0], count * r[r > 0] / r.sum()).pvalue > 0.005
    labels = float(made.from_teacher.double().mean())
    assert labels == pytest.approx(float(goal.by_teacher.sum()), abs=4 * (0.25 / count) ** 0.5)


def test_a_block_ends_at_the_first_fallen_draft():
    d = torch.tensor([1.0, 0.0, 0.0]).expand(2, 4, 3)
    r = d.clone()
    r[0, 1] = r[1, 3] = torch.tensor([0.0, 1.0, 0.0])
    goal = target(r, r, torch.ones_like(r), 1)
    made = rejection_sample(
        torch.zeros(2, 4, dtype=torch.long), d, goal, torch.full((2, 4, 4), 0.5, dtype=torch.float64)
    )
    assert made.survived.tolist() == [1, 3]
    assert made.tokens[0, :2].tolist() == [0, 1]
    assert made.tokens[1].tolist() == [0, 0, 0, 1]


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=12),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    trials=st.sampled_from([1, 2, 5, math.inf]),
    threshold=st.sampled_from([0.0, 0.001, 0.2, 1.0]),
    on=st.sampled_from(["raw", "sampled"]),
)
@settings(max_examples=200, deadline=None)
def test_all_are_distributions(logits, temperature, top_k, top_p, trials, threshold, on):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    student = torch.tensor(logits)
    shared = torch.ones(len(logits))
    shared[-1] = 0
    q = proposed(student.flip(0), shared, sampling)
    p = warp(student, sampling)
    stands = accept_mask(student.log_softmax(-1), p, Acceptance(threshold=threshold, threshold_on=on), sampling)
    goal, d = target(q, p, stands, trials), drafter(p, stands)
    for x in (p, d, goal.r):
        assert (x >= 0).all() and float(x.sum()) == pytest.approx(1, abs=1e-5)
    assert q[-1] == 0
    assert (goal.by_teacher <= goal.r * (1 + 1e-6)).all()
    assert threshold < 1 or (stands == 0).all()


def test_filters_keep_what_they_should():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def kept(**changed):
        return (warp(logits, replace(PLAIN, **changed)) > 0).tolist()

    assert kept() == [True] * 4
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(temperature=0) == [True, False, False, False]
    # Top-p applies to what top-k left: 0.5 / 0.8 = 0.625 is enough.
    assert kept(top_k=2, top_p=0.6) == [True, False, False, False]


def test_the_mask_comes_after_the_filters():
    # The teacher's two likeliest tokens are its own: with top-k 2 nothing is left, and a = 0.
    q = proposed(
        torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.0, 0.0, 1.0]), Sampling(temperature=1, top_p=1, top_k=2)
    )
    assert q.tolist() == [0, 0, 0]


def test_widths_may_differ_either_way():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert proposed(logits, torch.ones(2), PLAIN).shape == (2,)
    wide = proposed(logits, torch.tensor([1.0, 1, 1, 1, 0, 0]), PLAIN)
    assert wide.shape == (6,) and wide[4:].sum() == 0


def test_greedy_is_the_teachers_choice_if_it_stands():
    greedy = Sampling(temperature=0, top_p=1, top_k=0)
    teacher, student = torch.tensor([0.0, 5.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])
    for threshold, choice in ((0.05, 1), (0.5, 0)):
        p = warp(student, greedy)
        stands = accept_mask(student.log_softmax(-1), p, Acceptance(threshold=threshold), greedy)
        goal = target(proposed(teacher, torch.ones(3), greedy), p, stands, 5)
        assert goal.r.argmax() == choice and goal.r.max() == 1


def test_accept_top_k_restricts_a():
    logprobs = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    stands = accept_mask(logprobs, logprobs.exp(), Acceptance(threshold=0.01, top_k=2), PLAIN)
    assert stands.tolist() == [1, 1, 0, 0]


def test_noise_is_uniform_and_keyed():
    keys = np.array([row_key(0, str(i), 0) for i in range(500)])
    u = uniforms(keys, np.tile(np.arange(40), (500, 1)))
    assert u.shape == (500, 40, 4) and u.dtype == np.float64
    assert (u >= 0).all() and (u < 1).all()
    for j in range(4):
        assert kstest(u[..., j].ravel(), "uniform").pvalue > 0.001
    flat = u.reshape(500, -1)
    assert abs(np.corrcoef(flat[:, :-1].ravel(), flat[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.02
    # Position 17 of row 3 on its own is what it is in the block.
    assert (uniforms(keys[3:4], np.array([[17]]))[0, 0] == u[3, 17]).all()


def test_row_keys_tell_everything_apart():
    keys = {row_key(s, i, g) for s in (0, 1) for i in ("a", "b", "1", "11") for g in (0, 1, 11)}
    assert len(keys) == 24
    assert row_key(0, "a", 0) == 6713522722224487935  # the same on every machine

"""The distribution that RSD samples from, as pure tensor functions.

At one position let q be the teacher's sampling distribution over the tokens that both have, p the
student's, A the tokens whose student probability reaches the threshold, a = q(A), and n the number
of trials. The retry loop of the paper (arXiv 2509.22230: draw from q up to n times until a draw is
in A, else draw from p) is one draw from

    r(x) = [1 - (1-a)^n] q(x) 1_A(x) / a + (1-a)^n p(x)            (a = 0: r = p)

so a trace is sampled from r, and any lossless speculative method applies with r as its target: the
student drafts x ~ d, x stands with probability min(1, r(x) / d(x)), and a draft that falls is
replaced by a draw from the residual (r - d)+.

Shapes: R rows, K positions of a block, V token ids of the student, or the candidates among them (`candidates`),
the places of which then stand for ids.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.candidates import bounded, likeliest

DRAFT, SURVIVE, RESIDUAL, LABEL = range(4)  # what each of a position's four uniforms decides
FOUR = np.arange(1, 5)


def row_key(seed: int, row_id: str, generation: int) -> int:
    """The 64-bit noise key of one trace, as a signed integer. Equal on every machine."""
    text = f"{seed}\0{generation}\0{row_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Four uniforms in [0, 1) for every position, from (key, position) and nothing else.

    SplitMix64 (Steele, Lea and Flood, 2014) used as a counter-based generator, so that a trace does
    not depend on its batch, on block boundaries, or on what ran before.

    Args:
        keys: int64 [R], from `row_key`.
        positions: int64 [R, K], index in the completion.

    Returns:
        float64 [R, K, 4].
    """
    counter = (positions[..., None] * 4 + FOUR).astype(np.uint64)
    x = keys.astype(np.uint64)[:, None, None] + counter * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)) * 2.0**-53


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after temperature, top-k and top-p, in this order; greedy is a one-hot.

    Args:
        logits: [..., V].

    Returns:
        float32 [..., V], rows summing to 1. Top-p keeps the smallest set of likeliest tokens whose
        mass reaches it, at least one.
    """
    if bounded(sampling, logits.shape[-1]):
        ids, probs = likeliest(logits, sampling)
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, ids, probs.float())
    if sampling.top_p == 1:
        return (logits.float() / sampling.temperature).softmax(-1)
    values, ids = logits.sort(dim=-1, descending=True)
    probs = (values.float() / sampling.temperature).softmax(-1)
    before = probs.cumsum(-1) - probs
    probs = probs * (before < sampling.top_p)
    return torch.zeros_like(logits, dtype=torch.float32).scatter_(-1, ids, probs / probs.sum(-1, keepdim=True))


def least_logprob(logprobs: Tensor, acceptance: Acceptance) -> Tensor | None:
    """What a token's log-prob must reach to be among the student's `acceptance.top_k` likeliest, [..., 1]."""
    if not 0 < acceptance.top_k < logprobs.shape[-1]:
        return None
    return logprobs.topk(acceptance.top_k, dim=-1).values[..., -1:]


def accept_mask(
    logprobs: Tensor, p: Tensor, acceptance: Acceptance, sampling: Sampling, least: Tensor | None = None
) -> Tensor:
    """A: where the student lets a proposal stand.

    Args:
        logprobs: [..., V], the student's log-softmax over its full width at temperature 1.
        p: [..., V], the student's sampling distribution.
        least: of candidates alone, `least_logprob` of all tokens.

    Returns:
        [..., V] of 0 and 1, as p is. Empty at threshold 1 by definition.
    """
    if least is None:
        least = least_logprob(logprobs, acceptance)
    if acceptance.threshold == 1:
        return torch.zeros_like(p)
    if acceptance.threshold_on == "raw" or sampling.temperature == 0:
        floor = math.log(acceptance.threshold) if acceptance.threshold > 0 else -math.inf
        stands = logprobs >= floor
    else:
        stands = p.float() >= acceptance.threshold  # as it was computed, so that a tie is one
    if least is not None:
        stands &= logprobs >= least
    return stands.to(p.dtype)


class Target(NamedTuple):
    """r, the part of it that the teacher contributes, and a = q(A)."""

    r: Tensor  # [..., V]
    by_teacher: Tensor  # [..., V], at most r
    accepted: Tensor  # [...]


def target(q: Tensor, p: Tensor, stands: Tensor, trials: float) -> Target:
    """The distribution r of this module's docstring; all arguments [..., V]."""
    q_stands = q * stands
    a = q_stands.sum(-1, keepdim=True).clamp_max(1.0)
    # 1 - (1-a)^n without cancellation for small a; log1p(-1) = -inf gives exactly 1.
    teacher = (a > 0).to(a.dtype) if trials == math.inf else -torch.expm1(trials * torch.log1p(-a))
    by_teacher = q_stands * (teacher / a.clamp_min(torch.finfo(a.dtype).tiny))
    return Target(by_teacher + (1 - teacher) * p, by_teacher, a.squeeze(-1))


def drafter(p: Tensor, stands: Tensor) -> Tensor:
    """d: p restricted to A and renormalised, since tokens outside A are rarely committed; p if A
    holds no mass of p."""
    d = p * stands
    mass = d.sum(-1, keepdim=True)
    return torch.where(mass > 0, d / mass.clamp_min(torch.finfo(d.dtype).tiny), p)


def draw(probs: Tensor, u: Tensor) -> Tensor:
    """One id a distribution by inverse transform.

    Args:
        probs: [..., V], not negative, of any positive sum.
        u: [...], uniforms in [0, 1).

    Returns:
        int64 [...].
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    ids = torch.searchsorted(cdf, (u * cdf[..., -1])[..., None], right=True).squeeze(-1)
    return ids.clamp_max(probs.shape[-1] - 1)


class Verdict(NamedTuple):
    """What a block commits: the drafts of each row that survive, and what replaces the first that falls."""

    tokens: Tensor  # int64 [R, K]
    survived: Tensor  # int64 [R], 0 .. K
    from_teacher: Tensor  # bool [R, K], the label drawn from its posterior
    ratio: Tensor  # [R, K], r(x) / d(x) of the student's draws, at most 1


def rejection_sample(drafts: Tensor, d: Tensor, goal: Target, noise: Tensor, *, given: Tensor | None = None) -> Verdict:
    """Keep drafts while they survive; replace the first that does not by a draw from (r - d)+.

    Speculative sampling (Leviathan et al., arXiv 2211.17192, theorem 3.5) with r as the target. So the token of a
    position is a function of its context and its noise: whatever was drafted, and by whom, stands where it is that
    token, which is r(x) of the time. That is why drafts may be looked up, left out or chosen by their uniforms.

    Args:
        drafts: int64 [R, K], drawn from d.
        d, goal.r, goal.by_teacher: [R, K, V].
        noise: float64 [R, K, 4], from `uniforms`.
        given: int64 [R, K], what was drafted where these are not the draws from d; -1 for what cannot stand.
    """
    at = drafts[..., None]
    theirs, ours = goal.r.gather(-1, at)[..., 0], d.gather(-1, at)[..., 0]
    falls = noise[..., SURVIVE] * ours >= theirs
    if given is not None:
        tokens = _replaced(drafts, falls, d, goal.r, noise[..., RESIDUAL])
        survived = (tokens == given).long().cumprod(-1).sum(-1)
    elif drafts.shape[1] == 1:  # lockstep: the first draft that may fall is the only one
        survived = (~falls[:, 0]).long()
        tokens = _replaced(drafts, falls, d, goal.r, noise[..., RESIDUAL])
    else:
        survived = (~falls).long().cumprod(-1).sum(-1)
        last = survived[:, None].clamp_max(drafts.shape[1] - 1)
        wide = last[..., None].expand(-1, 1, d.shape[-1])
        tokens = _replaced(
            drafts.gather(1, last),
            falls.gather(1, last),
            d.gather(1, wide),
            goal.r.gather(1, wide),
            noise[..., RESIDUAL].gather(1, last),
        )
        tokens = drafts.scatter(1, last, tokens)
    at = tokens[..., None]
    by_teacher = goal.by_teacher.gather(-1, at) > noise[..., LABEL, None] * goal.r.gather(-1, at)
    ratio = (theirs / ours.clamp_min(torch.finfo(ours.dtype).tiny)).clamp_max(1)
    return Verdict(tokens, survived, by_teacher[..., 0], ratio)


def _replaced(drafts: Tensor, falls: Tensor, d: Tensor, r: Tensor, u: Tensor) -> Tensor:
    """Drafts [R, K], those that fall replaced by a draw from the residual of d and r [R, K, V]."""
    other = draw((r - d).clamp_min_(0), u)
    # r = d but for rounding leaves no residual; then the draft stands after all.
    return torch.where(falls & (r.gather(-1, other[..., None])[..., 0] > 0), other, drafts)

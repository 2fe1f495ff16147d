"""Distributions over a vocabulary, kept as the few tokens that have any probability.

With top-k 20 a model may say 20 of its 150,000 tokens. So what a round computes with are these candidates, and
over the whole vocabulary remain one top-k and one log-softmax a model and position. A distribution of which no
filter bounds the tokens keeps all of them; the same functions serve both.

Candidates stand in ascending order of their ids, as in the vocabulary, so that a draw by inverse transform
gives the same token either way; that, and nothing else of the order, is what `sampling` asks of its last axis.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rsd.acceptance import Sampling


@dataclass(frozen=True, eq=False)
class Candidates:
    """Masses of tokens.

    ids: int64 [..., C]; None where all tokens of the vocabulary are candidates, in their order. An id may
        stand there twice: then its masses add up.
    masses: float [..., C], not negative.
    """

    ids: Tensor | None
    masses: Tensor

    @cached_property
    def _on_host(self) -> tuple[list, list]:
        return [] if self.ids is None else self.ids.tolist(), self.masses.tolist()

    @cached_property
    def _masses(self) -> Any:  # of an array single entries are read ten times as fast
        return self.masses.numpy() if self.masses.device.type == "cpu" else self.masses

    def among(self, row: int, j: int, tokens: Collection[int]) -> dict[int, float]:
        """Those of `tokens` that have any mass at [row, j] of [R, K, C], and how much."""
        found: dict[int, float] = {}
        if self.ids is None:
            listed = list(tokens)
            chances = self._masses[row, j, listed].tolist() if listed else []
            return {t: m for t, m in zip(listed, chances, strict=True) if m > 0}
        ids, masses = self._on_host
        for t, m in zip(ids[row][j], masses[row][j], strict=True):
            if m > 0 and t in tokens:
                found[t] = found.get(t, 0.0) + m
        return found

    def of(self, row: int, j: int, token: int) -> float:
        return self.among(row, j, (token,)).get(token, 0.0)


def bounded(sampling: Sampling, width: int) -> bool:
    """Whether a sampling distribution over `width` tokens has few candidates."""
    return sampling.temperature == 0 or 0 < sampling.top_k < width


def likeliest(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The candidates of a `bounded` sampling distribution, and their probabilities: after temperature, top-k and
    top-p, in this order; greedy is one token.

    Args:
        logits: [..., V].

    Returns:
        Ids, int64 [..., C], ascending; probabilities, float64 [..., C], summing to 1. Top-p keeps the smallest set
        of likeliest tokens whose mass reaches it, at least one; what it drops stays as a candidate of probability 0.
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1, keepdim=True)
        return ids, torch.ones_like(ids, dtype=torch.float64)
    values, ids = largest(logits, sampling.top_k)
    probs = (values.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        before = probs.cumsum(-1) - probs
        probs = probs * (before < sampling.top_p)
        probs = probs / probs.sum(-1, keepdim=True)
    ids, order = ids.sort(-1)
    return ids, probs.double().gather(-1, order)


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of x [..., V], or all V if these are fewer, in descending order, and their places."""
    width = x.shape[-1]
    k = min(k, width)
    # On a CPU topk of fewer than 64 k entries takes another algorithm, here four times as slow.
    values, places = (wide(x, 64 * k, -torch.inf) if 64 * k > width else x).topk(k, dim=-1)
    return values, places.clamp_max(width - 1)


def wide(x: Tensor, k: int, fill: float) -> Tensor:
    """x [..., C] with k columns at the least."""
    return torch.nn.functional.pad(x, (0, max(0, k - x.shape[-1])), value=fill)


def union(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """The ids of all parts [..., C_i] in one list [..., C], ascending, each once; C is the sum of the C_i.

    Returns:
        That list, filled up with its last id, and the place in it of every id of the parts, int64 [..., C].
    """
    ids, order = torch.cat(parts, -1).sort(-1)
    place = torch.zeros_like(ids)
    torch.cumsum(ids[..., 1:] != ids[..., :-1], -1, out=place[..., 1:])
    once = ids[..., -1:].expand_as(ids).scatter(-1, place, ids)
    return once, torch.empty_like(place).scatter_(-1, order, place)


def placed(masses: Tensor, places: Tensor, count: int) -> Tensor:
    """Masses [..., C_i] in a list of `count` candidates, at `places` [..., C_i]; equal places add up."""
    return masses.new_zeros(*masses.shape[:-1], count).scatter_add_(-1, places, masses)

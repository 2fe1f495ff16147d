"""Tokens of the teacher that are several of the student's: it is in the midst of one until all of them are said.

A teacher with the token `125` and a student that writes single digits: the teacher proposes `1`, with all that it
gives to tokens whose first token of the student's is `1`. Once `1` stands, the teacher is either between two of its
tokens or in the midst of one that begins so, each with its chance given what was said: a filter over the two, like
the forward algorithm of a hidden Markov model. What follows is the mixture: where it is between two tokens, its
distribution after the text so far; in the midst of one, what is left of that.

This is exactly the distribution of a teacher's text, each token spelled by the student's tokenizer, but for one thing:
between two tokens the teacher reads the text as it would tokenize it (`vocabulary`), whichever way it came. The idea is
this project's.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Rest = tuple[int, ...]  # the student's tokens that are left of a token of the teacher's


class Midst(NamedTuple):
    """Where the teacher is.

    free: the chance that it is between two of its tokens. rests: the chances of what it is in the midst of.
    """

    free: float = 1.0
    rests: tuple[tuple[Rest, float], ...] = ()


BETWEEN = Midst()


class Several:
    """The tokens of a teacher that are several of the student's: `spelled` in these, and by their first one."""

    def __init__(self, spelled: Mapping[int, Rest]) -> None:
        self.spelled = spelled
        self.by_first: dict[int, list[int]] = {}
        for t, tokens in spelled.items():
            self.by_first.setdefault(tokens[0], []).append(t)


class Filter:
    """Where the teacher is in the rows of one round, and what that makes of its proposals.

    Args:
        several: the student's tokens for each token of the teacher's that is several of them.
        masses: [R, K, V], of a teacher between two tokens, on the student's tokens: with all of `several` on
            their first ones. whole: [R, K, 1], what these and what is left out sum to, or 1.
        pool: [R, K, V_teacher], its distribution over its own tokens.
    """

    def __init__(
        self, several: Several, masses: Tensor, whole: Tensor | float, pool: Tensor, before: Sequence[Midst]
    ) -> None:
        self.several, self.masses, self.whole, self.pool = several, masses, whole, pool
        self.before = [[midst] for midst in before[: len(masses)]]  # of each row, before each of its tokens

    def mix(self, drafts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Masses and their whole before each draft, wherever the teacher is."""
        masses = self.masses
        whole = torch.as_tensor(self.whole, device=masses.device).expand(*masses.shape[:2], 1)
        for i, row in enumerate(drafts):
            for j, token in enumerate(row):
                midst = self.before[i][j]
                self.before[i].append(self.after(i, j, token))
                if midst.rests:
                    if masses is self.masses:
                        masses, whole = masses.clone(), whole.clone()
                    masses[i, j] *= midst.free / self._whole(i, j)
                    for rest, chance in midst.rests:
                        masses[i, j, rest[0]] += chance
                    whole[i, j] = 1
        return masses, whole

    def after(self, row: int, j: int, token: int) -> Midst:
        """Where the teacher is after this token in the place of draft j."""
        midst, begun = self.before[row][j], self.several.by_first.get(token, [])
        if not begun and not midst.rests:
            return BETWEEN
        scale = midst.free / self._whole(row, j)
        rests: dict[Rest, float] = {}
        started = 0.0
        for t, chance in zip(begun, self.pool[row, j, begun].tolist(), strict=True):
            if chance > 0:
                rest = self.several.spelled[t][1:]
                rests[rest] = rests.get(rest, 0.0) + scale * chance
                started += chance
        free = scale * max(float(self.masses[row, j, token]) - started, 0.0)
        for rest, chance in midst.rests:
            if rest == (token,):
                free += chance
            elif rest[0] == token:
                rests[rest[1:]] = rests.get(rest[1:], 0.0) + chance
        total = free + sum(rests.values())
        if total <= 0:  # the teacher would not have said it
            return BETWEEN
        return Midst(free / total, tuple((rest, chance / total) for rest, chance in sorted(rests.items())))

    def _whole(self, row: int, j: int) -> float:
        return max(float(self.whole[row, j]), 1e-30) if isinstance(self.whole, Tensor) else self.whole

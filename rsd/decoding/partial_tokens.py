"""Tokens of the teacher that are several of the student's: it is in the midst of one until all of them are said.

A teacher with the token `125` and a student that writes single digits: the teacher proposes `1`, with all that it
gives to tokens whose first token of the student's is `1`. Once `1` stands, the teacher is either between two of its
tokens or in the midst of one that begins so, each with its chance given what was said: a filter over the two, like
the forward algorithm of a hidden Markov model. What follows is the mixture: where it is between two tokens, its
distribution after the text so far; in the midst of one, what is left of that. A token that ends what the teacher
spells and goes on, such as `>` and two line breaks after `</think`, leaves it in the midst of the line breaks.

This is exactly the distribution of a teacher's text, each token spelled by the student's tokenizer, but for one thing:
between two tokens the teacher reads the text as it would tokenize it (`vocabulary`), whichever way it came. The idea is
this project's.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rsd.decoding.candidates import Candidates

Remainder = tuple[int, ...]  # the student's tokens that are left of a token of the teacher's
At = tuple[int, int]  # a row and a position of its block
# Chances below it are lost when float32 adds them to 1.
NEGLIGIBLE = 2.0**-26


class Partial(NamedTuple):
    """Where the teacher is.

    at_boundary: the chance that it is between two of its tokens. remainders: the chances of what it is in the midst of.
    """

    at_boundary: float = 1.0
    remainders: tuple[tuple[Remainder, float], ...] = ()


AT_BOUNDARY = Partial()


class SplitTokens:
    """The tokens of a teacher that are several of the student's: these, and all of them by their first one."""

    def __init__(self, teacher_to_student: Mapping[int, Remainder]) -> None:
        self.teacher_to_student = teacher_to_student
        self.by_first: dict[int, set[int]] = {}
        for t, tokens in teacher_to_student.items():
            self.by_first.setdefault(tokens[0], set()).add(t)


class Correction(NamedTuple):
    """What the teacher's spelling of tokens changes at one place (see `proposals`).

    more: what is added to the mass of a student's token, or taken from it. ends: of a token that it spells, the mass
    of the ways to end in the midst of another token, by what is left of that. never: tokens of the teacher's that it
    is known not to say. total: the mass of all that it may say.
    """

    more: Mapping[int, float] = {}
    ends: Mapping[int, Mapping[Remainder, float]] = {}
    never: frozenset[int] = frozenset()
    total: float = 1.0


class PartialFilter:
    """Where the teacher is in the rows of one round, and what that makes of its proposals.

    Args:
        masses: [R, K, C], of a teacher between two tokens, on the student's tokens: with all of `split` on
            their first ones. pool: [R, K, C'], its distribution over its own tokens.
        corrections: by place, what comes to these of tokens that it spells.
        before: where it is in each row before its drafts, and before those that follow as far as that is known.
    """

    def __init__(
        self,
        split: SplitTokens,
        masses: Candidates,
        pool: Candidates,
        corrections: Mapping[At, Correction],
        before: Sequence[Sequence[Partial]],
    ) -> None:
        self.split, self.masses, self.pool, self.corrections = split, masses, pool, corrections
        self.before = [list(partials) for partials in before]

    def follow(self, drafts: Sequence[Sequence[int]]) -> "PartialFilter":
        """Find out where the teacher is before each draft; returns itself."""
        for i, row in enumerate(drafts):
            for j, token in enumerate(row):
                self.before[i].append(self.after(i, j, token))
        return self

    def mix(self, drafts: Sequence[Sequence[int]]) -> dict[At, tuple[float, dict[int, float], float]]:
        """What the masses before each draft are wherever the teacher is, where that changes them: by what they are
        multiplied, what is added to which tokens then, and the mass of all that the teacher may say (0: nothing)."""
        changed = {}
        for i, row in enumerate(drafts):
            for j in range(len(row)):
                partial, here = self.before[i][j], self.corrections.get((i, j))
                if partial.remainders or here:
                    here = here or Correction()
                    scale, more, total = 1.0, dict(here.more), here.total
                    if partial.remainders:
                        scale, total = self._scale(i, j, partial), 1.0
                        more = {t: scale * m for t, m in more.items()}
                        for remainder, chance in partial.remainders:
                            more[remainder[0]] = more.get(remainder[0], 0.0) + chance
                    elif total < NEGLIGIBLE:
                        scale, more, total = 0.0, {}, 0.0
                    changed[i, j] = scale, more, total
        return changed

    def after(self, row: int, j: int, token: int) -> Partial:
        """Where the teacher is after this token in the place of draft j."""
        partial, here = self.before[row][j], self.corrections.get((row, j), Correction())
        begun, ends = self.split.by_first.get(token), here.ends.get(token)
        if not begun and not partial.remainders and not ends:
            return AT_BOUNDARY
        scale = self._scale(row, j, partial)
        remainders: dict[Remainder, float] = {}
        started = 0.0

        def begin(remainder: Remainder, chance: float) -> float:
            remainders[remainder] = remainders.get(remainder, 0.0) + scale * chance
            return chance

        for t, chance in self.pool.among(row, j, begun or ()).items():
            if t not in here.never:
                started += begin(self.split.teacher_to_student[t][1:], chance)
        for remainder, chance in (ends or {}).items():
            started += begin(remainder, chance)
        at_boundary = scale * max(self.masses.of(row, j, token) + here.more.get(token, 0.0) - started, 0.0)
        for remainder, chance in partial.remainders:
            if remainder == (token,):
                at_boundary += chance
            elif remainder[0] == token:
                remainders[remainder[1:]] = remainders.get(remainder[1:], 0.0) + chance
        total = at_boundary + sum(remainders.values())
        if total <= 0:  # the teacher would not have said it
            return AT_BOUNDARY
        left = tuple((remainder, chance / total) for remainder, chance in sorted(remainders.items()))
        return Partial(at_boundary / total, left)

    def _scale(self, row: int, j: int, partial: Partial) -> float:
        here = self.corrections.get((row, j))
        if here is None:
            return partial.at_boundary
        return partial.at_boundary / here.total if here.total > NEGLIGIBLE else 0.0

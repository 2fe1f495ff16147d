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

Rest = tuple[int, ...]  # the student's tokens that are left of a token of the teacher's
At = tuple[int, int]  # a row and a position of its block
# Chances below it are lost when float32 adds them to 1.
NEGLIGIBLE = 2.0**-26


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
        self.by_first: dict[int, set[int]] = {}
        for t, tokens in spelled.items():
            self.by_first.setdefault(tokens[0], set()).add(t)


class Spelled(NamedTuple):
    """What the teacher's spelling of tokens changes at one place (see `proposals`).

    more: what is added to the mass of a student's token, or taken from it. ends: of a token that it spells, the mass
    of the ways to end in the midst of another token, by what is left of that. never: tokens of the teacher's that it
    is known not to say. whole: the mass of all that it may say.
    """

    more: Mapping[int, float] = {}
    ends: Mapping[int, Mapping[Rest, float]] = {}
    never: frozenset[int] = frozenset()
    whole: float = 1.0


class Filter:
    """Where the teacher is in the rows of one round, and what that makes of its proposals.

    Args:
        masses: [R, K, C], of a teacher between two tokens, on the student's tokens: with all of `several` on
            their first ones. pool: [R, K, C'], its distribution over its own tokens.
        spelled: by place, what comes to these of tokens that it spells.
        before: where it is in each row before its drafts.
    """

    def __init__(
        self,
        several: Several,
        masses: Candidates,
        pool: Candidates,
        spelled: Mapping[At, Spelled],
        before: Sequence[Midst],
    ) -> None:
        self.several, self.masses, self.pool, self.spelled = several, masses, pool, spelled
        self.before = [[midst] for midst in before]  # of each row, before each of its tokens

    def mix(self, drafts: Sequence[Sequence[int]]) -> dict[At, tuple[float, dict[int, float], float]]:
        """What the masses before each draft are wherever the teacher is, where that changes them: by what they are
        multiplied, what is added to which tokens then, and the mass of all that the teacher may say (0: nothing)."""
        changed = {}
        for i, row in enumerate(drafts):
            for j, token in enumerate(row):
                midst, here = self.before[i][j], self.spelled.get((i, j))
                self.before[i].append(self.after(i, j, token))
                if midst.rests or here:
                    here = here or Spelled()
                    scale, more, whole = 1.0, dict(here.more), here.whole
                    if midst.rests:
                        scale, whole = self._scale(i, j, midst), 1.0
                        more = {t: scale * m for t, m in more.items()}
                        for rest, chance in midst.rests:
                            more[rest[0]] = more.get(rest[0], 0.0) + chance
                    elif whole < NEGLIGIBLE:
                        scale, more, whole = 0.0, {}, 0.0
                    changed[i, j] = scale, more, whole
        return changed

    def after(self, row: int, j: int, token: int) -> Midst:
        """Where the teacher is after this token in the place of draft j."""
        midst, here = self.before[row][j], self.spelled.get((row, j), Spelled())
        begun, ends = self.several.by_first.get(token), here.ends.get(token)
        if not begun and not midst.rests and not ends:
            return BETWEEN
        scale = self._scale(row, j, midst)
        rests: dict[Rest, float] = {}
        started = 0.0

        def begin(rest: Rest, chance: float) -> float:
            rests[rest] = rests.get(rest, 0.0) + scale * chance
            return chance

        for t, chance in self.pool.among(row, j, begun or ()).items():
            if t not in here.never:
                started += begin(self.several.spelled[t][1:], chance)
        for rest, chance in (ends or {}).items():
            started += begin(rest, chance)
        free = scale * max(self.masses.of(row, j, token) + here.more.get(token, 0.0) - started, 0.0)
        for rest, chance in midst.rests:
            if rest == (token,):
                free += chance
            elif rest[0] == token:
                rests[rest[1:]] = rests.get(rest[1:], 0.0) + chance
        total = free + sum(rests.values())
        if total <= 0:  # the teacher would not have said it
            return BETWEEN
        return Midst(free / total, tuple((rest, chance / total) for rest, chance in sorted(rests.items())))

    def _scale(self, row: int, j: int, midst: Midst) -> float:
        here = self.spelled.get((row, j))
        if here is None:
            return midst.free
        return midst.free / here.whole if here.whole > NEGLIGIBLE else 0.0

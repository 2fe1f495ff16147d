"""Drafts that are looked up: what followed the last time that a context went on like this.

A privileged teacher's reference, a statement that is repeated, an equation that is copied: the continuation stands
there already, in the teacher's prompt or in the trace itself. (The idea is prompt look-up decoding, Saxena 2023.) What
is found is a draft like any other, which stands where it is the token that the position's noise makes of r.
"""

from collections.abc import Iterable, Sequence

GRAM = 2  # tokens by which a context is known again


class LookUp:
    """What one row has read, and where in it the row is again.

    streak: for how many tokens the row has gone as it did before; 0 where it is nowhere.

    Args:
        read: texts in the student's ids, -1 for what it has no token for.
    """

    def __init__(self, read: Iterable[Sequence[int]]) -> None:
        self.ids: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # where the text goes on behind the last such tokens
        self.at = self.streak = 0
        for text in read:
            self.ids.append(-1)
            self.say(text)

    def say(self, tokens: Iterable[int]) -> None:
        """The row goes on."""
        for token in tokens:
            self.streak = self.streak + 1 if self.streak and self.ids[self.at] == token else 0
            self.at += 1
            self.ids.append(token)
            gram = tuple(self.ids[-GRAM:])
            if not self.streak and (at := self.after.get(gram)) is not None:
                self.at, self.streak = at, GRAM
            if -1 not in gram:
                self.after[gram] = len(self.ids)

    def ahead(self, count: int) -> list[int]:
        """What may follow: at most so many tokens."""
        if not self.streak:
            return []
        ids = self.ids[self.at : self.at + count]
        return ids[: ids.index(-1)] if -1 in ids else ids

"""Where in a text each of its tokens begins."""

from collections.abc import Callable, Sequence


class Spelling:
    """The text of tokens that come one by one, and the character at which each begins.

    A character whose bytes are split over several tokens is the first one of all but the first.

    text: of the tokens up to `whole`; those behind it may have begun a character that has no end yet.
    """

    def __init__(self, decode: Callable[[list[int]], str], replacement: Sequence[int] | None = None) -> None:
        """decode: the text of ids. replacement: as of `token_starts`."""
        self.decode, self.replacement = decode, None if replacement is None else list(replacement)
        self.ids: list[int] = []
        self.starts: list[int] = []
        self.whole = 0
        self._pieces: list[str] = []
        self._length = 0  # of the text
        self._begin, self._before, self._partial = 0, "", 0  # the last tokens that are whole, and their text

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, token: int) -> None:
        """One token more; it is decoded with the one before it."""
        self.ids.append(token)
        self.starts.append(self._length + self._partial)
        after = self.decode(self.ids[self._begin :])
        wanted = self.replacement
        itself = wanted is not None and self.ids[-len(wanted) :] == wanted
        if after.endswith("\ufffd") and not itself:
            self._partial = max(0, len(after.rstrip("\ufffd")) - len(self._before))
            return
        self._pieces.append(after[len(self._before) :])
        self._length += len(self._pieces[-1])
        self._begin, self.whole, self._partial = self.whole, len(self.ids), 0
        self._before = self.decode(self.ids[self._begin :])


def token_starts(
    ids: Sequence[int], decode: Callable[[list[int]], str], replacement: Sequence[int] | None = None
) -> list[int]:
    """The character at which each token begins: see `Spelling`.

    Args:
        decode: the text of ids.
        replacement: the ids of "\\ufffd", which a text may hold: it is also what stands for bytes that are none yet.
    """
    spelling = Spelling(decode, replacement)
    for token in ids:
        spelling.add(token)
    return spelling.starts


def pieces(text: str, starts: Sequence[int]) -> list[str]:
    """The text of each token; joined, `text`."""
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]

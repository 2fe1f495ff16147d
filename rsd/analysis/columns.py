"""Text in the columns of a terminal: wrapped by what is seen of it, and two texts side by side."""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rsd.terminal import JOINERS, Painted, harmless, joined, part

TAB = 8
BETWEEN = " │ "


def width(character: str) -> int:
    """How many columns a character takes, if it is harmless."""
    if unicodedata.category(character) in ("Mn", "Me") or character in JOINERS or "\u1160" <= character <= "\u11ff":
        return 0  # combining, and the later parts of a Hangul syllable
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrapped(text: str, columns: int | None) -> list[Painted]:
    """The lines of a text, none wider than so many columns (None: as they are); long ones are broken behind a space.

    Joined they are the text without its line breaks; but where they are wrapped, tabs are spaces.
    """
    text = joined([harmless(text)])
    ends = [i for i, c in enumerate(text) if c == "\n"]
    lines = [part(text, a, b) for a, b in zip([0, *(end + 1 for end in ends)], [*ends, len(text)], strict=True)]
    return lines if columns is None else [piece for line in lines for piece in _broken(_untabbed(line), columns)]


def _untabbed(line: Painted) -> Painted:
    pieces, begin, taken = [], 0, 0
    for end in [i for i, c in enumerate(line) if c == "\t"]:
        taken += sum(map(width, line[begin:end]))
        pieces += [part(line, begin, end), " " * (TAB - taken % TAB)]
        begin, taken = end + 1, 0
    return joined([*pieces, part(line, begin, len(line))])


def _broken(line: Painted, columns: int) -> Iterator[Painted]:
    begin = taken = space = 0
    for i, c in enumerate(line):
        size = width(c)
        if taken + size > columns and i > begin:
            end = space if space > begin else i
            yield part(line, begin, end)
            begin, taken = end, sum(map(width, line[end:i]))
        taken += size
        if c == " ":
            space = i + 1
    yield part(line, begin, len(line))


def beside(left: Sequence[Painted], right: Sequence[Painted], columns: int) -> list[Painted]:
    """Lines side by side; columns: how wide the left ones may be."""
    made = []
    for one, other in zip_longest(left, right, fillvalue=joined([])):
        room = columns - sum(map(width, one))
        made.append(joined([one, " " * room, BETWEEN, other]))
    return made

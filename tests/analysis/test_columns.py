"""Lines of a terminal: no wider than it, with all of the text and its colours, and two texts side by side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.analysis.columns import beside, width, wrapped
from rsd.terminal import Painted, harmless, joined, paint

LINES = st.text(st.characters(codec="utf-8"), max_size=60)


@given(st.lists(st.tuples(LINES, st.sampled_from(["31", "4", None])), max_size=8), st.integers(2, 30))
def test_wrapped_lines_are_the_text_and_no_line_is_wider(parts, columns):
    text = harmless("".join(piece for piece, _ in parts).replace("\t", " "))
    painted = joined(
        paint(piece.replace("\t", " "), colour) if colour else piece.replace("\t", " ") for piece, colour in parts
    )
    lines = wrapped(painted, columns)
    assert "".join(lines) == text.replace("\n", "")
    assert all(sum(map(width, line)) <= columns for line in lines)
    assert len(lines) >= len(text.split("\n"))
    assert [str(line) for line in wrapped(painted, None)] == text.split("\n")
    # Colours go with their characters.
    colour_of = [None] * len(text)
    for a, b, colour in painted.spans:
        colour_of[a:b] = [colour] * (b - a)
    of_lines = []
    for line in lines:
        mine = [None] * len(line)
        for a, b, colour in line.spans:
            mine[a:b] = [colour] * (b - a)
        of_lines += mine
    assert of_lines == [colour for colour, c in zip(colour_of, text, strict=True) if c != "\n"]


@pytest.mark.parametrize(
    ("text", "wide"), [("abc", 3), ("数学", 4), ("é", 1), ("e\u0301", 1), ("a\u200db", 2), ("한글", 4)]
)
def test_what_a_text_takes_of_a_terminal(text, wide):
    assert sum(map(width, text)) == wide
    (line,) = beside([Painted(text)], [Painted("x")], 6)
    assert line == f"{text}{' ' * (6 - wide)} │ x"


def test_tabs_go_to_the_next_eighth_column():
    (line,) = wrapped(joined(["数\t", paint("b\tc", "31"), "\t"]), 80)
    assert line == "数      b       c       " and [(line[a:b], c) for a, b, c in line.spans] == [
        ("b", "31"),
        ("c", "31"),
    ]
    wrapped("\t" * 300_000, 80)  # in no time

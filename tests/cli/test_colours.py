"""Colours where there is a terminal, and nobody wants them away; never of what stands in a file."""

import os
import subprocess
import sys

import pytest
from conftest import environment, rsd, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import NATURAL, PROBLEMS, WORDY, row
from terminals import BAD as STEERS
from terminals import COLOUR, coloured, on_a_terminal

from rsd.terminal import BAD, GOOD, HEADING, NOTE, Painted, Screen, harmless, in_lines, joined, marked, paint

RED = "\x1b[31mred\x1b[0m"
COLOURS = st.sampled_from([HEADING, GOOD, BAD, NOTE])
PARTS = st.lists(st.tuples(st.text(), COLOURS | st.none()))


class Terminal:
    """A stream that keeps what it is given."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> int:
        self.said += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def on_xterm(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def screened(text: str) -> str:
    terminal = Terminal()
    Screen(terminal).write(text)
    return terminal.said


@given(PARTS)
def test_a_colour_is_where_it_was_put_and_nothing_else_steers(parts):
    text = joined(paint(piece, colour) if colour else piece for piece, colour in parts)
    assert str(text) == "".join(piece for piece, _ in parts)
    made = screened(harmless(text))
    want = "".join(f"\x1b[{colour}m{harmless(t)}\x1b[0m" if colour else harmless(t) for t, colour in parts)
    assert made == want.encode("utf-8", "backslashreplace").decode()
    assert not STEERS.search(COLOUR.sub("", made))
    plain = harmless("".join(piece for piece, _ in parts))
    assert COLOUR.sub("", made) == plain.encode("utf-8", "backslashreplace").decode()


@given(st.text(), st.text())
def test_lines_and_sums_keep_colours_and_other_texts_have_none(one, other):
    lines = in_lines([paint(one, BAD), other])
    assert [(lines[a:b], colour) for a, b, colour in lines.spans] == [(harmless(one, kept=""), BAD)]
    assert (paint(one, GOOD) + other).spans == ((0, len(one), GOOD),)
    for plain in (f"{paint(one, BAD)}", str(paint(one, BAD)), paint(one, BAD)[:], paint(one, BAD).strip()):
        assert not isinstance(plain, Painted) or not plain.spans


def test_codes_in_a_text_are_no_colours():
    assert not COLOUR.search(screened(f"{RED} {marked('rsd:x ' + RED)}"))
    assert coloured(screened(marked(f"notice: {RED}"))) == [(NOTE, "notice:")]


@pytest.fixture
def sides(tmp_path):
    rows = [row(i, NATURAL[i % 2], id=f"p{i}\x1b[32m", is_correct=i > 0) for i in range(8)]
    raw = [r | {"completion": WORDY.replace("Then", RED)} for r in rows]
    return write(tmp_path / "raw.jsonl", raw), write(tmp_path / "ours.jsonl", rows)


def test_a_terminal_shows_what_is_better_in_colour(sides, tmp_path):
    said = on_a_terminal("compare", *sides, cwd=tmp_path)
    found = coloured(said)
    assert ("1", "        difference") not in found and any(c == HEADING and "difference" in t for c, t in found)
    for heading, higher in (("local naturalness", True), ("improbable tokens", False), ("RSR (mean of traces)", False)):
        line = next(line for line in said.splitlines() if line.startswith(heading))
        ((colour, delta),) = coloured(line)
        assert colour == (GOOD if (float(delta) > 0) is higher else BAD), line
    for line in said.splitlines():
        if "read beside them" in line:
            assert not coloured(line)
    assert not STEERS.search(COLOUR.sub("", said).replace("\r", ""))
    assert "p1\ufffd[32m" in said  # the file's own code


def test_a_summary_and_errors_are_in_colour(tmp_path):
    problems = write(tmp_path / "in.jsonl", [*PROBLEMS[:2], {"id": "bad", "problem": "", "answer": RED}])
    said = on_a_terminal("generate", problems, "-o", "t.jsonl", "--max-new-tokens", "8", cwd=tmp_path)
    assert {(BAD, "2 wrong"), (BAD, "errors")} <= {*coloured(said)}
    assert (BAD, "rsd:") in coloured(on_a_terminal("generate", f"no{RED}", cwd=tmp_path))
    assert (BAD, "Error:") in coloured(on_a_terminal("generate", f"--no{RED}", cwd=tmp_path))
    headings = coloured(on_a_terminal("generate", "--help", cwd=tmp_path))
    assert (HEADING, "Acceptance:") in headings and (HEADING, "Usage:") in headings


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_nobody_wants_them(env, tmp_path):
    for args in (["--help"], ["generate", "none.jsonl"], ["generate", "--none"]):
        assert "\x1b" not in on_a_terminal(*args, cwd=tmp_path, **env)


def test_what_is_piped_has_colours_only_if_they_are_asked_for(tmp_path):
    for args in (["--help"], ["generate", "none.jsonl"], ["generate", "--none"]):
        made = rsd(*args, cwd=tmp_path)
        assert "\x1b" not in made.stdout + made.stderr
    for env, seen in (({"FORCE_COLOR": "1"}, True), ({"CLICOLOR_FORCE": "1"}, True), ({"FORCE_COLOR": "0"}, False)):
        command = [sys.executable, "-m", "rsd", "--help"]
        made = subprocess.run(command, env=environment() | env, capture_output=True, text=True)
        assert ((HEADING, "Usage:") in coloured(made.stdout)) is seen


def test_files_hold_no_colours(sides, tmp_path):
    on_a_terminal("compare", *sides, "--json", "c.json", cwd=tmp_path)
    on_a_terminal("score", sides[1], "-o", "s.jsonl", cwd=tmp_path)
    for name in ("c.json", "s.jsonl"):
        assert os.path.getsize(tmp_path / name) and b"\x1b" not in (tmp_path / name).read_bytes()

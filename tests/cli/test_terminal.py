"""Nothing that stands in a file, a name or an answer steers the terminal, and no work is lost for want of one."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, read, write
from hypothesis import given
from hypothesis import strategies as st
from terminals import BAD, COLOUR, coloured, on_a_terminal

from rsd.models.bundled import bundled
from rsd.terminal import Screen, harmless, one_line

TITLE = "\x1b]0;owned\x07"
TRACE = {"prompt": "1 + 1?", "completion": [{"role": "assistant", "content": "2"}], "answer": "2"}


@given(st.text())
def test_what_is_printed_is_harmless_and_as_long(text):
    assert not BAD.search(harmless(text)) and len(harmless(text)) == len(text)
    assert len(one_line(text).splitlines()) <= 1 and "\r" not in one_line(text)


@pytest.mark.parametrize(
    "text", ["நன்றி", "می\u200cخواهم", "👩\u200d👧", "漢字 \u3000かな", "naïve ½ − ×\u00a0°", "क्\u200dष"]
)
def test_writing_of_all_kinds_is_left_as_it_is(text):
    assert harmless(text) == one_line(text) == text


NAMES = (
    "dry run",
    "added token",
    "output",
    "no such file",
    "no such flag",
    "no such command",
    "no such choice",
    "no such model",
    "no number",
    "score",
    "compare",
    "select",
    "bytes",
)


def commands(folder: Path) -> dict[str, tuple]:
    """Commands whose messages hold what is not theirs."""
    student = Path(shutil.copytree(bundled("student"), folder / "student"))
    file = student / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 700, "content": f"<{TITLE}>"})
    file.write_text(json.dumps(tokenizer))
    evil = write(folder / f"in{TITLE}.jsonl", [TRACE | {"id": f"a{TITLE}\nb", "prompt": f"1 + 1 {TITLE}?"}])
    few = ["--max-new-tokens", "8", "--limit", "1"]
    return {
        "dry run": ("generate", evil, "--dry-run"),
        "added token": ("generate", evil, "--student", student, "-o", "a.jsonl", *few),
        "output": ("generate", evil, "-o", f"o{TITLE}\nrsd: fine.jsonl", *few),
        "no such file": ("generate", f"none{TITLE}\n.jsonl"),
        "no such flag": ("generate", f"--none{TITLE}"),
        "no such command": (f"none{TITLE}",),
        "no such choice": ("generate", "--dtype", f"x{TITLE}\x9b31m"),
        "no such model": ("generate", "--student", f"./none{TITLE}"),
        "no number": ("generate", "--seed", TITLE),
        "score": ("score", evil, "-o", f"scored{TITLE}.jsonl"),
        "compare": ("compare", evil, evil, "--json", f"c{TITLE}.json"),
        "select": ("select", evil, "-o", f"s{TITLE}.jsonl", "--keep-incorrect"),
        "bytes": ("generate", os.fsdecode(b"\xff\x9b31m.jsonl")),
    }


SLOW = ("score", "compare", "select", "added token")  # these load a model, and say little


@pytest.mark.parametrize(
    "several",
    [[n for n in NAMES if n not in SLOW], pytest.param(SLOW, marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_nothing_steers_the_terminal(several, tmp_path):
    every = commands(tmp_path)
    assert set(every) == set(NAMES)
    for name in several:
        said = on_a_terminal(*every[name], cwd=tmp_path)
        assert said.strip(), name
        assert not BAD.search(COLOUR.sub("", said).replace("\r", "")), (name, said)
        assert "owned" not in "".join(text for _, text in coloured(said)), (name, said)
        assert not any(line.startswith(("rsd: fine", ".jsonl", "b ")) for line in said.splitlines()), (name, said)
        assert "Traceback" not in said, (name, said)


def started(*args, cwd: Path, wrapped: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    """A command behind a shell's redirections."""
    line = f'"$0" -m rsd "$@" {wrapped}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *map(str, args)],
        cwd=cwd,
        env=environment() | env,
        capture_output=True,
    )


WORDS = {"prompt": "1 − 1 = ½?", "id": "naïve−½"}


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_an_encoding_that_lacks_a_character_costs_nothing(encoding, tmp_path):
    source = write(tmp_path / "in.jsonl", [TRACE | WORDS])
    made = started("generate", source, "--dry-run", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert made.returncode == 0 and rb"\u2212" in made.stdout


REDIRECTED = [
    ("> /dev/full", 1, b"rsd: standard output: No space left on device"),
    ("2>&-", 0, None),
    pytest.param(">&-", 0, b"", marks=pytest.mark.slow),
    pytest.param("2> /dev/full", 0, None, marks=pytest.mark.slow),
    pytest.param("<&-", 0, b"", marks=pytest.mark.slow),
    pytest.param("> /dev/full 2> /dev/full", 1, None, marks=pytest.mark.slow),
    pytest.param("| true", None, b"", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("where", "code", "said"), REDIRECTED)
def test_a_full_or_closed_standard_stream_loses_no_work(where, code, said, tmp_path):
    source = write(tmp_path / "in.jsonl", [TRACE | {"id": i} for i in range(3)])
    made = started("generate", source, "-o", "out.jsonl", "--max-new-tokens", "8", cwd=tmp_path, wrapped=where)
    assert code is None or made.returncode == code, made
    assert b"Traceback" not in made.stderr and b"Exception ignored" not in made.stderr, made.stderr
    assert said is None or said in made.stderr, made.stderr
    assert len(read(tmp_path / "out.jsonl")) == 3


@pytest.mark.slow
def test_a_comparison_that_cannot_be_printed_is_written(tmp_path):
    source = write(tmp_path / "in.jsonl", [TRACE])
    page, figures = tmp_path / "c.html", tmp_path / "c.json"
    made = started("compare", source, source, "--html", page, "--json", figures, cwd=tmp_path, wrapped="> /dev/full")
    assert made.returncode == 1 and page.exists() and json.loads(figures.read_text())["aligned_by"] == "prompt"
    made = started("compare", source, source, cwd=tmp_path, wrapped="| head -1")
    assert b"Traceback" not in made.stderr and b"Exception ignored" not in made.stderr


def test_a_stream_that_is_closed_meanwhile_takes_nothing_and_breaks_nothing(tmp_path):
    stream = (tmp_path / "out").open("w")
    screen = Screen(stream)
    screen.write("before\n")
    stream.close()
    screen.write("after\n")
    screen.flush()
    assert (tmp_path / "out").read_text() == "before\n"
    assert screen.failed is not None and screen.failed.errno == errno.EBADF


def test_an_uncaught_error_does_not_go_to_standard_output_where_the_other_is_closed():
    program = "from rsd.terminal import guarded\nwith guarded():\n    raise RuntimeError('odd')"
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert run.returncode == 1 and run.stdout == b""

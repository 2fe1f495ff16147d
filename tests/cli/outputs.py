"""Files and commands that write, for the tests of what these may replace."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write

from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

KEEP = "--keep", "all"
ROWS = {"score": "scored.jsonl", "select": "best.jsonl", "export": "set.jsonl"}
PAIR = "raw.jsonl", "other.jsonl"
TINY = "problems.jsonl", "--limit", "1", "--max-new-tokens", "8", "--overwrite"
COMMANDS = {  # each up to its output's name; inputs first
    "generate": ["generate", "problems.jsonl", *KEEP, "-o"],
    "score": ["score", "raw.jsonl", "--overwrite", "-o"],
    "score, resumed": ["score", "raw.jsonl", "-o"],
    "score --html": ["score", "raw.jsonl", "--overwrite", "-o", "page.jsonl", "--html"],
    "compare --json": ["compare", *PAIR, "--overwrite", "--json"],
    "compare --html": ["compare", *PAIR, "--overwrite", "--html"],
    "doctor --json": ["doctor", *TINY, "--json"],
    "doctor --html": ["doctor", *TINY, "--html"],
    "select": ["select", *PAIR, "--keep-incorrect", "--overwrite", "-o"],
    "weigh": ["weigh", "raw.jsonl", "--validity", "token", "--overwrite", "-o"],
    "export": ["export", "traces.jsonl", "--overwrite", "-o"],
}
INPUTS = {
    "generate": "problems.jsonl",
    "doctor --json": "problems.jsonl",
    "doctor --html": "problems.jsonl",
    "export": "traces.jsonl",
}  # of the others: raw.jsonl


def command(*args, expect=0):
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == expect, (args, result.output, result.exception)
    return result.output


def there(folder: Path) -> dict[str, tuple]:
    """All that a folder holds: kinds, permissions, what links name, contents."""
    held = {}
    for p in sorted(folder.rglob("*")):
        mode = p.lstat().st_mode
        content = p.read_bytes() if stat.S_ISREG(mode) else os.readlink(p) if stat.S_ISLNK(mode) else None
        held[str(p.relative_to(folder))] = mode, content
    return held


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a job, and an output of every command."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    os.chdir(folder)
    write(folder / "problems.jsonl", read_rows(bundled("problems.jsonl"))[:4])
    command("generate", "problems.jsonl", "-o", "traces.jsonl", "--num-generations", 2, *KEEP)
    raw = [{"id": f"r{i}", "prompt": f"{i} plus {i}?", "completion": f"So {2 * i}. Yes."} for i in range(3)]
    write(folder / "raw.jsonl", raw)
    write(folder / "other.jsonl", [row | {"completion": f"It is {2 * i}."} for i, row in enumerate(raw)])
    for name in ("score", "select"):
        command(*(a for a in COMMANDS[name] if a != "--overwrite"), ROWS[name])
    command("export", "traces.jsonl", *KEEP, "--test-share", 0.5, "-o", "set.jsonl")
    command("compare", *PAIR, "--json", "figures.json", "--html", "page.html")
    write(folder / "mine.jsonl", [{"precious": 1}])
    (folder / "torn.jsonl").write_text("precious, and no line's end")
    os.chdir(before)
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    for p in whole.iterdir():
        shutil.copy(p, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path

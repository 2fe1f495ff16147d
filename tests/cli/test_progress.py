"""A log has whole lines that say how far a job is, ever more rarely; a terminal has a bar."""

import re
import time

import pytest
from conftest import rsd, write
from jobs import NATURAL, PROBLEMS, WORDY, command

from rsd import bar
from rsd.bar import PAUSES, Bar
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

LINE = re.compile(r"(?:(\w+): )?(\d+)/(\d+) traces \((\d+)%\)(?:, [\d.e+]+ traces/s)?(?:, [^,\n]+)*")
ROWS = [
    {"id": i, "prompt": "Ana has 6 pens and finds 5 more, and then three times as many. How many?", "completion": text}
    for i, text in enumerate([*NATURAL, WORDY] * 80)
]


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(bar, "PAUSES", ((float("inf"), 0.02),))


def told(output: str) -> list[re.Match[str]]:
    assert "\r" not in output
    return [m for line in output.splitlines() if (m := LINE.fullmatch(line))]


def goes_on(lines: list[re.Match[str]], total: int) -> None:
    """Lines of one thing: from less to all, with rates and what is left, and in the end how long it took."""
    done = [int(m[2]) for m in lines]
    assert len(lines) > 2 and done == sorted(done) and done[-1] == total
    assert lines[-1][0].split(", ")[-1].startswith("in ") and lines[-1][4] == "100"
    assert all(int(m[4]) == round(100 * int(m[2]) / int(m[3])) for m in lines)
    late = [m[0] for m in lines[:-1] if int(m[2])]
    assert late and all(" tok/s" in line and " traces/s" in line and line.endswith(" left") for line in late)


@pytest.mark.usefixtures("often")
def test_a_log_has_lines_of_a_job(tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:12])
    made = command("generate", source, "-o", tmp_path / "t.jsonl", "--batch-size", 2)
    lines = told(made.stderr)
    goes_on(lines, 12)
    assert "0/12 traces (0%)" in lines[0][0]  # said before any was finished
    assert any("acceptance 9" in m[0] and "tokens a round" in m[0] for m in lines)
    made = command("generate", source, "-o", tmp_path / "t.jsonl", "--batch-size", 2, "--quiet", "--overwrite")
    assert not told(made.stderr)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("which", ["score", "compare", "select"])
def test_a_log_has_lines_of_what_is_scored(which, tmp_path):
    a, b = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS)
    args = {"score": [a], "compare": [a, b], "select": [a, b, "--keep-incorrect", "-o", tmp_path / "s.jsonl"]}
    lines = told(command(which, *args[which]).stderr)
    if which == "compare":
        for side in ("baseline", "candidate"):
            goes_on([m for m in lines if m[1] == side], len(ROWS))
    else:
        goes_on(lines, len(ROWS) * (1 + (which == "select")))


@pytest.mark.usefixtures("often")
def test_what_stands_still_is_said_as_well(capsys):
    with Bar(10, 4, rates=lambda: "nothing yet"):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2 and set(lines[:-1]) == {"4/10 traces (40%), nothing yet"}


def test_lines_become_rarer():
    assert PAUSES[0][1] == 10 and PAUSES[1][1] == 30 and PAUSES[-1][0] == float("inf")
    assert [*PAUSES] == sorted(PAUSES)


def test_a_short_job_says_how_it_ended(tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS[:2])
    made = rsd("generate", source, "-o", "t.jsonl", "--max-new-tokens", "8", cwd=tmp_path)
    (line,) = told(made.stderr)
    assert made.returncode == 0 and line[0].startswith("2/2 traces (100%), ")
    again = rsd("generate", source, "-o", "t.jsonl", "--max-new-tokens", "8", cwd=tmp_path)
    assert not told(again.stderr)

"""`rsd doctor`, as a user runs it: what is printed, its files, a teacher behind a server, an end before its time."""

import json
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from conftest import environment, rsd, write
from stub import Stub
from terminals import COLOUR, on_a_terminal

from rsd.cli import main
from rsd.models.bundled import bundled

SMALL = "--limit", "3", "--max-new-tokens", "64"
BUNDLED = "--teacher-model", "teacher", "--teacher-tokenizer", str(bundled("teacher"))


def test_it_says_what_is_found_and_writes_it_to_files(tmp_path):
    made = rsd("doctor", *SMALL, "--json", "d.json", "--html", "d.html", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[-2:] == ["written to   d.json", "written to   d.html"]
    assert all(len(line) < 80 for line in lines)
    found = json.loads((tmp_path / "d.json").read_text())
    assert lines[0] in found["verdict"] and found["problems"] == 3 and found["trials"] == 5
    assert found["raw"]["below"].keys() == {"0.001", "0.003", "0.01", "0.03", "0.1", "0.3"}
    for one in found["recommendations"]:
        assert f"rule: {one['what']}"[:60] in " ".join(made.stdout.split()) and one["source"]
    for name in ("raw teacher", "RSD", "student alone"):
        assert f"{name}: 3/3 traces (100%)" in made.stderr
    again = rsd("doctor", *SMALL, "--json", "d.json", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "rsd: d.json exists: name another output, or --overwrite to replace it\n"
    replaced = rsd("doctor", *SMALL, "--seed", "1", "--json", "d.json", "--overwrite", cwd=tmp_path)
    assert replaced.returncode == 0 and json.loads((tmp_path / "d.json").read_text())["seed"] == 1


def test_a_terminal_shows_it_in_colours_and_nothing_else(tmp_path):
    shown = on_a_terminal("doctor", *SMALL, cwd=tmp_path, columns=80)
    assert "\x1b[1mwhat to do\x1b[0m" in shown
    assert "\x1b" not in COLOUR.sub("", shown[shown.index("what to do") :])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["none.jsonl"], "none.jsonl: cannot be read: No such file"),
        (["--threshold", "0"], "--threshold must be above 0 and below 1, not 0.0: the raw teacher (0)"),
        (["--teacher", "nobody"], "--teacher nobody: no such directory"),
        (["--teacher", "http://127.0.0.1:1/v1"], "http://127.0.0.1:1/v1: cannot be reached"),
        (["--json", "in.jsonl"], "in.jsonl is not a file that this command wrote"),
        (["in.jsonl"], "no trace could be made: 1: prompt is empty"),
    ],
)
def test_what_is_wrong_is_one_line(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"id": 1, "prompt": " "}])
    more = ["--overwrite"] if "--json" in args else []
    made = CliRunner().invoke(main, ["doctor", *args, *more, *SMALL])
    assert made.exit_code == 2 and made.stdout == ""
    *before, last = made.stderr.splitlines()
    assert last.startswith("rsd: ") and said in last and not any("Traceback" in line for line in before)


@pytest.mark.slow
def test_a_served_teacher_of_which_enough_is_told_is_as_good_as_one_that_is_here(tmp_path):
    here = rsd("doctor", *SMALL, "--json", "here.json", cwd=tmp_path)
    with Stub(bundled("teacher"), name="teacher") as stub:
        there = rsd("doctor", *SMALL, "--teacher", f"{stub.url}/v1", *BUNDLED, "--json", "there.json", cwd=tmp_path)
        assert there.returncode == 0, there.stderr
        refused = rsd("doctor", *SMALL, "--teacher", f"{stub.url}/v1", *BUNDLED, "--top-k", "0", cwd=tmp_path)
    assert here.returncode == 0 and "complete top-k" in " ".join(there.stdout.split())
    mine, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("here", "there"))
    for a, b in zip(mine["thresholds"], other["thresholds"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for name in ("raw", "rsd", "student_alone"):
        for column in ("tokens", "solved", "own", "ln"):
            assert mine[name][column] == pytest.approx(other[name][column], abs=1e-3)
    assert mine["verdict"] == other["verdict"]
    assert refused.returncode == 2 and "give one, or a teacher that is loaded here" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_an_interrupt_is_one_line(tiny, tmp_path):
    pair = [part for role, folder in tiny().items() for part in (f"--{role}", folder)]
    write(tmp_path / "in.jsonl", [{"prompt": f"{i}?"} for i in range(400)])
    job = subprocess.Popen(
        [sys.executable, "-m", "rsd", "doctor", "in.jsonl", *pair, "--limit", "400", "--batch-size", "1"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = job.stderr.readline()  # it is at work, and says so
    assert "raw teacher" in said or "notice" in said
    time.sleep(0.5)
    job.send_signal(signal.SIGINT)
    out, said = job.communicate()
    assert job.returncode == 130 and out == ""
    assert said.strip().splitlines()[-1] == "stopped" and "Traceback" not in said

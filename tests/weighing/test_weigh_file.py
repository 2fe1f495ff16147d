"""Weighing files: resumed, never somebody else's, and bad rows and bad commands in one line."""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import environment, read, write
from jobs import command

import rsd

TEXT = "Two and two. That is four, so 2 + 2 = 4.\n\nThe answer is \\boxed{4}."
ROWS = [{"id": f"r{i}", "prompt": f"{i} plus {i}?", "completion": TEXT * (1 + i % 3), "answer": "4"} for i in range(12)]


def flags(tiny):
    pair = tiny()
    return ["--teacher", pair["teacher"], "--student", pair["student"], "--skip-check"]


def same(made, want):
    """Whether rows are the same, up to the last digits of what was computed."""
    assert len(made) == len(want)
    for row, other in zip(made, want, strict=True):
        assert list(row) == list(other)
        for name in other:
            if name.startswith(("validity", "step_weights", "token_weights")):
                assert row[name] == (other[name] and pytest.approx(other[name], abs=1e-4)), name
            else:
                assert row[name] == other[name], name


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, tiny):
    source, out, whole = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    more = [*flags(tiny), "--batch-size", "2"]
    line = [sys.executable, "-m", "rsd", "weigh", str(source), "-o", str(out), *more]
    with subprocess.Popen(line, env=environment(), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    left = read(out) if out.read_bytes().endswith(b"\n") else None
    command("weigh", source, "-o", whole, *more)
    assert left is None or 2 <= len(left) < len(ROWS)
    for lines in (None, 0, 5):
        if lines is not None:
            kept = out.read_bytes().splitlines(keepends=True)[: lines + 1]
            out.write_bytes(b"".join(kept)[:-9])  # torn
        said = command("weigh", source, "-o", out, *more).output
        same(read(out), read(whole))
        assert lines is None or f"rows         12 ({12 - lines} new), 0 of them with an error" in said
    same(rsd.weigh(source, **tiny()), read(whole))
    assert not any(row["weigh_error"] for row in read(whole))
    # Nothing is left to do, and other settings or rows are not this run's.
    before = out.read_bytes()
    assert "(0 new)" in command("weigh", source, "-o", out, *more).output
    other = write(tmp_path / "other.jsonl", ROWS[::-1])
    for args, said in (
        ([source, "--steps", "line"], "weighed with other settings: steps (there 'sentence', now 'line')"),
        ([source, "--weight-temperature", "2"], "weight_temperature (there 1.0, now 2.0)"),
        ([other], "is not of the input's row 1"),
    ):
        assert said in command("weigh", *args, "-o", out, *more, expect=2).output
    assert out.read_bytes() == before


def test_bad_rows_are_rows_with_an_error(tmp_path, tiny):
    rows = [
        ROWS[0],
        {"id": "none", "prompt": "?", "completion": "  "},
        {"id": "broken", "prompt": "?", "completion": "x", "error": "was none"},
        {"id": "ids", "prompt": "?", "completion": "x", "token_ids": [10**6]},
        {"id": "long", "prompt": "?", "completion": "word " * 400},
        {"id": "odd", "prompt": 3, "completion": "x"},
        ROWS[1],
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "in.weighed.jsonl"
    said = command("weigh", source, *flags(tiny), expect=1).output
    assert "5 of them with an error" in said and "have `weigh_error`, the first: the trace is empty" in said
    made = read(out)
    errors = [row["weigh_error"] for row in made]
    assert errors[0] is errors[6] is None
    for i, why in enumerate(("empty", "was none", "does not know", "context 512", "prompt"), 1):
        assert why in errors[i] and "\n" not in errors[i]
        assert made[i]["step_weights"] is made[i]["token_weights"] is None
        assert {k: made[i][k] for k in rows[i]} == rows[i]
    assert list(made[1])[-1] == "weigh_error"
    command("weigh", source, *flags(tiny), expect=1)
    assert read(out) == made
    # Rollouts need something that they could be held against.
    (row, answered) = rsd.weigh(
        [ROWS[0] | {"answer": None}, ROWS[0]], validity="rollout", rollouts=1, max_new_tokens=4, **tiny()
    )
    assert "no answer" in row["weigh_error"] and answered["weigh_error"] is None


BAD = {
    "behind a server": ["--teacher", "http://localhost:1/v1"],
    "must be likelihood, rollout or token": ["--validity", "luck"],
    "leave --proposals out": ["--validity", "token", "--proposals"],
    "choose another --verify than none": ["--validity", "rollout", "--verify", "none"],
    "--weight-temperature must be from": ["--weight-temperature", "0"],
    "--rollouts must be a whole number": ["--validity", "rollout", "--rollouts", "0"],
    "no such directory": ["--teacher", "./nowhere"],
    "no column nowhere": ["--response-column", "nowhere"],
    "no column of answers": ["--validity", "rollout", "--answer-column", "nowhere"],
    "is an input itself": ["-o", "in.jsonl"],
    "lines of JSON": ["-o", "out.parquet"],
    "not a file that this command wrote": ["-o", "mine.jsonl", "--overwrite"],
}


@pytest.mark.parametrize("said", BAD)
def test_a_bad_command_ends_in_one_line(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", ROWS[:1])
    mine = write(tmp_path / "mine.jsonl", [{"mine": 1}])
    result = command("weigh", "in.jsonl", *BAD[said], expect=2)
    assert said.replace("must be likelihood, rollout or token", "'luck' is not one of") in " ".join(
        result.output.split()
    )
    assert "Traceback" not in result.output
    assert read(mine) == [{"mine": 1}] and not (tmp_path / "in.weighed.jsonl").exists()


def test_the_same_from_python_with_events_and_anew(tmp_path, tiny):
    source, out, told = write(tmp_path / "in.jsonl", ROWS[:3]), tmp_path / "out.jsonl", tmp_path / "events.jsonl"
    command("weigh", source, "-o", out, *flags(tiny), "--metrics-file", told)
    first = read(out)
    summary = rsd.weigh(source, tmp_path / "by-python.jsonl", **tiny(), config=rsd.WeighConfig(skip_check=True))
    same(read(tmp_path / "by-python.jsonl"), first)
    same(rsd.weigh(ROWS[:3], **tiny()), first)
    assert (summary.rows, summary.errors) == (3, 0) and 0 < summary.mean < 1
    events = [event["event"] for event in read(told)]
    assert events[0] == "start" and events[-1] == "end" and "progress" in events
    command("weigh", source, "-o", out, *flags(tiny), "--overwrite", "--validity", "token")
    assert [row["weighing"]["validity"] for row in read(out)] == ["token"] * 3
    # What was weighed may be weighed again, and its old weights are gone.
    again = rsd.weigh(out, **tiny())
    same(again, first)
    assert json.loads(json.dumps(again)) == again
    for bad, why in (
        ({"overwrite": True}, "overwrite is for"),
        ({"validity": "x"}, "must be"),
        ({"x": 1}, "no setting"),
    ):
        with pytest.raises(ValueError, match=why):
            rsd.weigh(source, **bad)

"""What --log-json and --metrics-file tell programs is JSON, finite, right, and costs no work."""

import json
import re
import subprocess
import sys
from datetime import datetime

import pytest
from conftest import environment, read, rsd, write
from jobs import PROBLEMS, command, files, run

from rsd import events
from rsd.models.bundled import bundled
from rsd.strictjson import loads
from rsd.traces.readers import read_rows

ROWS = read_rows(bundled("problems.jsonl"))[:12]


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.jsonl", ROWS)


def lines(text: str) -> list[dict]:
    """Strict JSON, one object a line and nothing else."""
    made = [loads(line) for line in text.splitlines()]
    for event in made:
        assert datetime.fromisoformat(event["time"]).tzinfo and event["event"]
    return made


def names(told: list[dict]) -> list[str]:
    return [event["event"] for event in told]


def test_what_a_job_says_to_programs_is_what_it_did(source, tmp_path):
    bad = write(tmp_path / "in.jsonl", [*ROWS, {"id": "bad", "problem": ""}])
    flags = ["--log-json", "--metrics-file", "deep/m.jsonl", "--trials", "inf"]
    made = rsd("generate", bad, "-o", "t.jsonl", *flags, cwd=tmp_path)
    assert made.returncode == 1 and made.stdout.startswith("rows ")
    told, kept = lines(made.stderr), lines((tmp_path / "deep" / "m.jsonl").read_text())
    assert kept == [event for event in told if event["event"] != "notice"]
    assert names(told)[0] == "start" and names(told)[-1] == "end" and names(told).count("notice") >= 3
    assert told[0]["settings"]["trials"] == "inf" and told[0]["command"] == "generate"
    last = told[-2]
    rows, _, manifest = files(tmp_path / "t.jsonl")
    totals = manifest["totals"]
    assert (last["event"], last["done"], last["total"], last["new"], last["to_go"]) == ("progress", 13, 13, 13, 0)
    for name in ("errors", "correct", "wrong", "tokens"):
        assert last[name] == totals[name]
    assert last["tokens"] == last["decoded_tokens"] == sum(r["num_tokens"] for r in rows if not r["error"])
    for name in ("acceptance_rate", "fallback_rate"):
        assert last[name] == pytest.approx(totals[name], abs=1e-4)
    assert told[-1]["rows"] == 13 and told[-1]["new_rows"] == 13


def test_progress_is_told_while_no_trace_is_finished(source, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "EVERY", 0.02)
    flags = ["--limit", "2", "--block-size", "1", "--metrics-file", tmp_path / "m.jsonl"]
    run(source, "-o", tmp_path / "t.jsonl", *flags)
    told = [event for event in read(tmp_path / "m.jsonl") if event["event"] == "progress"]
    before = [event["decoded_tokens"] for event in told if event["new"] == 0]
    assert len(set(before)) > 2 and before == sorted(before)


def test_a_file_of_events_is_appended_to_by_what_made_it_alone(source, tmp_path):
    few, mine = ["--limit", "1"], tmp_path / "m.jsonl"
    for _ in range(2):
        run(source, "-o", tmp_path / "t.jsonl", *few, "--metrics-file", mine)
    command("score", tmp_path / "t.jsonl", "--metrics-file", mine)
    assert names(read(mine)).count("start") == 3 and names(read(mine)).count("end") == 3
    mine.write_bytes(mine.read_bytes()[:-20])  # torn by a crash
    run(source, "-o", tmp_path / "t.jsonl", *few, "--metrics-file", mine)
    assert [line.startswith("{") for line in mine.read_text().splitlines()].count(False) == 0
    for name in ("in.jsonl", "t.jsonl", "t.tokens.jsonl", "t.meta.json", "t.scored.jsonl"):
        before = (tmp_path / name).read_bytes()
        for what in (["generate", source, "-o", tmp_path / "t.jsonl", *few], ["score", tmp_path / "t.jsonl"]):
            assert "rsd: " in command(*what, "--metrics-file", tmp_path / name, expect=2).output
        assert (tmp_path / name).read_bytes() == before
    stranger = tmp_path / "mine.txt"
    stranger.write_text("hello\n")
    for name in (stranger, tmp_path, "-", "/dev/stderr", tmp_path / "m.parquet"):
        assert "rsd: " in run(source, "-o", tmp_path / "t.jsonl", *few, "--metrics-file", name, expect=2).output
    assert stranger.read_text() == "hello\n"


def test_a_file_that_takes_no_more_costs_no_work(tmp_path, capsys):
    file = tmp_path / "m.jsonl"
    with events.reporting(log=False, file=str(file)) as told:
        told.open(file)
        file.unlink()
        file.mkdir()
        told.emit("progress", done=float("nan"))
        told.emit("progress", done=1)
    assert capsys.readouterr().err.count("no more events are written there") == 1


def test_an_error_is_an_event_too(source, tmp_path):
    file = tmp_path / "m.jsonl"
    made = rsd("generate", source, "-o", "t.jsonl", "--log-json", "--max-new-tokens", "9999999", cwd=tmp_path)
    told = lines(made.stderr)
    assert made.returncode == 2 and names(told)[-1] == "error" and told[-1]["code"] == 2
    assert "max-new-tokens" in told[-1]["message"]
    wrong = ["--max-new-tokens", "9999999", "--metrics-file", file]
    assert "rsd: --max-new-tokens" in run(source, "-o", tmp_path / "t.jsonl", *wrong, expect=2).output
    assert names(read(file)) == ["start", "error"]


def test_nothing_in_a_name_steers_a_terminal(tmp_path):
    evil = write(tmp_path / "in\x1b]0;owned\x07.jsonl", PROBLEMS[:1])
    made = rsd("generate", evil, "-o", "o\x9b31m\n.jsonl", "--log-json", "--max-new-tokens", "4", cwd=tmp_path)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", made.stderr)
    assert lines(made.stderr)[0]["input"] == str(evil)


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-"])
def test_a_full_or_closed_standard_error_loses_no_work(where, source, tmp_path):
    line = f'"$0" -m rsd generate in.jsonl -o t.jsonl --log-json --metrics-file m.jsonl {where}'
    made = subprocess.run(["bash", "-c", line, sys.executable], cwd=tmp_path, env=environment(), capture_output=True)
    assert made.returncode == 0 and len(read(tmp_path / "t.jsonl")) == len(ROWS)
    assert names(read(tmp_path / "m.jsonl"))[-1] == "end"


def test_each_share_tells_of_itself(source, tmp_path):
    for number in (1, 2):
        flags = ["--shard", f"{number}/2", "--metrics-file", tmp_path / "m.jsonl"]
        run(source, "-o", tmp_path / "t.jsonl", *flags)
    told = [read(tmp_path / f"m.part-{number}-of-2.jsonl") for number in (1, 2)]
    assert [{event["shard"] for event in one} for one in told] == [{"1/2"}, {"2/2"}]
    last = [[event for event in one if event["event"] == "progress"][-1] for one in told]
    assert sum(event["new"] for event in last) == len(ROWS) and last[1]["done"] == last[1]["total"] == len(ROWS)
    assert len(read(tmp_path / "t.jsonl")) == len(ROWS)


def test_quiet_leaves_notices_out_and_score_tells_as_well(source, tmp_path):
    run(source, "-o", tmp_path / "t.jsonl", "--limit", "3")
    made = rsd("score", "t.jsonl", "--log-json", "--quiet", cwd=tmp_path)
    told = lines(made.stderr)
    assert names(told) == ["start", "progress", "end"] and told[1]["done"] == told[1]["total"] == 3
    assert told[0]["settings"]["window"] == "4" and told[1]["tokens"] > 0
    streamed = rsd("generate", "in.jsonl", "-o", "-", "--limit", "2", "--log-json", cwd=tmp_path)
    assert len([json.loads(line) for line in streamed.stdout.splitlines()]) == 2
    assert names(lines(streamed.stderr))[-1] == "end"

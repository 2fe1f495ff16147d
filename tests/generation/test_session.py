"""The manifest says of every run when it was, by what command, and how many rows it decoded together."""

import json
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest
from conftest import environment, read, write
from jobs import FLAGS, PROBLEMS, files, pair, run

from rsd import GenerateConfig, TraceGenerator
from rsd.generation.job import run_job


def sessions(out) -> list[dict]:
    made = files(out)[2]["sessions"]
    for one in made:
        started, ended = (datetime.fromisoformat(one[name]) for name in ("started", "ended"))
        assert started.tzinfo is not None and 0 <= (ended - started).total_seconds() <= one["seconds"] + 1
    return made


def test_every_run_that_makes_traces_is_a_session(tiny, tmp_path):
    source, out = write(tmp_path / "in put.jsonl", PROBLEMS), tmp_path / "t.jsonl"
    args = [source, "-o", out, *pair(tiny), *FLAGS]
    run(*args, "--limit", 3, "--batch-size", 8)
    (first,) = sessions(out)
    assert shlex.split(first["command"]) == ["rsd", "generate", *map(str, args), "--limit", "3", "--batch-size", "8"]
    assert first["batch_size"] == 3  # there were no more
    run(*args, "--batch-size", 4)
    made = sessions(out)
    assert made[0] == first and made[1]["batch_size"] == 4 and "--limit" not in made[1]["command"]
    before = out.with_suffix(".meta.json").read_bytes()
    for more in ([], ["--keep", "all"], ["--keep", "all", "--device", "cpu"]):  # nothing is left to make
        run(*args, "--batch-size", 4, *more[:2])
        assert out.with_suffix(".meta.json").read_bytes() == before
    run(*args, "--overwrite", "--limit", 2)
    assert [one["batch_size"] for one in sessions(out)] == [2]


def test_a_run_from_python_has_no_command(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:2]), tmp_path / "t.jsonl"
    run_job(TraceGenerator(GenerateConfig(**tiny(), max_new_tokens=8)), source, out)
    assert [one["command"] for one in sessions(out)] == [None]


def test_a_run_that_is_killed_is_a_session(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "rsd", "generate", "-o", "t.jsonl", "--batch-size", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
    out = tmp_path / "t.jsonl"
    while not out.exists() or len(read(out) if out.read_bytes().endswith(b"\n") else []) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = sessions(out)
    assert killed["command"] == "rsd generate -o t.jsonl --batch-size 2"
    monkeypatch.chdir(tmp_path)
    run("-o", "t.jsonl", "--limit", 8)
    assert sessions(out)[0] == killed and len(sessions(out)) <= 2


def test_shares_bring_their_sessions(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "t.jsonl"
    for share in ("1/2", "2/2"):
        run(source, "-o", out, *pair(tiny), *FLAGS, "--shard", share)
    made = sessions(out)
    assert [one["command"].split("--shard ")[1] for one in made] == ["1/2", "2/2"]
    assert len(read(out)) == len(PROBLEMS) and "command" not in files(out)[2]


@pytest.mark.parametrize("odd", [["no session"], {"started": 1}, [{"started": 1}, 2]])
def test_sessions_that_are_none_are_no_manifest(odd, tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:2]), tmp_path / "t.jsonl"
    args = [source, "-o", out, *pair(tiny), *FLAGS]
    run(*args)
    manifest = out.with_suffix(".meta.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sessions": odd}))
    assert "is not a manifest of rsd" in run(*args, "--keep", "all", expect=2).output


def test_no_password_is_kept_or_told(tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS[:2])
    secret = ["--teacher", "http://me:s3cret@127.0.0.1:9/v1", "--teacher-model", "m"]
    for more in ([], ["--log-json"], ["--metrics-file", tmp_path / "m.jsonl"], ["--dry-run"]):
        made = run(source, "-o", tmp_path / "t.jsonl", *secret, *more, expect=2)
        assert "no keys in the address" in made.output and "s3cret" not in made.output
    assert all("s3cret" not in file.read_text() for file in tmp_path.iterdir())

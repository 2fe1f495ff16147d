"""A job's files: nothing that is finished is lost, whatever runs beside it, is cut off, or is damaged."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment, read, write
from jobs import FLAGS, PROBLEMS, by_key, files, pair, run, same_rows

MANIFEST_LOST = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "torn": lambda file: file.write_bytes(file.read_bytes()[:300]),
}


@pytest.fixture
def job(tiny, tmp_path):
    """A finished job: its command's arguments and its output."""
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    args = [source, "-o", out, *pair(tiny), *FLAGS]
    run(*args)
    return args, out


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def cut(out: Path, lines: int) -> None:
    """Leave the first lines of rows and tokens, as a killed job does."""
    for file in (out, out.with_suffix(".tokens.jsonl")):
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:lines]))


@pytest.mark.slow
def test_a_second_start_beside_the_first_changes_nothing(tiny, tmp_path):
    source, out = (
        write(tmp_path / "in.jsonl", [*PROBLEMS, *({"id": i, "problem": f"{i}?"} for i in range(60))]),
        "o.jsonl",
    )
    args = [*map(str, (source, "-o", out, *pair(tiny), *FLAGS)), "--batch-size", "2", "--max-new-tokens", "120"]
    command = [sys.executable, "-m", "rsd", "generate", *args]
    quiet = {"cwd": tmp_path, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **quiet)
    # Started at once: it reads what is there while the first is only beginning; and once more in its middle.
    others = [subprocess.Popen(command, **quiet)]
    while first.poll() is None and len((tmp_path / out).read_bytes() if (tmp_path / out).exists() else b"") < 5000:
        time.sleep(0.01)
    others.append(subprocess.Popen(command, **quiet))
    said = [process.communicate(timeout=300)[1] for process in (first, *others)]
    codes = [process.returncode for process in (first, *others)]
    assert sorted(codes)[0] == 0 and set(codes) <= {0, 2}, said
    assert sum("is being written by another process" in text for text in said) == codes.count(2) >= 1
    rows, tokens, manifest = files(tmp_path / out)
    assert len(by_key(rows)) == len(rows) == len(tokens) == 70
    assert manifest["totals"]["rows"] == 70


def test_a_start_that_is_refused_leaves_the_folder_as_it_was(job, tmp_path, tiny):
    args, out = job
    cut(out, 4)
    before = contents(tmp_path)
    run(*args, "--seed", 5, expect=2)
    run(*args, "--answer-column", "gold", expect=2)
    run(args[0], "-o", tmp_path / "new.jsonl", *pair(tiny), "--verify", "no_such_module:judge", expect=2)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("how", MANIFEST_LOST)
def test_a_lost_manifest_costs_no_trace(how, job, tmp_path):
    args, out = job
    whole = files(out)
    cut(out, 6)
    kept = read(out)
    MANIFEST_LOST[how](out.with_suffix(".meta.json"))
    result = run(*args)
    assert "was lost" in result.output and "(4 new)" in result.output
    rows, tokens, manifest = files(out)
    assert rows[:6] == kept and by_key(rows) == by_key(whole[0])
    ids, wanted = ({key: line["token_ids"] for key, line in by_key(of).items()} for of in (tokens, whole[1]))
    assert ids == wanted
    assert manifest["totals"] == whole[2]["totals"] and manifest["identity"] == whole[2]["identity"]


@pytest.mark.parametrize("how", MANIFEST_LOST)
def test_other_settings_are_not_mixed_in_for_want_of_a_manifest(how, job, tmp_path):
    args, out = job
    MANIFEST_LOST[how](out.with_suffix(".meta.json"))
    before = contents(tmp_path)
    result = run(*args, "--seed", 5, expect=2)
    assert "another trace of id" in result.output and "--overwrite" in result.output
    assert contents(tmp_path) == before
    assert "(10 new)" in run(*args, "--seed", 5, "--overwrite").output
    assert files(out)[2]["identity"]["seed"] == 5


def test_only_a_jobs_rows_are_begun_anew_without_a_manifest(job, tmp_path):
    args, _ = job
    mine = write(tmp_path / "mine.jsonl", [{"prompt": "a diary", "generation": 1}])
    before = contents(tmp_path)
    for flags in ([], ["--overwrite"]):
        assert "it is not this job's" in run(args[0], "-o", mine, *args[3:], *flags, expect=2).output
    assert contents(tmp_path) == before


def test_rows_that_are_something_else_now_are_not_dropped(job, tmp_path):
    args, out = job
    write(out, [{"text": "a diary"}])
    before = contents(tmp_path)
    for flags in ([], ["--overwrite"]):
        assert "it is not this job's" in run(*args, *flags, expect=2).output
    assert contents(tmp_path) == before


def test_one_manifest_serves_one_output(job, tmp_path):
    args, out = job
    before = contents(tmp_path)
    for flags in ([], ["--overwrite"]):
        assert "belong to" in run(args[0], "-o", tmp_path / "out", *args[3:], *flags, expect=2).output
    old = json.loads(before["out.meta.json"])
    del old["settings"]["output"]  # as manifests were
    out.with_suffix(".meta.json").write_text(json.dumps(old))
    assert "belong to" in run(args[0], "-o", tmp_path / "out", *args[3:], expect=2).output
    assert {**contents(tmp_path), "out.meta.json": b""} == {**before, "out.meta.json": b""}
    assert "(0 new)" in run(*args).output
    for file in contents(tmp_path):  # a job that was given another name goes on
        if file.startswith("out"):
            (tmp_path / file).rename(tmp_path / file.replace("out", "moved", 1))
    assert "(0 new)" in run(args[0], "-o", tmp_path / "moved.jsonl", *args[3:]).output


def test_a_link_stays_a_link_when_a_torn_job_goes_on(tiny, tmp_path):
    source, disk = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "disk"
    disk.mkdir()
    out = tmp_path / "out.jsonl"
    for name in ("out.jsonl", "out.tokens.jsonl", "out.meta.json"):
        (tmp_path / name).symlink_to(disk / name)
    args = [source, "-o", out, *pair(tiny), *FLAGS]
    run(*args)
    whole = files(out)
    cut(out, 5)
    with open(out, "ab") as file:
        file.write(b'{"id": "torn')
    run(*args)
    assert all((tmp_path / name).is_symlink() for name in ("out.jsonl", "out.tokens.jsonl", "out.meta.json"))
    assert by_key(files(disk / "out.jsonl")[0]) == by_key(whole[0])


JUDGE = "def judge(text, row):\n    {}\n    return row['level'] % 2 == 0\n"


def test_verdicts_that_a_dead_judge_owes_are_given_later(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fair.py").write_text(JUDGE.format("pass"))
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    flags = [*pair(tiny), *FLAGS, "--verify", "fair:judge"]
    run(source, "-o", tmp_path / "undisturbed.jsonl", *flags)
    want = files(tmp_path / "undisturbed.jsonl")
    dies = "import os; os.getcwd().endswith('nowhere') or row['level'] < 4 or os._exit(1)"
    (tmp_path / "fair.py").write_text(JUDGE.format(dies))
    out = tmp_path / "out.jsonl"
    assert "`verify_error` set" in run(source, "-o", out, *flags).output
    lost = [row for row in read(out) if row["verify_error"] is not None]
    assert len(lost) == 6 and all("died" in row["verify_error"] for row in lost)
    before = contents(tmp_path)
    run(source, "-o", out, *flags)  # it dies again: nothing changes
    assert contents(tmp_path)["out.jsonl"] == before["out.jsonl"]
    (tmp_path / "fair.py").write_text(JUDGE.format("pass"))
    result = run(source, "-o", out, *flags)
    assert "judging 6 rows again" in result.output and "(0 new)" in result.output
    assert "5 correct, 5 wrong, 0 not verified" in result.output
    got = files(out)
    assert by_key(got[0]) == by_key(want[0]) and got[2]["totals"] == want[2]["totals"]
    assert "again, which have no verdict" not in run(source, "-o", out, *flags).output


def test_a_row_of_another_shape_is_made_again_and_said(job):
    args, out = job
    whole = files(out)
    for column, value in (("is_correct", "yes"), ("num_tokens", -1), ("num_tokens", "12"), ("finish_reason", 3)):
        rows = read(out)
        write(out, [*rows[:3], rows[3] | {column: value}, *rows[4:]])
        result = run(*args)
        assert f"1 lines of {out}" in result.output and f"{column} " in result.output and "(1 new)" in result.output
        assert same_rows(read(out), whole[0])


def test_what_the_manifest_notes_is_not_looked_at_again_and_anything_else_is(job):
    """A note that holds vouches for every byte; a byte that is another one is found, wherever it is."""
    args, out = job
    whole = files(out)
    assert "(0 new)" in run(*args).output
    tokens = out.with_suffix(".tokens.jsonl")
    text = tokens.read_bytes()
    ids = json.loads(text.splitlines()[4])["token_ids"]
    tokens.write_bytes(text.replace(json.dumps(ids).encode(), json.dumps(ids[::-1]).encode(), 1))
    result = run(*args)
    assert "do not spell its row's text" in result.output and "(1 new)" in result.output
    assert same_rows(read(out), whole[0])
    made, want = ({key: line["token_ids"] for key, line in by_key(of).items()} for of in (files(out)[1], whole[1]))
    assert made == want


def test_a_full_disk_is_one_line_that_says_how_to_go_on(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    args = [*map(str, (source, "-o", out, *pair(tiny), *FLAGS)), "--batch-size", "1"]

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    made = subprocess.run(
        [sys.executable, "-m", "rsd", "generate", *args],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=small,
    )
    assert made.returncode == 2 and "Traceback" not in made.stderr, made.stderr
    assert "run the same command again to go on" in made.stderr.splitlines()[-1]
    assert 0 < len(read_whole(out)) < 10
    assert f"found {len(read_whole(out))} finished" in (result := run(*args)).output
    assert len(files(out)[0]) == 10 and "(0 new)" not in result.output


def read_whole(out: Path) -> list[bytes]:
    return [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_what_is_there_was_asked_onto_the_disk(job, tmp_path, monkeypatch):
    args, out = job
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    run(*args, "--overwrite")
    assert {str(out), str(out.with_suffix(".tokens.jsonl")), str(tmp_path)} <= set(synced)

"""A job that several processes share makes what one process makes, whoever dies, and however many go on with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import environment, read, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import assert_same, run, stopped_while_writing

from rsd.cli import main
from rsd.files import held, locked
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.shards import Shard, parse, part_files

ROWS = read_rows(bundled("problems.jsonl"))[:40]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes: two generations of each row, one of which is bad."""
    folder = tmp_path_factory.mktemp("alone")
    write(folder / "in.jsonl", [*ROWS, {"id": "bad", "problem": ""}])
    run(folder / "in.jsonl", "-o", folder / "t.jsonl", "--num-generations", "2", "--top-logprobs", "3", expect=1)
    return folder


@pytest.fixture
def job(alone, tmp_path, monkeypatch):
    shutil.copy(alone / "in.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return ["in.jsonl", "-o", "t.jsonl", "--num-generations", "2", "--top-logprobs", "3"]


def code(number: int, count: int) -> int:
    """A share's exit code: 1 where the bad row is in it."""
    return int(Shard(number, count).has("bad"))


@given(st.lists(st.text(), unique=True), st.integers(1, 40))
def test_every_row_is_one_processes(ids, count):
    for row_id in ids:
        assert sum(Shard(i + 1, count).has(row_id) for i in range(count)) == 1


def test_whose_a_row_is_never_changes():
    # Jobs are resumed by later versions, and on other machines.
    whose = [next(i for i in range(1, 9) if Shard(i, 8).has(row_id)) for row_id in ("a", "shop-1", "漢字", 7, "7")]
    assert whose == [1, 2, 5, 8, 8]
    many = [sum(Shard(i + 1, 8).has(str(n)) for n in range(8000)) for i in range(8)]
    assert min(many) > 900


def test_shares_by_hand_are_merged_by_the_last(job, alone, tmp_path):
    said = run(*job, "--shard", "3/3", expect=code(3, 3)).output
    assert "merged when the shares 1/3, 2/3 are made" in said
    run(*job, "--shard", "1/3", expect=code(1, 3))
    assert len(part_files("t.jsonl")) == 2 and not Path("t.jsonl").exists()
    run(*job, "--shard", "2/3", expect=1)
    manifest = assert_same(tmp_path, alone)
    made = {process["shard"]: set(process["ids"]) for process in manifest["processes"]}
    assert sorted(made) == ["1/3", "2/3", "3/3"] and set.union(*made.values()) == {
        r["id"] for r in read(Path("in.jsonl"))
    }
    assert all(parse(shard).has(i) for shard, ids in made.items() for i in ids)
    # A finished job is found as such by one process, and by one of several, which makes nothing.
    before = Path("t.jsonl").read_bytes()
    run(*job, "--shard", "1/2", expect=code(1, 2))
    assert Path("t.jsonl").read_bytes() == before or Shard(1, 2).has("bad")


@pytest.mark.parametrize("then", [1, 2, 4])
def test_another_number_of_processes_goes_on(job, alone, tmp_path, then):
    run(*job, "--shard", "2/3", expect=code(2, 3))
    torn = tmp_path / "t.part-2-of-3.jsonl"
    torn.write_bytes(torn.read_bytes()[:-100])  # and its process was killed
    stopped_while_writing(torn.with_name("t.part-2-of-3.meta.json"), signal.SIGKILL)
    if then == 1:
        said = run(*job, expect=1).output
        assert "parts of several processes are merged" in said and "resuming" in said
    for number in range(1, then + 1) if then > 1 else ():
        run(*job, "--shard", f"{number}/{then}", expect=int(number == then or Shard(number, then).has("bad")))
    assert_same(tmp_path, alone)


def test_parts_from_several_machines_are_merged_by_hand(job, alone, tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"machine{number}"
        folder.mkdir()
        shutil.copy("in.jsonl", folder)
        run(
            folder / "in.jsonl",
            "-o",
            folder / "t.jsonl",
            *job[3:],
            "--shard",
            f"{number}/2",
            expect=code(number, 2),
        )
    for number in (1, 2):
        for file in (tmp_path / f"machine{number}").glob("t.part-*"):
            shutil.move(file, tmp_path)
        shutil.rmtree(tmp_path / f"machine{number}")
    result = subprocess.run(
        [sys.executable, "-m", "rsd", "merge", "t.jsonl"], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0 and "82 rows, 2 of them with an error (shares 1/2, 2/2)" in result.stdout
    assert_same(tmp_path, alone)
    again = subprocess.run([sys.executable, "-m", "rsd", "merge", "t.jsonl"], capture_output=True, text=True)
    assert again.returncode == 2 and "has no parts" in again.stderr


def test_what_is_not_to_be_merged_is_not(job, tmp_path):
    run(*job, "--shard", "1/2", expect=code(1, 2))
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    said = run(*job, "--shard", "2/2", "--seed", "1", expect=2).output
    assert "was made with other settings: seed (there 0, now 1)" in said
    assert "seed" in run(*job, "--seed", "1", "--shard", "1/3", expect=2).output
    assert "--overwrite with --shard" in run(*job, "--shard", "2/2", "--overwrite", expect=2).output
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before
    for shard in ("0/2", "3/2", "2", "a/b", "1/0", "-1/2"):
        assert "such as 2/8" in run(*job, "--shard", shard, expect=2).output


def test_the_readme_shows_this_launch():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "accelerate launch --multi_gpu --num_processes 2 -m rsd generate" in readme


def launch(count: int, *args: str) -> subprocess.Popen:
    command = [*LAUNCH, "--num_processes", str(count), "--main_process_port", "0", "-m", "rsd", "generate", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


@pytest.mark.slow
def test_a_launch_of_which_one_process_is_killed_goes_on_with_others(job, alone, tmp_path):
    slow = ["--batch-size", "1", "--block-size", "1"]
    process = launch(2, *job, *slow)
    part = tmp_path / "t.part-2-of-2.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (part.exists() and part.read_bytes().count(b"\n") > 3):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        os.kill(json.loads(part.with_name("t.part-2-of-2.meta.json").read_text())["process"]["pid"], signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    made = sum(len(read(f)) for f in part_files("t.jsonl").values() if f.read_bytes().endswith(b"\n"))
    assert 0 < made < 82
    again = launch(3, *job)
    out, err = again.communicate(timeout=240)
    assert out.count("rows         82") == 1 and "acceptance" in out, err  # one process prints, for all
    assert err.count("vocabularies:") == 1 and "82/82" in err
    assert again.returncode != 0  # a row is an error
    manifest = assert_same(tmp_path, alone)
    assert {p["shard"] for p in manifest["processes"]} == {"1/2", "2/2", "1/3", "2/3", "3/3"}


@pytest.mark.slow
def test_a_launch_that_starts_anew(job, alone, tmp_path):
    run(*job, "--seed", "5", expect=1)
    run(*job, "--seed", "5", "--num-generations", "3", "--shard", "1/3", expect=code(1, 3))
    process = launch(2, *job, "--overwrite")
    process.communicate(timeout=240)
    assert_same(tmp_path, alone)


def score(*args, expect=0):
    result = CliRunner().invoke(main, ["score", "in.jsonl", "-o", "s.jsonl", *args])
    assert result.exit_code == expect, result.output + str(result.exception)
    return result.output


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = read_rows(bundled("teacher.jsonl"))[:110]
    write(tmp_path / "in.jsonl", [*rows, rows[3]])  # a row that is there twice
    score()
    return (tmp_path / "s.jsonl").rename(tmp_path / "want.jsonl").read_bytes()


@pytest.mark.parametrize("then", [1, 2, 3])
def test_scores_of_several_processes_are_those_of_one(raw, tmp_path, then):
    assert "when the shares 1/3, 3/3 are scored" in score("--shard", "2/3")
    part = tmp_path / "s.part-2-of-3.jsonl"
    part.write_bytes(part.read_bytes()[:-50])
    if then == 1:
        score()  # begins anew, and in order; what is scored in parts is taken over
    for number in range(1, then + 1) if then > 1 else ():
        score("--shard", f"{number}/{then}")
    assert (tmp_path / "s.jsonl").read_bytes() == raw
    assert not part_files(tmp_path / "s.jsonl")
    assert "(0 new)" in score("--shard", "1/2") and (tmp_path / "s.jsonl").read_bytes() == raw
    assert "--overwrite with several processes" in score("--shard", "1/2", "--overwrite", expect=2)


@pytest.mark.slow
def test_a_launch_scores_as_one_process_does(raw, tmp_path):
    command = [*LAUNCH, "--num_processes", "2", "--main_process_port", "0", "-m", "rsd", "score"]
    command += ["in.jsonl", "-o", "s.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("scored by") == 1 and (tmp_path / "s.jsonl").read_bytes() == raw


def test_asking_whether_a_file_is_held_disturbs_nobody(tmp_path):
    file, asked, stop = tmp_path / "t.jsonl", [0], threading.Event()
    file.touch()

    def ask() -> None:
        while not stop.is_set():
            held(file)
            asked[0] += 1
            stop.wait(0.0002)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            locked(file).close()
        with closing(locked(file)), pytest.raises(ValueError, match="being written by another process"):
            locked(file)
        assert asked[0] > 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not held(file) and not held(tmp_path / "none")


def test_a_strangers_file_of_the_outputs_name_is_left_alone(job, tmp_path):
    mine = tmp_path / "t.jsonl"
    mine.write_text('{"note": "mine"}\n')
    assert "is not this job's" in run(*job, "--shard", "1/1", expect=2).output
    mine.unlink()
    run(*job, "--shard", "1/2", expect=code(1, 2))
    mine.write_text('{"note": "mine"}\n')
    assert "is not this job's" in run(*job, "--shard", "2/2", expect=2).output
    result = CliRunner().invoke(main, ["merge", "t.jsonl"])
    assert result.exit_code == 2 and "is not this job's" in result.output
    assert mine.read_text() == '{"note": "mine"}\n' and len(part_files(mine)) == 1
    (tmp_path / "s.jsonl").write_text('{"note": "mine"}\n')
    write(tmp_path / "in.jsonl", read_rows(bundled("teacher.jsonl"))[:2])
    assert "is not a file that this command wrote" in score("--shard", "1/1", expect=2)
    assert (tmp_path / "s.jsonl").read_text() == '{"note": "mine"}\n'


def test_starting_anew_ends_with_the_parts_too_but_not_before_the_models_are_loaded(job, alone, tmp_path):
    run(*job, "--seed", "5", "--shard", "1/2", expect=code(1, 2))
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    assert "device" in run(*job, "--overwrite", "--device", "cuda:99", expect=2).output
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before
    run(*job, "--overwrite", expect=1)
    assert_same(tmp_path, alone)

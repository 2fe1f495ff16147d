"""On Ray, `rsd generate --ray` and the README's `map_batches` make what the command alone makes, whoever dies."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import environment, read, write
from jobs import assert_same, run, same_rows

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.shards import part_files

ray = pytest.importorskip("ray")
slow = pytest.mark.slow
ROWS = [{**row, "tags": ["a", row["id"]]} for row in read_rows(bundled("problems.jsonl"))[:48]]
ROWS[7]["problem"] = ""  # poisoned
CONFIG = GenerateConfig(num_generations=2, max_new_tokens=200)
FLAGS = ["--num-generations", "2", "--max-new-tokens", "200", "--top-logprobs", "2"]
CRAWL = ["--batch-size", "1", "--block-size", "1"]  # slowly enough to be killed midway


@pytest.fixture(scope="module")
def cluster():
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    os.environ.update(RAY_worker_niceness="0")  # or they wait for all other tests
    how = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 << 20}
    ray.init(num_cpus=3, runtime_env={"env_vars": environment}, **how)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes: two generations of each row, one of which is bad."""
    folder = tmp_path_factory.mktemp("alone")
    write(folder / "in.jsonl", ROWS)
    run(folder / "in.jsonl", "-o", folder / "t.jsonl", *FLAGS, expect=1)
    return folder


@pytest.fixture(scope="module")
def want(alone):
    return read(alone / "t.jsonl")


def plain(row: dict) -> dict:
    """A row of Ray's, as JSON has it."""
    return json.loads(json.dumps(row, default=lambda value: value.tolist()))


def traces(rows, **kwargs):
    generator = {"fn_constructor_kwargs": {"config": CONFIG}, "batch_size": 8, "num_cpus": 1}
    return ray.data.from_items(rows).map_batches(TraceGenerator, **generator | kwargs)


@slow
def test_two_actors_make_the_commands_rows(cluster, want):
    made = [plain(row) for row in traces(ROWS, compute=ray.data.ActorPoolStrategy(size=2)).take_all()]
    assert len(made) == 96 and same_rows(made, want)
    assert sum(row["error"] is not None for row in made) == 2 and any(row["is_correct"] for row in made)


@slow
def test_an_actor_that_is_killed_midway_costs_nothing(cluster, want):
    def actors() -> list[psutil.Process]:
        named = ((p, " ".join(p.cmdline())) for p in psutil.Process().children(recursive=True))
        found = [p for p, name in named if "MapWorker" in name and "TraceGenerator" in name]
        return found or [p for p in psutil.process_iter() if "MapBatches(TraceGenerator)" in " ".join(p.cmdline())]

    made, killed = [], False
    for row in traces(ROWS, concurrency=1, batch_size=4).iter_rows():
        made.append(plain(row))
        if not killed:
            (actor, *_) = actors()
            os.kill(actor.pid, signal.SIGKILL)
            killed = True
    assert killed and same_rows(made, want)


@slow
def test_rows_are_written_as_ray_writes_them(cluster, want, tmp_path):
    traces(ROWS[:16], concurrency=1).write_json(str(tmp_path / "out"))
    made = [row for file in Path(tmp_path / "out").iterdir() for row in read(file)]
    assert len(made) == 32 and same_rows(made, [row for row in want if row["id"] in {r["id"] for r in ROWS[:16]}])


@pytest.fixture
def job(alone, tmp_path, monkeypatch):
    shutil.copy(alone / "in.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    return ["in.jsonl", "-o", "t.jsonl", *FLAGS]


def start(*args, **kwargs) -> subprocess.Popen:
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()} | kwargs
    return subprocess.Popen([sys.executable, "-m", "rsd", "generate", *map(str, args)], **kwargs)


def ended(process: subprocess.Popen, **kwargs) -> tuple[str, str]:
    try:
        return process.communicate(timeout=600, **kwargs)
    finally:
        process.kill()


def begun(process: subprocess.Popen, lines: int = 4) -> Path:
    """A part file that has so many lines, as soon as there is one."""
    until = time.monotonic() + 600
    while True:
        for part in part_files("t.jsonl").values():
            if part.read_bytes().count(b"\n") >= lines:
                return part
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)


@slow
def test_the_command_on_ray_leaves_what_one_process_leaves(cluster, job, alone, tmp_path):
    run(*job, "--seed", "5", expect=1)  # another job of that name, to be discarded
    process = start(*job, "--ray", cluster, "--ray-workers", "2", "--overwrite")
    out, err = ended(process)
    assert process.returncode == 1, err  # a row is an error
    assert out.count("rows         96 (96 new)") == 1 and "2 rows have `error` set" in out
    assert err.count("vocabularies:") == 1 and "96/96" in err and "pid=" not in out + err
    manifest = assert_same(tmp_path, alone)
    made = manifest["processes"]
    assert [p["shard"] for p in made] == ["1/2", "2/2"] and made[0]["pid"] != made[1]["pid"]
    assert sorted(i for p in made for i in p["ids"]) == sorted(row["id"] for row in ROWS)
    out, err = ended(start(*job, "--ray", cluster))
    assert "rows         96 (2 new)" in out and "96/96" in err, err  # the bad row is tried again
    assert len(assert_same(tmp_path, alone)["processes"]) == 3


@slow
def test_a_worker_that_is_killed_midway_costs_nothing(cluster, job, alone, tmp_path):
    process = start(*job, *CRAWL, "--ray", cluster, "--ray-workers", "2")
    part = begun(process)
    pid = json.loads(Path(str(part).replace(".jsonl", ".meta.json")).read_text())["process"]["pid"]
    os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGSTOP)  # so that it cannot end before a second driver has looked
    second = start(*job, "--ray", cluster, "--ray-workers", "1")
    assert "is being written by another process" in ended(second)[1]
    process.send_signal(signal.SIGCONT)
    ended(process)
    assert process.returncode == 1 and pid not in {p["pid"] for p in assert_same(tmp_path, alone)["processes"]}


@slow
@pytest.mark.parametrize("then", [["--ray-workers", "3"], ["--ray-workers", "1"], None])
def test_a_job_whose_driver_is_killed_goes_on_with_any_number_of_workers(cluster, job, alone, tmp_path, then):
    process = start(*job, *CRAWL, "--ray", cluster, "--ray-workers", "2")
    begun(process)
    process.kill()
    ended(process)
    found = sum(len(read(f)) for f in part_files("t.jsonl").values() if f.read_bytes().endswith(b"\n"))
    assert found < 96
    if then is None:  # one process goes on, as soon as Ray has ended the workers
        time.sleep(10)
    out, err = ended(start(*job, *(["--ray", cluster, *then] if then else [])))
    assert "resuming" in err and "rows         96 (" in out, err
    assert_same(tmp_path, alone)


@slow
def test_a_judge_of_ones_own_an_input_that_the_driver_alone_can_read_and_kept_rows(cluster, job, tmp_path):
    (tmp_path / "judging.py").write_text("def judge(text, row):\n    return row['id'][-1] in '13579' and None\n")
    flags = [*FLAGS, "--limit", "20", "--verify", "judging:judge", "--keep", "shortest-correct"]
    assert ended(start("in.jsonl", "-o", "w.jsonl", *flags))[0]
    text = (tmp_path / "in.jsonl").read_text()
    process = start("-", "-o", "s.jsonl", *flags, "--ray", cluster, "--json", "--quiet", stdin=subprocess.PIPE)
    out, err = ended(process, input=text)
    summary = json.loads(out)
    assert process.returncode == 1 and not err
    assert same_rows(read(Path("s.jsonl")), want := read(Path("w.jsonl"))) and len(want) == summary["new_rows"] == 40
    assert {row["is_correct"] for row in want} == {False, None} and summary["wrong"] > 10
    assert read(Path("s.kept.jsonl")) == read(Path("w.kept.jsonl")) == [] and summary["kept"] == 0


@slow
def test_a_cluster_for_one_job_leaves_no_process(job, alone, tmp_path):
    mark = secrets.token_hex(8)
    process = start(*job, "--ray", "local", "--ray-workers", "2", env=environment() | {"RSD_TEST": mark})
    assert "96/96" in ended(process)[1]
    assert_same(tmp_path, alone)

    def left() -> list[psutil.Process]:
        found = []
        for one in psutil.process_iter():
            try:
                found += [one] if one.environ().get("RSD_TEST") == mark else []
            except psutil.Error:
                continue
        return found

    until = time.monotonic() + 30
    while left() and time.monotonic() < until:
        time.sleep(0.2)
    assert not left()


def test_what_cannot_be_run_on_ray_is_said_in_one_line(job, tmp_path, monkeypatch):
    for address, what in (
        ("127.0.0.1:1", "no cluster answers there"),
        ("ray://127.0.0.1:10001", "HOST:PORT"),
        ("here", "HOST:PORT"),
    ):
        said = run(*job, "--ray", address, expect=2).output
        assert what in said and said.count("rsd: ") == 1
    assert "leave --shard" in run(*job, "--ray", "auto", "--shard", "1/2", expect=2).output
    assert "--ray-workers is for --ray" in run(*job, "--ray-workers", "2", expect=2).output
    assert "leave --shard, --ray" in run("in.jsonl", "-o", "-", "--ray", "auto", expect=2).output
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'rsd[ray]'" in run(*job, "--ray", "auto", expect=2).output
    assert [f.name for f in tmp_path.iterdir()] == ["in.jsonl"]

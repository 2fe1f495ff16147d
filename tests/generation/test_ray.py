"""Ray Data runs the generator as the README shows it, and makes what the command makes."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from conftest import read, write
from jobs import run, same_rows

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROWS = [{**row, "tags": ["a", row["id"]]} for row in read_rows(bundled("problems.jsonl"))[:48]]
ROWS[7]["problem"] = ""  # poisoned
CONFIG = GenerateConfig(num_generations=2, max_new_tokens=200)


@pytest.fixture(scope="module")
def cluster():
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def want(tmp_path_factory):
    folder = tmp_path_factory.mktemp("want")
    write(folder / "in.jsonl", ROWS)
    run(folder / "in.jsonl", "-o", folder / "t.jsonl", "--num-generations", "2", "--max-new-tokens", "200", expect=1)
    return read(folder / "t.jsonl")


def plain(row: dict) -> dict:
    """A row of Ray's, as JSON has it."""
    return json.loads(json.dumps(row, default=lambda value: value.tolist()))


def traces(rows, **kwargs):
    generator = {"fn_constructor_kwargs": {"config": CONFIG}, "batch_size": 8, "num_cpus": 1}
    return ray.data.from_items(rows).map_batches(TraceGenerator, **generator | kwargs)


def test_two_actors_make_the_commands_rows(cluster, want):
    made = [plain(row) for row in traces(ROWS, concurrency=2).take_all()]
    assert len(made) == 96 and same_rows(made, want)
    assert sum(row["error"] is not None for row in made) == 2 and any(row["is_correct"] for row in made)


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


def test_rows_are_written_as_ray_writes_them(cluster, want, tmp_path):
    traces(ROWS[:16], concurrency=1).write_json(str(tmp_path / "out"))
    made = [row for file in Path(tmp_path / "out").iterdir() for row in read(file)]
    assert len(made) == 32 and same_rows(made, [row for row in want if row["id"] in {r["id"] for r in ROWS[:16]}])

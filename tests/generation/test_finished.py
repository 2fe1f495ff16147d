"""What is finished says so at once: without models, and without torch. What is not the same is never taken for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, read, write
from jobs import FLAGS, PROBLEMS, pair


@pytest.fixture
def no_torch(tmp_path) -> dict[str, str]:
    """An environment in which torch and transformers cannot be imported."""
    folder = tmp_path / "none"
    for name in ("torch", "transformers"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('asked for')\n")
    return environment() | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def rsd(*args, cwd: Path, env=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rsd", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def needs_torch(made: subprocess.CompletedProcess[str]) -> bool:
    return made.returncode != 0 and "asked for" in made.stderr


def test_a_finished_job_says_so_without_torch_and_any_other_is_looked_at(tiny, tmp_path, no_torch):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    args = ["generate", source, "-o", "out.jsonl", *pair(tiny), *FLAGS]
    first = rsd(*args, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = contents(tmp_path)
    again = rsd(*args, cwd=tmp_path, env=no_torch)
    assert again.returncode == 0 and "finished: it holds all 10 traces" in again.stderr, again.stderr
    same = [line for line in first.stdout.splitlines() if not line.startswith(("rows", "time"))]
    assert [line for line in again.stdout.splitlines() if not line.startswith("rows")] == same
    assert rsd(*args, "--batch-size", 3, "--device", "cpu", cwd=tmp_path, env=no_torch).returncode == 0
    assert contents(tmp_path) == before
    for flags in (["--seed", 1], ["--num-generations", 2], ["--limit", 3], ["--verify", "none"], ["--keep", "all"]):
        assert needs_torch(rsd(*args, *flags, cwd=tmp_path, env=no_torch))
    for name, change in {
        "in.jsonl": lambda text: text.replace(b"1 plus 1", b"1 plus 2"),
        "out.jsonl": lambda text: text.replace(b"p1", b"p0"),
        "out.tokens.jsonl": lambda text: text[:-1],
        "out.meta.json": lambda text: text.replace(b'"rows": 10', b'"rows": "10"'),
    }.items():
        (tmp_path / name).write_bytes(change(before[name]))
        made = rsd(*args, cwd=tmp_path, env=no_torch)
        # The manifest is not hashed itself; it must not be another one's, and its totals are what a job writes.
        assert needs_torch(made) or name == "out.meta.json"
        (tmp_path / name).write_bytes(before[name])
    assert rsd(*args, cwd=tmp_path, env=no_torch).returncode == 0


def test_another_student_is_another_job(tiny, tmp_path, no_torch):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    args = ["generate", source, "-o", "out.jsonl", *pair(tiny), *FLAGS]
    assert rsd(*args, cwd=tmp_path).returncode == 0
    weights = Path(tiny("qwen3")["student"]) / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + bytes(4))
        assert needs_torch(rsd(*args, cwd=tmp_path, env=no_torch))
    finally:
        weights.write_bytes(before)


def test_errors_are_tried_again(tiny, tmp_path, no_torch):
    source = write(tmp_path / "in.jsonl", [*PROBLEMS[:2], {"id": "bad", "problem": ""}])
    args = ["generate", source, "-o", "out.jsonl", *pair(tiny), *FLAGS]
    assert rsd(*args, cwd=tmp_path).returncode == 1
    assert needs_torch(rsd(*args, cwd=tmp_path, env=no_torch))


@pytest.mark.slow
def test_a_scored_file_says_so_without_torch_and_any_other_is_looked_at(tmp_path, no_torch):
    rows = [{"id": i, "prompt": f"{i} and 5?", "completion": f"<think>\n{i}+5={i + 5}.\n</think>"} for i in range(4)]
    write(tmp_path / "t.jsonl", rows)
    first = rsd("score", "t.jsonl", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = contents(tmp_path)
    again = rsd("score", "t.jsonl", cwd=tmp_path, env=no_torch)
    assert again.returncode == 0 and "holds the scores of all 4 rows" in again.stderr, again.stderr
    same = [line for line in first.stdout.splitlines() if not line.startswith(("rows", "time"))]
    assert [line for line in again.stdout.splitlines() if not line.startswith(("rows", "time"))] == same
    assert contents(tmp_path) == before
    for flags in (["--window", 3], ["--steps", "line"], ["--overwrite"], ["--dtype", "bfloat16"]):
        assert needs_torch(rsd("score", "t.jsonl", *flags, cwd=tmp_path, env=no_torch))
    said = rsd("score", "t.jsonl", "--window", 3, cwd=tmp_path).stderr
    assert "line 1, was scored with other settings: window (there '4', now '3')" in said
    write(tmp_path / "t.jsonl", [*rows, {"id": 9, "prompt": "?", "completion": "!"}])
    assert needs_torch(rsd("score", "t.jsonl", cwd=tmp_path, env=no_torch))
    write(tmp_path / "t.jsonl", rows[:3])
    assert "holds more rows than the input" in rsd("score", "t.jsonl", cwd=tmp_path).stderr
    assert len(read(tmp_path / "t.scored.jsonl")) == 4

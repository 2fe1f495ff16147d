"""The recipes of rsd/README.md for libraries that are no dependency of ours, in an environment that has them."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest
from conftest import environment, read, write
from jobs import run, same_rows

import rsd
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

README = (Path(rsd.__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = [
    *read_rows(bundled("problems.jsonl"))[:12],
    {"id": "bad", "problem": "", "answer": "0"},
]  # a table has all columns in all rows
FLAGS = ["--num-generations", "2", "--max-new-tokens", "200"]

DISTILABEL = """
    import json, sys
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts

    if __name__ == "__main__":
        with Pipeline("traces") as pipeline:
            rows = LoadDataFromDicts(data=json.load(open("in.json")), batch_size=5)
            rows >> Traces(config={"num_generations": 2, "max_new_tokens": 200}, input_batch_size=5)
        pipeline.run(use_cache=False)["default"]["train"].to_json("out.jsonl")
"""
DATATROVE = """
    import json
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from rsd import GenerateConfig

    class Rows(PipelineStep):
        def run(self, data, rank=0, world_size=1):
            for row in json.load(open("in.json"))[rank::world_size]:
                yield Document(row.pop("problem"), row.pop("id"), metadata=row)

    if __name__ == "__main__":
        config = GenerateConfig(num_generations=2, max_new_tokens=200)
        steps = [Rows(), Traces(config), JsonlWriter("out", compression=None)]
        LocalPipelineExecutor(steps, tasks=2, workers=2, logging_dir="logs").run()
"""


def recipe(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.+?)```", README, re.S).group(1)
    assert sum(bool(line.strip()) for line in found.splitlines()) <= 10
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment that has these libraries, and all that this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    made = folder / "bin" / "python"
    install = [made, "-m", "pip", "install", "-q", "distilabel", "requests", "datatrove"]
    result = subprocess.run(install, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"distilabel and datatrove cannot be installed: {result.stderr.strip().splitlines()[-1:]}")
    return made


def want(folder: Path, rows: list[dict]) -> list[dict]:
    """What the command makes of these rows."""
    write(folder / "want-in.jsonl", rows)
    run(folder / "want-in.jsonl", "-o", folder / "want.jsonl", *FLAGS, expect=1)
    return read(folder / "want.jsonl")


def ran(python: str | Path, script: str, folder: Path, rows: list[dict]) -> None:
    (folder / "in.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "script.py").write_text(script, encoding="utf-8")
    env = environment() | {"HOME": str(folder), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run([python, "script.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_a_step_of_distilabel(python, tmp_path):
    ran(python, recipe("distilabel") + textwrap.dedent(DISTILABEL), tmp_path, ROWS)
    assert same_rows(read(tmp_path / "out.jsonl"), want(tmp_path, ROWS))


@pytest.mark.slow
def test_a_step_of_datatrove(python, tmp_path):
    ran(python, recipe("datatrove") + textwrap.dedent(DATATROVE), tmp_path, ROWS)
    made = [line for file in sorted((tmp_path / "out").iterdir()) for line in read(file)]
    rows = want(tmp_path, [{("prompt" if k == "problem" else k): v for k, v in row.items()} for row in ROWS])
    assert {(line["id"], line.get("text", "")) for line in made} == {
        (f"{row['id']}/{row['generation']}", "".join(m["content"] for m in row["completion"])) for row in rows
    }
    assert same_rows([line["metadata"] for line in made], rows)

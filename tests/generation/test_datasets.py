"""`datasets.map` runs the generator as the README shows it, and makes what the command makes.

Where the first batch has no bad row and a later one has, `datasets` must be told that `error` holds texts, by
`features=`.
"""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from conftest import environment, read, write
from jobs import run, same_rows

import rsd
from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

RECIPES = Path(rsd.__file__).parent / "README.md"


def test_datasets_map_makes_the_commands_rows(tmp_path, monkeypatch):
    rows = [{**row, "tags": ["a", row["id"]]} for row in read_rows(bundled("problems.jsonl"))[:12]]
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path / "in.jsonl", "-o", tmp_path / "t.jsonl", "--num-generations", "2")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = datasets.Dataset.from_list(rows)
    generator = TraceGenerator(GenerateConfig(num_generations=2))
    made = dataset.map(generator, batched=True, batch_size=5, remove_columns=dataset.column_names)
    assert same_rows(made.to_list(), read(tmp_path / "t.jsonl"))


@pytest.mark.slow
def test_the_recipe_for_several_processes_makes_the_commands_rows(tmp_path):
    found = re.search(r"<!-- datasets -->\n```python\n(.+?)```", RECIPES.read_text(encoding="utf-8"), re.S).group(1)
    assert sum(bool(line.strip()) for line in found.splitlines()) <= 10
    rows = read_rows(bundled("problems.jsonl"))[:12]
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path / "in.jsonl", "-o", tmp_path / "t.jsonl")
    load = f"import datasets\ndataset = datasets.Dataset.from_list({rows!r})\n"
    script = load + found + "made.to_json('made.jsonl')\nassert made.num_rows == 12\n"
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    env = environment() | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=env, check=True, timeout=240)
    assert same_rows(read(tmp_path / "made.jsonl"), read(tmp_path / "t.jsonl"))

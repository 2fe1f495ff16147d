"""`datasets.map` runs the generator as the README shows it, and makes what the command makes.

Where the first batch has no bad row and a later one has, `datasets` must be told that `error` holds texts, by
`features=`.
"""

import datasets
from conftest import read, write
from jobs import run, same_rows

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows


def test_datasets_map_makes_the_commands_rows(tmp_path, monkeypatch):
    rows = [{**row, "tags": ["a", row["id"]]} for row in read_rows(bundled("problems.jsonl"))[:12]]
    write(tmp_path / "in.jsonl", rows)
    run(tmp_path / "in.jsonl", "-o", tmp_path / "t.jsonl", "--num-generations", "2")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = datasets.Dataset.from_list(rows)
    generator = TraceGenerator(GenerateConfig(num_generations=2))
    made = dataset.map(generator, batched=True, batch_size=5, remove_columns=dataset.column_names)
    assert same_rows(made.to_list(), read(tmp_path / "t.jsonl"))

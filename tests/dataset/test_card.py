"""What goes with an export: its card, and the Hub."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import yaml
from conftest import environment, read
from exports import export, made, traces  # noqa: F401 (fixtures)
from hub import Hub

from rsd.models.bundled import bundled


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_card_says_what_the_data_is(traces, tmp_path):
    export(traces, "--test-share", "0.3", "-o", tmp_path / "out.jsonl")
    card = (tmp_path / "out.md").read_text()
    rows = read(tmp_path / "out.jsonl"), read(tmp_path / "out.test.jsonl")
    for words in (
        "bundled-teacher",
        "bundled-student",
        "they do not transfer",
        f"| rows for training | {len(rows[0])} |",
        f"| rows for testing | {len(rows[1])} |",
        "| threshold | 0.01 |",
        "| problems | 23 |",
        json.loads(traces.with_suffix(".meta.json").read_text())["identity"]["student"],
        'load_dataset("json", data_files={"train": "out.jsonl", "test": "out.test.jsonl"})',
    ):
        assert words in card
    assert front(card)["configs"][0]["data_files"][1] == {"split": "test", "path": "out.test.jsonl"}
    tokens = sum(r["num_tokens"] for of in rows for r in of)
    assert f"| tokens | {tokens} |" in card
    assert str(bundled("student")) not in card  # a path says more of a machine than of a model


def test_nothing_in_a_manifest_is_markup(traces, tmp_path):
    manifest = traces.with_suffix(".meta.json")
    meta = json.loads(manifest.read_text())
    nasty = "x | <script>alert(1)</script> ![i](http://evil)\n---\n# Title {{ 7 * 7 }}"
    meta["teacher"]["name"] = meta["identity"]["system_prompt"] = nasty
    meta["teacher"]["path"] = "x"  # a name on the Hub
    manifest.write_text(json.dumps(meta))
    export(traces, "-o", tmp_path / "out.jsonl")
    card = (tmp_path / "out.md").read_text()
    assert not re.search(r"(?<!\\)<script|(?<!\\)!\[|(?<!\\)\[i| x \||\n# Title", card)
    assert card.count(r"x \| \<script\>alert(1)\</script\> \!\[i\](http://evil) --- \# Title \{\{ 7 \* 7 \}\}") == 2
    assert front(card)["pretty_name"] == "RSD traces"


def test_the_card_loads_the_data(traces, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(traces, "--test-share", "0.3", "-o", tmp_path / "out.parquet")
    named = {split: str(tmp_path / f"out{end}.parquet") for split, end in (("train", ""), ("test", ".test"))}
    loaded = datasets.load_dataset("parquet", data_files=named, cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "test"}
    assert loaded["train"][0]["completion"][0]["role"] == "assistant"


def push(hub, folder, *flags):
    env = environment() | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret_token"}
    env |= {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "rsd", "export", "traces.jsonl", "--push-to-hub", "owner/name", *flags]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_pushed_to_the_hub(traces, tmp_path):
    with Hub() as hub:
        result = push(hub, tmp_path, "--private", "--test-share", "0.3", "-o", "out.jsonl")
        assert result.returncode == 0, result.stderr
        assert f"pushed to    {hub.url}/datasets/owner/name" in result.stdout
    (created,) = hub.created
    assert created["type"] == "dataset" and (created.get("private") or created.get("visibility") == "private")
    assert hub.commits == 1 and hub.tokens == {"Bearer hf_secret_token"}
    assert hub.files.keys() == {"README.md", "data/train.jsonl", "data/test.jsonl"}
    assert hub.files["data/train.jsonl"] == (tmp_path / "out.jsonl").read_bytes()
    card = hub.files["README.md"].decode()
    assert 'load_dataset("owner/name")' in card
    assert front(card)["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train.jsonl"},
        {"split": "test", "path": "data/test.jsonl"},
    ]
    for text in [result.stdout, result.stderr, *(f.read_text() for f in tmp_path.glob("*.*"))]:
        assert "hf_secret" not in text


@pytest.mark.slow
def test_a_hub_that_refuses_costs_nothing(traces, tmp_path):
    with Hub(deny=True) as hub:
        result = push(hub, tmp_path, "-o", "out.jsonl")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "rsd: --push-to-hub owner/name: " in result.stderr
    assert "hf_secret" not in result.stderr
    assert len(read(tmp_path / "out.jsonl")) > 5
    gone = push(hub, tmp_path, "-o", "again.jsonl")  # nobody listens there any more
    assert gone.returncode == 2 and gone.stderr.count("\n") == 1, gone.stderr
    assert len(read(tmp_path / "again.jsonl")) > 5


def test_counts_by_problem_are_of_ids(traces, tmp_path):
    rows = read(traces)
    per = Counter(r["id"] for r in rows)
    assert set(per.values()) == {3} and np.sum(list(per.values())) == len(rows)

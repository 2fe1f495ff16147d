"""The scripts of bench/ that cannot be run where they matter run here, and their sums are right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import cost  # noqa: E402

CARD = cost.Card(bandwidth=4.8e12, memory=141e9, flops=990e12)
JOB = cost.Job(problems=1_000_000, tokens=8192, prompt=512)


@pytest.mark.parametrize("name", cost.MODELS)
def test_weights_are_counted_as_transformers_makes_them(name):
    m = cost.MODELS[name]
    kind = Qwen2Config if m.biases else Qwen3Config
    config = kind(
        vocab_size=m.vocabulary,
        hidden_size=m.hidden,
        num_hidden_layers=m.layers,
        num_attention_heads=m.heads,
        num_key_value_heads=m.shared,
        head_dim=m.head,
        intermediate_size=m.inner,
        tie_word_embeddings=m.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert m.weights == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("ours", cost.MODELS)
@pytest.mark.parametrize("theirs", cost.MODELS)
def test_rows_fill_the_card_and_never_more(ours, theirs):
    models = [cost.MODELS[ours], cost.MODELS[theirs]]
    for memory in (24e9, 80e9, 141e9):
        card = cost.Card(bandwidth=1e12, memory=memory, flops=1e15)
        rows = cost.rows_that_fit(models, card, JOB)
        assert rows == 0 or cost.memory_of(models, rows, JOB) <= 0.9 * memory
        assert cost.memory_of(models, rows + 1, JOB) > 0.9 * memory


def test_lockstep_is_both_models_bytes_over_the_bandwidth():
    # By hand: 28 layers x 8 heads x 128 x keys and values x 2 bytes, and so on.
    student, teacher = cost.MODELS["qwen3-0.6b"], cost.MODELS["qwen2.5-7b"]
    read = 2 * 596_049_920 + 2 * (7_615_616_512 - 152064 * 3584) + 72 * 4608 * (114_688 + 57_344)
    made = cost.rate(student, teacher, 72, 1, 0.5, CARD, JOB)
    assert made == pytest.approx(72 / (read / 4.8e12))
    slow = cost.Card(bandwidth=4.8e12, memory=141e9, flops=1e12)  # one that has to compute
    work = 596_049_920 + 28 * 2048 * 2 * 4608 + (7_615_616_512 - 152064 * 3584) + 28 * 3584 * 2 * 4608
    assert cost.rate(student, teacher, 72, 1, 0.5, slow, JOB) == pytest.approx(72 / (2 * 72 * work / 1e12))


def test_what_survives_pays_for_blocks():
    student, teacher = cost.MODELS["qwen3-0.6b"], cost.MODELS["qwen2.5-32b"]
    assert cost.tokens_per_round(0.5, 3) == 1.75
    rates = [cost.rate(student, teacher, 8, 8, s, CARD, JOB) for s in (0.0, 0.5, 0.9, 1.0)]
    assert rates == sorted(rates) and rates[0] < cost.alone(teacher, 8, CARD, JOB) < rates[-1]


def script(name, *args, **kwargs):
    return subprocess.run(
        [sys.executable, BENCH / name, *map(str, args)], capture_output=True, text=True, env=environment(), **kwargs
    )


def test_the_tables_of_costs_are_those_that_are_printed():
    made = script("cost.py")
    assert made.returncode == 0, made.stderr
    readme = (BENCH / "README.md").read_text(encoding="utf-8")
    rows = [line for line in made.stdout.splitlines() if line.startswith("| Qwen")]
    assert len(rows) == 19
    for line in rows:
        assert line in readme
    assert "does not fit" in script("cost.py", "--memory", "24e9", "--pair", "qwen3-4b", "qwen3-32b").stdout


@pytest.mark.slow
def test_every_part_that_a_gpu_will_run_runs_and_is_not_run_twice(tmp_path):
    out = tmp_path / "gpu.json"
    flags = ["--device", "cpu", "--shape", "tiny", "--rows", 1, 2, "--context", 24, "--tokens", 6, "--repeats", 1]
    flags += ["--score-tokens", 300, "--tests", "tests/decoding/test_gpu.py", "--json", out]
    made = script("gpu.py", *flags)
    assert made.returncode == 0, made.stderr
    before = out.read_text()
    results = json.loads(before)["results"]
    assert set(results) == {"tests", "card", "attention", "decode", "memory", "score", "same"}
    assert not [f for part in results.values() for f in part.values() if "error" in f]
    assert all(f["differ"] == 0 for f in results["same"].values())
    assert all(f["bound"] > 0 and min(f["tokens_per_s"]) > 0 for f in results["decode"].values())
    # One that failed is made again, and nothing else.
    del results["decode"]["own, 1 rows, 24 tokens"]
    results["score"]["one trace"] = {"error": "something"}
    out.write_text(json.dumps({"results": results}))
    again = script("gpu.py", *flags)
    said = [line.split("{")[0].split() for line in again.stdout.splitlines()]
    assert [" ".join(words) for words in said] == ["decode own, 1 rows, 24 tokens", "score one trace"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
def test_without_a_gpu_it_says_how_to_try(tmp_path):
    made = script("gpu.py", "--json", tmp_path / "gpu.json")
    assert made.returncode == 2 and "there is no GPU here; --device cpu" in made.stderr

"""TRL trains straight from the exported file, and its loss covers the completion and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import read, write
from jobs import run
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd.cli import main
from rsd.data import read_rows
from rsd.models import bundled

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    source = write(folder / "in.jsonl", read_rows(bundled("problems.jsonl"))[:16])
    run(source, "-o", folder / "traces.jsonl")
    return folder / "traces.jsonl"


@pytest.mark.parametrize("format", ["prompt-completion", "token-ids"])
def test_trl_trains_on_the_file_as_it_is(traces, tmp_path, format):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    out = tmp_path / "out.jsonl"
    exported = CliRunner().invoke(main, ["export", str(traces), "--format", format, "-o", str(out)])
    assert exported.exit_code == 0, exported.output
    data = load_dataset("json", data_files=str(out), cache_dir=str(tmp_path / "cache"))["train"]
    tokenizer = AutoTokenizer.from_pretrained(bundled("student"))
    model = AutoModelForCausalLM.from_pretrained(bundled("student"), dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    config = SFTConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        completion_only_loss=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)

    # What the loss covers, in the batches as the model gets them.
    rows = read(out)
    learnt = []
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            covered = labels >= 0
            assert torch.equal(labels[covered], ids[covered])
            first = int(covered.nonzero()[0])
            assert covered[first : first + int(covered.sum())].all()  # one piece
            learnt.append((ids[:first].tolist(), labels[covered].tolist()))
    assert len(learnt) == len(rows)
    eos = tokenizer.eos_token_id
    for row in rows:
        if format == "token-ids":
            start = row["completion_mask"].index(1)
            want = row["input_ids"][:start], row["input_ids"][start:]
            assert want[1][-1] == eos
        else:
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
            answer = tokenizer.encode(row["completion"][0]["content"], add_special_tokens=False)
            # The chat template itself puts a line break after the end of a turn.
            want = prompt, [*answer, eos, *tokenizer.encode("\n")]
        learnt.remove(want)
    assert not learnt

    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 6 and all(float(loss) >= 0 for loss in losses)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.slow
def test_the_distillation_benchmark_runs_and_goes_on_where_it_was_stopped(tmp_path):
    command = [sys.executable, ROOT / "bench" / "distill.py", "--quick", "--json", tmp_path / "out.json"]
    result = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    made = json.loads((tmp_path / "out.json").read_text())
    # The runs are done and only the summary is made again.
    (tmp_path / "out.json").write_text(json.dumps({k: made[k] for k in ("settings", "runs")}))
    again = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert "seed" not in again.stderr and again.stdout.split("minutes")[0].count("|") == result.stdout.count("|")
    after = json.loads((tmp_path / "out.json").read_text())
    assert after["tables"] == made["tables"] and after["runs"] == made["runs"]
    arms = {row["arm"]: row for row in made["tables"]["steps"]}
    assert set(arms) == {"raw", "rsd", "own", "ln"} and len({row["problems"] for row in arms.values()}) == 1
    assert arms["raw"]["below_1_percent"] > 0.5 and arms["rsd"]["below_1_percent"] == 0

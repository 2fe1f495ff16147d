"""TRL trains straight from the exported file, and its loss covers the completion and nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import read, write
from jobs import files, run
from pairs import random_model
from real import part
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    source = write(folder / "in.jsonl", read_rows(bundled("problems.jsonl"))[:16])
    run(source, "-o", folder / "traces.jsonl")
    return folder / "traces.jsonl"


def export(traces, *args):
    result = CliRunner().invoke(main, ["export", str(traces), *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.output


def trainer_of(file, student, *, completion_only=True, kind=None, **settings):
    """TRL's trainer, or one of this kind, over an exported file, as a user would make it."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    data = load_dataset("json", data_files=str(file), cache_dir=str(file.parent / "cache"))["train"]
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    config = SFTConfig(
        output_dir=str(file.parent / "run"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        completion_only_loss=completion_only,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        shuffle_dataset=False,
        **settings,
    )
    return (kind or SFTTrainer)(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def covered_by_the_loss(trainer):
    """(ids before, ids that are learnt) of every row, from the batches as the model gets them."""
    learnt = []
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            covered = labels >= 0
            assert torch.equal(labels[covered], ids[covered])
            first = int(covered.nonzero()[0])
            assert covered[first : first + int(covered.sum())].all()  # one piece
            learnt.append((ids[:first].tolist(), labels[covered].tolist()))
    return learnt


@pytest.mark.parametrize("format", ["prompt-completion", "token-ids"])
def test_trl_trains_on_the_file_as_it_is(traces, tmp_path, format):
    out = tmp_path / "out.jsonl"
    export(traces, "--format", format, "-o", out)
    trainer = trainer_of(out, bundled("student"))
    model, tokenizer = trainer.model, trainer.processing_class
    before = [p.detach().clone() for p in model.parameters()]
    rows, learnt = read(out), covered_by_the_loss(trainer)
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


def sampled(traces):
    """What was sampled after what prompt, of every row."""
    return [(line["prompt_ids"], line["token_ids"]) for line in files(traces)[1]]


NO_THINKING = ["--chat-template-kwargs", '{"enable_thinking": false}']


def test_what_the_chat_template_was_given_is_given_to_trl(tmp_path):
    # A template that, as Qwen3's, writes an empty thought into the prompt if it is asked not to think.
    for name in ("teacher", "student"):
        shutil.copytree(bundled(name), tmp_path / name)
        template = tmp_path / name / "chat_template.jinja"
        empty = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
        answer = "{% if m.role == 'assistant' %}" + empty + "{% endif %}{{ m.content"
        text = template.read_text().replace("assistant\n{%", "assistant\n" + empty + "{%")
        template.write_text(text.replace("{{ m.content", answer))
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:4])
    traces, out = tmp_path / "traces.jsonl", tmp_path / "out.jsonl"
    run(source, "-o", traces, "--teacher", tmp_path / "teacher", "--student", tmp_path / "student", *NO_THINKING)
    assert "4 of 4 rows give the sampled ids" in export(traces, "--keep", "all", "-o", out)
    newline = AutoTokenizer.from_pretrained(bundled("student")).encode("\n")
    learnt = covered_by_the_loss(trainer_of(out, tmp_path / "student"))
    assert sorted(learnt) == sorted((before, ids + newline) for before, ids in sampled(traces))


@pytest.mark.real
@pytest.mark.parametrize("format", ["prompt-completion", "messages"])
def test_qwen3_that_does_not_think(tmp_path, format):
    tokenizer = AutoTokenizer.from_pretrained(part("qwen3"))
    student = tmp_path / "student"
    model = random_model("qwen3", vocab=len(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    source = write(tmp_path / "in.jsonl", [{"id": i, "prompt": f"What is {i} + {i}?"} for i in range(4)])
    traces, out = tmp_path / "traces.jsonl", tmp_path / "out.jsonl"
    run(source, "-o", traces, "--teacher", student, "--student", student, "--max-new-tokens", 4, *NO_THINKING)
    # What a trained student would have written in place of the random one; once not as its tokenizer spells it.
    texts = [f"{i} + {i} = {2 * i}." for i in range(4)]
    spelled = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts[:3]]
    spelled.append([*(i for character in texts[3] for i in tokenizer.encode(character)), tokenizer.eos_token_id])
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    rows, lines = (sorted(of, key=lambda row: row["id"]) for of in files(traces)[:2])
    write(traces, [row | {"completion": answer} for row, answer in zip(rows, answers, strict=True)])
    lines = [line | {"token_ids": ids} for line, ids in zip(lines, spelled, strict=True)]
    write(tmp_path / "traces.tokens.jsonl", lines)

    assert "3 of 4 rows give the sampled ids" in export(traces, "--keep", "all", "--format", format, "-o", out)
    learnt = covered_by_the_loss(trainer_of(out, student, completion_only=format == "prompt-completion"))
    want = [
        (line["prompt_ids"], [*tokenizer.encode(text), tokenizer.eos_token_id, *tokenizer.encode("\n")])
        for line, text in zip(lines, texts, strict=True)
    ]
    assert want[0][0][-4:] == tokenizer.encode("<think>\n\n</think>\n\n")
    if format == "messages":  # all of it is learnt
        want = [([], before + ids) for before, ids in want]
    assert sorted(learnt) == sorted(want)


@pytest.mark.slow
def test_the_recipe_trains_on_the_export(traces, tmp_path):
    export(traces, "--keep", "all", "-o", tmp_path / "traces.prompt-completion.jsonl")
    page = (ROOT / "rsd" / "README.md").read_text(encoding="utf-8")
    recipe = page.split("<!-- sft -->\n```yaml\n")[1].split("```")[0]
    recipe = recipe.replace("Qwen/Qwen3-0.6B", str(bundled("student")))
    (tmp_path / "sft.yaml").write_text(recipe + "use_cpu: true\nbf16: false\nreport_to: none\nnum_train_epochs: 1\n")
    trl = Path(sys.executable).with_name("trl")
    result = subprocess.run([trl, "sft", "--config", "sft.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (bundled("student"), tmp_path / "tuned"))
    assert any(not torch.equal(after[name].float(), before[name].float()) for name in before.keys() & after.keys())
    state = json.loads(next((tmp_path / "tuned").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["max_steps"] == -(-len(read(traces)) // 8)  # every row once


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
    arms = {row["arm"]: row for row in made["tables"]["bundled/steps"]}
    rare = {row["arm"]: row for row in made["tables"]["rare/steps"]}
    more = {f"{traces}+{what}" for traces in ("raw", "rsd") for what in ("soft", "weights")}
    assert arms.keys() - more == {"raw", "rsd", "own", "ln"}
    assert rare.keys() - more == {"raw", "rsd", "own", "tailor"}
    for rows in (arms, rare):
        assert rows.keys() > more and len({row["problems"] for row in rows.values() if row["arm"] != "own"}) == 1
    assert arms["raw"]["below_1_percent"] > 0.5 and arms["rsd"]["below_1_percent"] == 0
    cold = {row["arm"]: [step for step, _ in row["curve"]] for row in made["tables"]["rare/cold"]}
    assert cold == {arm: [0, 5, 10] for arm in ("policy", "raw", "rsd")}


@pytest.mark.slow
def test_the_distillation_benchmark_runs_the_arms_that_are_named(tmp_path):
    command = [sys.executable, ROOT / "bench" / "distill.py", "--quick", "--json", tmp_path / "out.json"]
    command += ["--arm", "bundled/raw+soft", "--jobs", "1"]
    result = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert {run["task"]["arm"] for run in runs} == {"none", "raw+soft"}
    assert {run["task"]["table"] for run in runs} == {"none", "tune", "steps"}

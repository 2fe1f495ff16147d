"""What `distill.py` does with a student: training by TRL, and its accuracy."""

import time
from pathlib import Path
from typing import Any

import distill_data as data
import numpy as np
from distill_data import LONGEST, NEW, TOP, Size, Task, chosen, learns_new, questions, student

BATCH = 16
SHORT = 128  # tokens of an on-policy completion


def settings_of(task: Task, steps: int) -> dict[str, Any]:
    """What TRL's trainers are told, whatever they train on."""
    import torch

    return {
        "output_dir": str(data.WORK / "trainer"),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": task["rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "logging_steps": max(1, steps // 30),
        "seed": task["seed"],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def fine_tune(model: Any, tokenizer: Any, rows: list[dict[str, Any]], task: Task, steps: int) -> list[Any]:
    """Train a model in place on rows, by TRL; returns the loss as it went."""
    from datasets import Dataset
    from distill_losses import SoftTrainer, collate
    from trl import SFTConfig, SFTTrainer
    from weighted import WeightedTrainer

    config = SFTConfig(**settings_of(task, steps), completion_only_loss=True)
    given = {"model": model, "args": config, "processing_class": tokenizer}
    more = task["arm"].partition("+")[2]
    if more == "soft":
        config.remove_unused_columns, config.dataset_kwargs = False, {"skip_prepare_dataset": True}
        made = Dataset.from_list([with_targets(row) for row in rows])
        trainer = SoftTrainer(**given, train_dataset=made, data_collator=collate)
    elif more == "weights":
        trainer = WeightedTrainer(**given, train_dataset=Dataset.from_list([with_weights(row) for row in rows]))
    elif task["table"] == "template":
        made = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
        trainer = SFTTrainer(**given, train_dataset=made)
    else:
        trainer = SFTTrainer(**given, train_dataset=Dataset.from_list([token_ids(row) for row in rows]))
    return losses(trainer)


def on_policy(model: Any, tokenizer: Any, rows: list[dict[str, Any]], task: Task, size: Size) -> dict[str, Any]:
    """On-policy distillation by TRL from the bundled teacher, in place; returns loss and accuracy as they went."""
    from datasets import Dataset
    from distill_losses import InStudentsTokens, prompts
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from rsd.models.bundled import bundled
    from rsd.pair.meeting import meet

    teacher, theirs = load(bundled("teacher"))
    widths = {"teacher_width": teacher.config.vocab_size, "student_width": model.config.vocab_size}
    vocabulary = meet(theirs, tokenizer, **widths)
    asked = held_out(task, size)
    counted = [not learns_new(task) or question["id"].split("-")[0] in NEW for question in asked]
    curve = [[0, solve(model.eval(), tokenizer, asked)]]

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % size.policy_every == 0:
                curve.append([state.global_step, solve(model.eval(), tokenizer, asked)])
                model.train()

    config = GKDConfig(
        **settings_of(task, size.policy_steps),
        lmbda=1.0,
        beta=1.0,
        temperature=1.0,
        max_new_tokens=SHORT,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = GKDTrainer(
        model=model,
        teacher_model=InStudentsTokens(teacher, model.config, vocabulary.student_to_teacher),
        args=config,
        data_collator=prompts,
        train_dataset=Dataset.from_list([{"input_ids": row["prompt_ids"]} for row in rows]),
        processing_class=tokenizer,
        callbacks=[Measure()],
    )
    loss = losses(trainer)
    return {
        "policy_loss": loss,
        "curve": [[step, float(right[counted].mean())] for step, right in curve],
        "right": curve[-1][1],
    }


def losses(trainer: Any) -> list[Any]:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # every loss, to the standard output
    trainer.train()
    return [[log["step"], float(f"{float(log['loss']):.4g}")] for log in trainer.state.log_history if "loss" in log]


def held_out(task: Task, size: Size) -> list[dict[str, str]]:
    """The problems that a run is measured on."""
    if task["table"].startswith("tune"):
        return questions("distill", size.problems + size.validation, held_out=False)[size.problems :]
    return questions("distill", size.held_out, held_out=True)


def train(task: Task, size: Size) -> dict[str, Any]:
    """Train the student as a task says, and measure it."""
    started = time.monotonic()
    model, tokenizer = load(student(task.get("student", "bundled"), size))
    result: dict[str, Any] = {}
    rows = [] if task["arm"] == "none" else chosen(task, size)
    if task["arm"] not in ("none", "policy"):
        tokens = float(np.mean([row["num_tokens"] for row in rows]))
        steps = size.few_steps if "student" in task else size.steps
        if task["table"] == "tokens":  # as many as the rsd arm sees
            rsd = chosen(task | {"arm": "rsd"}, size)
            steps = round(size.steps * float(np.mean([row["num_tokens"] for row in rsd])) / tokens)
        first = task | {"rate": task["first_rate"]} if "first_rate" in task else task
        result = {
            "problems": len(rows),
            "steps": steps,
            "tokens_a_trace": tokens,
            "below_1_percent": weighted(rows, "low_prob_share"),
            "acceptance": weighted(rows, "acceptance_rate"),
            "loss": fine_tune(model, tokenizer, rows, first, steps),
        }
    if "first_rate" in task:
        result |= {"problems": len(rows)} | on_policy(model, tokenizer, rows, task, size)
        right = result["right"]
    else:
        right = solve(model.eval(), tokenizer, held_out(task, size))
    result |= {"right": np.packbits(right).tobytes().hex(), "accuracy": float(right.mean())}
    return result | {"seconds": round(time.monotonic() - started, 1)}


def token_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    """A row as the student reads it, up to its EOS: the chat template would add a line break, which is no token
    of any trace, and which the bundled student has never seen there."""
    prompt, completion = row["prompt_ids"], row["token_ids"]
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}


def with_targets(row: dict[str, Any]) -> dict[str, Any]:
    """The same with labels and soft targets, whose places before the completion hold nothing."""
    prompt, completion = row["prompt_ids"], row["token_ids"]
    return {
        "input_ids": prompt + completion,
        "labels": [-100] * len(prompt) + completion,
        "attention_mask": [1] * (len(prompt) + len(completion)),
        "teacher_ids": [[-1] * TOP] * len(prompt) + row["teacher_ids"],
        "teacher_logprobs": [[0.0] * TOP] * len(prompt) + row["teacher_logprobs"],
    }


def with_weights(row: dict[str, Any]) -> dict[str, Any]:
    """The same with labels and a weight for each of them."""
    prompt, completion = row["prompt_ids"], row["token_ids"]
    return {
        "input_ids": prompt + completion,
        "labels": [-100] * len(prompt) + completion,
        "loss_weights": [0.0] * len(prompt) + row["loss_weights"],
    }


def weighted(rows: list[dict[str, Any]], column: str) -> float:
    return float(np.average([row[column] for row in rows], weights=[row["num_tokens"] for row in rows]))


def solve(model: Any, tokenizer: Any, asked: list[dict[str, str]]) -> np.ndarray:
    """Which problems a model solves greedily."""
    import torch

    from rsd.answers.normalise import after_thinking, boxed

    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q["prompt"]}], add_generation_prompt=True, return_dict=False
        )
        for q in asked
    ]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    tokenizer.padding_side = "left"
    right = np.zeros(len(ids), dtype=bool)
    for at in range(0, len(order), 250):
        batch = order[at : at + 250]
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
        for i, made in zip(batch, out[:, inputs["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode([t for t in made.tolist() if t != tokenizer.pad_token_id])
            right[i] = boxed(after_thinking(text) or "") == asked[i]["answer"]
    return right

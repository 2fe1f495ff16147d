"""Does training on RSD traces help the bundled student, and on raw ones hurt it?

    python bench/distill.py --json bench/distill.json --plot bench/distill.png

The bundled student is fine-tuned with TRL (completion-only loss, full fine-tuning) on correct traces of the
same problems: (raw) the teacher's own, (rsd) reverse speculative decoding, (own) its own, (ln) for each problem
the more natural of raw and rsd; and (none) not at all. Greedy accuracy on held-out problems, with 95 %
bootstrap intervals over seeds and problems. Learning rates are tuned for every arm alike, on problems of their
own. A seed is one of sampling the traces and of the order in training.

Tables: the problems that every arm solved, for the same optimizer steps (primary); the same problems, for the
same number of completion tokens (secondary); what each arm solved itself. Then a sweep of the threshold. Needs
the extras `train` and `bench`. A run that was stopped goes on from its JSON.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from distill_tables import plot, show, summary

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

ARMS = ("raw", "rsd", "own", "ln")
THRESHOLDS = {"raw": 0.0, "rsd": 0.01, "own": 1.0}
GENERATIONS = 4  # at the most, until one is right
BATCH = 16
LONGEST = 256  # new tokens of an evaluation
WORK = Path(tempfile.gettempdir())  # set by main; traces and scores, by what made them


class Size:
    """How large an experiment is."""

    def __init__(self, *, quick: bool, scale: float) -> None:
        self.problems = 240 if quick else int(1600 * scale)
        self.steps = 60 if quick else int(300 * scale)
        self.held_out = 400 if quick else int(2000 * scale)
        self.validation = 200 if quick else int(1000 * scale)
        self.seeds = range(1) if quick else range(5)
        self.tuning_seeds = (100,) if quick else (100, 101)
        self.rates = (1e-4, 1e-3) if quick else (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
        self.sweep = (0.003, 0.01, 0.3) if quick else (0.003, 0.01, 0.03, 0.1, 0.3)
        self.sweep_seeds = range(1) if quick else range(3)


def questions(name: str, count: int, *, held_out: bool) -> list[dict[str, str]]:
    from problems import problems

    stream = problems(name, held_out=held_out)
    made = (next(stream) for _ in range(count))
    return [{"id": f"{p.family}-{i}", "prompt": p.text, "answer": str(p.answer)} for i, p in enumerate(made)]


def training_problems(size: Size) -> list[dict[str, str]]:
    return questions("distill", size.problems + size.validation, held_out=False)[: size.problems]


def traces(threshold: float, seed: int, size: Size) -> dict[str, dict[str, Any]]:
    """The first right trace of each problem that has one, with its scores under the untrained student."""
    file = WORK / f"traces-{threshold:g}-{seed}.json"
    if not file.exists():
        from rsd import GenerateConfig, TraceGenerator

        config = GenerateConfig(
            threshold=threshold,
            num_generations=GENERATIONS,
            until_correct=True,
            verify="boxed",
            seed=seed,
            score=True,
            max_new_tokens=LONGEST,
        )
        made = [trace.row() for trace in TraceGenerator(config).run(training_problems(size))]
        columns = ("id", "prompt", "completion", "num_tokens", "acceptance_rate", "local_naturalness", "low_prob_share")
        right = {row["id"]: {c: row[c] for c in columns} for row in made if row["is_correct"]}
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"traces": right, "sampled": len(made)}))
        os.replace(temporary, file)
    return json.loads(file.read_text())["traces"]


def arm(name: str, seed: int, size: Size) -> dict[str, dict[str, Any]]:
    """An arm's traces by problem: a name of `ARMS`, or a threshold."""
    if name != "ln":
        return traces(THRESHOLDS[name] if name in THRESHOLDS else float(name), seed, size)
    raw, rsd = arm("raw", seed, size), arm("rsd", seed, size)
    both = {k: [of[k] for of in (rsd, raw) if k in of] for k in rsd | raw}
    return {k: max(of, key=lambda trace: trace["local_naturalness"]) for k, of in both.items()}


def needs(task: dict[str, Any]) -> list[tuple[float, int]]:
    """The traces that a run reads, as thresholds and seeds."""
    if task["arm"] == "none":
        return []
    names = {task["arm"], *task["among"]} | ({"rsd"} if task["table"] == "tokens" else set())
    names = names - {"ln"} | ({"raw", "rsd"} if "ln" in names else set())
    return [(THRESHOLDS[name] if name in THRESHOLDS else float(name), task["seed"]) for name in sorted(names)]


def chosen(task: dict[str, Any], size: Size) -> list[dict[str, Any]]:
    """The rows that a run trains on: of the problems that all of `among` solved."""
    own = arm(task["arm"], task["seed"], size)
    common = set(own).intersection(*(arm(other, task["seed"], size) for other in task["among"]))
    return [own[k] for k in own if k in common]


def train(task: dict[str, Any], size: Size) -> dict[str, Any]:
    """Fine-tune the student as a task says, and measure it."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    from rsd.models.bundled import bundled

    started = time.monotonic()
    gpu = torch.cuda.is_available()
    folder = bundled("student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    result: dict[str, Any] = {}
    if task["arm"] != "none":
        rows = chosen(task, size)
        tokens = float(np.mean([row["num_tokens"] for row in rows]))
        steps = size.steps
        if task["table"] == "tokens":  # as many as the rsd arm sees
            rsd = chosen(task | {"arm": "rsd"}, size)
            steps = round(size.steps * float(np.mean([row["num_tokens"] for row in rsd])) / tokens)
        config = SFTConfig(
            output_dir=str(WORK / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=task["rate"],
            lr_scheduler_type="cosine",
            warmup_steps=steps // 10,
            logging_steps=max(1, steps // 30),
            completion_only_loss=True,
            seed=task["seed"],
            use_cpu=not gpu,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        if task["table"] == "template":
            data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])
        else:
            data = Dataset.from_list([token_ids(row, tokenizer) for row in rows])
        trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)  # every loss, to the standard output
        trainer.train()
        result = {
            "problems": len(rows),
            "steps": steps,
            "tokens_a_trace": tokens,
            "below_1_percent": weighted(rows, "low_prob_share"),
            "acceptance": weighted(rows, "acceptance_rate"),
            "loss": [[log["step"], float(log["loss"])] for log in trainer.state.log_history if "loss" in log],
        }
    if task["table"] == "tune":
        asked = questions("distill", size.problems + size.validation, held_out=False)[size.problems :]
    else:
        asked = questions("distill", size.held_out, held_out=True)
    right = solve(model.eval(), tokenizer, asked)
    result["right"] = np.packbits(right).tobytes().hex()
    result["accuracy"] = float(right.mean())
    return result | {"seconds": round(time.monotonic() - started, 1)}


def token_ids(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """A row as the student reads it, up to its EOS: the chat template would add a line break, which is no token
    of any trace, and which the bundled student has never seen there."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    completion = tokenizer.encode(row["completion"][0]["content"], add_special_tokens=False)
    completion.append(tokenizer.eos_token_id)
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask}


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


# --- what is run, and what comes out ---------------------------------------------------------------


def tasks(table: str, arms: Iterable[str], seeds: Iterable[int], rates: Any, among: Any) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        for name in arms:
            for rate in rates(name) if callable(rates) else rates:
                others = [] if among is None else list(among)
                yield {"table": table, "arm": name, "seed": seed, "rate": rate, "among": others}


def _start(work: str) -> None:
    import datasets
    import torch
    import transformers

    global WORK
    WORK = Path(work)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _do(job: tuple[str, dict[str, Any], Size]) -> tuple[dict[str, Any], dict[str, Any]]:
    kind, task, size = job
    if kind == "traces":
        traces(task["threshold"], task["seed"], size)
        return task, {}
    return task, train(task, size)


class Runs:
    """All runs so far, in a file that is written after each."""

    def __init__(self, pool: Any, size: Size, file: str | None, settings: dict[str, Any]) -> None:
        self.pool, self.size, self.file, self.settings = pool, size, file, settings
        self.runs: list[dict[str, Any]] = []
        if file and Path(file).exists():
            before = json.loads(Path(file).read_text())
            if before["settings"] == settings:
                self.runs = before["runs"]

    def do(self, wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        wanted = list(wanted)
        known = {json.dumps(run["task"], sort_keys=True) for run in self.runs}
        todo = [("train", task, self.size) for task in wanted if json.dumps(task, sort_keys=True) not in known]
        needed = dict.fromkeys(need for _, task, _ in todo for need in needs(task))
        first = [("traces", {"threshold": t, "seed": seed}, self.size) for t, seed in needed]
        for _ in self.pool.imap_unordered(_do, first):
            pass
        for task, result in self.pool.imap_unordered(_do, todo):
            self.runs.append({"task": task, **result})
            print(f"{task['table']:<8} {task['arm']:<6} seed {task['seed']} rate {task['rate']:g}: "
                  f"{result['accuracy']:.1%} in {result['seconds']:.0f} s", file=sys.stderr)  # fmt: skip
            self.write()
        by_task = {json.dumps(run["task"], sort_keys=True): run for run in self.runs}
        return [by_task[json.dumps(task, sort_keys=True)] for task in wanted]

    def write(self, **summary: Any) -> None:
        if self.file:
            from common import machine

            text = json.dumps({"machine": machine(), "settings": self.settings, **summary, "runs": self.runs})
            Path(self.file).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--quick", action="store_true", help="minutes instead of an hour; shows only that it runs")
    ap.add_argument("--scale", type=float, default=1.0, help="times as many problems and steps")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each with one thread")
    ap.add_argument("--json", help="all runs and the tables; a run that was stopped goes on from it")
    ap.add_argument("--plot", help="write the plot to this file (PNG or SVG)")
    args = ap.parse_args()
    size = Size(quick=args.quick, scale=args.scale)
    settings = {k: list(v) if isinstance(v, range | tuple) else v for k, v in vars(size).items()}
    settings |= {"generations": GENERATIONS, "batch": BATCH, "thresholds": THRESHOLDS}
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as work,
        multiprocessing.get_context("spawn").Pool(args.jobs, _start, (work,)) as pool,
    ):
        experiment(Runs(pool, size, args.json, settings), size, args.plot)
    print(f"\n{(time.monotonic() - started) / 60:.0f} minutes, {args.jobs} runs at a time")


def experiment(runs: Runs, size: Size, plot_file: str | None) -> None:
    none = {"table": "none", "arm": "none", "seed": 0, "rate": 0.0, "among": []}
    (untrained,) = runs.do([none])
    (tuning_none,) = runs.do([none | {"table": "tune"}])
    tuned = runs.do(tasks("tune", ARMS, size.tuning_seeds, size.rates, ARMS))
    accuracy = {
        (name, rate): float(
            np.mean([r["accuracy"] for r in tuned if (r["task"]["arm"], r["task"]["rate"]) == (name, rate)])
        )
        for name in ARMS
        for rate in size.rates
    }
    best = {name: max(size.rates, key=lambda rate: accuracy[name, rate]) for name in ARMS}
    print("\nLearning rates, accuracy on the problems for tuning "
          f"(no training: {tuning_none['accuracy']:.1%})\n")  # fmt: skip
    print("| arm | " + " | ".join(f"{rate:g}" for rate in size.rates) + " |\n" + "|---" * (len(size.rates) + 1) + "|")
    for name in ARMS:
        print(f"| {name} | " + " | ".join(f"{accuracy[name, rate]:.1%}" for rate in size.rates) + " |")

    tables = {}
    for table, among, title in (
        ("steps", ARMS, "Primary: the problems that every arm solved, same optimizer steps"),
        ("tokens", ARMS, "Secondary: the same problems, same completion tokens"),
        ("solved", None, "The problems that each arm solved itself, same optimizer steps"),
    ):
        of = runs.do(tasks(table, ARMS, size.seeds, lambda name: [best[name]], among))
        tables[table] = summary(of, untrained, size.held_out)
        show(title, tables[table], untrained, size.held_out)
    of = runs.do(tasks("template", ["raw", "rsd"], size.seeds, lambda name: [best[name]], ARMS))
    tables["template"] = summary(of, untrained, size.held_out)
    show("As the primary table, but the loss covers the line break after the EOS that the chat template adds",
         tables["template"], untrained, size.held_out)  # fmt: skip
    thresholds = [f"{t:g}" for t in size.sweep]
    of = runs.do(tasks("sweep", thresholds, size.sweep_seeds, [best["rsd"]], thresholds))
    tables["sweep"] = summary(of, untrained, size.held_out)
    show("The threshold: the problems solved with all of them, same optimizer steps", tables["sweep"], untrained,
         size.held_out)  # fmt: skip
    runs.write(untrained=untrained["accuracy"], rates=best, tables=tables)
    if plot_file:
        plot(plot_file, tables, untrained["accuracy"], ARMS)


if __name__ == "__main__":
    main()

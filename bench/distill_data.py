"""What `distill.py` trains on: students, their traces, and what an arm adds to these."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from problems import FAMILIES, problems

THRESHOLDS = {"raw": 0.0, "rsd": 0.01, "own": 1.0}
GENERATIONS = 4  # at the most, until one is right
LONGEST = 256  # tokens of a trace
NEW = ("bakery", "savings")  # families that some students have not seen, or hardly
COLUMNS = ("id", "prompt", "completion", "num_tokens", "acceptance_rate", "local_naturalness", "low_prob_share")
TOP = 8  # of the teacher's tokens in a soft target
WORK = Path()  # set by `start`: traces, weights and students, by what made them

Task = dict[str, Any]
Rows = dict[str, dict[str, Any]]


class Size:
    """How large an experiment is."""

    def __init__(self, *, quick: bool, scale: float) -> None:
        self.problems = 160 if quick else int(1600 * scale)
        self.steps = 24 if quick else int(300 * scale)
        self.held_out = 160 if quick else int(2000 * scale)
        self.validation = 80 if quick else int(1000 * scale)
        self.seeds = range(1) if quick else range(5)
        self.tuning_seeds = (100,) if quick else (100, 101)
        self.rates = (1e-3,) if quick else (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
        self.sweep = (0.01, 0.3) if quick else (0.003, 0.01, 0.03, 0.1, 0.3)
        self.sweep_seeds = range(1) if quick else range(3)
        # The students with headroom, which learn from less.
        self.making = 200 if quick else 1500  # steps in which they are made, as many as the bundled student's
        self.afresh = not quick  # else they go on from the bundled student: nothing is learnt in so few steps
        self.few_problems = self.problems // 2
        self.new_problems = self.problems * 3 // 16  # of the families that are new to a student
        self.few_steps = self.steps // 3
        self.few_rates = (1e-3,) if quick else (1e-5, 1e-4, 3e-4, 1e-3)
        self.policy_steps = 10 if quick else int(100 * scale)
        self.policy_rates = (1e-3,) if quick else (1e-4, 1e-3)
        self.policy_every = 5 if quick else int(50 * scale)  # steps from one evaluation to the next


def start(work: str) -> None:
    """Of a process: one thread, no noise."""
    import datasets
    import torch
    import transformers

    global WORK
    WORK = Path(work)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What a file of `WORK` holds, made if it is not there."""
    if not file.exists():
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(make()))
        os.replace(temporary, file)
    return json.loads(file.read_text())


def learns_new(task: Task) -> bool:
    """Whether a run's traces are of new families alone, so that it is these that it is measured on."""
    return task.get("student") in ("unseen", "rare")


# --- students and traces ---------------------------------------------------------------------------


def questions(name: str, count: int, *, held_out: bool, families: Iterable[str] = FAMILIES) -> list[dict[str, str]]:
    stream = problems(name, held_out=held_out, families=families)
    made = (next(stream) for _ in range(count))
    return [{"id": f"{p.family}-{i}", "prompt": p.text, "answer": str(p.answer)} for i, p in enumerate(made)]


def training_problems(of: str, threshold: float, seed: int, size: Size) -> list[dict[str, str]]:
    """All families'; for the student that does not know some, these. Where all arms are compared on what a student
    with headroom solved itself, no others than that."""
    every = questions("distill", size.problems + size.validation, held_out=False)
    if learns_new({"student": of}):
        tuning = {question["prompt"] for question in every[size.problems :]}
        few = questions("distill unseen", size.new_problems, held_out=False, families=NEW)
        return [question for question in few if question["prompt"] not in tuning]
    if of == "bundled":
        return every[: size.problems]
    few = every[: size.few_problems]
    if threshold == 1:
        return few
    solved = traces(of, 1.0, seed, size)
    return [question for question in few if question["id"] in solved]


def student(name: str, size: Size) -> Path:
    """The folder of a student: the bundled one, or one with headroom, which is made in the same way, but (early) of
    half as many examples; or (unseen) without two families of problems, which the teacher knows; or (rare) as this one
    and then, for a tenth as long, with one problem in eleven of these families."""
    from rsd.models.bundled import bundled

    if name == "bundled":
        return bundled("student")
    folder = WORK / f"{name}-{size.making}"
    if not folder.exists():
        import make_pair as pair

        tokenizer = pair.PreTrainedTokenizerFast.from_pretrained(bundled("student"))
        encoder = pair.Encoder(tokenizer)
        known = [family for family in FAMILIES if family not in NEW]
        if name == "rare" or not size.afresh:
            before = student("unseen", size) if name == "rare" else bundled("student")
            model = pair.AutoModelForCausalLM.from_pretrained(before, dtype=pair.torch.float32)
            steps, rate, seed = size.making // 10, 1e-3, f"{pair.SEED} few"
        else:
            model = pair.model_of(768, hidden=96, layers=2, heads=3, kv_heads=1, inner=288)
            steps, rate, seed = size.making, 3e-3, f"{pair.SEED} student"
        families = {"early": FAMILIES, "unseen": known, "rare": [*known * 4, *NEW]}[name]
        data = pair.batches(encoder, seed, 1.0, 32 if name == "early" else 64, families)
        pair.train(model, data, steps, rate, "cpu", mixed=False)
        temporary = folder.with_suffix(f".{os.getpid()}")
        tokenizer.save_pretrained(temporary)
        pair.save(model, tokenizer, encoder, temporary)
        os.replace(temporary, folder)
    return folder


def traces(of: str, threshold: float, seed: int, size: Size) -> Rows:
    """The first right trace of each problem that has one, with its scores under the untrained student.

    token_ids: as they were sampled, with the EOS.
    """

    def make() -> Rows:
        from rsd import GenerateConfig, TraceGenerator

        config = GenerateConfig(
            student=str(student(of, size)),
            threshold=threshold,
            num_generations=GENERATIONS,
            until_correct=True,
            verify="boxed",
            seed=seed,
            score=True,
            max_new_tokens=LONGEST,
        )
        made: Rows = {}
        for trace in TraceGenerator(config).run(training_problems(of, threshold, seed, size)):
            if trace.is_correct:
                row = trace.row()
                made[trace.id] = {c: row[c] for c in COLUMNS}
                made[trace.id] |= {"prompt_ids": trace.prompt_ids, "token_ids": trace.token_ids.tolist()}
        return made

    return kept(WORK / f"traces-{of}-{threshold:g}-{seed}.json", make)


def rows_of(of: str, threshold: float, seed: int, size: Size) -> list[dict[str, Any]]:
    return [{c: row[c] for c in ("id", "prompt", "completion")} for row in traces(of, threshold, seed, size).values()]


def soft(of: str, threshold: float, seed: int, size: Size) -> Rows:
    """The same traces' teacher_ids and teacher_logprobs [T, TOP] by problem, by `rsd score --top-logprobs`."""

    def make() -> Rows:
        import rsd
        from rsd.traces.soft import SoftFile, soft_file

        rows, out = rows_of(of, threshold, seed, size), WORK / f"scored-{of}-{threshold:g}-{seed}.jsonl"
        rsd.score(
            rows, out, overwrite=True, student=str(student(of, size)), teacher="bundled-teacher", top_logprobs=TOP
        )
        file, made = SoftFile(soft_file(out)), {}
        for row in rows:
            targets = file.get((row["id"], 0))
            logprobs = np.nan_to_num(targets.teacher_logprobs, neginf=-100.0).clip(-100).round(3)
            made[row["id"]] = {"token_ids": targets.token_ids.tolist(), "teacher_ids": targets.teacher_ids.tolist()}
            made[row["id"]] |= {"teacher_logprobs": logprobs.tolist()}
        return made

    return kept(WORK / f"soft-{of}-{threshold:g}-{seed}.json", make)


def weights(of: str, threshold: float, seed: int, size: Size) -> Rows:
    """The same traces' weights by problem, by `rsd weigh --validity likelihood`."""

    def make() -> Rows:
        import rsd

        rows = rows_of(of, threshold, seed, size)
        made = rsd.weigh(rows, student=str(student(of, size)), validity="likelihood")
        return {row["id"]: {"token_ids": row["token_ids"], "loss_weights": row["token_weights"]} for row in made}

    return kept(WORK / f"weights-{of}-{threshold:g}-{seed}.json", make)


def tailored(of: str, threshold: float, seed: int, size: Size) -> Rows:
    """The teacher's raw traces (`threshold` 0) as `rsd tailor` makes them over, by the student alone: the first right
    trace of each problem, and where none is the raw one."""

    def make() -> Rows:
        from rsd import Tailor

        raw = traces(of, threshold, seed, size)
        answers = {q["id"]: q["answer"] for q in training_problems(of, threshold, seed, size)}
        given = [
            {"id": k, "prompt": row["prompt"], "completion": row["completion"], "answer": answers[k]}
            for k, row in raw.items()
        ]
        job = Tailor(
            student=str(student(of, size)),
            num_generations=GENERATIONS,
            until_correct=True,
            verify="boxed",
            seed=seed,
            max_new_tokens=LONGEST,
        )
        made = {k: row | {"source": "raw"} for k, row in raw.items()}
        for trace in job.run(given):
            if trace.is_correct:
                row = trace.row()
                made[trace.id] = {c: row[c] for c in COLUMNS} | {"source": row["source"]}
                made[trace.id] |= {"prompt_ids": trace.prompt_ids, "token_ids": trace.token_ids.tolist()}
        return made

    return kept(WORK / f"tailored-{of}-{threshold:g}-{seed}.json", make)


MORE = {"soft": soft, "weights": weights}  # what an arm adds to its traces, by the name behind the `+`


def arm(name: str, task: Task, size: Size) -> Rows:
    """An arm's traces by problem: raw, rsd, own, tailor, ln, or a threshold; with `+weights` or `+soft`."""
    name, _, more = name.partition("+")
    of, seed = task.get("student", "bundled"), task["seed"]
    if name == "tailor":
        return tailored(of, 0.0, seed, size)
    if name == "ln":
        raw, rsd = arm("raw", task, size), arm("rsd", task, size)
        both = {k: [rows[k] for rows in (rsd, raw) if k in rows] for k in rsd | raw}
        return {k: max(rows, key=lambda trace: trace["local_naturalness"]) for k, rows in both.items()}
    threshold = THRESHOLDS[name] if name in THRESHOLDS else float(name)
    rows = traces(of, threshold, seed, size)
    if more:
        added = MORE[more](of, threshold, seed, size)
        rows = {k: row | added[k] for k, row in rows.items()}
    return rows


def make(tasks: list[Task], size: Size) -> list[list[tuple[Callable[..., Any], tuple[Any, ...]]]]:
    """The jobs that make what runs read, as functions and arguments; those of a list do not need each other."""
    students, own, plain, more = {}, {}, {}, {}
    for task in tasks:
        of, seed = task.get("student", "bundled"), task["seed"]
        students[of] = (student, (of, size))
        names = {task["arm"], *task["among"]} | ({"rsd"} if task["table"] == "tokens" else set())
        for name in sorted((names | ({"raw", "rsd"} if "ln" in names else set())) - {"none", "policy", "ln"}):
            name, _, added = name.partition("+")
            if name == "tailor":
                plain[of, 0.0, seed] = (traces, (of, 0.0, seed, size))
                more[name, of, 0.0, seed] = (tailored, (of, 0.0, seed, size))
                continue
            what = (of, THRESHOLDS[name] if name in THRESHOLDS else float(name), seed, size)
            (own if what[1] == 1 else plain)[what[:3]] = (traces, what)
            if added:
                more[added, *what[:3]] = (MORE[added], what)
    return [list(jobs.values()) for jobs in (students, own, plain, more)]


def chosen(task: Task, size: Size) -> list[dict[str, Any]]:
    """The rows that a run trains on: of the problems that all of `among` solved."""
    own = arm("raw" if task["arm"] == "policy" else task["arm"], task, size)
    common = set(own).intersection(*(arm(other, task, size) for other in task["among"]))
    return [own[k] for k in own if k in common]

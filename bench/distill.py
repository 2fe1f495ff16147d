"""Does training on RSD traces help a student, and on raw ones hurt it? Do soft targets, weights, a cold start?

    python bench/distill.py --work distill-work --json bench/distill.json --plots bench

A student is fine-tuned with TRL (completion-only loss, full fine-tuning) on correct traces of the same problems:
(raw) the teacher's own, (rsd) reverse speculative decoding, (own) its own, (ln) for each problem the more natural of
raw and rsd; and (none) not at all. With `+soft` half of the loss is the teacher's distribution, with `+weights` the
loss of a token counts by the weights of `rsd weigh`. Besides the bundled student there are three with headroom, made in
the same way: two have hardly (rare) or never (unseen) seen two of the seven families of problems, and learn from traces
of these; one saw half as many examples (early). Then (cold) the first of them goes on with on-policy distillation from
the teacher, after raw traces, after RSD's or at once (policy).

Greedy accuracy on held-out problems, with 95 % bootstrap intervals over seeds and problems. Learning rates are tuned
for every arm alike, on problems of their own. A seed is one of sampling the traces and of the order in training.

It runs in parts: `--arm rare/rsd+soft`. Needs the extras `train` and `bench`. What is in the JSON is not run
again, and what is in the folder of `--work` (students, traces) is not made again.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distill_data import GENERATIONS, THRESHOLDS, Size, Task, make, start
from distill_tables import matrix, plots, show, summary
from distill_train import BATCH, train

PLAIN, ARMS = ("raw", "rsd", "own"), ("raw", "rsd", "own", "ln")
MORE = ("raw+soft", "rsd+soft", "raw+weights", "rsd+weights")
COLD, BOTH = ("policy", "raw", "rsd"), ("raw", "rsd")


class Table(NamedTuple):
    """Runs that are compared: a student's, on the problems that all of `among` solved (None: on what each did)."""

    student: str
    name: str
    arms: tuple[str, ...]
    among: tuple[str, ...] | None
    title: str

    def names(self) -> dict[str, str]:
        """What `--arm` calls its arms."""
        group = "cold" if self.name == "cold" else self.student
        return {arm: f"{group}/{'threshold' if self.name == 'sweep' else arm}" for arm in self.arms}


def tables(size: Size) -> list[Table]:
    """In the order in which they are run."""
    thresholds = tuple(f"{t:g}" for t in size.sweep)
    primary = "the problems that every arm solved, same optimizer steps"
    return [
        Table("rare", "steps", (*PLAIN, "tailor", *MORE), BOTH, "A student that has hardly seen two families: those "
              "problems that raw and rsd both solved (own: and it itself), same optimizer steps"),
        Table("rare", "cold", COLD, BOTH, "Cold start: the same student, then on-policy distillation"),
        Table("early", "steps", PLAIN, PLAIN, f"A student that was stopped early: {primary}"),
        Table("unseen", "steps", PLAIN, BOTH, "A student that has never seen two families: as the first table"),
        Table("bundled", "steps", ARMS + MORE, ARMS, f"The bundled student, primary: {primary}"),
        Table("bundled", "tokens", ARMS, ARMS, "Secondary: the same problems, same completion tokens"),
        Table("bundled", "solved", ARMS, None, "The problems that each arm solved itself, same optimizer steps"),
        Table("bundled", "template", ("raw", "rsd"), ARMS, "As the primary table, but the loss covers the line break "
              "after the EOS that the chat template adds"),
        Table("bundled", "sweep", thresholds, thresholds, "The threshold: the problems solved with all of them, same "
              "optimizer steps"),
    ]  # fmt: skip


class Runs:
    """All runs so far, in a file that is written after each."""

    def __init__(self, pool: Any, size: Size, file: str | None, settings: dict[str, Any]) -> None:
        self.pool, self.size, self.file, self.settings = pool, size, file, settings
        self.runs: list[dict[str, Any]] = []
        if file and Path(file).exists():
            before = json.loads(Path(file).read_text())
            if before["settings"] != settings:
                sys.exit(f"{file} is of other settings: give another file")
            self.runs = before["runs"]

    def do(self, wanted: Iterable[Task]) -> None:
        known = {_key(run["task"]) for run in self.runs}
        todo = [task for task in wanted if _key(task) not in known]
        for jobs in make(todo, self.size):  # what a run reads, kind by kind
            for _ in self.pool.imap_unordered(_do, jobs):
                pass
        for task, result in self.pool.imap_unordered(_do, [(train, (task, self.size)) for task in todo]):
            self.runs.append({"task": task, **result})
            name = f"{task.get('student', 'bundled')} {task['table']:<9} {task['arm']:<11}"
            came = f"{result['accuracy']:.1%} in {result['seconds']:.0f} s"
            print(f"{name} seed {task['seed']} rate {task['rate']:g}: {came}", file=sys.stderr)
            self.write()

    def of(self, student: str, table: str, arm: str) -> list[dict[str, Any]]:
        named = (run for run in self.runs if (run["task"]["table"], run["task"]["arm"]) == (table, arm))
        return [run for run in named if run["task"].get("student", "bundled") == student]

    def accuracy(self, table: Table, arm: str) -> dict[float, float]:
        """By learning rate, on the problems for tuning."""
        tuned = self.of(table.student, tuning(table), arm)
        rates = sorted({run["task"]["rate"] for run in tuned})
        return {rate: tuning_accuracy([r for r in tuned if r["task"]["rate"] == rate], self.size) for rate in rates}

    def best(self, table: Table, arm: str) -> float:
        if table.name == "sweep":
            arm = "rsd"
        accuracy = self.accuracy(table, arm)
        return max(accuracy, key=lambda rate: accuracy[rate])

    def write(self, **summary: Any) -> None:
        if self.file:
            from common import machine

            head = json.dumps({"machine": machine(), "settings": self.settings, **summary})
            lines = ",\n".join(json.dumps(run) for run in self.runs)
            Path(self.file).write_text(f'{head[:-1]}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def _key(task: Task) -> str:
    return json.dumps(task, sort_keys=True)


def _do(job: tuple[Any, tuple[Any, ...]]) -> tuple[Any, Any]:
    function, arguments = job
    return arguments[0], function(*arguments)


def tuning_accuracy(runs: list[dict[str, Any]], size: Size) -> float:
    return float(matrix(runs, size.validation, first=size.problems).mean())


def tuning(table: Table) -> str:
    return "tune cold" if table.name == "cold" else "tune"


def tune(table: Table, arms: Iterable[str], runs: Runs, size: Size) -> None:
    """Find the learning rates of a table's arms, by seeds and problems of their own; tables share them."""
    if table.name == "sweep":
        arms = ["rsd"]
    rates = size.policy_rates if table.name == "cold" else size.rates if table.student == "bundled" else size.few_rates
    among = next(t.among for t in tables(size) if (t.student, t.name) == (table.student, "steps"))
    seeds = size.tuning_seeds if table.student == "bundled" else size.tuning_seeds[:1]
    runs.do(task(table._replace(name=tuning(table), among=among), arm, seed, rate, runs)
            for seed in seeds for arm in arms for rate in rates)  # fmt: skip


def task(table: Table, arm: str, seed: int, rate: float, runs: Runs) -> Task:
    made: Task = {"table": table.name, "arm": arm, "seed": seed, "rate": rate, "among": list(table.among or ())}
    if table.student != "bundled":
        made["student"] = table.student
    if table.name.endswith("cold"):
        made["first_rate"] = 0.0 if arm == "policy" else runs.best(table._replace(name="steps"), arm)
    return made


def seeds_of(table: Table, size: Size) -> range:
    return size.sweep_seeds if table.name == "sweep" else size.seeds


def untrained(student: str, table: str) -> Task:
    none = {"table": table, "arm": "none", "seed": 0, "rate": 0.0, "among": []}
    return none if student == "bundled" else none | {"student": student}


def run(runs: Runs, size: Size, wanted: set[str]) -> None:
    for table in tables(size):
        arms = [arm for arm, name in table.names().items() if name in wanted]
        if not arms:
            continue
        runs.do(untrained(table.student, name) for name in ("none", "tune"))
        if table.name == "cold":
            tune(table._replace(name="steps"), [arm for arm in arms if arm != "policy"], runs, size)
        tune(table, arms, runs, size)
        for seed in seeds_of(table, size):  # one after the other, so that a run that is stopped has whole seeds
            runs.do(task(table, arm, seed, runs.best(table, arm), runs) for arm in arms)


def report(runs: Runs, size: Size, folder: str | None) -> None:
    """Tables and plots of all that has been run so far."""
    made: dict[str, Any] = {}
    none: dict[str, Any] = {}
    for table in tables(size):
        tuned = [arm for arm in table.arms if runs.accuracy(table, arm)]
        if tuned and table.name in ("steps", "cold"):
            (first,) = runs.of(table.student, "tune", "none")
            print(f"\nLearning rates, {table.student} student{', on-policy' if table.name == 'cold' else ''}: accuracy "
                  f"on the problems for tuning (no training: {tuning_accuracy([first], size):.1%})\n")  # fmt: skip
            rates = sorted({rate for arm in tuned for rate in runs.accuracy(table, arm)})
            print("| arm | " + " | ".join(f"{rate:g}" for rate in rates) + " |\n" + "|---" * (len(rates) + 1) + "|")
            for arm in tuned:
                accuracy = runs.accuracy(table, arm)
                print(f"| {arm} | " + " | ".join(f"{accuracy[r]:.1%}" if r in accuracy else "" for r in rates) + " |")
        done = [arm for arm in table.arms if runs.of(table.student, table.name, arm)]
        if not done:
            continue
        (none[table.student],) = runs.of(table.student, "none", "none")
        of = [r for arm in done for r in runs.of(table.student, table.name, arm)
              if r["task"]["rate"] == runs.best(table, arm)]  # fmt: skip
        name = f"{table.student}/{table.name}"
        made[name] = summary(of, none[table.student], size.held_out)
        show(table.title, made[name], none[table.student], size.held_out)
    accuracy = {student: float(matrix([run], size.held_out).mean()) for student, run in none.items()}
    runs.write(untrained=accuracy, tables=made)
    if folder:
        plots(Path(folder), made, accuracy)
    hours = sum(r["seconds"] for r in runs.runs) / 3600
    missing = sum(len(seeds_of(t, size)) - len(runs.of(t.student, t.name, arm)) for t in tables(size) for arm in t.arms)
    print(f"\n{len(runs.runs)} runs took {hours:.1f} hours of one thread; without the tuning, {missing} are missing")


def main() -> None:
    names = list(dict.fromkeys(name for t in tables(Size(quick=False, scale=1)) for name in t.names().values()))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--quick", action="store_true", help="minutes instead of hours; shows only that it runs")
    ap.add_argument("--scale", type=float, default=1.0, help="times as many problems and steps")
    ap.add_argument("--arm", action="append", choices=names, help="what to run (several times: several); default: all")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, each with one thread")
    ap.add_argument("--work", help="a folder for students and traces; default: one that is deleted at the end")
    ap.add_argument("--json", help="all runs and the tables; a run that was stopped goes on from it")
    ap.add_argument("--plots", help="write the plots (PNG) into this folder")
    args = ap.parse_args()
    size = Size(quick=args.quick, scale=args.scale)
    settings = {k: list(v) if isinstance(v, range | tuple) else v for k, v in vars(size).items()}
    settings |= {"generations": GENERATIONS, "batch": BATCH, "thresholds": THRESHOLDS}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or temporary
        Path(work).mkdir(exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(args.jobs, start, (work,)) as pool:
            runs = Runs(pool, size, args.json, settings)
            run(runs, size, set(args.arm or names))
    report(runs, size, args.plots)
    print(f"{(time.monotonic() - started) / 60:.0f} minutes now, {args.jobs} runs at a time")


if __name__ == "__main__":
    main()

"""Traces after raw responses: what `rsd tailor` makes of them, beside the teacher that wrote them, and how fast.

    python bench/tailor.py --json bench/tailor.json                # the bundled pair: all of data/teacher.jsonl
    python bench/tailor.py --real --json bench/tailor-real.json    # SmolLM2-135M after real solutions (fetch.py)

The bundled teacher's raw traces are tailored by the bundled student alone, and by the teacher with its own trace in its
prompt; beside them stand what the student writes by itself, several times where the first is wrong, and what `rsd
generate` makes with that teacher, which tailoring is about to do without. Real solutions
have no teacher that could be asked; beside them stands what the student writes by itself. They hold no boxed answer:
a text is right if its last number is the answer. Speed is with drafts that are looked up, by without; same traces.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from common import interleaved, machine, ratio, write
from fetch import PROBLEMS, SMOLLM2
from lookup import Without
from spans import last_number

from rsd import Tailor, TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

Row = Mapping[str, Any]
TRIES = 4
SCORES = ("local_naturalness", "low_prob_share")


def figures(rows: Sequence[Row], raw: str = "") -> dict[str, float]:
    """Of traces, or (`raw_`) of the raw responses beside them."""
    made = {"right": float(np.mean([right(row, raw) for row in rows]))}
    made |= {name: float(np.mean([row[raw + name] for row in rows])) for name in SCORES}
    return made | {"tokens": float(np.mean([row[f"{raw}scored_tokens"] for row in rows]))}


def right(row: Row, raw: str) -> bool:
    if (verdict := row[f"{raw}is_correct"]) is not None:
        return bool(verdict)
    text = row["raw_completion"] if raw else row["completion"][0]["content"]
    return last_number(text) == row["answer"]


def show(name: str, of: dict[str, float]) -> None:
    scores = f"{of['local_naturalness']:.2f} | {of['low_prob_share']:.1%}"
    print(f"| {name} | {of['right']:.1%} | {scores} | {of['tokens']:.0f} |", flush=True)


def speed(rows: Sequence[Row], count: int, repeats: int, **how: Any) -> dict[str, Any]:
    sides = {name: Tailor(batch_size=count, score=False, **how).load() for name in ("with", "without")}
    engine = sides["without"]._engine
    engine.blocks = engine.rounds.blocks = Without()  # type: ignore[union-attr]
    said: dict[str, list[list[int]]] = {}

    def run(name: str) -> Callable[[], float]:
        def tokens() -> float:
            started = time.perf_counter()
            said[name] = [trace.token_ids.tolist() for trace in sides[name].run(rows)]
            return sum(map(len, said[name])) / (time.perf_counter() - started)

        return tokens

    made = interleaved({name: run(name) for name in sides}, repeats)
    return {"rows": count, "tokens_per_s": made, "ratio": ratio(made["with"], made["without"])} | {
        "equal": said["with"] == said["without"],
        "tokens_a_round": [side.blocks.tokens_per_round for side in sides.values()],
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--real", action="store_true")
    ap.add_argument("--problems", type=int, default=12, help="of the real ones")
    ap.add_argument("--tokens", type=int, default=160, help="of a trace of these at the most")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.real:
        rows = read_rows(PROBLEMS)[: args.problems]
        how: dict[str, Any] = {"student": str(SMOLLM2), "prompt_column": "question", "temperature": 0.7}
        how |= {"max_new_tokens": args.tokens, "verify": "none"}
        after = how | {"response_column": "solution"}
        sides = {"tailored": lambda: Tailor(**after), "the student's own": lambda: own(how)}
    else:
        rows, how = read_rows(bundled("teacher.jsonl")), {}
        after = how
        until = {"until_correct": True, "num_generations": TRIES}
        alone: dict[str, Any] = {"teacher": "bundled-student", "threshold": 1, "score": True}
        sides = {
            "tailored by the student": Tailor,
            "tailored by the teacher": lambda: Tailor(teacher="bundled-teacher"),
            f"tailored by the student until right, {TRIES} at the most": lambda: Tailor(**until),
            "the student's own": lambda: TraceGenerator(**alone),
            f"the student's own until right, {TRIES} at the most": lambda: TraceGenerator(**alone, **until),
            "generated with the teacher": lambda: TraceGenerator(score=True),
        }
    made: dict[str, Any] = {}
    print("| | right | Local Naturalness | improbable tokens | tokens |\n|---|---|---|---|---|")
    for name, generator in sides.items():
        # Of each problem the last: where it is asked until one is right that one, if there is any.
        traces = list({trace.id: trace.row() for trace in generator().run(rows)}.values())
        if "raw" not in made:
            made["raw"] = figures(traces, "raw_")
            show("raw", made["raw"])
        made[name] = figures(traces)
        show(name, made[name])
        if name.startswith("tailored"):
            kept = [row["is_correct"] or (row["is_correct"] is None and right(row, "")) for row in traces]
            made[name]["kept from raw"] = float(
                np.mean([not k and right(r, "raw_") for k, r in zip(kept, traces, strict=True)])
            )
    print("\n| rows | tokens a round, with / without | with / without |\n|---|---|---|")
    made["speed"] = []
    for count in (1, 8):
        of = speed(rows[: 8 if args.real else 64], count, args.repeats, **after)
        made["speed"].append(of)
        rounds, equal = of["tokens_a_round"], "" if of["equal"] else " (other traces!)"
        print(f"| {count} | {rounds[0]:.1f} / {rounds[1]:.1f} | {of['ratio']}{equal} |", flush=True)
    write(args.json, [made])
    print(f"\n{json.dumps(machine())}")


def own(how: dict[str, Any]) -> TraceGenerator:
    return TraceGenerator(teacher=how["student"], threshold=1, score=True, **how)


if __name__ == "__main__":
    main()

"""Drafts that are looked up: with and without, on a real student whose teacher has read the solution.

SmolLM2-135M-Instruct (fetch.py) in both roles, the teacher with the problem's solution in its prompt and asked to
explain it, or to write it down again. Both engines make the same traces, which is checked; repeats are interleaved.

    python bench/lookup.py --json bench/lookup.json
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved, machine, ratio, write
from fetch import PROBLEMS, SMOLLM2

from rsd import GenerateConfig, TraceGenerator
from rsd.decoding.block_size import BlockController
from rsd.traces.readers import read_rows

ASKED = {
    "explain": "{{ prompt }}\n\nA correct solution: {{ solution }}\n\nExplain it step by step.",
    "again": "{{ prompt }}\n\nA correct solution: {{ solution }}\n\nWrite this solution down once more, word for word.",
}


class Without(BlockController):
    """Looks nothing up."""

    def look_up(self, rows: int, streak: int) -> int:
        return 0


def generator(template: str, rows: int, tokens: int) -> TraceGenerator:
    config = GenerateConfig(
        teacher=str(SMOLLM2),
        student=str(SMOLLM2),
        teacher_template=template,
        temperature=0.7,
        max_new_tokens=tokens,
        batch_size=rows,
        verify="none",
        skip_check=True,
    )
    return TraceGenerator(config).load()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    ap.add_argument("--problems", type=int, default=8)
    ap.add_argument("--tokens", type=int, default=128, help="of a trace at the most")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    problems = read_rows(PROBLEMS)[: args.problems]
    results: list[dict[str, Any]] = []
    print("| the teacher is to | rows | tokens a round, with / without | with / without |\n|---|---|---|---|")
    for asked, template in ASKED.items():
        for rows in args.rows:
            sides = {"with": generator(template, rows, args.tokens), "without": generator(template, rows, args.tokens)}
            engine = sides["without"]._engine
            engine.blocks = engine.rounds.blocks = Without()  # type: ignore[union-attr]
            said: dict[str, list[list[int]]] = {}

            def run(name: str, made: TraceGenerator, said: dict[str, list[list[int]]] = said) -> Callable[[], float]:
                def speed() -> float:
                    started = time.perf_counter()
                    said[name] = [trace.token_ids.tolist() for trace in made.run(problems)]
                    return sum(map(len, said[name])) / (time.perf_counter() - started)

                return speed

            figures = interleaved({name: run(name, made) for name, made in sides.items()}, args.repeats)
            rounds = [made.blocks.tokens_per_round for made in sides.values()]
            results.append(
                {
                    "asked": asked,
                    "rows": rows,
                    "equal": said["with"] == said["without"],
                    "tokens_a_round": rounds,
                    "tokens_per_s": figures,
                    "ratio": ratio(figures["with"], figures["without"]),
                }
            )
            equal = "" if results[-1]["equal"] else " (other traces!)"
            print(
                f"| {asked} | {rows} | {rounds[0]:.1f} / {rounds[1]:.1f} | {results[-1]['ratio']}{equal} |", flush=True
            )
            write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

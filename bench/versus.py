"""Two checkouts of rsd against each other: is one slower than the other?

Each runs in a process of its own and decodes the same bundled problems by the public class; the two take turns, so
that a machine whose speed drifts slows both alike. The ratio of seconds a token is the result: above 1, the second is
the slower one.

    python bench/versus.py ../before . --json bench/versus.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

KINDS = {"lockstep": 1, "own blocks": None}  # by block size


def work(checkout: str, threads: int) -> None:
    """Answer lines of `kind rows` with seconds a token, decoding with the rsd of a checkout."""
    sys.path.insert(0, checkout)
    import torch

    from rsd import GenerateConfig, TraceGenerator

    torch.set_num_threads(threads)
    problems = [json.loads(line) for line in Path(checkout, "data", "problems.jsonl").read_text().splitlines()]
    generators: dict[str, TraceGenerator] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        block, rows = json.loads(line)
        if line not in generators:
            config = GenerateConfig(batch_size=rows, block_size=block, verify="none", skip_check=True)
            generators[line] = TraceGenerator(config).load()
        some = problems[: max(8, 2 * rows)]
        started = time.perf_counter()
        tokens = sum(len(trace.token_ids) for trace in generators[line].run(some))
        print((time.perf_counter() - started) / tokens, flush=True)


class Side:
    """A process that decodes with one checkout."""

    def __init__(self, checkout: str, threads: int) -> None:
        command = [sys.executable, __file__, checkout, "--work", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said()

    def said(self) -> str:
        return self.process.stdout.readline()  # type: ignore[union-attr]

    def seconds(self, block: int | None, rows: int) -> float:
        self.process.stdin.write(json.dumps([block, rows]) + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return float(self.said())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("checkouts", nargs="+", help="two directories: before and after")
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    ap.add_argument("--repeats", type=int, default=15)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    ap.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.work:
        work(args.checkouts[0], args.threads)
        return
    from common import machine

    sides = [Side(checkout, args.threads) for checkout in args.checkouts]
    table = []
    print("| | rows | after / before, median | quartiles | of the quickest runs |\n|---|---|---|---|---|")
    for kind, block in KINDS.items():
        for rows in args.rows:
            for side in sides:
                for _ in range(3):  # warms up, and learns its block sizes
                    side.seconds(block, rows)
            seconds = []
            for repeat in range(args.repeats):
                turn = sides if repeat % 2 == 0 else sides[::-1]
                took = {side: side.seconds(block, rows) for side in turn}
                seconds.append([took[side] for side in sides])
            ratios = [after / before for before, after in seconds]
            low, middle, high = statistics.quantiles(ratios, n=4)
            best = min(s[1] for s in seconds) / min(s[0] for s in seconds)
            print(f"| {kind} | {rows} | {middle:.3f} | {low:.3f} .. {high:.3f} | {best:.3f} |", flush=True)
            table.append({"kind": kind, "rows": rows, "seconds_a_token": seconds, "ratio": [low, middle, high]})
    for side in sides:
        side.process.stdin.close()  # type: ignore[union-attr]
        side.process.wait()
    print(f"\n{json.dumps(machine())}")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine(), "table": table}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()

"""Refilling a finished row's slot at once, against static batches that wait for their longest trace.

128 prompts of the bundled pair, with lengths drawn from a log-normal distribution (nothing ends a trace
before its length). Both contenders are this engine with its own block choice; the static one gets the
prompts 32 at a time, and each batch ends before the next begins.

    python bench/refill.py --json bench/refill.json
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from common import bundled_pair, interleaved, machine, ratio, write


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--prompts", type=int, default=128)
    ap.add_argument("--rows", type=int, default=32)
    ap.add_argument("--sigma", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5], help="spread of log length")
    ap.add_argument("--median", type=float, default=60, help="median length")
    ap.add_argument("--longest", type=int, default=1500)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    pair = bundled_pair()
    engine = pair.engine(args.rows, None)
    results = []
    print("| sigma | mean length | longest | refill, tokens/s | static, tokens/s | refill / static |")
    print("|---|---|---|---|---|---|")
    for sigma in args.sigma:
        drawn = np.random.default_rng(0).lognormal(np.log(args.median), sigma, args.prompts)
        lengths = np.clip(drawn.round(), 4, args.longest).astype(int).tolist()
        requests = pair.requests(args.prompts, lengths)

        def timed(size: int, requests: list = requests) -> float:
            started = time.perf_counter()
            made = 0
            for i in range(0, len(requests), size):
                made += sum(len(f.token_ids) for f in engine.run(requests[i : i + size]))
            return made / (time.perf_counter() - started)

        contenders = {"refill": lambda: timed(args.prompts), "static": lambda: timed(args.rows)}
        figures = interleaved(contenders, args.repeats)
        speeds = [f"{statistics.median(figures[name]):.0f}" for name in contenders]
        gain = ratio(figures["refill"], figures["static"])
        mean, longest = float(np.mean(lengths)), max(lengths)
        print(f"| {sigma} | {mean:.0f} | {longest} | {speeds[0]} | {speeds[1]} | {gain} |", flush=True)
        results.append(
            {"sigma": sigma, "mean": mean, "longest": longest, "tokens_per_s": figures, "refill / static": gain}
        )
        write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

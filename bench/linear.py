"""The matrix product of a linear layer for few columns: torch's own against oneDNN's packed weights
(rsd/models/packed.py).

Many different matrices one after another, as a model's layers are, so that each comes from memory and not from
a cache. What a block of drafts needs is that eight columns cost what one costs.

    python bench/linear.py
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from common import interleaved, machine, ratio

from rsd.models.packed import PackedLinear


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--shape", type=int, nargs=2, default=[2816, 1024], help="outputs and inputs of a layer")
    ap.add_argument("--layers", type=int, default=24)
    ap.add_argument("--columns", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 256])
    ap.add_argument("--repeats", type=int, default=9)
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    outputs, inputs = args.shape
    plain = [torch.nn.Linear(inputs, outputs, bias=False) for _ in range(args.layers)]
    packed = [PackedLinear(layer) for layer in plain]
    print("| columns | torch, ms | packed, ms | torch / packed |")
    print("|---|---|---|---|")
    with torch.inference_mode():
        for columns in args.columns:
            x = torch.randn(columns, inputs)

            def timed(layers: list, x: torch.Tensor = x) -> float:
                started = time.perf_counter()
                for layer in layers:
                    layer(x)
                return 1000 * (time.perf_counter() - started)

            contenders: dict[str, Callable[[], float]] = {
                "torch": lambda timed=timed: timed(plain),
                "packed": lambda timed=timed: timed(packed),
            }
            figures = interleaved(contenders, args.repeats)
            shown = [f"{sorted(figures[name])[args.repeats // 2]:.1f}" for name in contenders]
            print(f"| {columns} | {shown[0]} | {shown[1]} | {ratio(figures['torch'], figures['packed'])} |", flush=True)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

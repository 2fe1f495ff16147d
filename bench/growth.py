"""What a token costs as traces get longer and rows get more, and what the caches take.

The first table makes traces of doubling lengths, all rows to the end; the time of a length is what it takes
beyond half of it, so that each line is a stretch of the trace. Beside it stands the same stretch of a bare
forward of both models with transformers' cache: attention makes both dearer, and the engine should not be
dearer still. The second table does the same for more and more rows. Lockstep, so that a step is a step (see
decode.py for blocks).

The third table makes traces of unlike lengths, drawn from a log-normal distribution, by the engine's own blocks, with
rows in pools of about one length and with all rows in one buffer as long as the longest. Bytes are those of both
models' caches, looked at whenever a trace ends. The fourth is one pass over rows of such lengths, of the bundled
teacher and of SmolLM2-135M, if it is there (fetch.py).

    python bench/growth.py --json bench/growth.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import Pair, bundled_pair, interleaved, machine, ratio, write
from fetch import SMOLLM2
from transformers import DynamicCache, PreTrainedModel

from rsd import GenerateConfig
from rsd.decoding.engine import Engine
from rsd.models.kv_cache import CachedModel
from rsd.models.loading import find, load

SAMPLE = 48  # forwards of a bare stretch that are timed, spread over it


@torch.inference_mode()
def bare(pair: Pair, rows: int, start: int, end: int) -> float:
    """Milliseconds of one cached forward of both models, in the middle of a stretch."""
    took = 0.0
    for model in (pair.teacher, pair.student):
        cache = DynamicCache(config=model.config)
        ids = torch.tensor(pair.prompts[0], device=model.device).repeat(rows, 1)
        ids = ids.repeat(1, 1 + end // ids.shape[1])[:, : (start + end) // 2 - SAMPLE // 2]
        for piece in ids.split(256, 1):
            model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        started = time.perf_counter()
        for _ in range(SAMPLE):
            model(ids[:, -1:], past_key_values=cache, use_cache=True).logits.cpu()
        took += time.perf_counter() - started
    return 1000 * took / SAMPLE


def stretch(pair: Pair, engine: Engine, start: int, end: int, size: list[int]) -> float:
    """Milliseconds a round from token `start` to token `end` of all rows."""
    took = []
    for length in (start, end):
        requests = pair.requests(engine.rows, [length] * engine.rows)
        started = time.perf_counter()
        for _ in engine.run(requests):
            size[0] = max(size[0], cache_bytes(engine))
        took.append(time.perf_counter() - started)
    return 1000 * (took[1] - took[0]) / (end - start)


def cache_bytes(engine: Engine) -> int:
    return sum(sum(model.cache.held().values()) for model in (engine.teacher.model, engine.student))  # type: ignore[attr-defined]


def line(pair: Pair, rows: int, start: int, end: int, repeats: int) -> dict[str, Any]:
    engine, held = pair.engine(rows, 1), [0]
    contenders: dict[str, Callable[[], float]] = {
        "engine": lambda: stretch(pair, engine, start, end, held),
        "bare": lambda: bare(pair, rows, start, end),
    }
    figures = interleaved(contenders, repeats)
    size = held[0]
    medians = {name: statistics.median(figures[name]) for name in figures}
    print(
        f"| {rows} | {start} .. {end} | {medians['engine']:.2f} | {medians['engine'] / rows:.3f} | "
        f"{medians['bare']:.2f} | {ratio(figures['engine'], figures['bare'])} | {size / 1e6:.0f} | "
        f"{size / 1e3 / rows / end:.1f} |",
        flush=True,
    )
    return {"rows": rows, "start": start, "end": end, "ms_a_step": figures, "cache_bytes": size}


def unlike(pair: Pair, rows: int, sigma: float, args: argparse.Namespace) -> dict[str, Any]:
    """Traces of unlike lengths, in pools and in one buffer."""
    drawn = np.random.default_rng(0).lognormal(np.log(args.median), sigma, 4 * rows)
    lengths = np.clip(drawn.round(), 4, args.longest).astype(int).tolist()
    requests = pair.requests(len(lengths), lengths)
    engines = {"pools": pair.engine(rows, None), "one buffer": pair.engine(rows, None)}
    for model in (engines["one buffer"].teacher.model, engines["one buffer"].student):  # type: ignore[attr-defined]
        model.in_one_buffer()
    size: dict[str, list[int]] = {}

    def speed(name: str) -> float:
        size[name] = []
        started = time.perf_counter()
        for _ in engines[name].run(requests):
            size[name].append(cache_bytes(engines[name]))
        engines[name].rounds.drop_caches(rows)  # a buffer keeps its size from one run to the next
        return sum(lengths) / (time.perf_counter() - started)

    figures = interleaved({name: lambda name=name: speed(name) for name in engines}, args.repeats)
    speeds = [f"{statistics.median(figures[name]):.0f}" for name in engines]
    peaks, means = ([f(size[name]) for name in engines] for f in (max, statistics.mean))
    print(
        f"| {rows} | {sigma} | {statistics.mean(lengths):.0f} | {max(lengths)} | {' | '.join(speeds)} | "
        f"{ratio(figures['pools'], figures['one buffer'])} | {peaks[0] / 1e6:.0f} | {peaks[1] / 1e6:.0f} | "
        f"{peaks[1] / peaks[0]:.2f} | {means[1] / means[0]:.2f} |",
        flush=True,
    )
    return {"rows": rows, "sigma": sigma, "tokens_per_s": figures, "cache_bytes": size}


@torch.inference_mode()
def one_pass(name: str, model: PreTrainedModel, rows: int, columns: int, args: argparse.Namespace) -> dict[str, Any]:
    """A pass of `columns` tokens a row over rows of unlike lengths, in pools and in one buffer."""
    drawn = np.random.default_rng(0).lognormal(np.log(args.median), max(args.sigma), rows)
    lengths = np.clip(drawn, 16, min(args.longest, model.config.max_position_embeddings)).astype(int)
    positions = torch.tensor(lengths)[:, None] - columns + torch.arange(columns)
    ids = torch.full((rows, columns), 5)
    models = {name: CachedModel(model, rows, pooled=name == "pools") for name in ("pools", "one buffer")}

    def speed(cached: CachedModel) -> float:
        started = time.perf_counter()
        for _ in range(5):
            cached(ids, positions, lengths.copy())
        return 5 / (time.perf_counter() - started)

    figures = interleaved({n: lambda cached=cached: speed(cached) for n, cached in models.items()}, 3 * args.repeats)
    took = [f"{1000 / statistics.median(figures[n]):.1f}" for n in models]
    size = [sum(cached.cache.held().values()) for cached in models.values()]
    print(
        f"| {name} | {rows} | {columns} | {lengths.mean():.0f} | {lengths.max()} | {' | '.join(took)} | "
        f"{ratio(figures['pools'], figures['one buffer'])} | {size[0] / 1e6:.0f} | {size[1] / 1e6:.0f} |",
        flush=True,
    )
    return {"model": name, "rows": rows, "columns": columns, "passes_per_s": figures, "cache_bytes": size}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--lengths", type=int, nargs="*", default=[256, 512, 1024, 2048, 4096])
    ap.add_argument("--rows", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    ap.add_argument("--at-rows", type=int, default=4, help="rows of the first table")
    ap.add_argument("--at-length", type=int, default=256, help="length of the second")
    ap.add_argument("--unlike-rows", type=int, nargs="*", default=[8, 32], help="rows of the third")
    ap.add_argument("--sigma", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="spread of log length there")
    ap.add_argument("--median", type=float, default=300, help="median length there")
    ap.add_argument("--longest", type=int, default=4000)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    pair = bundled_pair()
    print("| rows | tokens | engine, ms a step | a token | bare, ms a step | engine / bare | caches, MB | kB a token |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    shapes = [(args.at_rows, n) for n in args.lengths] + [(rows, args.at_length) for rows in args.rows]
    for rows, length in shapes:
        results.append(line(pair, rows, length // 2, length, args.repeats))
        write(args.json, results)
    print(
        "\n| rows | sigma | mean length | longest | pools, tokens/s | one buffer | pools / one buffer | "
        "pools, most MB | one buffer | fewer bytes at the most | on average |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for rows, sigma in ((rows, sigma) for rows in args.unlike_rows for sigma in args.sigma):
        results.append(unlike(pair, rows, sigma, args))
        write(args.json, results)
    print(
        "\n| model | rows | columns | mean length | longest | pools, ms | one buffer, ms | pools / one buffer | "
        "pools, MB | one buffer, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    of = {"bundled teacher": pair.teacher}
    if SMOLLM2.is_file():
        source = find("student", str(SMOLLM2), None, trust_remote_code=False)
        of["SmolLM2-135M"] = load(source, GenerateConfig())
    for name, model in of.items():
        for columns in (1, 4):
            results.append(one_pass(name, model, 32, columns, args))
            write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

"""The parts of `gpu.py` that ask a card, one layer's attention, and the scorer."""

import argparse
import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from common import SHAPES, Planted

from rsd.models import attention
from rsd.models.row_cache import GROW
from rsd.reading import Scoring
from rsd.scoring.naturalness import Reader

if TYPE_CHECKING:
    from gpu import Results

STEP = 20  # tokens of a step of the scored trace
Figures = dict[str, Any]


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def seconds_of(run: Callable[[], object], device: str, times: int = 1) -> float:
    """Of one call, after one that only warms up."""
    run()
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    wait(device)
    return (time.perf_counter() - started) / times


def card(results: "Results", args: argparse.Namespace) -> None:
    size = 1 << (32 if args.device != "cpu" else 26)

    def copy() -> Figures:
        x = torch.zeros(size // 2, dtype=torch.bfloat16, device=args.device)
        y = torch.empty_like(x)
        return {"bytes_per_s": 2 * size / seconds_of(lambda: y.copy_(x), args.device, 5)}

    def read() -> Figures:
        x = torch.zeros(size // 4, dtype=torch.float32, device=args.device)
        return {"bytes_per_s": size / seconds_of(lambda: x.sum(), args.device, 5)}

    def product() -> Figures:
        n = 8192 if args.device != "cpu" else 256
        a, b = (torch.randn(n, n, device=args.device).bfloat16() for _ in range(2))
        return {"flop_per_s": 2 * n**3 / seconds_of(lambda: a @ b, args.device, 5)}

    for name, run in {"copy": copy, "read": read, "product in bf16": product}.items():
        results.measure(name, run)
        free(args.device)


@torch.inference_mode()
def attend(results: "Results", args: argparse.Namespace) -> None:
    """One layer of the teacher, `columns` of each row against a context; the bytes are its keys and values."""
    config = SHAPES[args.shape]()[0]
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = heads // shared, True  # type: ignore[assignment]

    def run(rows: int, length: int, columns: int) -> Figures:
        slots = -(-(length + 32) // GROW) * GROW
        k, v = (torch.randn(rows, shared, slots, size, device=args.device, dtype=args.dtype) for _ in range(2))
        q = torch.randn(rows, heads, columns, size, device=args.device, dtype=args.dtype)
        mask = torch.zeros(rows, 1, columns, slots, device=args.device, dtype=args.dtype)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        lengths = iter(range(length, length + 10_000))

        def ours(n: int) -> object:
            return attention.attend(module, q, k[:, :, :n], v[:, :, :n], mask[..., :n])

        def products() -> object:
            folded = q.reshape(rows, shared, -1, size)
            seen = mask[..., :length].repeat(1, 1, heads // shared, 1)
            scores = folded * size**-0.5 @ k[:, :, :length].transpose(2, 3) + seen
            return scores.softmax(-1) @ v[:, :, :length]

        def grouped() -> object:
            seen = {"attn_mask": mask[..., :length]}
            return sdpa(q, k[:, :, :length], v[:, :, :length], **seen, enable_gqa=True)

        def varlen(splits: int | None) -> Callable[[], object]:
            from torch.nn.attention.varlen import varlen_attn

            pages = [x.reshape(rows * slots // GROW, GROW, shared, size) for x in (k, v)]
            table = torch.arange(len(pages[0]), dtype=torch.int32, device=args.device).view(rows, -1)
            starts = torch.arange(rows + 1, dtype=torch.int32, device=args.device) * columns
            used = torch.full((rows,), length, dtype=torch.int32, device=args.device)
            flat = q.transpose(1, 2).reshape(rows * columns, heads, size)
            how: dict[str, Any] = {"window_size": (-1, 0), "enable_gqa": True, "num_splits": splits}
            how |= {"seqused_k": used, "block_table": table}
            return lambda: varlen_attn(flat, *pages, starts, None, columns, length, **how)

        ways: dict[str, Callable[[], Callable[[], object]]] = {
            "rsd": lambda: lambda: ours(length),
            "rsd, a new length each call": lambda: lambda: ours(min(next(lengths), slots)),
            "two products": lambda: products,
            "sdpa, enable_gqa": lambda: grouped,
            "varlen_attn": lambda: varlen(None),
            "varlen_attn, num_splits=1": lambda: varlen(1),
        }
        made: Figures = {}
        for name, prepare in ways.items():
            try:
                made[name] = round(1e6 * seconds_of(prepare(), args.device, 20), 1)
            except Exception as e:  # not on this card, or not with this shape
                made[name] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        if bandwidth := results.bandwidth():
            made["bound"] = round(1e6 * 2 * rows * shared * length * size * args.dtype.itemsize / bandwidth, 1)
        return made

    for length in args.context:
        for rows in args.rows:
            for columns in (1, 5):
                name = f"{rows} rows, {columns} columns, {length} tokens, us"
                results.measure(name, lambda r=rows, n=length, c=columns: run(r, n, c))
                free(args.device)


def score(results: "Results", args: argparse.Namespace) -> None:
    config = SHAPES[args.shape]()[1]
    config.max_position_embeddings = args.score_tokens + 1024
    reader = Reader(Planted._model(config, args.device, str(args.dtype).split(".")[1]))
    ids = torch.randint(config.vocab_size, (args.score_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    steps = list(range(0, len(ids), STEP))
    first = [Scoring(window="4").first(i) for i in range(len(steps))]

    def run() -> Figures:
        reader.read(ids[:512], ids[:100], [0, 50], [0, 0])  # libraries and kernels are loaded before it counts
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats(args.device)
            before = torch.cuda.memory_allocated(args.device)
        started = time.perf_counter()
        reader.read(ids[:512], ids, steps, first)
        made: Figures = {"seconds": time.perf_counter() - started, "tokens": len(ids), "steps": len(steps)}
        started = time.perf_counter()
        reader.read(ids[:512], ids, [0], [0])
        made["whole_pass_seconds"] = time.perf_counter() - started
        if args.device != "cpu":
            made["peak_bytes"] = torch.cuda.max_memory_allocated(args.device) - before
        return made

    results.measure("one trace", run)

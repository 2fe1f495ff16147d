"""Tokens per second of the engine, against the teacher alone and against RSD one call a token.

Every contender makes the same number of tokens for the same prompts, prompts included in the time; nothing
ends a trace early, so that no contender pays for rows that have ended. Repeats are interleaved, so that a
machine whose speed drifts slows all alike: the ratio of a repeat is the result.

    generate    the teacher alone through `model.generate`, same dtype and sampling
    packed      the same with the linear layers as rsd packs them on a CPU
    assisted    `generate` with the student as transformers' assistant (one row; its traces are the teacher's)
    published   RSD as one stateless call per model and token: each row reads its whole context again
    lockstep    this engine, block size 1
    own         this engine, block size as it chooses
    compiled    the same with --compile (asked for by that flag)

    python bench/decode.py --json bench/decode.json
    python bench/decode.py --pair planted --b 0.75 --rows 1
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from common import SHAPES, Pair, Planted, bundled_pair, interleaved, machine, ratio, write
from transformers import GenerationConfig

from rsd.decoding.engine import Engine

RATIOS = [
    ("own", "generate"),
    ("own", "packed"),
    ("own", "lockstep"),
    ("own", "published"),
    ("own", "assisted"),
    ("compiled", "own"),
]


def batches(pair: Pair, rows: int) -> list[list[list[int]]]:
    """The prompts, by the static batches of `generate`; the engine refills its slots instead."""
    many = 4 if rows == 1 else pair.batches
    prompts = (pair.prompts * (1 + many * rows // len(pair.prompts)))[: many * rows]
    return [prompts[i : i + rows] for i in range(0, len(prompts), rows)]


def generate(pair: Pair, rows: int, *, assisted: bool = False, packed: bool = False) -> Callable[[], float]:
    teacher = pair.teacher if packed else pair.plain[0]
    device = teacher.device
    s = pair.sampling
    config = GenerationConfig(
        do_sample=True,
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        max_new_tokens=pair.tokens,
        min_new_tokens=pair.tokens,
        pad_token_id=0,
    )
    kwargs: dict[str, Any] = {}
    if assisted:
        # With two tokenizers transformers prunes the assistant's head and embedding in place.
        kwargs["assistant_model"] = copy.deepcopy(pair.plain[1])
        if pair.tokenizers:
            kwargs |= {"tokenizer": pair.tokenizers[0], "assistant_tokenizer": pair.tokenizers[1]}

    def run() -> float:
        started = time.perf_counter()
        made = 0
        for batch in batches(pair, rows):
            theirs = [pair.vocabulary.for_teacher(p) for p in batch]
            longest = max(map(len, theirs))
            ids = torch.tensor([[0] * (longest - len(p)) + p for p in theirs], device=device)
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in theirs], device=device)
            out = teacher.generate(ids, attention_mask=mask, generation_config=config, **kwargs)
            made += out[:, longest:].numel()
        return made / (time.perf_counter() - started)

    return run


def published(pair: Pair) -> Callable[[], float]:
    """Calls are one row each, so that the rate is the same for any number of rows. Three tokens are timed,
    in the middle of a trace."""
    half = pair.tokens // 2
    teacher, student = pair.plain

    @torch.inference_mode()
    def run() -> float:
        took = []
        for prompt in pair.prompts[:3]:
            for model, context in ((teacher, pair.vocabulary.for_teacher(prompt)), (student, prompt)):
                ids = torch.tensor([(context + context * half)[: len(context) + half]], device=model.device)
                started = time.perf_counter()
                model(ids, use_cache=False, logits_to_keep=1).logits.cpu()
                took.append(time.perf_counter() - started)
        return 3 / sum(took)

    return run


def ours(pair: Pair, engine: Engine) -> Callable[[], float]:
    count = sum(map(len, batches(pair, engine.rows)))

    def run() -> float:
        requests = pair.requests(count, [pair.tokens] * count)
        started = time.perf_counter()
        made = sum(len(f.token_ids) for f in engine.run(requests))
        return made / (time.perf_counter() - started)

    return run


def measure(pair: Pair, rows: int, *, repeats: int, others: bool, compiled: bool) -> dict[str, Any]:
    own = pair.engine(rows, None)
    contenders = {"lockstep": ours(pair, pair.engine(rows, 1)), "own": ours(pair, own)}
    if others:
        contenders |= {
            "generate": generate(pair, rows),
            "packed": generate(pair, rows, packed=True),
            "published": published(pair),
        }
    if others and rows == 1:
        contenders["assisted"] = generate(pair, rows, assisted=True)
    if compiled:
        contenders["compiled"] = ours(pair, pair.engine(rows, None, compile=True))  # of plain models
        for _ in range(4):  # each new shape takes seconds to compile
            contenders["compiled"]()
    for _ in range(3):  # learns its block sizes, as a long job does in its first hundred rounds
        contenders["own"]()
    figures = interleaved(contenders, repeats)
    books = own.blocks.statistics()
    survived, judged = sum(books["drafts_survived"]), sum(books["drafts_judged"])
    return {
        "pair": pair.name,
        "rows": rows,
        "tokens": pair.tokens,
        "tokens_per_s": figures,
        "tokens_per_round": books["tokens"] / books["row_rounds"],
        "survival": survived / judged,
        "block_sizes": books["block_sizes"],
        "ratios": {f"{a} / {b}": ratio(figures[a], figures[b]) for a, b in RATIOS if a in figures and b in figures},
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pair", nargs="+", choices=["bundled", *SHAPES], default=["bundled", "planted"])
    ap.add_argument(
        "--b",
        type=float,
        nargs="+",
        default=[0.75, 0.6, 0.9],
        help="agreements of a planted pair; contenders that do not depend on it are measured at the first only",
    )
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    ap.add_argument("--context", type=int, default=16, help="tokens of a planted pair's prompts")
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--device", default="cpu", help="of a planted pair; bf16 on a GPU")
    ap.add_argument("--compiled", action="store_true", help="also with --compile")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    results: list[dict[str, Any]] = []
    names = [f"{a} / {b}" for a, b in RATIOS if args.compiled or "compiled" not in (a, b)]
    print("| pair | rows | own, tokens/s | tokens a round | drafts that survive | " + " | ".join(names) + " |")
    print("|---|---|---|---|---|" + "---|" * len(names))
    for name in args.pair:
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        planted = None if name == "bundled" else Planted(name, device=args.device, dtype=dtype, context=args.context)
        for b in args.b if planted else [0.0]:
            pair = planted.pair(b) if planted else bundled_pair()
            for rows in args.rows:
                others = not planted or b == args.b[0]
                result = measure(pair, rows, repeats=args.repeats, others=others, compiled=args.compiled)
                results.append(result)
                speed = statistics.median(result["tokens_per_s"]["own"])
                shown = [f"{speed:.0f}", f"{result['tokens_per_round']:.1f}", f"{result['survival']:.2f}"]
                shown += [result["ratios"].get(n, "") for n in names]
                print(f"| {pair.name} | {rows} | " + " | ".join(shown) + " |", flush=True)
                write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

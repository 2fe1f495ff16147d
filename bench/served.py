"""Tokens per second with the bundled teacher behind a server, against one request a token.

Start a server of completions first (vllm_cpu.sh says how), with the bundled teacher as its model. The bundled
student stays here. Every contender makes the same number of tokens for the same prompts, and nothing ends a trace
early; repeats are interleaved.

    published   the published pattern: one request a token, one row after the other
    lockstep    one request a token and row, those of all rows under way together (block size 1)
    blocks      one request a block and row, block size as it chooses

(In the published pattern the student is served, too, at another request a token: here it costs nothing but its steps.)
Then greedy traces with the served teacher and with the same teacher here are compared.

    python bench/served.py --url http://127.0.0.1:8000/v1 --model NAME --json bench/served.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import Pair, bundled_pair, interleaved, machine, ratio, write

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Sampling
from rsd.config import BUNDLED_TEACHER
from rsd.decoding.engine import Engine
from rsd.decoding.listed import mode_of
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Request
from rsd.decoding.served_teacher import ServedTeacher
from rsd.models.bundled import bundled
from rsd.models.loading import find
from rsd.serving.client import Client
from rsd.serving.completions import Completions
from rsd.serving.probe import what_it_takes
from rsd.traces.readers import read_rows

RATIOS = [("blocks", "published"), ("blocks", "lockstep"), ("lockstep", "published")]


def engine(pair: Pair, args: argparse.Namespace, rows: int, block: int | None) -> Engine:
    tokenizer = find("teacher", BUNDLED_TEACHER, None, trust_remote_code=False).tokenizer
    longest, tells = what_it_takes(args.url, args.model, tokenizer)
    context = longest or 4096
    width = pair.teacher.config.vocab_size
    client = Client(args.url)
    sampling = Sampling()
    api = Completions(client, args.model, width=width, by_ids=tells)
    mode = mode_of(sampling, pair.acceptance, by_ids=tells)
    teacher = ServedTeacher(client, api, sampling=sampling, mode=mode, width=width, context=context - 1)
    return Engine(
        teacher,
        pair.student,
        pair.vocabulary,
        sampling=sampling,
        acceptance=pair.acceptance,
        eos=(),
        rows=rows,
        block=block,
    )


def requests(pair: Pair, count: int, *, context: int, salt: str) -> list[Request]:
    """Prompts of at least `context` tokens: other problems stand before the one that is asked."""
    made = []
    for i in range(count):
        prompt = list(pair.prompts[i % len(pair.prompts)])
        n = i
        while len(prompt) < context:
            n += 1
            prompt = [*pair.prompts[n % len(pair.prompts)], *prompt]
        made.append(Request(prompt, pair.vocabulary.for_teacher(prompt), row_key(0, f"{salt}{i}", 0), pair.tokens))
    return made


def contender(made: Engine, pair: Pair, count: int, context: int, salt: str) -> Callable[[], float]:
    def run() -> float:
        todo = requests(pair, count, context=context, salt=salt)
        started = time.perf_counter()
        tokens = sum(len(f.token_ids) for f in made.run(todo))
        return tokens / (time.perf_counter() - started)

    return run


def measure(pair: Pair, args: argparse.Namespace, rows: int, context: int) -> dict[str, Any]:
    count = max(2, 2 * rows)
    own = engine(pair, args, rows, None)
    contenders = {
        "published": contender(engine(pair, args, 1, 1), pair, max(2, rows // 4), context, "p"),
        "lockstep": contender(engine(pair, args, rows, 1), pair, count, context, "l"),
        "blocks": contender(own, pair, count, context, "b"),
    }
    for _ in range(2):  # learns its block sizes
        contenders["blocks"]()
    figures = interleaved(contenders, args.repeats)
    books = own.blocks.statistics()
    return {
        "rows": rows,
        "context": context,
        "tokens": pair.tokens,
        "tokens_per_s": figures,
        "tokens_per_round": books["tokens"] / books["row_rounds"],
        "block_sizes": books["block_sizes"],
        "ratios": {f"{a} / {b}": ratio(figures[a], figures[b]) for a, b in RATIOS},
    }


def greedy(args: argparse.Namespace, count: int) -> dict[str, int]:
    """How many greedy traces are the same with the served teacher and with the same one here."""
    rows = read_rows(bundled("problems.jsonl"))[:count]
    asked: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 120, "verify": "none"}
    served = {"teacher": args.url, "teacher_model": args.model, "teacher_tokenizer": str(bundled("teacher"))}
    here = TraceGenerator(GenerateConfig(**asked)).run(rows)
    there = TraceGenerator(GenerateConfig(**asked, **served)).run(rows)
    same = sum(a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(here, there, strict=True))
    return {"traces": len(rows), "same": same}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--url", required=True, help="up to and with /v1")
    ap.add_argument("--model", required=True, help="the model's name there")
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    ap.add_argument("--context", type=int, nargs="+", default=[0, 1000], help="tokens of a prompt at the least")
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--greedy", type=int, default=64, help="problems of which greedy traces are compared")
    ap.add_argument("--threads", type=int, default=1, help="the server wants a core, too")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    pair = bundled_pair()
    results: list[dict[str, Any]] = []
    names = [f"{a} / {b}" for a, b in RATIOS]
    print("| rows | context | published, tokens/s | blocks, tokens/s | tokens a round | " + " | ".join(names) + " |")
    print("|---|---|---|---|---|" + "---|" * len(names))
    for context in args.context:
        for rows in args.rows:
            result = measure(pair, args, rows, context)
            results.append(result)
            speeds = [f"{statistics.median(result['tokens_per_s'][n]):.0f}" for n in ("published", "blocks")]
            shown = [*speeds, f"{result['tokens_per_round']:.1f}", *(result["ratios"][n] for n in names)]
            print(f"| {rows} | {context or 'the problem'} | " + " | ".join(shown) + " |", flush=True)
            write(args.json, results)
    if args.greedy:
        same = greedy(args, args.greedy)
        results.append({"greedy": same})
        write(args.json, results)
        print(f"\ngreedy traces: {same['same']} of {same['traces']} the same with the teacher served and here")
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

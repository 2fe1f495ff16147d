"""What a server of completions takes for the ways of asking a teacher about the next 8 tokens of some rows.

Start a server first (vllm_cpu.sh says how), any model. Texts are random ids, and grow from request to request as a
trace does, so that a context is in the server's prefix cache but for its end; repeats are interleaved.

    contexts    nine prompts a row: its context, and with one draft, with two .. (each continued by one token)
    one prompt  a row's context with all drafts, and the log-probs of the prompt (`prompt_logprobs`, with
                `skip_reading_prefix_cache` false: where the cache covers the drafts, their log-probs are not computed)
    going on    a row's context, to be continued by eight tokens: the drafts are the teacher's own

each with the 20 likeliest tokens of every place, or with one.

    python bench/asking.py --url http://127.0.0.1:8000/v1 --model NAME --json bench/asking.json
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

import httpx
from common import interleaved, machine, ratio, write

DRAFTS = 8
WAYS = ("contexts", "one prompt", "going on")


class Rows:
    """Texts that grow: by four ids a round, of which the server has seen nothing yet."""

    def __init__(self, count: int, context: int, width: int, seed: int) -> None:
        self.draw, self.width = random.Random(seed), width
        self.texts = [self.ids(context) for _ in range(count)]

    def ids(self, count: int) -> list[int]:
        return [self.draw.randrange(10, self.width) for _ in range(count)]

    def next(self) -> list[tuple[list[int], list[int]]]:
        for text in self.texts:
            text += self.ids(4)
        return [(text, self.ids(DRAFTS)) for text in self.texts]


def body(way: str, rows: list[tuple[list[int], list[int]]], top: int) -> dict[str, Any]:
    if way == "contexts":
        return {"prompt": [text + drafts[:n] for text, drafts in rows for n in range(DRAFTS + 1)], "max_tokens": 1}
    if way == "going on":
        return {"prompt": [text for text, _ in rows], "max_tokens": DRAFTS, "ignore_eos": True}
    asked: dict[str, Any] = {"prompt": [text + drafts for text, drafts in rows], "max_tokens": 1}
    return asked | {"prompt_logprobs": top, "skip_reading_prefix_cache": False}


def contender(client: httpx.Client, args: argparse.Namespace, way: str, rows: Rows, top: int) -> Callable[[], float]:
    asked = {"model": args.model, "temperature": 0, "logprobs": top, "return_tokens_as_token_ids": True}

    def run() -> float:
        started = time.perf_counter()
        for _ in range(args.rounds):
            answer = client.post(f"{args.url}/completions", json=asked | body(way, rows.next(), top))
            answer.raise_for_status()
        return (time.perf_counter() - started) / args.rounds

    return run


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--url", required=True, help="up to and with /v1")
    ap.add_argument("--model", required=True, help="the model's name there")
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    ap.add_argument("--context", type=int, nargs="+", default=[100, 1000])
    ap.add_argument("--width", type=int, default=700, help="ids are drawn below this")
    ap.add_argument("--rounds", type=int, default=3, help="of a repeat")
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    results: list[dict[str, Any]] = []
    print("| rows | context | likeliest | contexts, ms | one prompt / contexts | going on / contexts |")
    print("|---|---|---|---|---|---|")
    with httpx.Client(timeout=120) as client:
        for count in args.rows:
            for context in args.context:
                for top in (1, 20):
                    seeds = {way: time.time_ns() for way in WAYS}
                    contenders = {
                        way: contender(client, args, way, Rows(count, context, args.width, seeds[way]), top)
                        for way in WAYS
                    }
                    for run in contenders.values():
                        run()  # the contexts are in the server's cache from now on
                    seconds = interleaved(contenders, args.repeats)
                    ratios = {way: ratio(seconds[way], seconds["contexts"]) for way in WAYS[1:]}
                    results.append({"rows": count, "context": context, "top": top, "seconds": seconds})
                    typical = sorted(seconds["contexts"])[args.repeats // 2]
                    shown = " | ".join(str(ratios[way]) for way in WAYS[1:])
                    print(f"| {count} | {context} | {top} | {1000 * typical:.0f} | {shown} |", flush=True)
                    write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

"""What a vocabulary of 151,936 tokens costs in a round, against the bare cost of the two models' forwards.

Random models of the shape of a small pair with a real vocabulary (hidden 1,024; 8 layers and 2), whose weights are
drawn so that their distributions are as sharp as a text's. "Bare" is one cached forward of each model a token, heads
included, as in overhead.py; repeats are interleaved. Memory is what a process takes more at its peak, in a round of
32 rows x 16 drafts, than it held before the round: in a process of its own.

    python bench/wide.py --json bench/wide.json
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import threading

import psutil
import torch
from common import machine
from overhead import bare_seconds, lockstep_seconds
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.sequence import Request
from rsd.models.packed import pack
from rsd.pair.vocabulary import Vocabulary

VOCABULARY, HIDDEN, PROMPT = 151_936, 1024, 40


def model(layers: int, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=3072,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # a hidden vector is of length sqrt(HIDDEN): logits of deviation 2.5
        made.lm_head.weight.normal_(0, 2.5 / HIDDEN**0.5)
    pack(made)
    return made


def engine(models: list[PreTrainedModel], rows: int, block: int) -> Engine:
    vocabulary = Vocabulary(shared=torch.ones(VOCABULARY), own=torch.zeros(VOCABULARY))
    return Engine(
        *models,
        vocabulary,
        sampling=Sampling(),
        acceptance=Acceptance(),
        eos=(),
        rows=rows,
        block=block,
        loop_check=False,
    )


def prompts(rows: int) -> list[list[int]]:
    return torch.randint(VOCABULARY, (rows, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def round_bytes(block: int, rows: int) -> int:
    """The resident bytes that a round takes at its peak above what was there before it."""
    models = [model(8, 1), model(2, 2)]
    made = engine(models, rows, block)
    requests = [Request(p, p, i, 48) for i, p in enumerate(prompts(rows))]
    process, before, peak, done = psutil.Process(), [0], [0], threading.Event()
    inner = made.rounds.round

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    def first_round(*args: object) -> object:
        # Weights are packed, prompts read and caches of these rows allocated.
        before[0] = before[0] or process.memory_info().rss
        return inner(*args)  # type: ignore[arg-type]

    made.rounds.round = first_round  # type: ignore[method-assign, assignment]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in made.run(requests):
        pass
    done.set()
    watcher.join()
    return max(peak[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) - before[0]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    ap.add_argument("--tokens", type=int, default=12, help="tokens a row and repeat")
    ap.add_argument("--repeats", type=int, default=7)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--memory", type=int, nargs=2, metavar=("BLOCK", "ROWS"), help=argparse.SUPPRESS)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(round_bytes(*args.memory))
        return
    models = [model(8, 1), model(2, 2)]
    print("| rows | bare, tokens/s | lockstep, tokens/s | lockstep / bare |\n|---|---|---|---|")
    table = []
    for rows in args.rows:
        made, asked = engine(models, rows, 1), prompts(rows)
        seconds = []
        for repeat in range(args.repeats + 1):
            bare = bare_seconds(models, asked, args.tokens)
            ours = lockstep_seconds(made, asked, args.tokens)
            if repeat:  # the first warms up
                seconds.append((bare, ours))
        ratios = sorted(bare / ours for bare, ours in seconds)
        bare, ours = (rows / statistics.median(x) for x in zip(*seconds, strict=True))
        print(
            f"| {rows} | {bare:.1f} | {ours:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} .. {ratios[-1]:.2f}) |",
            flush=True,
        )
        table.append({"rows": rows, "bare_tokens_per_s": bare, "lockstep_tokens_per_s": ours, "ratios": ratios})
    del models, made
    command = [sys.executable, __file__, "--threads", str(args.threads), "--memory", "16", "32"]
    took = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    print(f"\na round of 32 rows x 16 drafts: {took / 1e6:.0f} MB at its peak")
    print(f"\n{json.dumps(machine())}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "lockstep": table, "round_bytes": took}, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()

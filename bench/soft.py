"""What soft targets cost: the time of a job with them over one without, and bytes a token on disk.

The bundled pair; SmolLM2-135M (fetch.py) as its own teacher, which has read the solution; and a pair of random weights
with Qwen3's tokenizer of 151,669 tokens, whose flat distributions are the worst that can be packed. Repeats are
interleaved; the same traces are made with and without.

    python bench/soft.py --json bench/soft.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import interleaved, machine, ratio, write
from fetch import PARTS, PROBLEMS, SMOLLM2
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import rsd
from rsd import TraceGenerator
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.soft import SoftFile, soft_file

ASKED = "{{ prompt }}\n\nA correct solution: {{ solution }}\n\nExplain it step by step."


def random_pair(folder: Path) -> dict[str, str]:
    """Two models of random weights with Qwen3's tokenizer, on disk."""
    tokenizer = AutoTokenizer.from_pretrained(PARTS / "qwen3")
    made = {}
    for seed, role in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3 - seed, "head_dim": 32}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen3Config(vocab_size=151_936, tie_word_embeddings=True, **size, **heads)
        Qwen3ForCausalLM(config).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
        made[role] = str(folder / role)
    return made


def pairs(folder: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """By name the settings of a pair, and its rows."""
    problems = read_rows(PROBLEMS)
    smol = {"teacher": str(SMOLLM2), "student": str(SMOLLM2), "teacher_template": ASKED, "max_new_tokens": 64}
    return {
        "bundled": ({}, read_rows(bundled("problems.jsonl"))[:96]),
        "SmolLM2-135M": (smol, problems[:8]),
        "random, 151,669 tokens": ({**random_pair(folder), "max_new_tokens": 64}, problems[:16]),
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--k", type=int, default=8)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    found: list[dict[str, Any]] = []
    print(f"| pair | with {args.k} / without | bytes a token | as JSON |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (settings, rows) in pairs(Path(folder)).items():
            how = {"verify": "none", "skip_check": True, "batch_size": 8, **settings}
            made = {k: TraceGenerator(**how, top_logprobs=k).load() for k in (0, args.k)}

            def timed(k: int, made: dict[int, TraceGenerator] = made, rows: list[Any] = rows) -> Callable[[], float]:
                def run() -> float:
                    started = time.perf_counter()
                    made[k].run(rows)
                    return time.perf_counter() - started

                return run

            times = interleaved({str(k): timed(k) for k in made}, args.repeats)
            out = Path(folder) / f"{len(found)}.jsonl"
            rsd.generate(rows, out, **how, top_logprobs=args.k)
            file = SoftFile(soft_file(out))
            soft = [one for key in sorted(file.keys()) if (one := file.get(key)) is not None]
            tokens = sum(len(one.token_ids) for one in soft)
            lists = [[x.round(3).tolist() if x.dtype.kind == "f" else x.tolist() for x in one if x is not None]
                     for one in soft]  # fmt: skip
            f = {
                "pair": name,
                "k": args.k,
                "ratio": ratio(times[str(args.k)], times["0"]),
                "seconds": times,
                "tokens": tokens,
                "bytes": soft_file(out).stat().st_size / tokens,
                "json_bytes": len(json.dumps(lists)) / tokens,
            }
            found.append(f)
            print(f"| {name} | {f['ratio']} | {f['bytes']:.0f} | {f['json_bytes']:.0f} |", flush=True)
            write(args.json, found)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

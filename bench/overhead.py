"""What a step of the engine in lockstep costs, against the bare cost of its two models.

"Bare" is one cached forward of the teacher plus one of the student, a token each for the same rows,
with transformers' own cache and nothing else: no sampling, no bookkeeping. Repeats are interleaved, so
that a machine whose speed drifts slows all contenders alike; the ratio is the result.

    python bench/overhead.py --json bench/overhead.json
"""

import argparse
import json
import statistics
import time

import torch
from common import machine
from transformers import DynamicCache, PreTrainedModel

from rsd import GenerateConfig
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Request
from rsd.models.bundled import bundled
from rsd.models.loading import find, load
from rsd.pair.meeting import meet
from rsd.traces.readers import read_rows


@torch.inference_mode()
def bare_seconds(models: list[PreTrainedModel], prompts: list[list[int]], tokens: int) -> float:
    """Seconds a step of one cached forward of each model, decoding from the same prompts' length."""
    length = max(map(len, prompts))
    ids = torch.tensor([(p * length)[:length] for p in prompts])
    caches = [DynamicCache(config=m.config) for m in models]
    for model, cache in zip(models, caches, strict=True):
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = ids[:, -1:]
    started = time.perf_counter()
    for _ in range(tokens):
        for model, cache in zip(models, caches, strict=True):
            model(token, past_key_values=cache, use_cache=True)
    return (time.perf_counter() - started) / tokens


def lockstep_seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Seconds a round with a row for each prompt, all live to the end: what a long run takes more than a short one."""
    took = []
    for length in (1, tokens + 1):
        requests = [
            Request(p, engine.vocabulary.for_teacher(p), row_key(0, str(i), 0), length) for i, p in enumerate(prompts)
        ]
        started = time.perf_counter()
        for _ in engine.run(requests):
            pass
        took.append(time.perf_counter() - started)
    return (took[1] - took[0]) / tokens


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    ap.add_argument("--tokens", type=int, default=100, help="tokens a row and repeat")
    ap.add_argument("--repeats", type=int, default=7)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    config = GenerateConfig()
    teacher = find("teacher", config.teacher, None, trust_remote_code=False)
    student = find("student", config.student, None, trust_remote_code=False)
    models = [load(teacher, config), load(student, config)]
    vocabulary = meet(teacher.tokenizer, student.tokenizer, teacher_width=teacher.width, student_width=student.width)
    problems = [row["problem"] for row in read_rows(bundled("problems.jsonl"))]
    prompts = [
        student.tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False
        )
        for p in problems
    ]
    alone = {
        role: [1000 * bare_seconds([m], prompts[:1], args.tokens) for _ in range(args.repeats)]
        for role, m in zip(("teacher", "student"), models, strict=True)
    }
    step = {role: statistics.median(v) for role, v in alone.items()}
    ratio = step["student"] / step["teacher"]
    print(
        f"one step at one row: teacher {step['teacher']:.2f} ms, student {step['student']:.2f} ms, ratio {ratio:.2f}\n"
    )
    print("| rows | bare, tokens/s | RSD, tokens/s | RSD / bare | one step / bare |")
    print("|---|---|---|---|---|")
    table = []
    for rows in args.rows:
        # Without the tokens that the teacher spells in pieces, what is left is a step of each model.
        engines = [
            Engine(*models, met, sampling=Sampling(), acceptance=Acceptance(), eos=(), rows=rows, block=1)
            for met in (vocabulary, vocabulary.without(vocabulary.student_to_teacher))
        ]
        seconds = []
        for repeat in range(args.repeats + 1):
            bare = bare_seconds(models, prompts[:rows], args.tokens)
            ours = [lockstep_seconds(engine, prompts[:rows], args.tokens) for engine in engines]
            if repeat:  # the first warms up
                seconds.append((bare, *ours))
        ratios = [sorted(s[0] / s[i] for s in seconds) for i in (1, 2)]
        bare, rsd, _ = (rows / statistics.median(x) for x in zip(*seconds, strict=True))
        shown = [f"{statistics.median(r):.2f} ({r[0]:.2f} .. {r[-1]:.2f})" for r in ratios]
        print(f"| {rows} | {bare:.0f} | {rsd:.0f} | {shown[0]} | {shown[1]} |", flush=True)
        table.append(
            {"rows": rows, "bare_tokens_per_s": bare, "rsd_tokens_per_s": rsd, "rsd": ratios[0], "step": ratios[1]}
        )
    print(f"\n{json.dumps(machine())}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"machine": machine(), "step_ms": alone, "lockstep": table}, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()

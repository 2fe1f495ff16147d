"""What it costs to score a trace, against one plain forward a step; many short ones; the memory of a very long one.

    python bench/score.py --repeats 5 --json bench/score.json

"one forward a step" reads prompt, window and step anew for every step, and computes logits for the step
alone. Local Naturalness by it is compared with what the windows add to the pass over the whole trace here;
all scores, with the same plus one plain forward over the whole trace. The model is the same in all.

256 short traces, those that the bundled pair makes of the bundled problems and the raw ones of its teacher, are scored
as `rsd score` does, texts to scores: window by window, and one at a time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from common import SHAPES, interleaved, ratio, write
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.models.loading import load
from rsd.models.packed import pack
from rsd.reading import Scoring
from rsd.scoring.config import ScoreConfig
from rsd.scoring.naturalness import Reader
from rsd.scoring.responses import Response, read_responses
from rsd.scoring.scorer import Scorer, find_student
from rsd.traces.readers import read_rows

TOKENS, STEP = 4000, 20
PARTS = ["steps", "short", "memory"]


def student(name: str, device: str) -> PreTrainedModel:
    if name == "bundled":
        config = ScoreConfig(device=device)
        return load(find_student(config), config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SHAPES["planted"]()[1], dtype=torch.float32).eval().to(device)
    pack(model)
    return model


def timed(run: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def cost(model: PreTrainedModel, prompt_size: int, window: str, repeats: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 700, prompt_size).tolist()
    tokens = rng.integers(0, 700, TOKENS).tolist()
    steps = list(range(0, TOKENS, STEP))
    first = [Scoring(window=window).first(i) for i in range(len(steps))]
    reader = Reader(model)

    @torch.inference_mode()
    def forward(ids: list[int], judged: int) -> torch.Tensor:
        logits = model(torch.tensor([ids[:-1]], device=model.device), logits_to_keep=judged).logits[0].float()
        targets = torch.tensor(ids[-judged:], device=model.device)
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].cpu()

    def a_step() -> torch.Tensor:
        return torch.cat([forward([*prompt, *tokens[steps[first[i]] : s + STEP]], STEP) for i, s in enumerate(steps)])

    off = float(np.abs(reader.read(prompt, tokens, steps, first).local - a_step().numpy()).max())
    times = interleaved(
        {
            "a step": timed(a_step),
            "whole": timed(lambda: forward([*prompt, *tokens], TOKENS)),
            "all": timed(lambda: reader.read(prompt, tokens, steps, first)),
            "global": timed(lambda: reader.read(prompt, tokens, [0], [0])),
        },
        repeats,
    )
    windows = [a - g for a, g in zip(times["all"], times["global"], strict=True)]
    both = [a + w for a, w in zip(times["a step"], times["whole"], strict=True)]
    return {
        "prompt": prompt_size,
        "window": window,
        "ln": ratio(times["a step"], windows),
        "all": ratio(both, times["all"]),
        "seconds": round(statistics.median(times["all"]), 3),
        "difference": off,
    }


def short(model: PreTrainedModel, traces: list[Response], repeats: int) -> dict[str, object]:
    """Many short traces, of the ids that the bundled student's tokenizer makes of them."""
    config = ScoreConfig()
    scorer = Scorer(find_student(config), model, config.scoring(), dtype="float32", layout=config.layout())
    together, alone = list(scorer.score_all(traces)), [scorer.score(trace) for trace in traces]
    off = [
        float(np.abs(a.token_scores.local - b.token_scores.local).max()) for a, b in zip(together, alone, strict=True)
    ]
    times = interleaved(
        {
            "together": timed(lambda: list(scorer.score_all(traces))),
            "alone": timed(lambda: [scorer.score(trace) for trace in traces]),
        },
        repeats,
    )
    return {
        "traces": len(traces),
        "tokens": round(statistics.mean(len(one.token_ids) for one in together), 1),
        "ratio": ratio(times["alone"], times["together"]),
        "together": round(statistics.median(times["together"]), 3),
        "alone": round(statistics.median(times["alone"]), 3),
        "difference": max(off),
    }


def memory(tokens: int, vocabulary: int) -> None:
    """Print the peak above the weights, in a process of its own."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=tokens + 1024,
    )
    reader = Reader(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens).tolist()
    steps = list(range(0, tokens, STEP))
    reader.read(ids[:512], ids[:100], [0, 50], [0, 0])  # libraries and thread pools are loaded before it counts
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    reader.read(ids[:512], ids, steps, [max(0, i - 4) for i in range(len(steps))])
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(f"{peak - before} {seconds}")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--students", nargs="+", default=["bundled", "planted"], choices=["bundled", "planted"])
    ap.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--json", help="write the figures to this file")
    ap.add_argument("--memory", nargs=2, type=int, metavar=("TOKENS", "VOCABULARY"), help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.memory:
        return memory(*args.memory)
    results: list[dict[str, object]] = []

    def add(made: dict[str, object]) -> None:
        results.append(made)
        write(args.json, results)

    if "steps" in args.parts:
        print("| student | prompt | window | LN | all scores | seconds a trace | largest difference |")
        print("|---|---|---|---|---|---|---|")
        for name in args.students:
            model = student(name, args.device)
            for prompt, window in ((30, "4"), (512, "4"), (30, "20%")):
                made = {"student": name} | cost(model, prompt, window, args.repeats if name == "bundled" else 2)
                add(made)
                print(
                    f"| {name} | {prompt} | {window} | {made['ln']} | {made['all']} | {made['seconds']} "
                    f"| {made['difference']:.0e} |",
                    flush=True,
                )
    if "short" in args.parts:
        print("| student | traces | tokens a trace | alone / together | seconds | alone | largest difference |")
        print("|---|---|---|---|---|---|---|")
        rows = [trace.row() for trace in TraceGenerator(GenerateConfig()).run(read_rows(bundled("problems.jsonl")))]
        for name in args.students:
            model = student(name, args.device)
            for kind, source in (("made by rsd", rows), ("raw", bundled("teacher.jsonl"))):
                traces = list(read_responses(source, ScoreConfig()))[:256]
                made = {"student": name, "kind": kind} | short(model, traces, args.repeats if name == "bundled" else 2)
                add(made)
                print(
                    f"| {name} | {kind} | {made['tokens']} | {made['ratio']} | {made['together']} | {made['alone']} "
                    f"| {made['difference']:.0e} |",
                    flush=True,
                )
    if "memory" in args.parts and args.device == "cpu":
        for size in ((32768, 151936), (8192, 151936), (32768, 768)):
            out = subprocess.run(
                [sys.executable, __file__, "--memory", *map(str, size)],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ,
            )
            peak, seconds = map(float, out.stdout.split()[-2:])
            add({"tokens": size[0], "vocabulary": size[1], "peak_mb": peak / 1e6, "seconds": seconds})
            print(f"{size[0]} tokens, vocabulary {size[1]}: {peak / 1e6:.0f} MB above the weights, {seconds:.0f} s")


if __name__ == "__main__":
    main()

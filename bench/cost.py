"""What a large job would cost on one card, on paper: tokens/s, GPU-hours and memory. A model, not a measurement.

A pass of R rows and c columns takes the longer of two times: to read all weights but the embedding once and each row's
keys and values once, at the card's bandwidth; and to compute, at the card's dense rate. Launches, sampling, prefills,
copies and the host cost nothing here, so that a real run is slower; how much, only `gpu.py` on a card can tell. With s
the survival of a draft, k the block, B the bandwidth, F the rate, W, P the bytes and the number of weights read, L the
mean context, v the bytes of keys and values a token, a the multiply-adds of attention a column and token of context,

    pass(R, c)  = max((W + R L v) / B, 2 R c (P + L a) / F)
    round       = k pass_student(R, 1) + pass_teacher(R, k)
    tokens/s    = R (1 + s + ... + s^(k-1)) / round            the teacher alone: R / pass_teacher(R, 1)

R is what fits into the memory: each row has room for prompt and trace, at full length, in both caches, and for the
working tensors that a job's own estimate counts (`rsd/models/memory.py`). L is the prompt and half of a trace. k is
the one of those that the engine may choose that is best by this. Sizes are those of the published configurations.

    python bench/cost.py
    python bench/cost.py --bandwidth 3.35e12 --memory 80e9 --survival 0.85
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd.models.memory import DRAFTS, KEEP_FREE, PROMPT, WIDE

HERE = Path(__file__).parent
BF16 = 2
CARDS = (1, 8, 64)  # one, a node of them, eight nodes
BLOCKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # that the engine may choose


@dataclass(frozen=True, kw_only=True)
class Model:
    """A decoder of the Qwen kind. biases: of the products that make queries, keys and values; norms: of queries and
    keys, a head's size each."""

    name: str
    hidden: int
    layers: int
    heads: int
    shared: int  # heads of keys and values
    inner: int
    vocabulary: int
    head: int = 128
    tied: bool = False
    biases: bool = False
    norms: bool = False

    @property
    def kept(self) -> int:
        """Bytes of keys and values a token."""
        return 2 * self.layers * self.shared * self.head * BF16

    @property
    def read(self) -> int:
        """Weights that a pass reads: all but an embedding that is not the head as well."""
        wide = (self.heads + 2 * self.shared) * self.head
        layer = self.hidden * (wide + self.heads * self.head + 3 * self.inner + 2)
        layer += wide * self.biases + 2 * self.head * self.norms
        return self.layers * layer + self.hidden * (1 + self.vocabulary)

    @property
    def weights(self) -> int:
        return self.read + (0 if self.tied else self.hidden * self.vocabulary)


MODELS = {
    "qwen3-0.6b": Model(
        name="Qwen3-0.6B",
        hidden=1024,
        layers=28,
        heads=16,
        shared=8,
        inner=3072,
        vocabulary=151936,
        tied=True,
        norms=True,
    ),
    "qwen3-4b": Model(
        name="Qwen3-4B",
        hidden=2560,
        layers=36,
        heads=32,
        shared=8,
        inner=9728,
        vocabulary=151936,
        tied=True,
        norms=True,
    ),
    "qwen3-32b": Model(
        name="Qwen3-32B", hidden=5120, layers=64, heads=64, shared=8, inner=25600, vocabulary=151936, norms=True
    ),
    "qwen2.5-7b": Model(
        name="Qwen2.5-7B", hidden=3584, layers=28, heads=28, shared=4, inner=18944, vocabulary=152064, biases=True
    ),
    "qwen2.5-32b": Model(
        name="Qwen2.5-32B", hidden=5120, layers=64, heads=40, shared=8, inner=27648, vocabulary=152064, biases=True
    ),
}
PAIRS = [("qwen3-0.6b", "qwen2.5-7b"), ("qwen3-0.6b", "qwen2.5-32b"), ("qwen3-4b", "qwen2.5-32b")]  # student, teacher


@dataclass(frozen=True, kw_only=True)
class Card:
    bandwidth: float  # bytes/s
    memory: float  # bytes
    flops: float  # dense bf16, a second


@dataclass(frozen=True, kw_only=True)
class Job:
    problems: int
    tokens: int  # a trace
    prompt: int

    @property
    def context(self) -> float:
        return self.prompt + self.tokens / 2


def rows_that_fit(models: Sequence[Model], card: Card, job: Job) -> int:
    """Rows of full length; 0 if the weights alone do not fit."""
    row = sum(m.kept * (job.prompt + job.tokens) + WIDE * DRAFTS * m.vocabulary * 4 for m in models)
    return max(0, int((card.memory * (1 - KEEP_FREE) - sum(m.weights * BF16 for m in models)) // row))


def memory_of(models: Sequence[Model], rows: int, job: Job) -> float:
    """Bytes of weights and full rows."""
    return sum(
        m.weights * BF16 + rows * (m.kept * (job.prompt + job.tokens) + WIDE * DRAFTS * m.vocabulary * 4)
        for m in models
    )


def seconds(model: Model, rows: int, columns: int, card: Card, job: Job) -> float:
    """Of one pass."""
    read = (model.read * BF16 + rows * job.context * model.kept) / card.bandwidth
    attention = 2 * model.layers * model.heads * model.head * job.context  # scores, and the sum of values
    return max(read, 2 * rows * columns * (model.read + attention) / card.flops)


def tokens_per_round(survival: float, block: int) -> float:
    return sum(survival**j for j in range(block))


def rate(student: Model, teacher: Model, rows: int, block: int, survival: float, card: Card, job: Job) -> float:
    """Tokens/s of RSD."""
    took = block * seconds(student, rows, 1, card, job) + seconds(teacher, rows, block, card, job)
    return rows * tokens_per_round(survival, block) / took


def alone(teacher: Model, rows: int, card: Card, job: Job) -> float:
    """Tokens/s of the teacher."""
    return rows / seconds(teacher, rows, 1, card, job)


def measured() -> dict[str, float]:
    """The survival of drafts in the benchmarks' runs of most rows, by pair."""
    found: dict[str, float] = {}
    for file in ("decode-bundled.json", "decode-planted.json"):
        results = json.loads((HERE / file).read_text(encoding="utf-8"))["results"]
        most = max(r["rows"] for r in results)
        found |= {r["pair"]: r["survival"] for r in results if r["rows"] == most}
    return found


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes/s (default: an H200's)")
    ap.add_argument("--memory", type=float, default=141e9, help="bytes")
    ap.add_argument("--flops", type=float, default=990e12, help="dense, bf16, a second")
    ap.add_argument("--problems", type=int, default=1_000_000)
    ap.add_argument("--tokens", type=int, default=8192, help="of a trace")
    ap.add_argument("--prompt", type=int, default=PROMPT, help="tokens of a prompt")
    ap.add_argument("--survival", type=float, nargs="+", help="of a draft (default: those that were measured)")
    ap.add_argument("--pair", nargs=2, choices=MODELS, action="append", metavar=("STUDENT", "TEACHER"))
    args = ap.parse_args()
    card = Card(bandwidth=args.bandwidth, memory=args.memory, flops=args.flops)
    job = Job(problems=args.problems, tokens=args.tokens, prompt=args.prompt)
    survivals = {f"given: {s}": s for s in args.survival} if args.survival else measured()
    print("A model, not a measurement: the card does nothing but read and multiply, at its full rates. Assumed:")
    print(
        f"- one card: {card.bandwidth / 1e12:g} TB/s, {card.memory / 1e9:g} GB, {card.flops / 1e12:g} TFLOP/s in bf16"
    )
    print(
        f"- {job.problems:,} problems, traces of {job.tokens} tokens after prompts of {job.prompt}, all equally long;"
    )
    print(f"  a pass reads {job.context:.0f} tokens of context a row; each row has room for its full length")
    print(
        f"- {KEEP_FREE:.0%} of the memory stays free; {WIDE * DRAFTS * 4} bytes a row and token of each vocabulary work"
    )
    print("- every draft survives with one chance, as measured on other pairs than these (a planted one's was set):")
    print("  " + ", ".join(f"{s:.2f} {name}" for name, s in sorted(survivals.items(), key=lambda x: x[1])))
    print("\n| model | weights, GB | of these read a pass | keys and values, kB a token |\n|---|---|---|---|")
    pairs = args.pair or PAIRS
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        m = MODELS[name]
        print(f"| {m.name} | {m.weights * BF16 / 1e9:.1f} | {m.read * BF16 / 1e9:.1f} | {m.kept / 1e3:.0f} |")
    print(
        "\n| student + teacher | survival | rows | memory, GB | block | tokens/s | GPU-hours | lockstep, tokens/s |",
        end="",
    )
    print(" teacher alone: rows | tokens/s | GPU-hours | rsd / teacher alone |\n" + "|---" * 12 + "|")
    days = []
    for ours, theirs in pairs:
        student, teacher = MODELS[ours], MODELS[theirs]
        rows, many = rows_that_fit([student, teacher], card, job), rows_that_fit([teacher], card, job)
        if not rows:
            print(f"| {student.name} + {teacher.name} | | does not fit |" + " |" * 9)
            continue
        raw = alone(teacher, many, card, job)
        hours: list[float] = []
        for s in sorted(survivals.values()):
            speeds = {k: rate(student, teacher, rows, k, s, card, job) for k in BLOCKS}
            block = max(speeds, key=lambda k: speeds[k])
            mine, theirs_alone = (job.problems * job.tokens / speed / 3600 for speed in (speeds[block], raw))
            hours.append(mine)
            print(
                f"| {student.name} + {teacher.name} | {s:.2f} | {rows} | "
                f"{memory_of([student, teacher], rows, job) / 1e9:.0f} | {block} | {speeds[block]:,.0f} | "
                f"{mine:,.0f} | {speeds[1]:,.0f} | {many} | {raw:,.0f} | {theirs_alone:,.0f} | "
                f"{speeds[block] / raw:.2f} |"
            )
        spans = [f"{max(hours) / 24 / n:,.1f} .. {min(hours) / 24 / n:,.1f}" for n in CARDS]
        days.append(f"| {student.name} + {teacher.name} | " + " | ".join(spans) + " |")
    print(f"\nDays, by the survival, on {CARDS} cards with a share of the problems each:\n")
    print("| student + teacher | one card | one node | many nodes |\n|---|---|---|---|\n" + "\n".join(days))


if __name__ == "__main__":
    main()

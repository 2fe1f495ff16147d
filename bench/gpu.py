"""What rsd does on a GPU, in below nine minutes on one card.

Each part runs in a process of its own, so that one that fails, or breaks the card's context, ends no other, and has a
limit of time. Every measurement is written to the JSON at once, with its error if it failed; the same command run
again makes what is missing or failed and nothing else (another shape, device or card needs another file).

    tests      the tests that are marked `gpu`
    card       what the card reaches: bytes/s of a large copy and a large read, FLOP/s of a product in bf16
    attention  microseconds of one layer's attention of the teacher: as rsd calls it, with one length and with a new
               one in each call (a library that plans anew for each shape shows here), and in other ways
    decode     tokens/s of a pair of random weights, one prompt for all rows: `generate`, the teacher alone; `lockstep`;
               `own`, blocks as the engine chooses; both also with the student's steps as captured graphs
    memory     bytes a row above the weights, against the estimate that a job prints
    score      one long trace with the student
    same       the bundled problems with the bundled pair in fp32, against the CPU's traces

A rate is that of --tokens tokens a row after the first few, prompts not included (what a longer run takes more than a
shorter one). It stands beside the bandwidth bound: each pass reads all weights but the embedding once and every row's
keys and values up to its length, and nothing else costs anything. With W the bytes of weights, L the context, v the
bytes of keys and values a token, R the rows, k the mean block and E the tokens that a round commits to a row,

    teacher alone   R B / (Wt + R L vt)
    rsd             R E B / (Wt + R L vt + k (Ws + R L vs))         B: the bandwidth that `card` measured

    python bench/gpu.py --json bench/gpu.json
    python bench/gpu.py --part decode score --json bench/gpu.json
    python bench/gpu.py --device cpu --shape tiny --rows 1 2 --context 24 --tokens 6 --score-tokens 300
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from common import SHAPES, machine
from gpu_decode import decode, memory, same
from gpu_parts import Figures, attend, card, score

ROOT = Path(__file__).parents[1]
LIMITS = {"tests": 130, "card": 30, "attention": 40, "decode": 200, "memory": 50, "score": 40, "same": 40}  # 530 s


class Results:
    """The figures so far, by part and measurement."""

    def __init__(self, file: str, part: str, deadline: float) -> None:
        self.file, self.part, self.deadline = Path(file), part, deadline

    def read(self) -> dict[str, dict[str, Figures]]:
        return json.loads(self.file.read_text(encoding="utf-8"))["results"] if self.file.exists() else {}

    def put(self, name: str, figures: Figures) -> None:
        results = self.read()
        results.setdefault(self.part, {})[name] = figures
        text = json.dumps({"machine": machine(), "results": results}, indent=1)
        new = self.file.with_suffix(".new")
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(self.file)
        print(f"{self.part:<10} {name:<40} {json.dumps(figures)}", flush=True)

    def measure(self, name: str, run: Callable[[], Figures]) -> None:
        """Take down what `run` returns, or why it failed, unless that is there already or there is no time left."""
        before = self.read().get(self.part, {}).get(name)
        if before is not None and "error" not in before:
            return
        if time.monotonic() > self.deadline:
            return self.put(name, {"error": "no time was left: run the same command again"})
        try:
            figures = run()
        except Exception as e:  # whatever a card, a driver or a library says; the next measurement goes on
            figures = {"error": f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"}
        self.put(name, figures)

    def bandwidth(self) -> float | None:
        """Bytes/s that the part `card` measured."""
        card = self.read().get("card", {})
        return max((card[n]["bytes_per_s"] for n in ("copy", "read") if "bytes_per_s" in card.get(n, {})), default=None)


def tests(results: Results, args: argparse.Namespace) -> None:
    def run() -> Figures:
        flags = ["-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider", "-v", "-m", "gpu", "--tb=short"]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
            command = [sys.executable, "-m", "pytest", *flags, *args.tests]
            try:
                left = max(1.0, results.deadline - time.monotonic())
                subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=left, check=False)
                ended = True
            except subprocess.TimeoutExpired:
                ended = False
            out.seek(0)
            text = out.read()
        said = re.findall(r"^(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)", text, re.M)
        made: Figures = {word.lower(): sum(w == word for _, w in said) for word in ("PASSED", "FAILED", "SKIPPED")}
        made["failures"] = [name for name, word in said if word in ("FAILED", "ERROR")]
        made["first_lines"] = re.findall(r"^E +(\S.*)", text, re.M)[:40]
        if not said or not ended:
            made["error"] = "not all tests ran" if said else text.strip().splitlines()[-1]
        return made

    results.measure("pytest -m gpu", run)


PARTS: dict[str, Callable[[Results, argparse.Namespace], None]] = {
    "tests": tests,
    "card": card,
    "attention": attend,
    "decode": decode,
    "memory": memory,
    "score": score,
    "same": same,
}


def started(part: str, limit: float, args: argparse.Namespace) -> None:
    """Run a part in a process of its own, which is ended when its time is over."""
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--here", part], start_new_session=True)
    try:
        code = child.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:  # it and what it has started
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code != 0:
        why = f"ended with {code}" if code is not None else f"was not done after {limit:.0f} s, and was ended"
        Results(args.json, part, 0).put("the part itself", {"error": why})


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    ap.add_argument("--json", default="gpu.json", help="the figures, also those of calls before")
    ap.add_argument("--limit", type=float, help=f"seconds for each part instead of {LIMITS}")
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--shape", choices=SHAPES, default="planted-7b")
    ap.add_argument("--rows", type=int, nargs="+", default=[32, 1, 128, 8])
    ap.add_argument("--context", type=int, nargs="+", default=[512, 4096])
    ap.add_argument("--tokens", type=int, default=32, help="of a row that are timed")
    ap.add_argument("--score-tokens", type=int, default=32768)
    ap.add_argument("--repeats", type=int, default=2)
    ap.add_argument("--tests", nargs="+", default=["tests"], help="where the tests marked gpu are looked for")
    ap.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    args = ap.parse_args()
    args.dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    if args.device != "cpu" and not torch.cuda.is_available():
        ap.error("there is no GPU here; --device cpu --shape tiny shows that the script runs")
    if args.here:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        limit = args.limit or LIMITS[args.here]
        PARTS[args.here](Results(args.json, args.here, time.monotonic() + 0.85 * limit), args)
        return
    for part in args.part:
        started(part, args.limit or LIMITS[part], args)


if __name__ == "__main__":
    main()

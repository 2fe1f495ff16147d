"""Likelihood weights of one long trace, against the same step by step.

`rsd weigh` reads the trace once, decodes the student's moves after all steps' prefixes together, and notes what the
teacher makes of them on the way. Step by step is what one would write: for every step a `generate` of the student from
the step's prefix, and a forward of the teacher over prefix and move; the length of each move is told to it, so that it
looks for no end of a step. Both models are loaded by transformers there; its validities are held against rsd's.

    python bench/weigh.py --json bench/weigh.json
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from common import interleaved, machine, ratio, write
from transformers import AutoModelForCausalLM

from rsd import WeighConfig
from rsd.models.bundled import bundled
from rsd.pair.vocabulary import TeacherContext
from rsd.scoring.responses import Responses, responses
from rsd.scoring.steps import split
from rsd.traces.readers import read_rows
from rsd.weighing.weigher import Weigher


def trace_of(weigher: Weigher, tokens: int, steps: int) -> Responses:
    """A trace of so many sentences, of pairs of the bundled teacher's, and nearly so many tokens."""
    rows = read_rows(bundled("teacher.jsonl"))
    tokenizer, found = weigher.pair.student.tokenizer, []
    for row in rows:
        text = row["completion"][0]["content"].partition("</think>")[0].removeprefix("<think>\n")
        found += [text[a:b].strip() for a, b in split(text)]
    found = [one for one in dict.fromkeys(found) if one.endswith(".")]
    by_length: dict[int, list[str]] = {}
    for sentence in (f"{a.removesuffix('.')}; {b}" for a, b in zip(found[::2], found[1::2], strict=False)):
        size = len(tokenizer.encode(f" {sentence}", add_special_tokens=False))
        by_length.setdefault(size, []).append(sentence)
    made, left = [], tokens
    for i in range(steps):
        size = min((n for n in by_length if by_length[n]), key=lambda n: abs(n - left / (steps - i)))
        made.append(by_length[size].pop())
        left -= size
    text = "<think>\n" + " ".join(made) + "\n</think>\n\n\\boxed{1}"
    return responses([{"prompt": rows[0]["prompt"], "completion": text}], weigher.config)


class StepByStep:
    """The same of models as transformers loads them; `lengths`: of the student's moves."""

    def __init__(self, weigher: Weigher, todo: Responses) -> None:
        self.weigher, (self.trace,) = weigher, list(weigher.reading.read(todo))
        paths = weigher.pair.teacher.path, weigher.pair.student.path
        self.teacher, self.student = (
            AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval() for p in paths
        )
        self.lengths: list[int] = []

    @torch.inference_mode()
    def validities(self) -> list[float]:
        """Of the student's moves. The trace's own take one forward over all of it, whose figures are of no concern."""
        ours = []
        prompt = self.trace.prompt.student
        self._validity(0, self.trace.ids)
        for (begin, _), length in zip(self.trace.bounds, self.lengths, strict=True):
            ids = torch.tensor([[*prompt, *self.trace.ids[:begin]]])
            how: dict[str, Any] = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False}
            made = self.student.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, ids.shape[1] :].tolist()
            ours.append(self._validity(begin, made))
        return ours

    def _validity(self, begin: int, move: list[int]) -> float:
        vocabulary = self.weigher.pair.vocabulary
        before = vocabulary.read(TeacherContext(self.trace.prompt.teacher), self.trace.ids[:begin]).ids
        whole = vocabulary.read(TeacherContext(before), move).ids
        logits = self.teacher(torch.tensor([whole]), logits_to_keep=len(whole) - len(before) + 1).logits[0, :-1]
        said = torch.tensor(whole[len(before) :])
        return float(logits.log_softmax(-1).gather(-1, said[:, None]).mean())


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--tokens", type=int, nargs="*", default=[2000])
    ap.add_argument("--steps", type=int, default=60)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    weigher = Weigher(WeighConfig())
    print(
        "| tokens | steps | tokens of a student's move | step by step / rsd weigh | rsd weigh, s | step by step, s | ",
        end="",
    )
    print("validities differ by |\n|---|---|---|---|---|---|---|")
    results = []
    for tokens in args.tokens:
        todo = trace_of(weigher, tokens, args.steps)
        plain, made = StepByStep(weigher, todo), next(iter(weigher.weigh(todo)))
        count = [
            len(weigher.pair.student.tokenizer.encode(a, add_special_tokens=False))
            for a in made.columns["student_action"]
        ]
        plain.lengths = [max(1, n) for n in count]
        last: dict[str, Any] = {}

        def weighed(todo: Responses = todo, last: dict[str, Any] = last) -> float:
            started = time.perf_counter()
            (last["rsd"],) = weigher.weigh(todo)
            return time.perf_counter() - started

        def stepwise(plain: StepByStep = plain, last: dict[str, Any] = last) -> float:
            started = time.perf_counter()
            last["plain"] = plain.validities()
            return time.perf_counter() - started

        figures = interleaved({"step by step": stepwise, "rsd weigh": weighed}, args.repeats)
        columns = last["rsd"].columns
        pairs = zip(columns["validity_student"], last["plain"], strict=True)
        apart = statistics.median(abs(a - b) for a, b in pairs)
        print(
            f"| {len(plain.trace.ids)} | {len(plain.trace.first)} | {statistics.mean(plain.lengths):.1f} | "
            f"{ratio(figures['step by step'], figures['rsd weigh'])} | {statistics.median(figures['rsd weigh']):.2f} | "
            f"{statistics.median(figures['step by step']):.2f} | {apart:.1e} |",
            flush=True,
        )
        results.append({"tokens": len(plain.trace.ids), "steps": len(plain.trace.first), "seconds": figures})
        write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

"""Verdicts on pairs of answers whose truth is known: rsd's `boxed` and `math`, and math-verify alone.

python bench/answers.py --wrong
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

from rsd.answers.verifier import Verifier

PAIRS = Path(__file__).parent.parent / "tests" / "answers" / "answers.jsonl"


def ours(how: str) -> Callable[[str, str], bool]:
    verifier = Verifier(how)
    return lambda answer, reference: verifier.submit(f"\\boxed{{{answer}}}", {}, reference).result().correct is True


def math_verify_alone(answer: str, reference: str) -> bool:
    from math_verify import parse, verify

    return bool(verify(parse(f"\\boxed{{{reference}}}"), parse(f"\\boxed{{{answer}}}")))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("pairs", nargs="?", type=Path, default=PAIRS, help="a JSONL file of pairs")
    ap.add_argument("--wrong", action="store_true", help="name each pair that is judged wrongly")
    args = ap.parse_args()
    logging.disable(logging.CRITICAL)
    pairs = [json.loads(line) for line in args.pairs.read_text(encoding="utf-8").splitlines()]
    equal = sum(pair["equal"] for pair in pairs)
    print(f"{len(pairs)} pairs, {equal} of them equal\n")
    print("| | taken for equal | of these wrongly | precision | recall |")
    print("|---|---|---|---|---|")
    missed = []
    contenders = {"`boxed`": ours("boxed"), "`math`": ours("math"), "math-verify alone": math_verify_alone}
    for name, judge in contenders.items():
        said = [judge(pair["answer"], pair["reference"]) for pair in pairs]
        right = sum(verdict and pair["equal"] for verdict, pair in zip(said, pairs, strict=True))
        precision, recall = (f"{100 * right / n:.1f} %" for n in (sum(said), equal))
        print(f"| {name} | {sum(said)} | {sum(said) - right} | {precision} | {recall} |", flush=True)
        missed += [(name, pair) for verdict, pair in zip(said, pairs, strict=True) if verdict != pair["equal"]]
    for name, pair in missed if args.wrong else ():
        truth = "is" if pair["equal"] else "is not"
        print(f"{name}: {pair['answer']} {truth} {pair['reference']} ({pair['kind']})")


if __name__ == "__main__":
    main()

"""How many chains of thought are split into steps as a reader would split them, by kind.

    python bench/steps.py
    git show REVISION:rsd/steps.py > old.py && python bench/steps.py --splitter old.py

The chains of thought, with their right steps, are in tests/scoring/steps.jsonl. They were written from what a reader
calls a sentence: one that also ends with its line, while a displayed formula or a block of code, a table's
head with the rule below it, and a tag with what it opens or closes are one piece. "Found" is the share of
right boundaries that are made, "right" that of the made ones that are right, "whole" the share of texts in
which all are.
"""

import argparse
import runpy
from collections import Counter
from pathlib import Path

from rsd.traces.readers import read_rows

TABLE = Path(__file__).parent.parent / "tests" / "scoring" / "steps.jsonl"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--splitter", default=str(Path(__file__).parent.parent / "rsd" / "scoring" / "steps.py"), help="a steps.py"
    )
    ap.add_argument("--wrong", action="store_true", help="print the texts that are split otherwise")
    args = ap.parse_args()
    split = runpy.run_path(args.splitter)["split"]
    counts: dict[str, Counter[str]] = {}
    for row in read_rows(TABLE):
        text, right, at = row["text"], set(), 0
        for step in row["steps"][:-1]:
            at += len(step)
            right.add(at)
        made = {end for _, end in split(text)[:-1]}
        found = Counter(texts=1, whole=right == made, right=len(right), made=len(made), both=len(right & made))
        for kind in (row["kind"], "all"):
            counts.setdefault(kind, Counter()).update(found)
        if args.wrong and right != made:
            print(f"{row['kind']}:")
            for a, b in split(text):
                print(f"    {text[a:b]!r}")
    counts["all"] = counts.pop("all")  # the last line
    print("| kind | texts | whole | boundaries | found | right |\n|---|---|---|---|---|---|")
    for kind, c in counts.items():
        shares = (c["both"] / max(c["right"], 1), c["both"] / max(c["made"], 1))
        print(
            f"| {kind} | {c['texts']} | {c['whole'] / c['texts']:.0%} | {c['right']} | "
            + " | ".join(f"{share:.1%}" for share in shares)
            + " |"
        )


if __name__ == "__main__":
    main()

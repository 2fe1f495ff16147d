"""A real run: SmolLM2-135M-Instruct as the student, and itself with the solution in its prompt as the teacher.

The problems are real ones (fetch.py). Three sets of traces of the same problems are made, by the commands that this
prints: RSD's, the student's own (threshold 1) and the raw ones of the privileged teacher (threshold 0). RSD's are
compared with each of the others under the student, and exported.

    python bench/real.py --json bench/real.json
    python bench/real.py --save DIR       # the model as a folder, for a server (vllm_cpu.sh); then with it as teacher:
    python bench/real.py --url http://127.0.0.1:8000/v1 --folder DIR --json bench/real-served.json
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, write
from fetch import PROBLEMS, SMOLLM2

from rsd.models import gguf

TEMPLATE = "{{ prompt }}\n\nA correct solution: {{ solution }}\n\nExplain it step by step."
SETS = {"rsd": "0.01", "student": "1", "teacher": "0"}  # and their thresholds
SCORES = ("local_naturalness", "global_logprob", "low_prob_share")


def rsd(*args: str | Path) -> None:
    command = [str(arg) for arg in args]
    print("$ rsd " + shlex.join(Path(a).name if Path(a).exists() else a for a in command), flush=True)
    subprocess.run([sys.executable, "-m", "rsd", *command], check=True)


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    teacher: list[str | Path] = ["--teacher", SMOLLM2]
    if args.url:
        teacher = ["--teacher", args.url, "--teacher-model", args.folder, "--teacher-tokenizer", args.folder]
    size = ["--limit", str(args.problems), "--max-new-tokens", str(args.tokens)]
    made: dict[str, Any] = {"problems": args.problems, "max_new_tokens": args.tokens}
    for name, threshold in SETS.items():
        if args.only and name not in args.only:
            continue
        out = folder / f"{name}.jsonl"
        flags = ["--threshold", threshold, "--teacher-template", TEMPLATE, "--temperature", "0.7"]
        rsd("generate", PROBLEMS, "-o", out, *teacher, "--student", SMOLLM2, *flags, *size)
        manifest = json.loads(out.with_suffix(".meta.json").read_text(encoding="utf-8"))
        made[name] = manifest["totals"] | {"tokens_per_round": manifest["decoding"]["tokens_per_round"]}
        if name == "rsd":
            continue
        figures = folder / f"{name}.compared.json"
        rsd("compare", out, folder / "rsd.jsonl", "--student", SMOLLM2, "--json", figures, "--overwrite")
        made[f"rsd against {name}"] = json.loads(figures.read_text(encoding="utf-8"))["metrics"]
    rsd("export", folder / "rsd.jsonl", "--keep", "all", "-o", folder / "train.jsonl")
    made["exported"] = len((folder / "train.jsonl").read_text(encoding="utf-8").splitlines())
    return made


def table(made: dict[str, Any]) -> None:
    print("\n| traces | acceptance | the student's own tokens | tokens a round | right | tokens |")
    print("|---|---|---|---|---|---|")
    for name in (n for n in SETS if n in made):
        t = made[name]
        rates = f"{t['acceptance_rate']:.3f} | {t['fallback_rate']:.3f} | {t['tokens_per_round']:.1f}"
        print(f"| {name} | {rates} | {t['correct']} of {t['rows']} | {t['tokens']} |")
    print(f"\nexported rows: {made['exported']}")
    for name in (n for n in made if n.startswith("rsd against")):
        for score in SCORES:
            m = made[name][score]
            print(f"{name}, {score}: " + json.dumps(m))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--problems", type=int, default=20)
    ap.add_argument("--tokens", type=int, default=128, help="of a trace at the most")
    ap.add_argument("--only", nargs="+", choices=list(SETS), help="these sets; RSD's is needed by the others")
    ap.add_argument("--url", help="the teacher behind a server, up to and with /v1")
    ap.add_argument("--folder", help="the model's name there, and the folder that --save wrote")
    ap.add_argument("--save", metavar="DIR", help="only write the model, dequantised, as a folder")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    if args.save:
        gguf.load(str(SMOLLM2), dtype=torch.float32).save_pretrained(args.save)
        gguf.tokenizer(str(SMOLLM2)).save_pretrained(args.save)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = run(args, Path(folder))
    table(made)
    write(args.json, [made])
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

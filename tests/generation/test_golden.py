"""The bundled traces, their sidecars and manifests are what they have always been: a change that moves code moves none.

`PYTHONPATH=tests python tests/generation/test_golden.py` writes golden.json anew, for a change that is meant to
change traces.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import rsd
from jobs import files

GOLDEN = Path(__file__).parent / "golden.json"
JOBS = {
    "qwen3": [],
    "llama": ["--teacher", "bundled-llama"],
    "greedy": ["--temperature", "0", "--limit", "48"],
    "no top-k": ["--top-k", "0", "--top-p", "0.9", "--limit", "48"],
}
# Floats differ in their last digits from one processor to the next: these are compared by their means.
MEASURED = ("acceptance_rate", "teacher_logprobs", "student_logprobs")


def summary(folder: Path, flags: list[str]) -> dict:
    """Hashes of what a job makes, and the means of its measured columns."""
    same = ["--verify", "boxed", "--batch-size", "64", "--block-size", "8", "-o", "t.jsonl"]
    made = rsd("generate", *same, *flags, cwd=folder)
    assert made.returncode == 0, made.stderr
    rows, tokens, manifest = files(folder / "t.jsonl")
    lines = {"rows": sorted(rows, key=_key), "tokens": sorted(tokens, key=_key)}
    means = {}
    for column in MEASURED:
        taken = [line.pop(column) for kind in lines.values() for line in kind if column in line]
        flat = [v for value in taken for v in (value if isinstance(value, list) else [value]) if v is not None]
        means[column] = float(np.mean(flat))
    kept = {name: manifest[name] for name in ("format", "identity", "settings")}
    for place in ("input", "output"):
        kept["settings"].pop(place)
    kept["settings"] = dict(sorted(kept["settings"].items()))
    totals = {k: v for k, v in manifest["totals"].items() if k not in MEASURED}
    return {
        "rows": len(rows),
        "row columns": _hash([list(r) for r in rows]),
        "token columns": _hash([list(r) for r in tokens]),
        **{f"{kind} hash": _hash(lines[kind]) for kind in lines},
        "identity and settings": _hash(kept),
        "totals": _hash(totals),
        "manifest keys": sorted(manifest),
        "means": means,
    }


def _key(line: dict) -> tuple[str, int]:
    return line["id"], line["generation"]


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize("job", JOBS)
def test_the_bundled_traces_are_what_they_were(job, tmp_path):
    made, golden = summary(tmp_path, JOBS[job]), json.loads(GOLDEN.read_text())[job]
    assert made.pop("means") == pytest.approx(golden.pop("means"), rel=1e-3)
    assert made == golden


if __name__ == "__main__":
    import tempfile

    made = {}
    for job, flags in JOBS.items():
        with tempfile.TemporaryDirectory() as folder:
            made[job] = summary(Path(folder), flags)
            print(job, "done", file=sys.stderr)
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")

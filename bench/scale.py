"""A hundred thousand rows: what each command takes of memory and time, measured from outside as whole processes.

The problems are the bundled ones over and over, each with an id of its own; a finished job of so many rows is made of
a real one's traces, given these ids. Memory is the greatest resident set of the command's process (its judges aside),
and what that is above the same command over one row: models, libraries and all are in both.

    python bench/scale.py                    # 2,000 and 20,000 rows of each command
    python bench/scale.py --rows 100000      # longer than an hour on two cores: scoring takes most of it
    python bench/scale.py --rows 100000 --only finished export
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common import machine, write

from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows


class Took(NamedTuple):
    """A process: its seconds, and its greatest resident set in MB."""

    seconds: float
    mb: float


def rsd(*args: object, cwd: Path, ok: tuple[int, ...] = (0,)) -> Took:
    """One command, whole."""
    with tempfile.TemporaryFile() as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "rsd", *map(str, args)], cwd=cwd, stdout=out, stderr=subprocess.STDOUT
        )
        peak = 0.0
        while process.poll() is None:
            with suppress(OSError, TypeError):  # it is just ending
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max(peak, int(re.search(r"VmHWM:\s+([0-9]+) kB", status)[1]) / 1024)  # type: ignore[index]
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        out.seek(0)
        said = out.read().decode(errors="replace")
    if process.returncode not in ok:
        raise SystemExit(f"rsd {' '.join(map(str, args))}: {said[-2000:]}")
    return Took(seconds, peak)


def problems(file: Path, count: int) -> None:
    rows = read_rows(bundled("problems.jsonl"))
    with open(file, "w", encoding="utf-8") as f:
        for i in range(count):
            f.write(json.dumps({**rows[i % len(rows)], "id": f"{rows[i % len(rows)]['id']}#{i}"}) + "\n")


def copies(made: Path, to: Path, count: int) -> None:
    """A finished job over `count` rows, of the traces of one over the bundled rows."""
    for end in (".jsonl", ".tokens.jsonl"):
        lines = {}
        for line in made.with_suffix(end).read_text(encoding="utf-8").splitlines(keepends=True):
            row = json.loads(line)
            lines[row["id"].partition("#")[0]] = line.replace(json.dumps(row["id"]), '"@"', 1)
        names = [row["id"] for row in read_rows(bundled("problems.jsonl"))]
        with open(to.with_suffix(end), "w", encoding="utf-8") as f:
            for i in range(count):
                name = names[i % len(names)]
                f.write(lines[name].replace('"@"', json.dumps(f"{name}#{i}"), 1))
    manifest = json.loads(made.with_suffix(".meta.json").read_text())
    manifest["settings"]["output"] = to.name
    to.with_suffix(".meta.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def measures(folder: Path, count: int) -> dict[str, Callable[[], Took]]:
    """What is measured, by name: each a command over `count` rows."""
    source, out = folder / f"in-{count}.jsonl", folder / f"t-{count}.jsonl"
    problems(source, count)
    made = folder / "made.jsonl"
    if not made.exists():
        problems(folder / "made-in.jsonl", 256)
        rsd("generate", folder / "made-in.jsonl", "-o", made, cwd=folder)
    copies(made, out, count)
    raw = folder / f"raw-{count}.jsonl"
    texts = {row["id"]: row for row in read_rows(bundled("teacher.jsonl"))}
    names = [row["id"] for row in read_rows(bundled("problems.jsonl"))]
    with open(raw, "w", encoding="utf-8") as f:
        for i in range(count):
            name = names[i % len(names)]
            f.write(json.dumps({**texts[name], "id": f"{name}#{i}"}) + "\n")

    def damaged() -> Took:
        """Every line is looked at, since the last one is gone from both files; and that trace is made."""
        for end in (".jsonl", ".tokens.jsonl"):
            file = out.with_suffix(end)
            lines = file.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"".join(lines[:-1]))
        return rsd("generate", source, "-o", out, cwd=folder)

    def goes_on() -> Took:
        """One row more than the finished job had: what is there is known by its hash, and that trace is made."""
        rsd("generate", source, "-o", out, cwd=folder)
        more = read_rows(bundled("problems.jsonl"))[0]
        with open(source, "a", encoding="utf-8") as f:
            f.write(json.dumps({**more, "id": f"more at {time.time()}"}) + "\n")
        return rsd("generate", source, "-o", out, cwd=folder)

    short = ("--max-new-tokens", "1", "--verify", "none", "--overwrite")
    scored = folder / f"scored-{count}.jsonl"
    return {
        "generate": lambda: rsd("generate", source, "-o", folder / f"short-{count}.jsonl", *short, cwd=folder),
        "damaged": damaged,
        "goes on": goes_on,
        "finished": lambda: rsd("generate", source, "-o", out, cwd=folder),
        "export": lambda: rsd("export", out, "-o", folder / "e.jsonl", "--overwrite", "--test-share", 0.1, cwd=folder),
        "token-ids": lambda: rsd(
            "export", out, "-o", folder / "e.parquet", "--format", "token-ids", "--overwrite", cwd=folder
        ),
        "score": lambda: rsd("score", out, "-o", scored, "--overwrite", cwd=folder),
        "rescore": lambda: rsd("score", out, "-o", scored, cwd=folder),
        "compare": lambda: rsd("compare", raw, out, "--html", folder / "page.html", "--overwrite", cwd=folder),
        "select": lambda: rsd(
            "select", scored, scored_twin(scored), "-o", folder / "s.jsonl", "--overwrite", cwd=folder
        ),
    }


def scored_twin(scored: Path) -> Path:
    """The same scored rows as another teacher's."""
    twin = scored.with_name(f"twin-{scored.name}")
    if not twin.exists():
        os.link(scored, twin)
    return twin


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000])
    ap.add_argument("--only", nargs="+", help="of: generate damaged finished export ...")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = measures(folder, 1)
        print("| command | rows | seconds | MB | above one row, MB |\n|---|---|---|---|---|")
        alone: dict[str, Took] = {}
        for count in args.rows:
            for what, run in measures(folder, count).items():
                if args.only and what.replace(" ", "-") not in args.only:
                    continue
                if what not in alone:
                    alone[what] = one[what]()
                took = run()
                above = took.mb - alone[what].mb
                print(f"| {what} | {count} | {took.seconds:.1f} | {took.mb:.0f} | {above:.0f} |", flush=True)
                results.append({"command": what, "rows": count, "seconds": took.seconds, "mb": took.mb, "above": above})
                results[-1]["seconds of one row"] = alone[what].seconds
                write(args.json, results)
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

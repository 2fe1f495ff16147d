"""What becomes of rsd when it is disturbed: killed, its files torn, its disk full, its limits low, its input bad, its
teacher's server dead.

Each case is a real command in a process of its own, with a time limit. As promised means: no row is lost, repeated or
changed; what cannot be done is said in one line, with nothing on the disk another than before; nothing hangs, and no
traceback is shown.

    python bench/faults.py --json bench/faults.json             some three minutes on two cores: a sample of each group
    python bench/faults.py --long --json bench/faults.json      every case, and more kills
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of what those that are killed could not give back

from common import write
from faults_inputs import bad_inputs
from faults_jobs import SKIPPED, Bench, Case, full_disks, kills
from faults_limits import limits, servers
from faults_process import CONTEXT, WARM
from faults_torn import torn_files

from rsd.terminal import harmless

SAMPLE = {"kills": 36, "torn files": 50, "full disk": 12, "limits": 12, "bad inputs": 200, "dead servers": 14}
SHOWN = 200  # characters of an example


def gathered(root: Path, args: argparse.Namespace) -> list[Case]:
    """The cases of the groups that are asked for: a sample of each, or all."""
    draw = random.Random(args.seed)
    bench = Bench(root)
    made = {
        "kills": kills(bench, draw, repeats=args.repeats),
        "torn files": torn_files(bench, draw),
        "full disk": full_disks(bench),
        "limits": limits(bench),
        "bad inputs": bad_inputs(bench),
        "dead servers": servers(bench),
    }
    chosen = []
    for name in args.only or SAMPLE:
        cases = [case for case in made[name] if args.match in case.name]
        few = range(len(cases)) if args.long else sorted(draw.sample(range(len(cases)), min(len(cases), SAMPLE[name])))
        chosen += [cases[i] for i in few]
    return chosen


def tried(case: Case) -> tuple[Case, str | None]:
    """A case, and what of its promises was not kept."""
    try:
        return case, case.run()
    except Exception as e:  # what a job has left may be anything
        return case, f"what is left cannot be read: {type(e).__name__}: {e}"


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| what | cases | as promised | not | the worst |", "|---|---|---|---|---|"]
    for of in results:
        skipped = f" ({of['skipped']} skipped)" if of["skipped"] else ""
        worst = of["worst"].replace("|", "/").replace("\n", " ")
        lines.append(f"| {of['group']} | {of['cases']}{skipped} | {of['kept']} | {len(of['not'])} | {worst} |")
    return "\n".join(lines)


def summed(group: str, ended: list[tuple[str, str | None]]) -> dict[str, Any]:
    """A group's figures; the worst is a hang, then a traceback, then whatever came first."""
    fell = [f"{name}: {fault}" for name, fault in ended if fault and fault != SKIPPED]
    skipped = sum(fault == SKIPPED for _, fault in ended)
    order = sorted(fell, key=lambda said: (": hang" not in said, ": traceback" not in said))
    kept = len(ended) - skipped - len(fell)
    worst = harmless(order[0])[:SHOWN] if fell else ""
    return {"group": group, "cases": len(ended), "skipped": skipped, "kept": kept, "worst": worst, "not": fell}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="every case, not a sample")
    parser.add_argument("--repeats", type=int, default=4, help="of each kind of job that is killed")
    parser.add_argument("--seed", type=int, default=None, help="of all that is drawn")
    parser.add_argument("--only", choices=SAMPLE, action="append", help="this group; may be given again")
    parser.add_argument("--match", default="", help="cases whose name holds this")
    parser.add_argument("--together", type=int, default=2, help="cases under way at once")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    print(f"seed {args.seed}", flush=True)
    CONTEXT.set_forkserver_preload(WARM)
    root, began = Path(tempfile.mkdtemp(prefix="rsd-faults-")), time.monotonic()
    ended: dict[str, list[tuple[str, str | None]]] = {}
    try:
        with ThreadPoolExecutor(args.together) as pool:
            for case, fault in pool.map(tried, gathered(root, args)):
                ended.setdefault(case.group, []).append((case.name, fault))
                if fault and fault != SKIPPED:
                    print(harmless(f"{case.group}: {case.name}\n    {fault[:SHOWN]}"), flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    results = [summed(group, of) for group, of in ended.items()]
    print(f"{table(results)}\n{time.monotonic() - began:.0f} s")
    if args.json:
        write(args.json, [{"seed": args.seed, "long": args.long, "repeats": args.repeats}, *results])
    return 1 if any(of["not"] for of in results) else 0


if __name__ == "__main__":
    sys.exit(main())

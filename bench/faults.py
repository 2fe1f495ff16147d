"""What becomes of rsd when it is disturbed: killed, its files torn, its disk full, its limits low, its input bad, its
teacher's server dead.

Each case is a real command in a process of its own, with a time limit. As promised means: no row is lost, repeated or
changed; what cannot be done is said in one line, with nothing on the disk another than before; nothing hangs, and no
traceback is shown.

    python bench/faults.py --json bench/faults.json             three minutes on two cores: a sample of each group
    python bench/faults.py --long --json bench/faults.json      every case, and more kills
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of what those that are killed could not give back

from faults_inputs import bad_inputs
from faults_jobs import Bench, Case, full_disks, kills, torn_files
from faults_limits import limits, servers
from faults_process import CONTEXT, WARM

GROUPS = ("kills", "torn files", "full disk", "limits", "bad inputs", "dead servers")
SKIPPED = "skipped"
SHOWN = 300  # characters of an example


def gathered(root: Path, args: argparse.Namespace) -> list[Case]:
    """The cases of all groups; of those that are many, a sample, unless all are asked for."""
    draw = random.Random(args.seed)
    bench = Bench(root)
    groups = {
        "kills": list(kills(bench, draw, repeats=args.repeats)),
        "torn files": list(torn_files(bench, draw)),
        "full disk": list(full_disks(bench)),
        "limits": list(limits(bench)),
        "bad inputs": list(bad_inputs(bench)),
        "dead servers": list(servers(bench)),
    }
    chosen = []
    for name, cases in groups.items():
        if args.only and name not in args.only:
            continue
        few = len(cases) if args.long else min(len(cases), SAMPLE[name])
        chosen += [case for case in cases if case in set(draw.sample(cases, few))]
    return chosen


SAMPLE = {"kills": 36, "torn files": 60, "full disk": 20, "limits": 20, "bad inputs": 300, "dead servers": 20}


def tried(case: Case) -> tuple[Case, str | None, float]:
    began = time.monotonic()
    try:
        fault = case.run()
    except Exception as e:  # what a job has left may be anything
        fault = f"the files cannot be compared: {type(e).__name__}: {e}"
    return case, fault, time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="every case")
    parser.add_argument("--repeats", type=int, default=4, help="kills of each kind of job")
    parser.add_argument("--seed", type=int, default=None, help="of all draws")
    parser.add_argument("--only", choices=GROUPS, action="append", help="this group (may be given again)")
    parser.add_argument("--match", default="", help="cases whose name holds this")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args(argv)
    args.seed = random.randrange(10**6) if args.seed is None else args.seed
    CONTEXT.set_forkserver_preload(WARM)
    root = Path(tempfile.mkdtemp(prefix="rsd-faults-"))
    ended = defaultdict(list)
    try:
        cases = [case for case in gathered(root, args) if args.match in case.name]
        with ThreadPoolExecutor(2) as pool:
            for case, fault, seconds in pool.map(tried, cases):
                ended[case.group].append((case.name, fault, seconds))
                if fault and not fault.startswith(SKIPPED):
                    print(f"{case.group}: {case.name}\n    {fault[:SHOWN]}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for name, of in ended.items():
        print(name, len(of), sum(bool(f) for _, f, _ in of), sum(s for *_, s in of))
    return 0


if __name__ == "__main__":
    sys.exit(main())

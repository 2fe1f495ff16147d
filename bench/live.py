"""What `rsd generate --live` costs a job: plain runs, runs with the page's process, and runs whose page is open.

The bundled problems, each run a command of its own; the three kinds are interleaved, so that a machine whose speed
drifts slows all alike. The ratios are the result: of the job's processor time (that of the page's process is
told beside it), and of the time in which it made the traces, for which the machine must have nothing else to do.

    python bench/live.py --json bench/live.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from common import machine

KINDS = ("plain", "live", "watched")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Seconds: of processor time of the job and of the page's process, and those in which traces were made."""

    job: float
    page: float
    making: float


def watch(url: str) -> None:
    """Ask what an open page asks, until there is nobody to answer."""
    seen = None
    with suppress(OSError, ValueError):
        while True:
            with urllib.request.urlopen(f"{url}state" if seen is None else f"{url}state?after={seen}") as answer:
                seen = json.load(answer)["number"]


def look(job: int, used: list[float]) -> None:
    """Note what the page's process has used so far, until it is gone."""
    with suppress(psutil.NoSuchProcess):
        while not (found := [p for p in psutil.Process(job).children() if "rsd.live" in p.cmdline()]):
            time.sleep(0.1)
        while True:
            times = found[0].cpu_times()
            used.append(times.user + times.system)
            time.sleep(0.1)


def run(kind: str, generations: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "rsd", "generate", "-o", f"{folder}/t.jsonl", "--json"]
        line += ["--num-generations", str(generations), *([] if kind == "plain" else ["--live", "0"])]
        job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        used = [0.0]
        for said in job.stderr:
            if said.startswith("live: "):
                threading.Thread(target=look, args=[job.pid, used], daemon=True).start()
                if kind == "watched":
                    threading.Thread(target=watch, args=[said.split()[1]], daemon=True).start()
        made = json.loads(job.stdout.read())
        _, _, usage = os.wait4(job.pid, 0)
        job.returncode = 0
        return Run(job=usage.ru_utime + usage.ru_stime, page=used[-1], making=made["seconds"])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--repeats", type=int, default=9)
    ap.add_argument("--generations", type=int, default=1, help="traces of each of the 256 problems")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other use the processor, too
    took: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for repeat in range(args.repeats):
        for kind in KINDS[repeat % 3 :] + KINDS[: repeat % 3]:
            took[kind].append(run(kind, args.generations))
            print(kind, asdict(took[kind][-1]), flush=True)
    figures = {}
    for kind in KINDS:
        figures[kind] = {"page": round(statistics.median(one.page for one in took[kind]), 2)}
        for what in ("job", "making"):
            pairs = zip(took[kind], took["plain"], strict=True)
            ratios = [getattr(mine, what) / getattr(plain, what) for mine, plain in pairs]
            seconds = statistics.median(getattr(one, what) for one in took[kind])
            spread = [round(min(ratios), 3), round(max(ratios), 3)]
            figures[kind][what] = {"seconds": round(seconds, 2), "ratio": round(statistics.median(ratios), 3)}
            figures[kind][what]["from, to"] = spread
        print(kind, json.dumps(figures[kind]))
    print(machine())
    if args.json:
        made = {"machine": machine(), "repeats": args.repeats, "traces": 256 * args.generations, "figures": figures}
        Path(args.json).write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()

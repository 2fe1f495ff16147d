"""Jobs that are killed, find their files torn, or have no room, against one that nothing disturbs."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from faults_process import Ended, rsd

from rsd.models.bundled import bundled

PROBLEMS = 12
JOB = ("in.jsonl", "-o", "t.jsonl", "--max-new-tokens", "60", "--batch-size", "4", "--verify", "boxed")
ROWS, TOKENS, MANIFEST = "t.jsonl", "t.tokens.jsonl", "t.meta.json"
# An interrupt before a command begins its work, or behind it, ends with click's "Aborted!", or with nothing.
SIGNALS = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (-signal.SIGTERM, 143), signal.SIGINT: (130, 1)}
SKIPPED = "skipped: no file system can be mounted here"
CLOSE = 1e-3  # of log-probs: how rows are put together in batches shows in their last digits


@dataclass(frozen=True)
class Job:
    """A kind of job: its commands (one for each share), which are run again after a kill; and the files that it leaves.

    exact: the files are the same byte by byte; else they hold the same rows, in any order.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]
    exact: bool = False


JOBS = (
    Job("generate", (("generate", *JOB),), (ROWS, TOKENS)),
    Job("several generations", (("generate", *JOB, "--num-generations", "3"),), (ROWS, TOKENS)),
    Job("until correct", (("generate", *JOB, "--num-generations", "4", "--until-correct"),), (ROWS, TOKENS)),
    Job("keep", (("generate", *JOB, "--num-generations", "2", "--keep", "best-ln"),), (ROWS, TOKENS, "t.kept.jsonl")),
    Job("two shares", tuple(("generate", *JOB, "--shard", f"{i}/2") for i in (1, 2)), (ROWS, TOKENS)),
    Job("score", (("score", "made.jsonl", "-o", "s.jsonl"),), ("s.jsonl",), exact=True),
    Job(
        "score, two shares",
        tuple(("score", "made.jsonl", "-o", "s.jsonl", "--shard", f"{i}/2") for i in (1, 2)),
        ("s.jsonl",),
        exact=True,
    ),
    Job(
        "export",
        (("export", "made.jsonl", "-o", "e.jsonl", "--test-share", "0.3", "--overwrite"),),
        ("e.jsonl", "e.md", "e.test.jsonl"),
        exact=True,
    ),
    Job(
        "compare",
        (("compare", "raw.jsonl", "made.jsonl", "--html", "c.html", "--json", "c.json", "--overwrite"),),
        ("c.html", "c.json"),
        exact=True,
    ),
)


class Case(NamedTuple):
    """One thing that is done to rsd: what, and what of its promises it did not keep, or None."""

    group: str
    name: str
    run: Callable[[], str | None]


class Bench:
    """Finished jobs to compare with, each made once, and folders for those that are disturbed."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        self.inputs = root / "inputs"
        self.inputs.mkdir()
        rows = bundled("problems.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:PROBLEMS]
        (self.inputs / "in.jsonl").write_text("".join(rows), encoding="utf-8")
        raw = bundled("teacher.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (self.inputs / "raw.jsonl").write_text("".join(raw[:PROBLEMS]), encoding="utf-8")
        made = rsd("generate", "in.jsonl", "-o", "made.jsonl", "--verify", "boxed", cwd=self.inputs)
        assert made.code == 0, made.err
        self.whole: dict[str, tuple[Path, float]] = {}
        for job in JOBS:
            folder = self.folder(job.name)
            ended = [rsd(*command, cwd=folder) for command in job.commands]
            assert all(e.code == 0 for e in ended), (job.name, ended)
            self.whole[job.name] = folder, max(e.seconds for e in ended)

    def folder(self, name: str = "") -> Path:
        self.count += 1
        return Path(shutil.copytree(self.inputs, self.root / f"{self.count}" / (name or "x")))

    def against(self, job: Job, folder: Path) -> str | None:
        """What is different from what an undisturbed job leaves."""
        whole = self.whole[job.name][0]
        for name in job.files:
            if not (folder / name).exists():
                return f"no {name}"
            if job.exact:
                if (folder / name).read_bytes() != (whole / name).read_bytes():
                    return f"{name} changed"
            elif differs := rows_differ(folder / name, whole / name):
                return f"{name}: {differs}"
        hidden = sorted(f.name for f in folder.iterdir() if f.name not in {w.name for w in whole.iterdir()})
        return f"left over: {', '.join(hidden)}" if hidden else None


def rows_differ(file: Path, whole: Path) -> str | None:
    made, want = ([json.loads(line) for line in f.read_text(encoding="utf-8").splitlines()] for f in (file, whole))
    mine, theirs = ({(row["id"], row["generation"]): row for row in rows} for rows in (made, want))
    lost, repeated = len(theirs.keys() - mine.keys()), len(made) - len(mine)
    changed = sum(not _near(mine[key], theirs[key]) for key in mine.keys() & theirs.keys())
    more = len(mine.keys() - theirs.keys())
    return (
        f"{lost} lost, {repeated} repeated, {changed} changed, {more} too many"
        if lost or repeated or changed or more
        else None
    )


def _near(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    return bool(a == b)


def kills(bench: Bench, draw: random.Random, *, repeats: int) -> Iterator[Case]:
    """Signals at random times, one to three in a job's life; then it is let go to its end."""
    for _ in range(repeats):
        for job in JOBS:
            plan = [
                (draw.choice([*SIGNALS]), [draw.uniform(0.1, 1.1) for _ in job.commands])
                for _ in range(draw.randint(1, 3))
            ]
            said = ", ".join(f"{signal.Signals(by).name} at {', '.join(f'{at:.0%}' for at in ats)}" for by, ats in plan)
            yield Case("kills", f"{job.name}: {said}", partial(_killed, bench, job, plan))


def _killed(bench: Bench, job: Job, plan: list[tuple[int, list[float]]]) -> str | None:
    folder, seconds = bench.folder(), bench.whole[job.name][1]
    for by, ats in plan:

        def run(command: tuple[str, ...], at: float, by: int = by) -> Ended:
            return rsd(*command, cwd=folder, kill=lambda spent: spent > at * seconds, by=by)

        with ThreadPoolExecutor(len(ats)) as pool:
            ended = list(pool.map(run, job.commands, ats))
        if fault := next((f for e in ended if (f := e.fault(0, *SIGNALS[signal.Signals(by)], line=False))), None):
            return fault
    return whole_again(bench, job, folder)


def whole_again(bench: Bench, job: Job, folder: Path) -> str | None:
    for command in job.commands:
        if fault := rsd(*command, cwd=folder).fault(0):
            return f"run again: {fault}"
    return bench.against(job, folder)


def full_disks(bench: Bench) -> Iterator[Case]:
    """Files that may not grow beyond a size, and file systems that are full; then there is room again."""
    for job in JOBS:
        for size in (0, 700, 5_000, 20_000):
            yield Case("full disk", f"{job.name}: files of {size} bytes at the most", partial(_small, bench, job, size))
    for job in (j for j in JOBS if len(j.commands) == 1):
        for pages in (0, 4, 12):
            yield Case("full disk", f"{job.name}: {pages} pages are free", partial(_full, bench, job, pages))


def _small(bench: Bench, job: Job, size: int) -> str | None:
    folder = bench.folder()
    for command in job.commands:
        ended = rsd(*command, cwd=folder, limits={resource.RLIMIT_FSIZE: size})
        if fault := ended.fault(0, 1, 2):
            return fault
    return whole_again(bench, job, folder)


def _full(bench: Bench, job: Job, pages: int) -> str | None:
    folder = bench.folder()
    disk = folder.parent / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        return SKIPPED
    try:
        place = Path(shutil.copytree(folder, disk / "x"))
        used = os.statvfs(disk)
        size = (used.f_blocks - used.f_bfree + pages) * used.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True, capture_output=True)
        ended = [rsd(*command, cwd=place) for command in job.commands]
        if fault := next((f for e in ended if (f := e.fault(0, 1, 2))), None):
            return fault
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, capture_output=True)
        return whole_again(bench, job, place)
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True)

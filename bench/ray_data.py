"""Two workers on Ray, by `rsd generate --ray` and by Ray Data's `map_batches`, against two plain processes.

The bundled pair and the bundled problems, many times over (under other ids, so that other traces come). Every worker
computes in one thread. Plain are `--shard 1/2` and `--shard 2/2`, started together. Two times are taken: "decoding" is
from when the first worker has its models to the last trace; "all" from the start of the command (of map_batches: of the
call, on a cluster that runs already, as --ray finds it) to its end. Throughput is traces a second of decoding.

    python bench/ray_data.py --json bench/ray_data.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from common import machine, ratio, write

from rsd import GenerateConfig, TraceGenerator
from rsd.files import write_rows
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.shards import Lines, part_files

ALONE = "two processes"


class Timed(TraceGenerator):
    """The generator, which notes in a file when each batch began and ended."""

    def __init__(self, config: GenerateConfig, log: str) -> None:
        super().__init__(config)
        self.log = log

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "log": self.log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"], state["log"])

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        self.load()
        began = time.time()
        made = super().__call__(batch)
        with open(self.log, "a", encoding="utf-8") as f:
            f.write(f"{began} {time.time()}\n")
        return made


def commands(source: Path, rows: int, hows: list[list[str]]) -> tuple[float, float]:
    """Seconds of decoding and of all, of commands that make one job together."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "t.jsonl"
        command = [sys.executable, "-m", "rsd", "generate", str(source), "-o", str(out), "--quiet"]
        started = time.time()
        running = [subprocess.Popen([*command, *how], stdout=subprocess.DEVNULL) for how in hows]
        began = ended = 0.0
        lines: Lines | None = None
        while any(process.poll() is None for process in running):
            parts = part_files(out)
            if not began and any(Path(str(p).replace(".jsonl", ".meta.json")).exists() for p in parts.values()):
                began = time.time()
            if not ended and parts:
                lines = lines if lines and lines.sizes.keys() == set(parts.values()) else Lines([*parts.values()])
                ended = time.time() if lines.count() == rows else 0.0
            time.sleep(0.02)
        took = time.time() - started
        if any(process.returncode for process in running) or len(read_rows(out)) != rows or not (began and ended):
            raise SystemExit(f"{hows}: not all traces were made, or none was seen being made")
        return ended - began, took


def map_batches(source: Path, rows: int, size: int) -> tuple[float, float]:
    """The same of two actors of Ray Data."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        started = time.time()
        made = ray.data.read_json(str(source)).map_batches(
            Timed,
            fn_constructor_kwargs={"config": GenerateConfig(), "log": str(log)},
            compute=ray.data.ActorPoolStrategy(size=2),
            batch_size=size,
            num_cpus=1,
        )
        count = sum(len(batch["id"]) for batch in made.iter_batches(batch_size=None))
        took = time.time() - started
        times = [[float(t) for t in line.split()] for line in log.read_text().splitlines()]
        if count != rows:
            raise SystemExit(f"map_batches made {count} of {rows} traces")
        return max(end for _, end in times) - min(begin for begin, _ in times), took


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", type=int, default=8192)
    ap.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 512, 1024])
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_worker_niceness": "0"}  # not 15: what else runs on the machine would slow Ray's workers alone
    problems = read_rows(bundled("problems.jsonl"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        copies = ((i // len(problems), problems[i % len(problems)]) for i in range(args.rows))
        write_rows(({**row, "id": f"{row['id']}/{copy}"} for copy, row in copies), source)
        # A third CPU, on paper, is for who reads.
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=500 << 20)
        ray.data.DataContext.get_current().enable_progress_bars = False
        on_ray = ["--ray", ray.get_runtime_context().gcs_address, "--ray-workers", "2"]
        contenders: dict[str, Callable[[], tuple[float, float]]] = {
            ALONE: partial(commands, source, args.rows, [["--shard", "1/2"], ["--shard", "2/2"]]),
            "--ray": partial(commands, source, args.rows, [on_ray]),
        }
        for size in args.batch_sizes:
            contenders[f"map_batches, {size}"] = partial(map_batches, source, args.rows, size)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(args.repeats):
            for name, contender in contenders.items():
                took[name].append(contender())
                decoding, whole = took[name][-1]
                print(f"{name}: decoding {decoding:.1f} s, all {whole:.1f} s", file=sys.stderr, flush=True)
        ray.shutdown()
    print("| two workers | traces/s | decoding, s | all, s | throughput / two processes | all / two processes |")
    print("|---|---|---|---|---|---|")
    results = []
    for name, seconds in took.items():
        decoding, whole = ([s[i] for s in seconds] for i in (0, 1))
        alone = [[s[i] for s in took[ALONE]] for i in (0, 1)]
        middle = statistics.median(decoding)
        ratios = ratio(alone[0], decoding), ratio(whole, alone[1])
        shown = f"{args.rows / middle:.0f} | {middle:.1f} | {statistics.median(whole):.1f}"
        print(f"| {name} | {shown} | {ratios[0]} | {ratios[1]} |")
        results.append({"contender": name, "decoding_s": decoding, "all_s": whole, "throughput / plain": ratios[0]})
    about = {"rows": args.rows, "ray": ray.__version__, "threads a worker": 1}
    write(args.json, [about, *results])
    print(f"\n{json.dumps(machine() | about)}")


if __name__ == "__main__":
    main()

"""A job on a Ray cluster: its rows cut into shares, which workers make into part files; see `traces.shards`.

Ray places the workers, starts one anew that has died, and gives it its share again, of which it finds in its part file
what it has made. The shares follow from the rows' ids, so that this process, the driver, only hands them out, looks at
the part files to say how far all are, and merges them.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rsd.config import GenerateConfig
from rsd.files import held
from rsd.generation.generator import TraceGenerator
from rsd.generation.job import Others, discard_beside, manifest_of, run_rows
from rsd.generation.merge import merge
from rsd.generation.progress import Progress
from rsd.generation.session import sessions_of
from rsd.generation.share import POLL, Incomplete, joined, made_before, process
from rsd.generation.summary import Summary, kept_file
from rsd.outputs import Output, check_outputs
from rsd.settings import called
from rsd.terminal import hush, say
from rsd.traces import ours
from rsd.traces.lines import Key, files_of, read_manifest
from rsd.traces.readers import stream_rows
from rsd.traces.rows import Row, Rows, in_memory
from rsd.traces.shards import Lines, Shard, number_of, part_files
from rsd.traces.soft import soft_file
from rsd.traces.store import Store

# A worker's engine runs empty at the end of a share, and has to wait at the end of the job for those that have more:
# so there are a few for each worker, and none is small.
SHARES, LEAST = 4, 1024  # shares a worker at the most; traces a share at the least, where there are more workers' worth
DEATHS = 5  # of workers at one share, after which it is given up: one of its rows may be what kills them
PATIENCE = 30.0  # seconds after which a user is told what the job waits for, and for which dead workers' locks may last


@dataclass(frozen=True)
class Cluster:
    """Which Ray cluster, and how many workers there.

    address: HOST:PORT, "auto" for the one that runs on this machine (or that RAY_ADDRESS names), or "local" for one
    that lives as long as the job. workers: None is one for each GPU, or, where there are none, for each CPU.
    """

    address: str
    workers: int | None = None


class TraceWorker:
    """What runs on the cluster: one generator, loaded once, that makes share after share.

    folder: the driver's current one, to which names of models and of a judge's module may be relative.
    """

    def __init__(self, kind: type[TraceGenerator], config: GenerateConfig, folder: str) -> None:
        hush()
        with suppress(OSError):
            os.chdir(folder)
        self.generator = kind(config)

    def ready(self, out: Path) -> str:
        """Load the models; what is to be said of the memory.

        Raises:
            ValueError: they cannot be loaded, or `out`, which the driver holds open, is not to be seen from here.
        """
        if not out.exists():
            raise ValueError(f"{out.parent} is another folder on {socket.gethostname()}: Ray needs a common one")
        memory = self.generator.memory().text
        self.generator.load()
        return memory

    def make(self, part: Path, rows: Sequence[Row], done: Mapping[Key, bool], manifest: Mapping[str, Any]) -> None:
        """Make a share's traces, but for those that are in its part file or `done` elsewhere."""
        settings = {**manifest["settings"], "output": part.name}
        own = {**manifest, "settings": settings, "process": process()}
        with Store(part, top=self.generator.config.top_logprobs) as store:
            run_rows(
                self.generator, in_memory(rows), store, own, others=Others(done=done, total=0, files=[], shown=False)
            )


def run_on_ray(
    generator: TraceGenerator,
    source: str | Path,
    out: str | Path,
    cluster: Cluster,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    command: str | None = None,
) -> Summary:
    """Make a job's traces with the workers of a Ray cluster; the files are what one process would have left.

    Any number of workers, and any other way of running the job, goes on with what there is. `source` is read here
    alone; the folder of `out` must be common to all nodes.

    Args:
        limit, overwrite, keep: as of `run_job`.

    Raises:
        ValueError: as `run_job`; or there is no such cluster, or Ray is not installed.
        Incomplete: workers died, again and again.
    """
    sidecar, job = files_of(out)
    kept = [Output(kept_file(out), ours.kept)] if keep else []
    top = generator.config.top_logprobs
    soft = [Output(soft_file(out))] if top else []
    check_outputs([Output(out), Output(sidecar), Output(job), *soft, *kept], inputs=[source], job=job)
    rows = generator.prepare(islice(stream_rows(source, split=generator.config.split), limit))
    manifest = manifest_of(generator, source, out, limit, command)
    fallback = generator.config.max_fallback_rate
    before = made_before(Path(out))
    if part_files(out) and not overwrite:
        with Store(out, top=top):  # no other driver is at it
            _await_dead(out)
        merge(out, max_fallback_rate=fallback)
    with Store(out, top=top) as store:
        spelled = generator.find().decode
        done = store.made(manifest["identity"], rows, overwrite=overwrite, max_fallback_rate=fallback, spelled=spelled)
        if store.found.lost:
            raise ValueError(f"{store.manifest} is lost: one process can tell whether {out} may be gone on with")
        left = generator.schedule(rows, done).at_most
        if not left:
            return run_rows(generator, rows, store, manifest, keep=keep)
        for notice in (*generator.notices, *generator.unreadable(rows)):
            say(notice)
        if done:
            say(f"resuming {out}: found {len(done)} finished traces, {left} to make at the most")
        with _Workers(generator, cluster) as workers:
            say(workers.first_ready(out))
            there = {} if overwrite else read_manifest(store.manifest) or {}
            stays: dict[str, Any] = {name: there[name] for name in ("decoding", "processes") if name in there}
            stays["sessions"] = sessions_of([there])  # the workers add their own
            own = {name: value for name, value in manifest.items() if name != "command"}
            store.begin(own | stays, done, overwrite=overwrite)
            if overwrite:
                discard_beside(out, soft=not top)
                before = 0, 0
            count = shares(left, workers.count)
            parts = [Shard(number, count).part(out) for number in range(1, count + 1)]
            todo = _shared_out(generator, rows, done, count)
            asked = ((parts[i].absolute(), list(share), there, manifest) for i, share, there in todo)
            total = len(rows) * generator.config.num_generations
            with Progress(total, Lines([Path(out), *parts]).count(), of_all=[Path(out), *parts]) as progress:
                workers.make(asked, len(todo), progress)
    return joined(generator, out, before=before, seconds=progress.seconds, keep=keep)


def shares(traces: int, workers: int) -> int:
    """Into how many shares so many traces are cut."""
    return workers * min(max(traces // (LEAST * workers), 1), SHARES)


def _shared_out(
    generator: TraceGenerator, rows: Rows, done: Mapping[Key, bool], count: int
) -> list[tuple[int, Rows, dict[Key, bool]]]:
    """The shares in which something is left to make: the place of each, its rows, and what is done of them."""
    there: list[dict[Key, bool]] = [{} for _ in range(count)]
    for key, right in done.items():
        there[number_of(key[0], count) - 1][key] = right
    places = [number_of(name, count) - 1 for name in rows.ids]
    made = [(i, rows.at([at for at, place in enumerate(places) if place == i]), there[i]) for i in range(count)]
    return [share for share in made if generator.schedule(*share[1:]).at_most]


def _await_dead(out: str | Path) -> None:
    """Wait for the workers of a driver that was killed to end, which Ray sees to."""
    until = time.monotonic() + PATIENCE
    while any(held(file) for file in part_files(out).values()) and time.monotonic() < until:
        time.sleep(POLL)


class _Workers:
    """The workers of one job, from the connection to the cluster until the driver lets go of it."""

    def __init__(self, generator: TraceGenerator, cluster: Cluster) -> None:
        self.ray = _connected(cluster.address)
        there = self.ray.cluster_resources()
        gpus = _gpus(generator.config) if there.get("GPU") else 0
        self.needs = {"num_cpus": 1, "num_gpus": gpus}
        self.count = cluster.workers or max(int(there["GPU"] // gpus if gpus else there.get("CPU", 1)), 1)
        actor = self.ray.remote(max_restarts=-1, max_task_retries=DEATHS - 1, **self.needs)(TraceWorker)
        self.workers = [actor.remote(type(generator), generator.config, os.getcwd()) for _ in range(self.count)]
        self.busy: dict[Any, Any] = {}  # by what it will give: the worker

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()  # which ends the workers

    def first_ready(self, out: str | Path) -> str:
        """Have all of them load the models, and wait for one; what it says of the memory."""
        self.busy = {worker.ready.remote(Path(out).absolute()): worker for worker in self.workers}
        ended, _ = self.ray.wait(list(self.busy), timeout=PATIENCE)
        if not ended:
            asked = ", ".join(f"{n} {what[4:].upper()[:-1]}" for what, n in self.needs.items() if n)
            say(f"waiting for one of {self.count} workers to be ready: each needs {asked} of the cluster")
            ended, _ = self.ray.wait(list(self.busy))
        return str(self._given(ended[0]))

    def make(self, todo: Iterator[tuple[Any, ...]], left: int, progress: Progress) -> None:
        """Have all shares made, each by the next worker that is free; who is not ready yet keeps none waiting.

        left: how many shares these are.
        """
        loading = set(self.busy)
        while left:
            ended, _ = self.ray.wait(list(self.busy), timeout=POLL)
            for one in ended:
                self._given(one)
                left -= one not in loading
                worker = self.busy.pop(one)
                if (share := next(todo, None)) is not None:
                    self.busy[worker.make.remote(*share)] = worker
            progress.look()

    def _given(self, one: Any) -> Any:
        """What a worker gives, or what went wrong there, as it would have here."""
        try:
            return self.ray.get(one)
        except self.ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, ValueError | OSError | MemoryError):
                raise e.cause from None
            raise
        except self.ray.exceptions.RayActorError as e:
            raise Incomplete(f"a worker died {DEATHS} times in a row, killed perhaps for want of memory") from e


def _gpus(config: GenerateConfig) -> int:
    """How many GPUs a worker needs, where there are any."""
    roles = ("student",) if config.served else ("teacher", "student")
    return len({config.place_of(role) or "cuda" for role in roles} - {"cpu"})


def _connected(address: str) -> Any:
    """Ray, connected to a cluster.

    Raises:
        ValueError: there is none, or no Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of what it will do one day
    try:
        import ray
    except ImportError as e:
        raise ValueError(f"{called('ray')} needs Ray: pip install 'rsd[ray]'") from e
    if address not in ("auto", "local"):
        _check_reached(address)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError, RuntimeError) as e:
        if address == "auto" and isinstance(e, ConnectionError):
            raise ValueError(
                "no Ray cluster runs on this machine: start one (ray start --head), give its address, or "
                f"{called('ray', 'local')} for one that lives as long as the job"
            ) from e
        raise ValueError(f"{called('ray')} {address}: {(str(e).splitlines() or [type(e).__name__])[0]}") from e
    return ray


def _check_reached(address: str) -> None:
    """Whether somebody answers there: Ray itself would try for minutes, and then end this process."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{called('ray')} is auto, local, or the HOST:PORT that ray start --head says, not {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, UnicodeError) as e:
        raise ValueError(
            f"{called('ray')} {address}: no cluster answers there: {getattr(e, 'strerror', None) or e}"
        ) from e

"""One process's share of a job; see `traces.shards`. What the processes know of each other is in their files."""

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from rsd.files import held
from rsd.generation.generator import TraceGenerator
from rsd.generation.job import Others, manifest_of, run_rows
from rsd.generation.merge import discard, merge
from rsd.generation.progress import Progress
from rsd.generation.summary import Summary, kept_file, shares, write_kept
from rsd.outputs import Output, check_outputs
from rsd.settings import called
from rsd.terminal import say
from rsd.traces import ours
from rsd.traces.columns import not_ours
from rsd.traces.lines import Key, files_of, read_manifest, whole_lines
from rsd.traces.readers import stream_rows
from rsd.traces.rows import Rows, in_memory
from rsd.traces.shards import Lines, Shard, part_files
from rsd.traces.soft import soft_file
from rsd.traces.store import Store

POLL = 0.3  # seconds
LAUNCH = 600.0  # seconds within which all processes of a launch begin
DISCARDED = "rsd/discarded"


class Incomplete(ConnectionError):
    """Another process ended before its share was made."""


def run_share(
    generator: TraceGenerator,
    source: str | Path,
    out: str | Path,
    shard: Shard,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    command: str | None = None,
) -> Summary | None:
    """Make this process's share of a job's traces, in a part file of its own.

    When all shares are made the parts are merged to what one process would have left: by the main process of a launch,
    or by the last one that ends. What any number of processes made before is found and not made again.

    Args:
        limit: of the whole job. overwrite: only of a launch. keep, command: as of `run_job`; rows are kept once all is
            merged.

    Returns:
        What the job's file holds, or, while shares are missing, the part file; None for a process that prints nothing.

    Raises:
        ValueError: as `run_job`.
        Incomplete: another process of the launch ended before its share was made.
    """
    out, part = Path(out), shard.part(out)
    started = time.monotonic()
    sidecar, job = files_of(out)
    kept = [Output(kept_file(out), ours.kept)] if keep else []
    top = generator.config.top_logprobs
    soft = [Output(soft_file(out))] if top else []
    check_outputs([Output(out), Output(sidecar), Output(job), *soft, *kept], inputs=[source], job=job)
    check_outputs([Output(file) for file in (part, *files_of(part))], inputs=[source], job=files_of(part)[1])
    rows = generator.prepare(islice(stream_rows(source, split=generator.config.split), limit))
    # What is wrong with the pair is said before anything goes.
    manifest = manifest_of(generator, source, part, limit, command)
    if overwrite:
        _discard_together(out, shard)
    before = made_before(out)
    manifest["process"] = process()
    done = _made_elsewhere(generator, out, part, manifest["identity"], rows)
    mine = rows.only(shard.has)
    files = [out, *(replace(shard, number=i + 1).part(out) for i in range(shard.count))]
    files += [file for file in part_files(out).values() if file not in files]
    total = len(rows) * generator.config.num_generations
    others = Others(done=done, total=total, files=files, shown=shard.main)
    with Store(part, top=top) as store:
        summary = run_rows(generator, mine, store, manifest, others=others)
    if shard.launched:
        if not shard.main:
            return None
        _await_others(shard, out, manifest, others)
    elif waiting := [str(s) for s in _missing(shard, out, manifest)]:
        say(f"{out} is merged when the shares {', '.join(waiting)} are made")
        return summary
    return joined(generator, out, before=before, seconds=time.monotonic() - started, keep=keep)


def joined(
    generator: TraceGenerator, out: str | Path, *, before: tuple[int, int], seconds: float, keep: str | None
) -> Summary:
    """Merge the parts of a job that is made. before: rows and tokens that there were when this run began."""
    limit_of = generator.config.max_fallback_rate
    merged = merge(out, max_fallback_rate=limit_of)
    totals = merged["totals"]
    return Summary(
        totals,
        totals["rows"] - before[0],
        totals["tokens"] - before[1],
        seconds,
        merged["decoding"].get("tokens_per_round") or 0.0,
        *shares(merged),
        *write_kept(out, keep, limit_of),
    )


def process() -> dict[str, Any]:
    """What the manifest says of a process that made rows."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": round(time.time(), 1)}


def made_before(out: Path) -> tuple[int, int]:
    """Rows and tokens that there are in all files of a job."""
    rows = tokens = 0
    for file in (out, *part_files(out).values()):
        for line in whole_lines(file):
            if line.get("error") is None and not_ours(line) is None:
                rows, tokens = rows + 1, tokens + (line.get("num_tokens") or 0)
    return rows, tokens


def _made_elsewhere(
    generator: TraceGenerator, out: Path, own: Path, identity: Mapping[str, Any], rows: Rows
) -> dict[Key, bool]:
    """The traces that are in other files of the job, and whether each is right."""
    done: dict[Key, bool] = {}
    for file in (out, *part_files(out).values()):
        store = Store(file, top=generator.config.top_logprobs)
        begun = all(f.is_file() and f.stat().st_size for f in (store.out, store.sidecar))
        if file == own or not (begun or (file == out and out.exists())):
            continue
        fallback = generator.config.max_fallback_rate
        done |= store.made(identity, rows, overwrite=False, max_fallback_rate=fallback)
        if store.found.lost:
            raise ValueError(f"{store.manifest} is lost, and with it what {file} was made with: remove {file}")
    return done


def _missing(shard: Shard, out: Path, manifest: Mapping[str, Any], *, since: float = 0.0) -> list[Shard]:
    """The shares of this job that are not made yet. since: when their processes began, at the earliest."""
    merged = {p.get("shard") for p in (read_manifest(files_of(out)[1]) or {}).get("processes") or ()}
    missing = []
    for number in range(1, shard.count + 1):
        other = replace(shard, number=number)
        theirs = read_manifest(files_of(other.part(out))[1])
        if theirs is None and not other.part(out).exists() and str(other) in merged and not shard.launched:
            continue
        same = theirs is not None and all(
            theirs.get("settings", {}).get(name) == manifest["settings"][name] for name in ("num_generations", "limit")
        )
        if (
            not same
            or theirs is None
            or not theirs.get("totals")
            or ((theirs.get("process") or {}).get("started") or 0) < since
        ):
            missing.append(other)
    return missing


def _await_others(shard: Shard, out: Path, manifest: Mapping[str, Any], others: Others) -> None:
    """Wait for the other processes of a launch, and show how far they are."""
    since = manifest["process"]["started"] - LAUNCH
    gone: list[Shard] = []
    with Progress(others.total, Lines(others.files).count(), of_all=others.files) as progress:
        while missing := _missing(shard, out, manifest, since=since):
            # Seen twice, since a process that has just ended wrote its manifest before.
            ended = [other for other in missing if other.part(out).exists() and not held(other.part(out))]
            if both := [other for other in ended if other in gone]:
                raise Incomplete(f"process {both[0]} ended before its traces were made")
            gone = ended
            progress.look()
            time.sleep(POLL)


def _discard_together(out: Path, shard: Shard) -> None:
    """Have the main process of a launch remove what there is, before any other one looks."""
    if not shard.launched:
        raise ValueError(
            f"{called('overwrite')} with {called('shard')}: each process would discard what another has made; remove "
            f"{out} and its parts"
        )
    from torch.distributed import rendezvous

    told, *_ = next(rendezvous("env://"))
    if shard.main:
        discard(out)
        if files_of(out)[1].exists() or out.exists():
            with Store(out) as store:
                store.made({}, in_memory([]), overwrite=True)
                store.remove()
        told.set(DISCARDED, "")
    else:
        told.wait([DISCARDED], timedelta(seconds=LAUNCH))

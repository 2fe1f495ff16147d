"""One job: rows in, files out, resumable, with a progress bar and a summary."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from rsd.decoding.block_size import BlockController
from rsd.files import place
from rsd.generation.finished import stamp
from rsd.generation.generator import TraceGenerator
from rsd.generation.merge import discard, merge
from rsd.generation.progress import Progress
from rsd.generation.schedule import Schedule
from rsd.generation.session import Session
from rsd.generation.statistics import combined, readable
from rsd.generation.summary import Summary, kept_file, shares, write_kept
from rsd.generation.watching import Watching
from rsd.models.loading import Source
from rsd.outputs import Output, check_outputs
from rsd.settings import called, free
from rsd.strictjson import finite
from rsd.terminal import say
from rsd.traces import ours
from rsd.traces.filters import is_right
from rsd.traces.given import Given, file_of, read
from rsd.traces.lines import Key, files_of
from rsd.traces.readers import stream_rows
from rsd.traces.rows import Rows, in_memory
from rsd.traces.shards import part_files
from rsd.traces.soft import soft_file
from rsd.traces.store import Store
from rsd.version import __version__


def run_job(
    generator: TraceGenerator,
    source: Given,
    out: str | Path,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    command: str | None = None,
    watch: bool = False,
) -> Summary:
    """Make the traces of rows, or of a file's, and store them; resumes what an earlier run left.

    Args:
        source: as of `given.read`.
        keep: write the rows that are kept (`filters.KEEP`) to a file beside `out`, when all are made.
        command: the command line, for the manifest. watch: show a row as it is written, in place of the bar.

    Raises:
        ValueError: bad input, a pair that does not fit, or an output of another job. Nothing is
            written or lost then.
    """
    sidecar, job = files_of(out)
    kept = [Output(kept_file(out), ours.kept)] if keep else []
    inputs = [file for file in (file_of(source),) if file is not None]
    top = generator.config.top_logprobs
    soft = [Output(soft_file(out))] if top else []
    check_outputs([Output(out), Output(sidecar), Output(job), *soft, *kept], inputs=inputs, job=job)
    rows = generator.prepare(islice(read(source, split=generator.config.split, strict=True), limit))
    manifest = manifest_of(generator, source, out, limit, command)
    if part_files(out) and not overwrite:
        merge(out, max_fallback_rate=generator.config.max_fallback_rate)
        say(f"{out}: the parts of several processes are merged")
    with Store(out, top=top) as store:
        return run_rows(generator, rows, store, manifest, overwrite=overwrite, keep=keep, watch=watch)


def stream_job(
    generator: TraceGenerator,
    source: str | Path,
    write: Callable[[Mapping[str, Any]], object],
    *,
    limit: int | None = None,
) -> int:
    """Make the traces of a file's rows and write each row when it is finished; nothing is kept to resume by.

    Returns how many of them are errors.
    """
    if generator.config.top_logprobs:
        raise ValueError(f"{called('top_logprobs')} writes a file beside the rows: name an {called('output')}")
    rows = generator.prepare(islice(stream_rows(source, split=generator.config.split), limit))
    schedule = generator.schedule(rows, {})
    for notice in (
        *generator.notices,
        *generator.unreadable(rows),
        generator.memory().text,
        "rows go to standard output: this job cannot be resumed",
    ):
        say(notice)
    generator.load()
    errors = 0
    with Progress(schedule.at_most, 0, at_most=schedule.at_most, blocks=generator.blocks) as progress:
        for trace in generator.make(schedule):
            write(finite(trace.row()))
            errors += trace.error is not None
            progress.add(trace, at_most=schedule.at_most, blocks=generator.blocks)
    return errors


@dataclass(frozen=True, kw_only=True)
class Others:
    """The processes that share a job with this one.

    done: by key the traces that they have made, and whether each is right. total: traces of the whole job.
    files: of rows of all processes, this one included. shown: whether this process prints.
    """

    done: Mapping[Key, bool]
    total: int
    files: Sequence[Path]
    shown: bool


def run_rows(
    generator: TraceGenerator,
    rows: Rows,
    store: Store,
    manifest: dict[str, Any],
    *,
    overwrite: bool = False,
    keep: str | None = None,
    others: Others | None = None,
    watch: bool = False,
) -> Summary:
    """A job, or a share of it, with its files locked. manifest: as of `manifest_of`."""
    session = Session(manifest.pop("command"), lambda: generator.blocks.most_rows)
    out, fallback = store.out, generator.config.max_fallback_rate
    manifest["decoding"] = {} if overwrite else readable(store.decoding())
    manifest["sessions"] = [] if overwrite else store.sessions()
    spelled = generator.find().decode
    done = store.made(manifest["identity"], rows, overwrite=overwrite, max_fallback_rate=fallback, spelled=spelled)
    if odd := sum(map(len, store.found.odd)):
        say(
            f"notice: {odd} lines of {out} and its tokens are not what this job writes, and are made again: "
            f"{store.found.why}"
        )
    for notice in (*generator.notices, *generator.unreadable(rows)):
        say(notice)
    say(generator.memory().text)
    if store.found.lost:
        _check_settings(generator, rows, store, done)
    verdicts = _judged_again(generator, rows, store)
    done |= {
        key: is_right(store.found.unjudged[key] | new, max_fallback_rate=fallback) for key, new in verdicts.items()
    }
    everywhere = {**others.done, **done} if others else done
    schedule = generator.schedule(rows, everywhere)
    ids = set(map(str, rows.ids))
    found = sum(key in ids and 0 <= g < generator.config.num_generations for key, g in everywhere)
    finished = not schedule.at_most
    if finished:
        say(f"{out} is finished: it holds all {found} traces of this job")
    else:
        if everywhere:
            say(f"resuming {out}: found {len(everywhere)} finished traces, {schedule.at_most} to make at the most")
        generator.load()
    store.begin(manifest, done, overwrite=overwrite, verdicts=verdicts, session=None if finished else session)
    if overwrite:
        discard_beside(out, soft=not generator.config.top_logprobs)
    if finished:  # a job may have been killed after its last trace and before its totals
        totals = store.totals(max_fallback_rate=fallback)
        store.end(manifest | {"totals": totals} | _stamped(generator, manifest, totals, found, others))
        return Summary(totals, 0, 0, 0.0, 0.0, *shares(manifest), *write_kept(out, keep, fallback))
    progress = _progress(found, schedule.at_most, generator.blocks, others, bar=not watch)
    watching = Watching(generator.find().decode, progress.bar.line) if watch else None
    with progress, watching or nullcontext():
        for trace in generator.make(schedule, watch=watching.look if watching else None):
            store.append(trace)
            progress.add(trace, at_most=schedule.at_most, blocks=generator.blocks)
            if watching:
                watching.ended(trace)
    statistics = generator.blocks.statistics()
    statistics |= {"left_out": {"tokens": progress.tokens, "mass": progress.left_out}, "known": generator.known}
    totals = store.totals(max_fallback_rate=fallback)
    manifest |= {"totals": totals, "decoding": combined(manifest["decoding"], statistics)}
    manifest |= _stamped(generator, manifest, totals, found + progress.count - progress.errors, others)
    store.end(manifest)
    return Summary(
        totals,
        progress.count,
        progress.tokens,
        progress.seconds,
        generator.blocks.tokens_per_round,
        *shares(manifest),
        *write_kept(out, keep, fallback),
    )


def _stamped(
    generator: TraceGenerator,
    manifest: Mapping[str, Any],
    totals: Mapping[str, Any],
    traces: int,
    others: Others | None,
) -> dict[str, Any]:
    """What a manifest says of a job that is finished, by which the next start knows that (`finished`)."""
    if others is not None or totals["errors"] or totals["verify_errors"]:
        return {}
    given = manifest["settings"]
    made = stamp(generator.config, given["input"], given["limit"])
    return {"finished": {"stamp": made, "traces": traces}} if made is not None else {}


def _progress(found: int, at_most: int, blocks: BlockController, others: Others | None, *, bar: bool) -> Progress:
    if others is None:
        return Progress(found + at_most, found, at_most=at_most, blocks=blocks, shown=bar)
    there = len(others.done)
    return Progress(others.total, there, at_most=at_most, blocks=blocks, of_all=others.files, shown=others.shown)


def _judged_again(generator: TraceGenerator, rows: Rows, store: Store) -> dict[Key, dict[str, Any]]:
    """New verdicts for stored rows that have none since what judges them failed: by key the columns that change."""
    at = {str(row_id): i for i, row_id in enumerate(rows.ids)}
    todo = [(key, line) for key, line in store.found.unjudged.items() if key[0] in at]
    if not todo:
        return {}
    say(f"judging {len(todo)} rows again, which have no verdict")
    texts = ((rows[at[key[0]]], line["completion"][0]["content"]) for key, line in todo)
    verdicts = {
        key: {"is_correct": new.correct, "verify_error": new.error}
        for (key, _), new in zip(todo, generator.judge_again(texts), strict=True)
    }
    return {key: new for key, new in verdicts.items() if any(store.found.unjudged[key].get(c) != new[c] for c in new)}


def _check_settings(
    generator: TraceGenerator, rows: Rows, store: Store, done: Mapping[Key, bool], *, tries: int = 3
) -> None:
    """Whether traces whose manifest is lost are of these settings: some are made again, and must be the same.

    Raises:
        ValueError: one is not.
    """
    at = {str(row_id): i for i, row_id in enumerate(rows.ids)}
    keys = [key for key in done if key[0] in at]
    picked = {keys[i * (len(keys) - 1) // (tries - 1)] for i in range(tries)}
    for key, (row, tokens) in store.stored(picked).items():
        others = {(key[0], g): True for g in range(key[1])}
        one = in_memory([rows[at[key[0]]]])
        (trace,) = generator.make(Schedule(one, generations=key[1] + 1, want=None, done=others))
        made = trace.row()
        same = trace.token_ids.tolist() == tokens["token_ids"] and list(made) == list(row)
        if not same or (row.get("verify_error") is None and made["is_correct"] != row.get("is_correct")):
            raise ValueError(
                f"{store.manifest} is lost, and these settings make another trace of id {key[0]!r}, generation "
                f"{key[1]}, than {store.out} holds: use those that it was made with (float32 alone can tell), "
                f"another {called('output')}, or {called('overwrite', True)} to start anew"
            )
    say(f"notice: {store.manifest} was lost: {len(picked)} of its traces, made again, are the same, so the job goes on")


def discard_beside(out: str | Path, *, soft: bool) -> None:
    """Remove what is of traces that are no more: parts, the rows that were kept, beside whose tokens others will be,
    and `soft` targets, where no others take their place."""
    discard(out)
    if soft and ours.soft(soft_file(out)):
        place(soft_file(out)).unlink()
    if kept_file(out).is_file() and ours.kept(kept_file(out)):
        place(kept_file(out)).unlink()


def manifest_of(
    generator: TraceGenerator, source: Given, out: str | Path, limit: int | None, command: str | None
) -> dict[str, Any]:
    """What a job is, before it is made. command: what its session will say, if something is left to make."""
    pair = generator.find()
    teacher, student = pair.teacher, pair.student

    def place(name: str, path: str, revision: str | None) -> dict[str, Any]:
        return {"name": name, "path": str(Path(path).resolve()) if Path(path).exists() else path, "revision": revision}

    def described(model: Source) -> dict[str, Any]:
        made = place(model.base, model.path, model.revision)
        if model.adapter:
            made["adapter"] = place(model.adapter.name, model.adapter.path, model.adapter.revision)
        return made | ({"load_in": model.load_in} if model.load_in else {})

    return {
        "format": 1,
        "command": command,
        "teacher": described(teacher),
        "student": described(student),
        "widths": {"teacher": teacher.width, "student": student.width},
        "versions": {"rsd": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy")},
        "identity": generator.identity(),
        "settings": free(generator.config) | {"input": file_of(source), "output": Path(out).name, "limit": limit},
        "totals": None,
        "decoding": {},
    }

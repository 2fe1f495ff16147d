"""What the commands that make traces share: their options, and how a job is run. Heavy imports wait until it is."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from rsd.cli.help import option
from rsd.cli.options import SHARD, on_own_device, one_line_errors, quiet, share_of
from rsd.cli.reporting import begin, command_line
from rsd.config import GenerateConfig
from rsd.events import Events, logging
from rsd.outputs import Output, check_outputs, lines_only
from rsd.settings import Group, flag, free
from rsd.terminal import HEADING, echo, hush, hushed, joined, one_line, paint, say

if TYPE_CHECKING:
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.summary import Summary

Command = Callable[..., None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command is asked to do beside its configuration; as its options say."""

    output: str
    overwrite: bool
    limit: int | None
    keep: str | None
    shard: str | None
    ray: str | None
    ray_workers: int | None
    live: int | None
    watch: bool
    as_json: bool
    dry_run: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "tuple[Job, dict[str, Any]]":
        """A job of a command's values, and those that are left."""
        mine = {f.name: values[f.name] for f in fields(cls)}
        return cls(**mine), {name: value for name, value in values.items() if name not in mine}


class Ended(Protocol):
    """What a job's files hold, when it has ended."""

    @property
    def totals(self) -> Mapping[str, Any]: ...

    def text(self) -> str: ...

    def as_json(self) -> dict[str, Any]: ...


def options(*, output: str, keep: Sequence[str], kept: str) -> Callable[[Command], Command]:
    """The options of a `Job`. output: its usual file. keep: rules by which rows may be kept; kept: what for."""
    whole = click.IntRange(min=1)
    made = [
        option(
            "-o",
            "--output",
            group=Group.FILES,
            metavar="FILE",
            default=output,
            help=f"Traces, one JSON object a line; - is standard output [{output}].",
        ),
        option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT."),
        option("--limit", group=Group.MAKE, type=whole, metavar="N", help="Only the first rows of INPUT."),
        option(
            "--keep",
            group=Group.MAKE,
            type=click.Choice(keep),
            metavar="NAME",
            help=f"{kept}: {', '.join(keep)}.",
        ),
        option("--shard", group=Group.PROCESSES, metavar="I/N", help=SHARD),
        option(
            "--ray",
            group=Group.PROCESSES,
            metavar="ADDRESS",
            help="Have a Ray cluster make the rows: HOST:PORT, auto (the one here), local (a new one).",
        ),
        option(
            "--ray-workers",
            group=Group.PROCESSES,
            type=whole,
            metavar="N",
            help="For --ray [one a GPU or, without any, a CPU].",
        ),
        option(
            "--live",
            group=Group.SAID,
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help="Show the running job at http://127.0.0.1:PORT, here alone; 0 is any free port.",
        ),
        option("--watch", group=Group.SAID, is_flag=True, help="Show a row as it is written, in place of the bar."),
        option("--json", "as_json", group=Group.SAID, is_flag=True, help="Print the summary as JSON."),
        option(
            "--dry-run",
            group=Group.SAID,
            is_flag=True,
            help="Print settings, memory and the first prompt as both models read it; write nothing.",
        ),
    ]

    def add(command: Command) -> Command:
        for one in reversed(made):
            command = one(command)
        return command

    return add


def run(
    name: str,
    source: str,
    job: Job,
    events: Events,
    *,
    config: Callable[[], GenerateConfig],
    generator_of: "Callable[[], type[TraceGenerator]]",
    finish: "Callable[[Summary, str], Ended] | None" = None,
) -> NoReturn:
    """Run a job, print what has become of it, and end.

    Args:
        name: the command's. config: makes the configuration, or says what is wrong with it. generator_of: what makes
            the traces; imported when it is needed. finish: what is made of a job that has come to its end, where there
            is more to it than its own files: the rows that are kept are its affair, then.
    """
    output, overwrite = job.output, job.overwrite
    again = "run the same command again to go on"
    # The page learns of an error before it ends.
    with ExitStack() as pages, one_line_errors(output, again=again), ExitStack() as stack:
        made = config()
        share = share_of(job.shard, together=made.tensor_parallel)
        if job.ray is not None and share is not None:
            raise ValueError("--ray shares out the rows to its workers: leave --shard and the launcher out")
        if job.ray is None and job.ray_workers is not None:
            raise ValueError("--ray-workers is for --ray: name a cluster, or --ray local")
        if job.live is not None and output == "-":
            raise ValueError("--live shows what is in a job's files, and -o - leaves none: name a file")
        if job.watch:
            _check_watch(output, alone=job.ray is None and share is None)
        lines_only(output)
        from rsd.generation.finished import finished_before
        from rsd.generation.summary import kept_file
        from rsd.traces import ours
        from rsd.traces.lines import files_of
        from rsd.traces.shards import part_files
        from rsd.traces.soft import soft_file

        beside = [*files_of(output), kept_file(output), soft_file(output)]
        begun: dict[str, Any] = {"source": source, "output": output, "beside": beside, "job": beside[1], "shard": share}
        if finish is not None and output != "-":
            check_outputs([Output(kept_file(output), ours.kept)], inputs=[source], job=beside[1])
        keep = job.keep if finish is None else None
        alone = not (share or job.ray or job.keep or overwrite)
        may_be_finished = not (share or job.ray or keep or overwrite or job.dry_run)
        if may_be_finished and (known := finished_before(made, source, output, job.limit)) is not None:
            begin(events, name, made, **begun)
            ended: Ended = known if finish is None else finish(known, output)
            events.emit("end", **ended.as_json())
            _end(ended, output, as_json=job.as_json)
        quiet()
        from rsd.generation.job import run_job
        from rsd.models import tensor_parallel

        tp = made.tensor_parallel
        group = stack.enter_context(tensor_parallel.Group(tp)) if tp > 1 else None
        generator = generator_of()(on_own_device(made), group=group)
        if group is not None and not group.leads:
            hush()
            generator.follow()
            sys.exit(0)
        if job.dry_run:
            _show_first(generator, source)
            sys.exit(0)
        if output == "-":
            begin(events, name, made, source=source, output=output, shard=share)
            errors = _streamed(generator, source, job.limit, alone=alone and not job.as_json)
            events.emit("end", errors=errors)
            sys.exit(1 if errors else 0)
        page = None
        if job.live is not None and (share is None or share.main):
            from rsd.live.live import Live

            page = pages.enter_context(Live(job.live))
            say(f"live: {page.url}")
        begin(events, name, made, **begun)
        if page is not None:
            page.start(output, generator.find(), made)
            events.watcher = page.tell
        how: dict[str, Any] = {"limit": job.limit, "overwrite": overwrite, "keep": keep, "command": command_line()}
        if job.ray is not None:
            from rsd.generation.ray_job import Cluster, run_on_ray

            summary: Summary | None = run_on_ray(generator, source, output, Cluster(job.ray, job.ray_workers), **how)
        elif share is None:
            summary = run_job(generator, source, output, watch=job.watch, **how)
        else:
            from rsd.generation.share import run_share

            summary = run_share(generator, source, output, share, **how)
        whole = summary is not None and finish is not None and not part_files(output)
        told: Ended | None = finish(summary, output) if summary and finish and whole else summary
        events.emit("end", **(told.as_json() if told else {}))
    if told is None:  # another process prints
        sys.exit(0)
    _end(told, output, as_json=job.as_json)


def _check_watch(output: str, *, alone: bool) -> None:
    """Raises ValueError where no row can be watched."""
    if output == "-":
        raise ValueError("--watch shows a row beside a job that writes a file, and -o - writes none: name one")
    if not alone:
        raise ValueError("--watch shows a row of this process: leave --ray, --shard and the launcher out")
    if hushed() or logging() or sys.stderr is None or not sys.stderr.isatty():
        raise ValueError("--watch needs a terminal on standard error, and neither --quiet nor --log-json: leave it out")


def _end(ended: Ended, output: str, *, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps(ended.as_json() | {"output": output}))
    else:
        echo(joined([ended.text(), f"written to   {one_line(output)}"], "\n"))
    sys.exit(1 if ended.totals["errors"] else 0)


def _streamed(generator: "TraceGenerator", source: str, limit: int | None, *, alone: bool) -> int:
    from rsd.generation.job import stream_job

    if not alone:
        raise ValueError(
            "-o - writes rows to standard output alone: leave --shard, --ray, --keep, --overwrite and --json out"
        )

    def write(row: Mapping[str, Any]) -> None:  # in ASCII, which steers no terminal
        click.echo(json.dumps(row))

    return stream_job(generator, source, write, limit=limit)


def _show_first(generator: "TraceGenerator", source: str) -> None:
    from rsd.traces.readers import read_rows

    row = generator.prepare(read_rows(source, split=generator.config.split)[:1])[0]
    if row.error is not None:
        raise ValueError(f"the first row is bad: {row.error}")
    pair = generator.find()
    teacher, student = pair.teacher, pair.student
    prompt = pair.render(row, generator.config)
    settings = generator.identity() | free(generator.config) | {"batch_size": generator.memory().rows}
    settings |= {"teacher": teacher.name, "student": student.name}
    for name, value in settings.items():
        if name not in ("vocabularies", "suppressed") and value not in (None, "", [], {}):  # the notices say the rest
            plain = isinstance(value, str) and value.isprintable()
            echo(f"{flag(name):<22} {value if plain else json.dumps(value, ensure_ascii=False)}")
    for line in (*generator.notices, generator.memory().text):
        echo(one_line(line))
    for model, ids in ((student, prompt.student + prompt.prefix), (teacher, prompt.teacher)):
        of_row = f", {len(ids)} tokens, row {one_line(row.id)}"
        echo(joined([paint(f"--- the {model.role}'s prompt", HEADING), of_row]))
        echo(str(model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))

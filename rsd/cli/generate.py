"""`rsd generate`. Heavy imports wait until it runs."""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rsd.cli.help import Command, option
from rsd.cli.options import SHARD, flags, given, on_own_device, one_line_errors, quiet, share_of
from rsd.cli.reporting import begin, command_line, reported
from rsd.config import PAPER, GenerateConfig
from rsd.events import Events, logging
from rsd.files import lines_only
from rsd.settings import Group, flag, free
from rsd.terminal import HEADING, echo, hush, hushed, joined, one_line, paint, say
from rsd.traces.filters import KEEP

if TYPE_CHECKING:
    from rsd.generation.summary import Summary


@click.command(cls=Command, short_help="Make student-tailored traces for prompts.")
@click.argument("source", metavar="[INPUT]", required=False)
@option(
    "-o",
    "--output",
    group=Group.FILES,
    metavar="FILE",
    default="traces.jsonl",
    help="Traces, one JSON object a line; - is standard output [traces.jsonl].",
)
@option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT.")
@option(
    "--preset",
    group=Group.SAMPLING,
    type=click.Choice(["paper"]),
    metavar="paper",
    help="Sampling, acceptance and lengths of the paper's generator.",
)
@option("--limit", group=Group.MAKE, type=click.IntRange(min=1), metavar="N", help="Only the first rows of INPUT.")
@option(
    "--keep",
    group=Group.MAKE,
    type=click.Choice(KEEP),
    metavar="NAME",
    help=f"Write what is kept to a file, too: {', '.join(KEEP)}.",
)
@option("--shard", group=Group.PROCESSES, metavar="I/N", help=SHARD)
@option(
    "--ray",
    group=Group.PROCESSES,
    metavar="ADDRESS",
    help="Have a Ray cluster make the rows: HOST:PORT, auto (the one here), local (a new one).",
)
@option(
    "--ray-workers",
    group=Group.PROCESSES,
    type=click.IntRange(min=1),
    metavar="N",
    help="For --ray [one a GPU or, without any, a CPU].",
)
@option(
    "--live",
    group=Group.SAID,
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Show the running job at http://127.0.0.1:PORT, here alone; 0 is any free port.",
)
@option("--watch", group=Group.SAID, is_flag=True, help="Show a row as it is written, in place of the bar.")
@option("--json", "as_json", group=Group.SAID, is_flag=True, help="Print the summary as JSON.")
@option(
    "--dry-run",
    group=Group.SAID,
    is_flag=True,
    help="Print settings, memory and the first prompt as both models read it; write nothing.",
)
@flags(GenerateConfig)
@reported
def generate(
    source: str | None,
    output: str,
    limit: int | None,
    preset: str | None,
    keep: str | None,
    overwrite: bool,
    shard: str | None,
    ray: str | None,
    ray_workers: int | None,
    live: int | None,
    watch: bool,
    as_json: bool,
    dry_run: bool,
    events: Events,
    **values: Any,
) -> None:
    """Make student-tailored traces for the prompts in INPUT; by default for the bundled problems.

    INPUT is JSONL, a JSON array, CSV or parquet (.gz and .zst, too), - for standard input, or a data set.

    The teacher proposes every token; one stands if the student gives it at least --threshold, else the
    student's own token is taken. --threshold 0 gives the teacher's raw traces, --threshold 1 the student's.
    A killed job resumes when the same command is run again.

    \b
    Examples:
      rsd generate
      rsd generate problems.jsonl -o raw.jsonl --threshold 0
      rsd generate problems.jsonl --preset paper \\
          --teacher simplescaling/s1.1-7B --student Qwen/Qwen3-0.6B
    """
    again = "run the same command again to go on"
    # The page learns of an error before it ends.
    with ExitStack() as pages, one_line_errors(output, again=again), ExitStack() as stack:
        if keep == "best-ln":
            values["score"] = True
        config = GenerateConfig(**(PAPER if preset == "paper" else {}) | given(values))
        share = share_of(shard, together=config.tensor_parallel)
        if ray is not None and share is not None:
            raise ValueError("--ray shares out the rows to its workers: leave --shard and the launcher out")
        if ray is None and ray_workers is not None:
            raise ValueError("--ray-workers is for --ray: name a cluster, or --ray local")
        if live is not None and output == "-":
            raise ValueError("--live shows what is in a job's files, and -o - leaves none: name a file")
        if watch:
            _check_watch(output, alone=ray is None and share is None)
        lines_only(output)
        from rsd.generation.finished import finished_before
        from rsd.generation.summary import kept_file
        from rsd.models.bundled import bundled
        from rsd.traces.lines import files_of
        from rsd.traces.soft import soft_file

        source = str(bundled("problems.jsonl")) if source is None else source
        beside = [*files_of(output), kept_file(output), soft_file(output)]
        begun: dict[str, Any] = {"source": source, "output": output, "beside": beside, "job": beside[1], "shard": share}
        alone = not (share or ray or keep or overwrite)
        if alone and not dry_run and (known := finished_before(config, source, output, limit)) is not None:
            begin(events, "generate", config, **begun)
            events.emit("end", **known.as_json())
            _end(known, output, as_json=as_json)
        quiet()
        from rsd.generation.generator import TraceGenerator
        from rsd.generation.job import run_job
        from rsd.models.tensor_parallel import Group

        group = stack.enter_context(Group(config.tensor_parallel)) if config.tensor_parallel > 1 else None
        generator = TraceGenerator(on_own_device(config), group=group)
        if group is not None and not group.leads:
            hush()
            generator.follow()
            return
        if dry_run:
            _show_first(generator, source)
            return
        if output == "-":
            begin(events, "generate", config, source=source, output=output, shard=share)
            errors = _streamed(generator, source, limit, alone=alone and not as_json)
            events.emit("end", errors=errors)
            sys.exit(1 if errors else 0)
        page = None
        if live is not None and (share is None or share.main):
            from rsd.live.live import Live

            page = pages.enter_context(Live(live))
            say(f"live: {page.url}")
        begin(events, "generate", config, **begun)
        if page is not None:
            page.start(output, generator.find(), config)
            events.watcher = page.tell
        how: dict[str, Any] = {"limit": limit, "overwrite": overwrite, "keep": keep, "command": command_line()}
        if ray is not None:
            from rsd.generation.ray_job import Cluster, run_on_ray

            summary: Summary | None = run_on_ray(generator, source, output, Cluster(ray, ray_workers), **how)
        elif share is None:
            summary = run_job(generator, source, output, watch=watch, **how)
        else:
            from rsd.generation.share import run_share

            summary = run_share(generator, source, output, share, **how)
        events.emit("end", **(summary.as_json() if summary else {}))
    if summary is not None:  # or another process prints
        _end(summary, output, as_json=as_json)


def _check_watch(output: str, *, alone: bool) -> None:
    """Raises ValueError where no row can be watched."""
    if output == "-":
        raise ValueError("--watch shows a row beside a job that writes a file, and -o - writes none: name one")
    if not alone:
        raise ValueError("--watch shows a row of this process: leave --ray, --shard and the launcher out")
    if hushed() or logging() or sys.stderr is None or not sys.stderr.isatty():
        raise ValueError("--watch needs a terminal on standard error, and neither --quiet nor --log-json: leave it out")


def _end(summary: "Summary", output: str, *, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps(summary.as_json() | {"output": output}))
    else:
        echo(joined([summary.text(), f"written to   {one_line(output)}"], "\n"))
    sys.exit(1 if summary.totals["errors"] else 0)


def _streamed(generator: Any, source: str, limit: int | None, *, alone: bool) -> int:
    from rsd.generation.job import stream_job

    if not alone:
        raise ValueError(
            "-o - writes rows to standard output alone: leave --shard, --ray, --keep, --overwrite and --json out"
        )

    def write(row: Mapping[str, Any]) -> None:  # in ASCII, which steers no terminal
        click.echo(json.dumps(row))

    return stream_job(generator, source, write, limit=limit)


def _show_first(generator: Any, source: str) -> None:
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
        echo(model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

"""Flags by which a command tells programs how it fares (`rsd.events`), and the command line as manifests have it."""

import functools
import math
import os
import re
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rsd.cli.help import option
from rsd.events import Events, reporting
from rsd.outputs import Output, check_outputs, lines_only
from rsd.settings import Group
from rsd.traces.shards import Shard
from rsd.version import __version__

Command = Callable[..., None]
COMMAND = "rsd.command"  # where a context has what stands behind `rsd`


def command_line() -> str:
    """The command that runs, as a shell reads it; without passwords of addresses."""
    line = shlex.join(["rsd", *click.get_current_context().meta[COMMAND]])
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", line).encode("utf-8", "backslashreplace").decode()


def reported(command: Command) -> Command:
    """The flags, and for the command an `events` in place of them."""

    @functools.wraps(command)
    def run(*args: Any, log_json: bool, metrics_file: str | None, **values: Any) -> None:
        with reporting(log=log_json, file=metrics_file) as events:
            command(*args, events=events, **values)

    made: Command = run
    said: dict[str, Any] = {"group": Group.SAID}
    made = option("--metrics-file", metavar="FILE", help="Append progress to FILE, one JSON object a line.", **said)(
        made
    )
    return option("--log-json", is_flag=True, help="Notices and progress as JSON, one object a line.", **said)(made)


def begin(
    events: Events,
    command: str,
    config: Any,
    *,
    source: str,
    output: str,
    beside: Sequence[str | Path] = (),
    job: Path | None = None,
    shard: Shard | None,
) -> None:
    """The event of a command's start.

    Args:
        beside: what else the command may write. job: the manifest of its job, if it has one.

    Raises:
        ValueError: the file for events is not ours to append to.
    """
    if shard is not None:
        events.also["shard"] = str(shard)
    if events.file is not None:
        from rsd.traces import ours

        lines_only(events.file)
        file = Path(events.file) if shard is None else shard.part(events.file)
        others = [*beside] if output == "-" else [output, *beside]
        check_outputs([*map(Output, others), Output(file, ours.events)], inputs=[source], job=job)
        events.open(file)
    values = {k: "inf" if v == math.inf else v for k, v in asdict(config).items()}
    where = {"host": socket.gethostname(), "pid": os.getpid(), "input": source, "output": output}
    events.emit("start", rsd=__version__, command=command, **where, settings=values)

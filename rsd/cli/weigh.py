"""`rsd weigh`. Heavy imports wait until it runs."""

import sys
from typing import Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import flags, given, one_line_errors, quiet
from rsd.cli.reporting import begin, reported
from rsd.events import Events
from rsd.outputs import Output, check_outputs, lines_only
from rsd.settings import Group
from rsd.terminal import echo, joined, one_line
from rsd.weighing.config import WeighConfig


@click.command(cls=Command, short_help="Weigh how hard each step of traces is to be learned.")
@click.argument("source", metavar="FILE")
@option("-o", "--output", group=Group.FILES, metavar="FILE", help="The rows with weights [FILE.weighed.jsonl].")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT.")
@flags(WeighConfig)
@reported
def weigh(source: str, output: str | None, overwrite: bool, events: Events, **values: Any) -> None:
    """Give every step and token of the traces in FILE a weight from 0 to 1.

    The student makes its own next step after each step's prefix; what matters is how much more valid the teacher's
    is: 0.5 where both are as valid, more where the student's move is worse. --validity likelihood asks the teacher for
    its mean log-prob of both, rollout how often continuations come to the right answer, and token compares both
    models' log-probs of the trace's tokens. The formulas are rsd's own, after the idea of arXiv 2605.04078.

    FILE holds traces in a format of `rsd score`. A killed run goes on when the same command is run again.

    \b
    Examples:
      rsd weigh traces.jsonl
      rsd weigh s1K-1.1.jsonl --teacher simplescaling/s1.1-7B --student Qwen/Qwen3-0.6B \\
          --prompt-column question --response-column deepseek_attempt
    """
    if output is None:
        output = f"{source.removesuffix('.jsonl')}.weighed.jsonl"
    with one_line_errors(output, again="run the same command again to go on"):
        from rsd.traces import ours

        config = WeighConfig(**given(values))
        lines_only(output)
        check_outputs([Output(output, ours.weighed if overwrite else None)], inputs=[source])
        begin(events, "weigh", config, source=source, output=output, shard=None)
        quiet()
        from rsd.weighing.job import weigh_file, weigher_for

        summary = weigh_file(*weigher_for(source, config, strict=True), output, overwrite=overwrite)
        events.emit("end", rows=summary.rows, errors=summary.errors)
    echo(joined([summary.text(), f"written to   {one_line(output)}"], "\n"))
    sys.exit(1 if summary.errors else 0)

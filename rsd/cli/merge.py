"""`rsd merge`. Heavy imports wait until it runs."""

import click

from rsd.cli.help import Command
from rsd.cli.options import one_line_errors
from rsd.terminal import echo, one_line


@click.command(cls=Command, short_help="Join the parts of a job that several processes made.")
@click.argument("out", metavar="OUT")
def merge(out: str) -> None:
    """Join the parts that several processes made of a job at OUT, and remove them.

    The end of a complete run does so by itself; this is for parts that were gathered from machines without a common
    folder, and for what there is of a run that will not be ended.

    \b
    Examples:
      rsd merge traces.jsonl
    """
    with one_line_errors(out):
        from rsd.generation.merge import merge as merge_parts

        merged = merge_parts(out)
    totals = merged["totals"]
    shares = ", ".join(process["shard"] for process in merged["processes"])
    echo(f"merged       {totals['rows']} rows, {totals['errors']} of them with an error (shares {shares})")
    echo(f"written to   {one_line(out)}")

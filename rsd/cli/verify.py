"""`rsd verify`. Heavy imports wait until it runs."""

import sys
from typing import Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import flags, given, one_line_errors
from rsd.reading import Reading
from rsd.settings import Group
from rsd.terminal import echo, one_line


@click.command(cls=Command, short_help="Find out which traces have a right answer.")
@click.argument("source", metavar="FILE")
@option("-o", "--output", group=Group.FILES, metavar="FILE", help="The rows with verdicts [FILE.verified.jsonl].")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT.")
@flags(Reading)
def verify(source: str, output: str | None, overwrite: bool, **values: Any) -> None:
    """Find out whether the answers of the traces in FILE are right.

    FILE holds traces in a format of `rsd score`, beside the right answers. Every row gets is_correct, verify_error and
    verified_by, whatever verdict it had before. A killed run goes on when the same command is run again.

    \b
    Examples:
      rsd verify s1K-1.1.jsonl --prompt-column question --response-column deepseek_attempt --answer-column solution
      rsd verify traces.jsonl --verify mymodule:judge
    """
    if output is None:
        output = f"{source.removesuffix('.jsonl')}.verified.jsonl"
    with one_line_errors(output, again="run the same command again to go on"):
        from rsd.api import verify as verify_traces

        summary = verify_traces(source, output, overwrite=overwrite, config=Reading(**given(values)))
    echo(f"{summary.text()}\nwritten to   {one_line(output)}")
    sys.exit(1 if summary.errors else 0)

"""`rsd show`. Heavy imports wait until it runs."""

import os
import sys
from typing import Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import flags, given, one_line_errors
from rsd.reading import Columns
from rsd.settings import Group
from rsd.terminal import coloured, echo

USUAL = 80  # columns of a terminal that does not know how many it has


@click.command(cls=Command, short_help="Show one trace, and what the student makes of its tokens.")
@click.argument("source", metavar="FILE")
@click.argument("name", metavar="[ID]", required=False)
@option(
    "--generation",
    group=Group.MAKE,
    type=click.IntRange(min=0),
    metavar="N",
    help="Which trace of the problem [the first in FILE].",
)
@option("--raw", group=Group.FILES, metavar="OTHER", help="A file with a trace of the same problem, shown beside it.")
@flags(Columns)
def show(source: str, name: str | None, generation: int | None, raw: str | None, **values: Any) -> None:
    """Show one trace of FILE in the terminal: the one of ID, or the first.

    FILE holds traces in a format of `rsd score`. Of those of `rsd generate` each token is coloured by its student
    probability, and where the student's own token stands (underlined) what the teacher would have said is beside it.
    Without colours (in a pipe, with NO_COLOR) there are marks, which are explained below the trace.

    With --raw, the column flags are for OTHER, and for a FILE in no known format.

    \b
    Examples:
      rsd show traces.jsonl
      rsd show traces.jsonl savings-001 --raw raw.jsonl
      rsd show traces.jsonl --raw s1K-1.1.jsonl --prompt-column question --response-column deepseek_attempt
    """
    with one_line_errors():
        from rsd.analysis.show import read_shown, screenful

        config = Columns(**given(values))
        shown = read_shown(source, config, name=name, generation=generation, named=raw is None)
        one = shown.response
        other = read_shown(raw, config, name=one.id, prompt=one.prompt) if raw is not None else None
        terminal = sys.stdout is not None and sys.stdout.isatty()
        columns = os.get_terminal_size(sys.stdout.fileno()).columns or USUAL if terminal else None
        echo(screenful(shown, other, colours=sys.stdout is not None and coloured(sys.stdout), columns=columns))

"""The command line. A command's heavy imports wait until it runs."""

import os
from typing import Any

import click

from rsd.cli.export import export
from rsd.cli.generate import generate
from rsd.cli.merge import merge
from rsd.cli.scores import compare, score, select
from rsd.cli.verify import verify
from rsd.settings import as_flags
from rsd.terminal import guarded, shortened
from rsd.version import __version__


class Commands(click.Group):
    """The commands; whatever they print, and click of them, is harmless."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if "_RSD_COMPLETE" in os.environ:  # a shell asks, in bytes
            return super().main(*args, **kwargs)
        with guarded(), as_flags():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as e:
            raise click.UsageError(shortened(e.format_message()), e.ctx) from e


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rsd")
def main() -> None:
    """Reasoning traces tailored to a small model, by reverse speculative decoding (arXiv 2509.22230)."""


for command in (generate, merge, verify, score, compare, select, export):
    main.add_command(command)

"""The command line. A command's heavy imports wait until it runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from rsd.cli.doctor import doctor
from rsd.cli.export import export
from rsd.cli.generate import generate
from rsd.cli.help import CONTEXT, headed
from rsd.cli.merge import merge
from rsd.cli.reporting import COMMAND
from rsd.cli.scores import compare, score, select
from rsd.cli.show import show
from rsd.cli.tailor import tailor
from rsd.cli.verify import verify
from rsd.cli.weigh import weigh
from rsd.settings import as_flags
from rsd.terminal import echo, guarded, marked, shortened
from rsd.version import __version__


class Misuse(click.UsageError):
    """What is wrong with a command line, in a line that may be in colour."""

    def show(self, file: Any = None) -> None:
        if self.ctx is not None:
            echo(f"{self.ctx.get_usage()}\nTry '{self.ctx.command_path} --help' for help.\n", err=True)
        echo(marked(f"Error: {self.format_message()}"), err=True)


@contextmanager
def misused() -> Iterator[None]:
    """Usage errors as `Misuse`."""
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as e:
        raise Misuse(shortened(e.format_message()), e.ctx) from e


class Commands(click.Group):
    """The commands; whatever they print, and click of them, is harmless."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if "_RSD_COMPLETE" in os.environ:  # a shell asks, in bytes
            return super().main(*args, **kwargs)
        with guarded(), as_flags():
            return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def get_help(self, ctx: click.Context) -> str:
        return headed(super().get_help(ctx))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[COMMAND] = list(args)
        with misused():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with misused():
            return super().invoke(ctx)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="rsd")
def main() -> None:
    """Reasoning traces tailored to a small model, by reverse speculative decoding (arXiv 2509.22230)."""


for command in (doctor, generate, tailor, verify, score, compare, show, select, weigh, export, merge):
    main.add_command(command)

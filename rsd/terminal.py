"""The one place through which everything printed goes."""

import unicodedata

import click


def echo(text: str, *, err: bool = False) -> None:
    """Print text that may hold what stood in a file: nothing in it steers the terminal."""

    def harmless(c: str) -> bool:
        return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"  # blanks that Python does not print

    click.echo("".join(c if harmless(c) else "\ufffd" for c in text), err=err)


def say(line: str) -> None:
    """A line for the user beside what a command prints."""
    echo(line, err=True)

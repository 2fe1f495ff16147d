"""--help: a command's flags in sections, as each flag says where it stands."""

import functools
import re
from collections import defaultdict
from typing import Any

import click

from rsd.settings import Group
from rsd.terminal import HEADING, joined, paint

COLUMN = 30  # characters of a flag with its value; a longer one has a line of its own
LIST = 70  # characters of a flag's values; a longer list of them is told by the command's own text
INDENT = 6  # where a terminal is so narrow that every flag has one
# color: what is printed decides on colours itself (`rsd.terminal`).
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120, "color": True}


def headed(text: str) -> str:
    """The text of a --help with its headings in bold."""
    lines = []
    for line in text.splitlines():
        heading = re.match(r"Usage:|[A-Z][\w ]*:$", line)
        lines.append(joined([paint(heading[0], HEADING), line[heading.end() :]]) if heading else line)
    return joined(lines, "\n")


class Option(click.Option):
    """A flag of a section. Its help says by itself what it is if it is not given."""

    def __init__(self, *args: Any, group: Group, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> Any:
        return {}


option = functools.partial(click.option, cls=Option)


class Command(click.Command):
    """A command whose --help has sections."""

    def get_help(self, ctx: click.Context) -> str:
        return headed(super().get_help(ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[Group, list[tuple[str, str]]] = defaultdict(list)
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections[param.group if isinstance(param, Option) else Group.SAID].append(record)
        widest = max(len(name) for lines in sections.values() for name, _ in lines)
        width = min(widest, COLUMN if formatter.width > 2 * COLUMN else INDENT)
        for group in Group:
            if sections[group]:
                with formatter.section(group):
                    formatter.write_dl([(name.ljust(width), text) for name, text in sections[group]], col_max=width)

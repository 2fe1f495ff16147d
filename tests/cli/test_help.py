"""--help: sections that hold every flag once, whole, on terminals of any width."""

import re

import click
import pytest
from click.testing import CliRunner

from rsd.cli import main
from rsd.settings import Group

COMMANDS = sorted(main.commands)
FLAG = re.compile(r"^  (-\w, )?(--[\w-]+)", re.M)


def told(*args: str, columns: int) -> str:
    """As on a terminal of so many columns, of which click leaves two free."""
    result = CliRunner().invoke(main, [*args, "--help"], terminal_width=columns - 2)
    assert result.exit_code == 0
    return result.output


def sections(text: str) -> dict[str, str]:
    """What stands below each heading."""
    parts = re.split(r"^(\w[^\n]*):\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_in_one_section_in_one_whole_line(command):
    text = told(command, columns=120)
    found = sections(text)
    assert list(found) == [group for group in Group if group in found] and Group.SAID in found
    named = [name for body in found.values() for _, name in FLAG.findall(body)]
    flags = [p for p in main.commands[command].params if isinstance(p, click.Option)]
    assert sorted(named) == sorted(["--help", *(p.opts[-1] for p in flags)])
    for body in found.values():
        for line in body.splitlines():
            assert not line or (FLAG.match(line) and re.search(r"  \S.*\.$", line)), line


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_narrow_terminal_cuts_nothing(command, columns):
    wide, narrow = ("".join(told(command, columns=n).split()) for n in (120, columns))
    assert wide == narrow
    for body in sections(told(command, columns=columns)).values():
        assert all(len(line) <= columns for line in body.splitlines())
        assert max(map(len, re.split(r"\n  (?=-)", body)), default=0) < 4 * columns  # none is long


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_every_command_is_said_whole_in_the_order_of_use(columns):
    body = sections(told(columns=columns))["Commands"]
    assert re.findall(r"^  (\w+)", body, re.M) == list(main.commands)
    assert list(main.commands)[:2] == ["doctor", "generate"] and "..." not in body
    if columns >= 80:
        assert all(line.endswith(".") for line in body.splitlines())


def test_what_stands_together_belongs_together():
    found = sections(told("generate", columns=120))
    for group, names in {
        Group.MODELS: "teacher student",
        Group.ACCEPTANCE: "threshold trials",
        Group.SAMPLING: "temperature top-p seed",
        Group.MAKE: "num-generations until-correct limit",
        Group.FILES: "output overwrite",
        Group.SPEED: "batch-size compile device",
    }.items():
        assert {f"--{name}" for name in names.split()} <= {name for _, name in FLAG.findall(found[group])}

"""Traces to export, for the tests of exports and their cards."""

import shutil

import pytest
from click.testing import CliRunner
from conftest import write
from jobs import run

from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

FORMATS = ["prompt-completion", "messages", "sharegpt", "alpaca", "token-ids"]


def export(*args, expect=0):
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    assert result.exit_code == expect, result.output + str(result.exception)
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Traces of bundled problems, three of each, and some rows in which something is the matter."""
    folder = tmp_path_factory.mktemp("made")
    problems = [
        *read_rows(bundled("problems.jsonl"))[:20],
        {"id": "never", "problem": "Mia has 3 pens. Tom gives 4 to Mia. How many pens does Mia have?", "answer": "-1"},
        {"id": "open", "problem": "Mia has 5 pens. Tom gives 4 to Mia. How many pens does Mia have?"},
        {"id": "bad", "problem": ""},
    ]
    source = write(folder / "in.jsonl", problems)
    run(source, "-o", folder / "traces.jsonl", "--num-generations", 3, expect=1)
    return folder


@pytest.fixture
def traces(made, tmp_path):
    for file in made.glob("traces*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "traces.jsonl"

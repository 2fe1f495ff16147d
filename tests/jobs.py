"""Jobs for the tests: the command in this process, and the files that it leaves."""

import json
from pathlib import Path

from click.testing import CliRunner
from conftest import read

from rsd.cli import main

FLAGS = ["--max-new-tokens", "30", "--temperature", "1", "--top-k", "0", "--top-p", "1"]
PROBLEMS = [{"id": f"p{i}", "problem": f"{i} plus {i}?", "answer": str(2 * i), "level": i} for i in range(10)]
# Traces of one problem, for what is scored and compared.
NATURAL = ["<think>\n6+5=11. 11*3=33.\n</think>\n\n\\boxed{33}", "<think>\n15+2=17. 17*2=34.\n</think>\n\n\\boxed{34}"]
WORDY = "<think>\nOkay, let me think. To start: 6 plus 5 is 11.\nThen: 11 times 3 is 33.\n</think>\n\nSo \\boxed{33}."


def command(*args, expect=0):
    """Any command."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == expect, result.output + str(result.exception)
    return result


def run(*args, expect=0):
    result = CliRunner().invoke(main, ["generate", *map(str, args)])
    assert result.exit_code == expect, result.output + str(result.exception)
    return result


def pair(tiny, kind="qwen3"):
    return ["--teacher", tiny(kind)["teacher"], "--student", tiny(kind)["student"]]


def files(out: Path) -> tuple[list[dict], list[dict], dict]:
    base = str(out).removesuffix(".jsonl")
    return read(out), read(Path(f"{base}.tokens.jsonl")), json.loads(Path(f"{base}.meta.json").read_text())


def by_key(rows):
    return {(r["id"], r["generation"]): r for r in rows}


def row(i, text, **columns):
    return {"id": f"p{i}", "prompt": f"Ana has {i} pens and finds 5 more. How many?", "completion": text} | columns


def same_rows(made: list[dict], want: list[dict]) -> bool:
    """Whether rows are the same, whatever their order; a mean of what depends on a batch's last digits nearly so."""
    mine, theirs = by_key(made), by_key(want)
    near = all(
        abs((row.get("acceptance_rate") or 0) - (theirs.get(key, {}).get("acceptance_rate") or 0)) < 1e-4
        for key, row in mine.items()
    )
    rest = [{k: {**row, "acceptance_rate": None} for k, row in side.items()} for side in (mine, theirs)]
    return len(made) == len(want) and near and rest[0] == rest[1]

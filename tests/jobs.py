"""Jobs for the tests: the command in this process, and the files that it leaves."""

import json
from pathlib import Path

from click.testing import CliRunner
from conftest import read

from rsd.cli import main

FLAGS = ["--max-new-tokens", "30", "--temperature", "1", "--top-k", "0", "--top-p", "1"]
PROBLEMS = [{"id": f"p{i}", "problem": f"{i} plus {i}?", "answer": str(2 * i), "level": i} for i in range(10)]


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

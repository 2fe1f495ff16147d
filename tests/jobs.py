"""Jobs for the tests: the command in this process, and the files that it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from conftest import environment, read

from rsd.cli import main
from rsd.traces.lines import Key
from rsd.traces.soft import SoftFile, SoftTargets, soft_file

FLAGS = ["--max-new-tokens", "30", "--temperature", "1", "--top-k", "0", "--top-p", "1"]
PROBLEMS = [{"id": f"p{i}", "problem": f"{i} plus {i}?", "answer": str(2 * i), "level": i} for i in range(10)]
# Traces of one problem, for what is scored and compared.
NATURAL = ["<think>\n6+5=11. 11*3=33.\n</think>\n\n\\boxed{33}", "<think>\n15+2=17. 17*2=34.\n</think>\n\n\\boxed{34}"]
WORDY = "<think>\nOkay, let me think. To start: 6 plus 5 is 11.\nThen: 11 times 3 is 33.\n</think>\n\nSo \\boxed{33}."


def stopped_while_writing(file: Path, sent: int) -> None:
    """Have a process begin another file in the place of one, and end it with a signal before it is whole."""
    code = """
import sys
from rsd.files import write_rows

def rows():
    for i in range(10**6):
        yield {"new": "x" * 1000}
        if i == 1000:
            print("begun", flush=True)

write_rows(rows(), sys.argv[1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, file],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(sent)
    assert process.wait() != 0


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


def soft_of(out: Path) -> dict[Key, SoftTargets | None]:
    """The soft targets that are beside a job's file; nothing may be torn there, or there twice."""
    if not soft_file(out).exists():
        return {}
    file = SoftFile(soft_file(out))
    assert file.holds_only(file.keys())
    return {key: file.get(key) for key in [*file.keys()]}


def assert_same_soft(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for key, soft in mine.items():
        for one, other in zip(soft, theirs[key], strict=True):
            if one.dtype == np.int32:
                assert (one == other).mean() > 0.99  # two that are equally likely may change places
            else:
                np.testing.assert_allclose(one, other, atol=0.02)  # of sixteen bits


def assert_same(folder: Path, alone: Path) -> dict:
    """Files of a job t.jsonl that several processes made are what one left, but for the order; returns the manifest."""
    (rows, tokens, manifest), (want, wanted, one) = files(folder / "t.jsonl"), files(alone / "t.jsonl")
    assert same_rows(rows, want) and len(tokens) == len(wanted)  # nothing twice
    for key, line in by_key(tokens).items():
        theirs = by_key(wanted)[key]
        assert list(line) == list(theirs)
        for column in ("token_ids", "from_teacher", "teacher_proposals", "prompt_ids"):
            assert line[column] == theirs[column]
        for column in ("student_logprobs", "teacher_logprobs"):
            mine, other = (np.array(v[column], dtype=float) for v in (line, theirs))
            np.testing.assert_allclose(mine, other, atol=1e-4)
    mine, theirs = (soft_of(place / "t.jsonl") for place in (folder, alone))
    assert_same_soft(mine, theirs)
    assert manifest["identity"] == one["identity"]
    for name in ("rows", "tokens", "correct", "errors", "solved"):
        assert manifest["totals"][name] == one["totals"][name]
    beside = {"in.jsonl", "t.jsonl", "t.tokens.jsonl", "t.meta.json", "t.logprobs.arrow"}
    assert not {f.name for f in folder.iterdir()} - beside  # no parts, and nothing half written
    return manifest

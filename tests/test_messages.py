"""A message calls a setting by its field in Python, and by its flag in a command."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import write

import rsd
from rsd import DoctorConfig, ExportConfig, GenerateConfig, ScoreConfig, TailorConfig
from rsd.cli import main

ROOT = Path(rsd.__file__).parent
CONFIGS = (GenerateConfig, ScoreConfig, ExportConfig, DoctorConfig, TailorConfig)
# Flags of other programs, and what a way to find out q is called.
THEIRS, MODE = ("--max-logprobs", "--logprobs-mode", "--nproc-per-node", "--head", "--h"), "complete top-k"


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module that are printed: neither docstrings nor the help of flags."""
    for node in ast.iter_child_nodes(tree):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        help_of = called in ("setting", "as_in")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif not (help_of or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))):
            yield from texts(node)


def test_no_message_is_written_for_one_of_both_alone():
    dashed = {f.name.replace("_", "-") for config in CONFIGS for f in fields(config) if "_" in f.name}
    wrong = re.compile(rf"(?<![\w-])(--[a-z][a-z-]*|{'|'.join(dashed)})(?![\w-])")
    found = []
    for file in ROOT.rglob("*.py"):
        if "cli" not in file.relative_to(ROOT).parts:
            told = " ".join(texts(ast.parse(file.read_text(encoding="utf-8")))).replace(MODE, "")
            found += [(file.name, name) for name in wrong.findall(told) if name not in THEIRS]
    assert not found


PLAIN = [{"prompt": "a", "completion": "b"}]
# What is wrong, in a command and from Python, and what both say of it.
WRONG = {
    "no prompt": (
        ["generate", "text.jsonl"],
        lambda: rsd.generate("text.jsonl"),
        "found text; name yours with {}",
        ("--prompt-column", "prompt_column"),
    ),
    "no answers": (
        ["verify", "plain.jsonl"],
        lambda: rsd.verify(PLAIN),
        "name yours with {}, or use {}",
        ("--answer-column", "answer_column"),
        ("--verify none", 'verify="none"'),
    ),
    "a threshold": (
        ["score", "plain.jsonl", "--threshold", "2"],
        lambda: rsd.score(PLAIN, threshold=2),
        "{} must be from 0 to 1, not 2",
        ("--threshold", "threshold"),
    ),
    "a student": (
        ["generate", "plain.jsonl", "--student", "nobody"],
        lambda: rsd.generate(PLAIN, student="nobody"),
        "{} nobody: no such directory",
        ("--student", "student"),
    ),
    "an output": (
        ["select", "plain.jsonl", "text.jsonl", "-o", "there.jsonl"],
        lambda: rsd.select(["plain.jsonl", "text.jsonl"], "there.jsonl"),
        "there.jsonl exists: name another output, or {} to replace it",
        ("--overwrite", "overwrite=True"),
    ),
    "a want": (
        ["generate", "--want", "3", "--num-generations", "2"],
        lambda: rsd.generate(want=3, num_generations=2),
        "{} 3 is more than {} 2",
        ("--want", "want"),
        ("--num-generations", "num_generations"),
    ),
    "an export": (
        ["export", "ours.jsonl"],
        lambda: rsd.export("ours.jsonl"),
        "nothing is left to export (1 not verified); {} keeps",
        ("--keep all", 'keep="all"'),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_command_says_flags_and_python_says_fields(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.jsonl", [{"text": "a"}])
    write(tmp_path / "plain.jsonl", PLAIN)
    write(tmp_path / "there.jsonl", [{"selected_by": "ln"}])
    turns = [[{"role": role, "content": "a"}] for role in ("user", "assistant")]
    write(tmp_path / "ours.jsonl", [{"prompt": turns[0], "completion": turns[1], "id": 1, "generation": 0}])
    command, python, message, *names = WRONG[wrong]
    said = CliRunner().invoke(main, command)
    assert said.exit_code == 2 and message.format(*(flag for flag, _ in names)) in said.output
    with pytest.raises(ValueError, match=re.escape(message.format(*(field for _, field in names)))):
        python()

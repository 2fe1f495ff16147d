"""A message calls a setting by its field in Python, and by its flag in a command."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import rsd
from rsd import GenerateConfig, ScoreConfig
from rsd.dataset.config import ExportConfig

ROOT = Path(rsd.__file__).parent
CONFIGS = (GenerateConfig, ScoreConfig, ExportConfig)
# Flags of other programs.
THEIRS = ("--max-logprobs", "--nproc-per-node", "--head")


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module that are printed: neither docstrings nor the help of flags."""
    for node in ast.iter_child_nodes(tree):
        help_of = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setting"
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
            told = " ".join(texts(ast.parse(file.read_text(encoding="utf-8"))))
            found += [(file.name, name) for name in wrong.findall(told) if name not in THEIRS]
    assert not found

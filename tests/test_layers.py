"""The one rule of the house: a package imports only from packages of a lower rank, and equals never each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import rsd

ROOT = Path(rsd.__file__).parent
# Modules that lie in no package are below all; the package's face, which shows people what they use, is above all.
LAYERS = (
    (
        "acceptance",
        "bar",
        "config",
        "events",
        "files",
        "outputs",
        "placing",
        "reading",
        "settings",
        "strictjson",
        "terminal",
        "version",
    ),
    ("traces",),
    ("models", "answers"),
    ("pair", "scoring", "serving"),
    ("decoding", "analysis", "dataset", "live"),
    ("generation", "weighing"),
    ("tailoring", "examining"),
    ("api",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports: at once, late, or for types alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "rsd":
            yield from (f"rsd.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: name the package in an import"
            yield str(node.module)


def test_imports_run_downwards():
    up = []
    for file in sorted(ROOT.rglob("*.py")):
        here = file.relative_to(ROOT).with_suffix("").parts
        for module in imports(file):
            there = module.split(".")[1:] or ["__init__"]
            if module.split(".")[0] != "rsd" or (len(here) > 1 and there[0] == here[0]):
                continue
            equal = len(here) == len(there) == 1 and RANK[here[0]] == RANK[there[0]] == 0
            if RANK[there[0]] >= RANK[here[0]] and not equal:
                up.append(f"{'.'.join(here)} -> {'.'.join(there)}")
    assert not up, f"these imports run upwards or sideways: {', '.join(up)}"


def test_no_module_imports_itself_by_way_of_others():
    names = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = file
    arrows = {}
    for name, file in names.items():
        found = set()
        for module in imports(file):
            if module in names:
                found.add(module)
        arrows[name] = {m for m in found if m != "rsd"} - {name}
    seen: dict[str, int] = {}  # 1 while it is looked at, 2 when all that it imports was

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert seen.get(name) != 1, f"a circle of imports: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in seen:
            seen[name] = 1
            for other in sorted(arrows[name]):
                visit(other, (*way, name))
            seen[name] = 2

    for name in sorted(names):
        visit(name, ())

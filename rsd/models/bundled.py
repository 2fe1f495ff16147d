"""Where the bundled pair and its data lie."""

from pathlib import Path

from rsd.config import BUNDLED_LLAMA, BUNDLED_STUDENT, BUNDLED_TEACHER


def bundled(name: str) -> Path:
    """A bundled file or folder: beside the packages in a wheel, in data/ in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "bundled"
    return (inside if inside.is_dir() else package.parent / "data") / name


def folder_of(model: str) -> str:
    """The folder of a bundled model; any other name as it is."""
    inside = {BUNDLED_TEACHER: "teacher", BUNDLED_STUDENT: "student", BUNDLED_LLAMA: "llama"}.get(model)
    return str(bundled(inside)) if inside else model

"""What every command keeps to: it replaces only what it made itself, and never an input.

An output, and every file that comes beside it (card, testing rows, sidecar, manifest, kept rows), is

- none of the command's inputs, under whatever name, nor an input's sidecar or manifest, nor another of its outputs;
- no file of a job of `rsd generate`, unless the command is that job;
- a regular file or nothing: no folder, device, pipe or socket. Of a link, what it names; the link stays;
- where a file with content is there, one that this output's command made, as that command recognises it
  (`rsd.traces.ours`), and, if the command has --overwrite, only with it.

`check_outputs` sees to that before any work is done.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rsd.files import place
from rsd.settings import called


class Output(NamedTuple):
    """A file that a command is about to write.

    ours: whether a file is what this output is, so that it may be replaced. None: the command itself sees to what
        is there, since it goes on with it.
    """

    file: str | Path
    ours: Callable[[Path], bool] | None = None


def check_outputs(
    outputs: Sequence[Output],
    *,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = True,
    job: str | Path | None = None,
) -> None:
    """Refuse, before any work is done, outputs that could not be written or are not the command's to replace.

    Args:
        outputs: every file that the command may write.
        overwrite: whether those that are there and ours may be replaced.
        job: the manifest, if the command is a job of `rsd generate`: files that belong to it may be written.

    Raises:
        ValueError: one is refused; see above.
    """
    places = [place(output.file) for output in outputs]
    inputs = list(inputs)
    for i, (there, (file, ours)) in enumerate(zip(places, outputs, strict=True)):
        for source in inputs:
            if _same(there, source):
                raise ValueError(f"{file} is an input itself: name another output")
            if any(_same(there, beside) for beside in _beside(source)):
                raise ValueError(f"{file} belongs to the input {source}: name another output")
        for before in range(i):
            if _same(there, places[before]):
                raise ValueError(f"{outputs[before].file} and {file}, one file, cannot be both outputs: name two files")
        for manifest in (*_manifests(Path(file)), *_manifests(there)):
            if os.path.exists(manifest) and not (job and _same(manifest, job)):
                raise ValueError(f"{file} belongs to a job of rsd generate, {manifest.name}: name another output")
        _check_writable(file, there)
        if ours is None or not there.exists() or not there.stat().st_size:
            continue
        known = ours(there)
        if not overwrite:
            replace = f", or {called('overwrite', True)} to replace it" if known else ""
            raise ValueError(f"{file} exists: name another output{replace}")
        if not known:
            raise ValueError(
                f"{file} is not a file that this command wrote: it is not overwritten; name another output"
            )


def anew() -> str:
    """What to do where an output is what other settings or another input made."""
    return f"use another {called('output')}, or {called('overwrite', True)} to start anew"


def _same(a: Path, b: str | Path) -> bool:
    """Whether two names are one file's: by a link, or on a file system that has one letter for A and a."""
    with suppress(OSError, ValueError):
        return os.path.samefile(a, b)
    return os.path.realpath(a) == os.path.realpath(b)


def _beside(rows: str | Path) -> list[Path]:
    """What a file of rows may have beside it; see `traces.lines.files_of` and `traces.soft`."""
    base = str(rows).removesuffix(".jsonl")
    return [Path(base + end) for end in (".tokens.jsonl", ".meta.json", ".logprobs.arrow")]


def _manifests(file: Path) -> list[Path]:
    """The manifests that make a file a job's: its rows or kept rows, its sidecar, its soft targets or the manifest."""
    name = str(file)
    bases = [name.removesuffix(".jsonl")]
    ends = (".tokens.jsonl", ".logprobs.arrow", ".kept.jsonl", ".meta.json")
    bases += [name.removesuffix(end) for end in ends if name.endswith(end)]
    return [Path(f"{base}.meta.json") for base in bases]


def _check_writable(file: str | Path, there: Path) -> None:
    """Whether a file can be written there; folders that are missing are made when it is."""
    folder = there.parent if os.path.islink(file) else Path(file).parent
    if os.path.islink(file) and not folder.is_dir():
        raise ValueError(f"{file} is a link into a folder that is not there: {folder}")
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{file}: {folder} is no folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise ValueError(f"cannot write to the folder {folder}: {e.strerror}") from e
    if there.exists() and not os.access(there, os.W_OK):
        raise ValueError(f"{file} is write-protected: name another output")


def lines_only(file: str | Path) -> None:
    """Refuse a name that promises something else than lines of JSON.

    Raises:
        ValueError: see above.
    """
    if Path(file).suffix.lower() in (".parquet", ".csv", ".gz", ".zst"):
        raise ValueError(f"{file}: what is written are lines of JSON: name a .jsonl file (rsd export writes parquet)")

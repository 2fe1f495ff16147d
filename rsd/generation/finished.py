"""A job that is finished is known again without its models, or torch: by a stamp of all that it was given.

The manifest of a job that ended with nothing left to make holds the stamp, a hash of its settings, its input and the
local files of its models, beside the hashes of its rows and tokens. Where all of them are the same the next start has
nothing to do, and says so at once. Anything else is for the job itself to find out. Of a model on the Hub or behind a
server it is the name that counts: a branch that has moved on since does not undo a job that is finished.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsd.config import GenerateConfig
from rsd.generation.summary import Summary, shares
from rsd.models.bundled import folder_of
from rsd.models.fingerprint import fingerprint
from rsd.terminal import say
from rsd.traces.lines import files_of, hash_of, read_manifest
from rsd.traces.shards import part_files
from rsd.traces.soft import soft_file
from rsd.version import __version__

# Settings that only say how traces are made, so that what is made already is no other.
HOW = (
    *("device", "device_map", "teacher_device", "teacher_device_map", "student_device", "student_device_map"),
    *("attn_implementation", "batch_size", "block_size", "compile", "skip_check", "tensor_parallel"),
)


def stamp(config: GenerateConfig, source: str | Path | None, limit: int | None) -> str | None:
    """A hash of what a job is given; None where its input is no file, which nothing tells from another one."""
    if source is None or not os.path.isfile(source):
        return None
    names = (*config.teachers, config.student, config.teacher_tokenizer)
    how = {*HOW, *(["teacher"] if config.served else [])}  # which servers have the model
    parts = [folder_of(part) for name in names if name for part in (name, *name.split("+"))]
    given = {
        "settings": {name: value for name, value in asdict(config).items() if name not in how},
        "limit": limit,
        "input": hash_of(Path(source))[0].hexdigest(),
        "models": {part: fingerprint(part) for part in parts if os.path.exists(part)},
        "versions": [__version__, *map(version, ("torch", "transformers"))],
    }
    return hashlib.blake2b(json.dumps(given, sort_keys=True, default=str).encode()).hexdigest()


def finished_before(config: GenerateConfig, source: str | Path, out: str | Path, limit: int | None) -> Summary | None:
    """What a job's files hold, if it is finished and they are as it left them; None if that is not known here."""
    manifest = read_manifest(files_of(out)[1])
    done = (manifest or {}).get("finished")
    if manifest is None or not isinstance(done, dict) or part_files(out):
        return None
    if manifest["settings"].get("output") != Path(out).name or done.get("stamp") != stamp(config, source, limit):
        return None
    files = {"rows": Path(out), "tokens": files_of(out)[0]} | (
        {"logprobs": soft_file(out)} if config.top_logprobs else {}
    )
    if not all(_as_noted(manifest, name, file) for name, file in files.items()):
        return None
    say(f"{out} is finished: it holds all {done.get('traces')} traces of this job")
    return Summary(manifest["totals"], 0, 0, 0.0, 0.0, *shares(manifest))


def _as_noted(manifest: Mapping[str, Any], name: str, file: Path) -> bool:
    noted = (manifest.get("files") or {}).get(name)
    if not isinstance(noted, dict) or not file.is_file() or file.stat().st_size != noted.get("bytes"):
        return False
    return hash_of(file)[0].hexdigest() == noted.get("blake2b")

"""A finished job's files, damaged in every way that a crash, an editor or a bad disk knows."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from faults_files import DEEP
from faults_jobs import JOBS, MANIFEST, ROWS, TOKENS, Bench, Case, Job
from faults_process import rsd

Damage = Callable[[bytes, random.Random], bytes | None]  # None: the file is gone


def _line(number: int, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """One line as another JSON value, or as text."""

    def damage(data: bytes, draw: random.Random) -> bytes:
        lines = data.splitlines(keepends=True)
        row = json.loads(lines[number])
        made = change(row)
        text = made if isinstance(made, str) else json.dumps(row if made is None else made)
        lines[number] = text.encode() + b"\n"
        return b"".join(lines)

    return damage


def _set(**columns: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(columns)


def _shapes() -> dict[str, Callable[[dict[str, Any]], Any]]:
    values = ("[]", "3", "null", '"x"', "{}", DEEP, '{"a": ' + DEEP + "}", "", "\0", '{"diary": "monday"}', "NaN")
    return {f"as {v if len(v) < 30 else 'deep nesting'}": (lambda row, v=v: v) for v in values}


def _columns(**values: tuple[Any, ...]) -> dict[str, Callable[[dict[str, Any]], Any]]:
    made: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for name, odd in values.items():
        made[f"without {name}"] = lambda row, name=name: row.pop(name) and None
        made |= {f"{name} {json.dumps(v)[:20]}": _set(**{name: v}) for v in odd}
    return made


CUTS: dict[str, Damage] = {
    "gone": lambda data, draw: None,
    "empty": lambda data, draw: b"",
    "a byte": lambda data, draw: data[:1],
    "20 bytes": lambda data, draw: data[:20],
    "half": lambda data, draw: data[: len(data) // 2],
    "a byte short": lambda data, draw: data[:-1],
    "cut anywhere": lambda data, draw: data[: draw.randrange(len(data))],
    "cut anywhere else": lambda data, draw: data[: draw.randrange(len(data))],
    "zeros": lambda data, draw: bytes(len(data)),
    "zeros from its middle": lambda data, draw: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zeros behind it": lambda data, draw: data + bytes(4096),
}
LINES: dict[str, Damage] = {
    "cut behind a line": lambda data, draw: b"".join(data.splitlines(keepends=True)[:3]),
    "zeros in its middle": lambda data, draw: data[: len(data) // 2] + bytes(512) + data[len(data) // 2 + 512 :],
    "garbage behind it": lambda data, draw: data + draw.randbytes(300),
    "garbage in its middle": lambda d, draw: d[: len(d) // 2] + draw.randbytes(300) + d[len(d) // 2 + 300 :],
    "a line twice": lambda data, draw: data + data.splitlines(keepends=True)[4],
    "a line less": lambda data, draw: b"".join(data.splitlines(keepends=True)[:4] + data.splitlines(keepends=True)[5:]),
    "another order": lambda data, draw: b"".join(reversed(data.splitlines(keepends=True))),
    "an empty line": lambda data, draw: data.replace(b"\n", b"\n\n", 3),
    "line ends of another system": lambda data, draw: data.replace(b"\n", b"\r\n"),
}
SHAPES = _shapes()
OF_ROWS = _columns(
    id=(3, None, [], "nobody"),
    generation=("one", -1, True, 10**30, 1.5, None, 7),
    prompt=(3, None, "x"),
    completion=(3, None, "x", [], [{}], [{"role": "assistant", "content": 3}], [{"role": "assistant", "content": "x"}]),
    is_correct=("yes", 3, []),
    finish_reason=(3, None, "tired"),
    num_tokens=("x", -1, 1.5, 10**30, 1),
    fallback_rate=("x", 7),
    acceptance_rate=("x", []),
    error=(3, [], "x"),
    verify_error=(3, []),
)
OF_TOKENS = _columns(
    id=(None, [], "nobody"),
    generation=("one", -1, True, None, 7),
    token_ids=(3, None, "x", [], [-1], [1.5], [10**30], ["a"], [5, 6, 7]),
) | {
    "other token_ids": lambda row: row.update(token_ids=row["token_ids"][::-1]),
    "a token less": lambda row: row.update(token_ids=row["token_ids"][:-1]),
    "short arrays": lambda row: row.update({k: v[:-1] for k, v in row.items() if isinstance(v, list)}),
    "texts in arrays": lambda row: row.update({k: ["x"] * len(v) for k, v in row.items() if isinstance(v, list)}),
}
OF_MANIFEST = _columns(
    format=(2, "x", None),
    identity=([], "x", None, 3, {}),
    settings=([], "x", None, 3, {}),
    decoding=([], "x", 3, {"rounds": "x"}, {"left_out": 3}),
    totals=([], "x", 3),
    teacher=(3, None),
    versions=(3,),
    processes=(3, [3], "x"),
)


def torn_files(bench: Bench, draw: random.Random) -> Iterator[Case]:
    """A finished job's files, damaged; then the same command is run again, and others read them."""
    damages: dict[str, dict[str, Damage]] = {
        ROWS: CUTS | LINES | {f"line 6 {n}": _line(5, c) for n, c in (SHAPES | OF_ROWS).items()},
        TOKENS: CUTS | LINES | {f"line 6 {n}": _line(5, c) for n, c in (SHAPES | OF_TOKENS).items()},
        MANIFEST: CUTS | {n: partial(_whole_file, c) for n, c in (SHAPES | OF_MANIFEST).items()},
    }
    damages[ROWS] |= {f"line 1 {n}": _line(0, c) for n, c in SHAPES.items()}
    for file, ways in damages.items():
        for name, damage in ways.items():
            seed = draw.getrandbits(32)
            yield Case("torn files", f"{file}, {name}", partial(_torn, bench, file, damage, seed))
    score = next(job for job in JOBS if job.name == "score")
    for name, damage in {**CUTS, **LINES, **{f"line 6 {n}": _line(5, c) for n, c in SHAPES.items()}}.items():
        seed = draw.getrandbits(32)
        yield Case("torn files", f"s.jsonl, {name}", partial(_torn, bench, "s.jsonl", damage, seed, job=score))


def _whole_file(change: Callable[[dict[str, Any]], Any], data: bytes, draw: random.Random) -> bytes:
    made = json.loads(data)
    new = change(made)
    return (new if isinstance(new, str) else json.dumps(made if new is None else new, indent=2)).encode()


def _torn(bench: Bench, file: str, damage: Damage, seed: int, *, job: Job = JOBS[0]) -> str | None:
    """Whether the job comes whole again, or is refused in one line with everything as it was."""
    folder = bench.folder()
    shutil.copytree(bench.whole[job.name][0], folder, dirs_exist_ok=True)
    data = damage((folder / file).read_bytes(), random.Random(seed))
    with contextlib.suppress(FileNotFoundError):
        (folder / file).unlink()
    if data is not None:
        (folder / file).write_bytes(data)
    if job is JOBS[0]:
        for words in (("export", ROWS, "--keep=all", "-o", "e.jsonl"), ("score", ROWS, "-o", "s.jsonl")):
            copied = Path(shutil.copytree(folder, folder.parent / words[0]))
            if fault := rsd(*words, cwd=copied).fault(0, 1, 2):
                return f"{words[0]}: {fault}"
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    ended = rsd(*job.commands[0], cwd=folder)
    if fault := ended.fault(0, 2):
        return fault
    if ended.code == 0:
        return bench.against(job, folder)
    if {f.name: f.read_bytes() for f in folder.iterdir()} != before:
        return f"refused, but files changed: {ended.last}"
    # What is no job's is left alone: what begins otherwise, a manifest that is none, and scores that are no score's.
    alone = file in (MANIFEST, "s.jsonl") or ended.last.find("it is not this job's") > 0
    return None if alone else f"refused: {ended.last}"

"""The catalogue of bad inputs: flags, texts, templates, files, rows, configurations and models, and what each is owed.

A case is a command and the exit codes that it may have. 2: refused in one line, nothing on the disk is another than
before. 1: some rows are errors. What may be right on some machine, or is only odd, may end with 0, too.
"""

import queue
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as with_default
from functools import partial
from pathlib import Path

from faults_files import (
    CONFIGS,
    DEEP,
    DEVICES,
    KWARGS,
    LONG,
    MODELS,
    NO_KWARGS,
    NUMBERS,
    ODD_NUMBERS,
    OUTPUTS,
    ROWS,
    SERVERS,
    SHARDS,
    SOURCES,
    SUPPRESS,
    TEMPLATES,
    TEXTS,
    TRACES,
    VERIFY,
    make_files,
    make_models,
)
from faults_jobs import Bench, Case
from faults_process import rsd

from rsd.config import GenerateConfig
from rsd.dataset.config import ExportConfig
from rsd.scoring.config import ScoreConfig
from rsd.settings import flag, kinds, settings

BAD, ODD = (2,), (0, 1, 2)
FEW = ("--max-new-tokens", "4", "--verify", "boxed")
SHORT = ("--limit", "1", *FEW)
BEYOND = {"num_generations", "want"}  # of which a large number is a long job


@dataclass(frozen=True)
class Bad:
    args: tuple[str, ...]
    codes: tuple[int, ...] = BAD
    stdin: bytes = b""
    environment: dict[str, str] = with_default(default_factory=dict)

    @property
    def name(self) -> str:
        words = [a if len(a) < 60 else f"{a[:40]}... ({len(a)} characters)" for a in self.args]
        return " ".join([*(f"{k}={v}" for k, v in self.environment.items()), *words])


def catalogue(models: list[Path]) -> Iterator[Bad]:
    """All of them; a path is one in the folder of `make_files`, and that is where they run."""
    yield from _flags()
    yield from _texts()
    yield from _files()
    for folder in models:
        codes = BAD if folder.name.split("-")[0] in ("cut", "short", "zeros", "garbage", "pointer", "page") else ODD
        yield Bad(("generate", "in.jsonl", *SHORT, "--student", str(folder)), codes)
        if codes == BAD:
            yield Bad(("score", "traces-0.jsonl", "--student", str(folder)), codes)


def _flags() -> Iterator[Bad]:
    """Each flag that takes a number, or one of a few words, with each value that is none."""
    commands = {
        "generate": (GenerateConfig, ("in.jsonl", *SHORT)),
        "score": (ScoreConfig, ("traces-all.jsonl",)),
        "export": (ExportConfig, ("traces-all.jsonl", "--keep", "all")),
    }
    for command, (config, rest) in commands.items():
        for one in settings(config):
            kind = kinds(config)[one.name]
            number = kind.type if kind.type in NUMBERS else None
            for value in NUMBERS[number] if number else ("x", "", "\udcff") if kind.choices else ():
                fine = value == "-1" and one.name == "seed"
                yield Bad((command, *rest, f"--{flag(one.name)}={value}"), ODD if fine else BAD)
            for value in ODD_NUMBERS[number] if number and one.name not in BEYOND else ():
                yield Bad((command, *rest, f"--{flag(one.name)}={value}"), ODD)
    for command, value in (("generate", v) for v in ("1e26", "0", "-1", "1.5", "nan", LONG)):
        yield Bad((command, "in.jsonl", *SHORT, f"--trials={value}"))
    for value in (*DEVICES, "mps", "xla", "auto", "cpu:1"):
        codes = BAD if value in DEVICES and value else ODD
        for one in ("device", "teacher-device", "student-device"):
            yield Bad(("generate", "in.jsonl", *SHORT, f"--{one}={value}"), codes)
        yield Bad(("score", "traces-0.jsonl", f"--device={value}"), codes)
    for value in SUPPRESS:
        yield Bad(("generate", "in.jsonl", *SHORT, f"--suppress={value}"))
    for value in VERIFY:
        yield Bad(("generate", "in.jsonl", "--limit", "1", f"--verify={value}"))
    for value in ("", "x", "-1", "1.5", "0%", "101%", "%", "20 %", LONG, "1e3"):
        yield Bad(("score", "traces-0.jsonl", f"--window={value}"))
    for value in SHARDS:
        yield Bad(("generate", "in.jsonl", *SHORT, f"--shard={value}"))
    for value in ("", "x", "0", "-1", "1.5", LONG):
        yield Bad(("generate", "in.jsonl", f"--limit={value}"))
    for rank, world in (("9", "2"), ("1", "99999999"), ("0", LONG)):
        yield Bad(("generate", "in.jsonl", *SHORT), BAD, environment={"RANK": rank, "WORLD_SIZE": world})
    for words in (["--treshold=1"], ["--threshold"], ["a", "b"], ["--want=2"], ["--until-correct", "--verify=none"]):
        yield Bad(("generate", *words))
    for value in ("", "x", "a/b/c", "../x", "a/..", "a b/c", "a/b\nc"):
        yield Bad(("export", "traces-0.jsonl", "--keep", "all", f"--push-to-hub={value}"))


def _texts() -> Iterator[Bad]:
    """Texts, templates and JSON, which may be anything."""
    names = ("system-prompt", "completion-prefix", "prompt-column", "answer-column", "teacher-prompt-column", "split")
    for name in (*names, "student-revision", "teacher-revision"):
        for value in TEXTS:
            yield Bad(("generate", "in.jsonl", *SHORT, f"--{name}={value}"), ODD)
    for name in ("response-column", "thinking-column", "prompt-column", "system-prompt", "split"):
        for value in TEXTS:
            yield Bad(("score", "traces-0.jsonl", f"--{name}={value}"), ODD)
    for codes, values in ((BAD, NO_KWARGS), (ODD, KWARGS)):
        for value in values:
            yield Bad(("generate", "in.jsonl", *SHORT, f"--chat-template-kwargs={value}"), codes)
            yield Bad(("score", "traces-0.jsonl", f"--chat-template-kwargs={value}"), codes)
    for template in TEMPLATES:
        yield Bad(("generate", "in.jsonl", *SHORT, f"--teacher-template={template}"), ODD)


def _files() -> Iterator[Bad]:
    """What is read and written."""
    for source in SOURCES:
        yield Bad(("generate", source, *FEW))
        yield Bad(("score", source, "-o", "out.jsonl"))
        yield Bad(("export", source, "-o", "out.jsonl"))
        if source not in ("pipe", "pipe.jsonl"):  # each waits for some seconds
            yield Bad(("compare", source, "traces-0.jsonl"))
            yield Bad(("select", "traces-0.jsonl", source))
            yield Bad(("merge", source))
    for stdin in (b"", b"\0" * 100, b"[1]", b"x", b'{"prompt": "x"}\n[', DEEP.encode()):
        yield Bad(("generate", "-", *FEW), BAD, stdin)
        yield Bad(("score", "-", "-o", "out.jsonl"), BAD, stdin)
    for output in OUTPUTS:
        yield Bad(("generate", "in.jsonl", *SHORT, "-o", output), ODD if output == "new/" else BAD)
        yield Bad(("score", "traces-0.jsonl", "-o", output), ODD if output == "new/" else BAD)
        table = output.endswith(".parquet")  # which an export writes
        yield Bad(("export", "traces-all.jsonl", "--keep=all", "-o", output), ODD if table else BAD)
        yield Bad(("select", "traces-0.jsonl", "-o", output))
        page = output.endswith((".parquet", ".csv", ".gz"))  # a page may be called anything
        yield Bad(("compare", "traces-0.jsonl", "traces-0.jsonl", "--html", output), ODD if page else BAD)
    for text in CONFIGS:
        codes = ODD if text in ("nothing", "aliases", "twice", "control") else BAD
        yield Bad(("generate", "in.jsonl", "--limit", "1", "--config", f"config-{text}.yaml"), codes)
    for source in ("none", ".", "/dev/zero", "pipe", "noise.bin", "", "loop"):
        yield Bad(("generate", "in.jsonl", "--config", source))
    for model in MODELS:
        for role in ("teacher", "student"):
            yield Bad(("generate", "in.jsonl", *SHORT, f"--{role}={model}"))
        yield Bad(("score", "traces-0.jsonl", f"--student={model}"))
    for address in SERVERS:
        yield Bad(("generate", "in.jsonl", *SHORT, f"--teacher={address}", "--teacher-model=bundled-teacher"))
    for i in (*map(str, range(len(ROWS))), "all"):
        yield Bad(("generate", f"rows-{i}.jsonl", "--max-new-tokens", "4"), ODD)
    for i in (*map(str, range(len(TRACES))), "all", "deep"):
        yield Bad(("score", f"traces-{i}.jsonl", "-o", "out.jsonl"), ODD)
        for out in ("out.jsonl", "out.parquet"):
            yield Bad(("export", f"traces-{i}.jsonl", "--keep=all", "-o", out), ODD)
        yield Bad(("compare", f"traces-{i}.jsonl", "traces-0.jsonl"), ODD)
        yield Bad(("select", f"traces-{i}.jsonl", "-o", "out.jsonl"), ODD)


def bad_inputs(bench: Bench) -> Iterator[Case]:
    folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
    (models := bench.root / "models").mkdir()
    for bad in catalogue(make_models(models)):
        yield Case("bad inputs", bad.name, partial(_refused, bench, folders, bad))


def _refused(bench: Bench, folders: "queue.SimpleQueue[Path]", bad: Bad) -> str | None:
    try:
        folder = folders.get_nowait()
    except queue.Empty:
        bench.count += 1
        (folder := bench.root / f"bad-{bench.count}" / "x").mkdir(parents=True)
        make_files(folder)
    before = _state(folder)
    ended = rsd(*bad.args, cwd=folder, stdin=bad.stdin, environment=bad.environment)
    fault = ended.fault(*bad.codes)
    after = _state(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if not changed:
        folders.put(folder)
    elif ended.code == 2 and fault is None:
        fault = f"refused, but changed {', '.join(changed[:3])}: {ended.last}"
    if changed:  # the next one gets a new folder
        shutil.rmtree(folder)
    return fault


def _state(folder: Path) -> dict[str, tuple[int, ...]]:
    stats = {str(file.relative_to(folder)): file.lstat() for file in folder.rglob("*")}
    return {name: (s.st_mode, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats.items()}

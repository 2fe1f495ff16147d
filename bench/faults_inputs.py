"""The catalogue of bad inputs: values, files, rows, templates, ids, configurations, models, and what each is owed.

A case is a command and the exit codes that it may have. 2: refused in one line, nothing on the disk is another than
before. 1: some rows are errors. What may be right on some machine, or is only odd, may end with 0, too.
"""

import gzip
import json
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as with_default
from pathlib import Path
from typing import Any

from rsd.config import GenerateConfig, ScoreConfig
from rsd.dataset.config import ExportConfig
from rsd.models.bundled import bundled
from rsd.settings import flag, kinds, settings

BAD, BAD_ROWS, ODD = (2,), (1, 2), (0, 1, 2)
WEIGHTS = "model.safetensors"
LONG = "9" * 5000
DEEP = "[" * 5000 + "]" * 5000
SHORT = ("--limit", "1", "--max-new-tokens", "4", "--verify", "boxed")


@dataclass(frozen=True)
class Case:
    kind: str
    args: tuple[str, ...]
    codes: tuple[int, ...] = BAD
    stdin: bytes = b""
    environment: dict[str, str] = with_default(default_factory=dict)

    @property
    def name(self) -> str:
        words = [a if len(a) < 60 else f"{a[:40]}... ({len(a)} characters)" for a in self.args]
        return " ".join([*(f"{k}={v}" for k, v in self.environment.items()), *words])


NUMBERS = {
    int: ("x", "", "1.5", "nan", "inf", "-1", "1e3", "0x10", LONG, "-" + LONG),
    float: ("x", "", "nan", "-1", "-inf", "1e400", "1,5", LONG),
}
ODD_NUMBERS = {
    int: ("0", str(2**31 - 1), str(2**31), str(2**32), str(2**63 - 1), str(2**63), str(10**30)),
    float: ("0", "-0.0", "1", "1e-320", "1e300", "inf"),
}
BEYOND = {"num_generations", "want"}  # of which a large number is a long job
TEXTS = ("", " ", "x", "a\nb", "\udcff", "\x1b[2J", "-", "x" * 100_000)
DEVICES = ("meta", "cuda:-1", "cuda:99", "cuda:x", "cuda:0:1", "xpu", "quantum", "", " ", "cpu:x", "disk", "fpga", "a\nb")
KWARGS = {
    BAD: ("[1]", "{", "null", "3", "", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": ' + DEEP + "}"),
    ODD: (
        '{"tokenize": true}',
        '{"return_tensors": "pt"}',
        '{"return_dict": true}',
        '{"messages": 3}',
        '{"add_generation_prompt": false}',
        '{"tools": 3}',
        '{"documents": [1]}',
        '{"chat_template": "{{ 1 / 0 }}"}',
        '{"continue_final_message": true}',
        '{"strftime_now": "never"}',
        '{"strftime_now": 3}',
        '{"bos_token": {}}',
        '{"eos_token": null}',
        '{"range": 3}',
        '{"": 1}',
        '{"a b": 1}',
        '{"self": 1}',
        '{"raise_exception": 1}',
    ),
}
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = (
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{{",
    "{% raise %}",
    "{% if %}",
    "{{ nothing }}",
    "{{ prompt.a.b }}",
    "{{ prompt.__class__.__mro__ }}",
    "{% include 'x' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ prompt * 10**12 }}",
    "{{ range(10**10)|list }}",
    ENDLESS,
    "{{ 10 ** 10 ** 10 }}",
    "{{ 7 // 0 }}",
    "{{ 7 % 0 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{{ lipsum(n=10**9) }}",
    "{{ prompt|nosuch }}",
    "{{ prompt|int(base=99) }}",
    "{{ [1]|max(attribute=3) }}",
    "{{ (1).real.x }}",
    "@none.txt",
    "@",
    "@.",
    "@/dev/zero",
    "@pipe",
    "@noise.bin",
    "   ",
)
SUPPRESS = (LONG, "-1", "99999999", "", "no such token", "1.5", "\udcff", str(2**63))
SOURCES = (
    *("", "none.jsonl", "none.parquet", "pipe", "pipe.jsonl", "socket", "loop", "dir", "/dev/zero", "/dev/full"),
    *("/dev/random", "/dev/null", "/dev/tty", "x" * 300, "a/b/c", "no/such-set", "no/such:part", "https://x/y.jsonl"),
    *("noise.bin", "noise.jsonl", "utf16.jsonl", "empty.jsonl", "blank.jsonl", "half.jsonl", "list.jsonl", "number.json"),
    *("nan.jsonl", "twice.jsonl", "deep.jsonl", "deep.json", "array.json", "mixed.json", "open.json", "noise.gz"),
    *("short.jsonl.gz", "noise.jsonl.zst", "noise.parquet", "empty.parquet", "noise.csv", "cells.csv", "quote.csv"),
    *("nul.csv", "wide.csv", "head.csv", "long.jsonl", "zeros.jsonl", "same-id.jsonl", "no-prompt.jsonl", "string.json"),
)
OUTPUTS = (
    *("", ".", "..", "dir", "dir/", "new/", "/dev/stdout", "/dev/null", "/dev/full", "/dev/fd/1", "pipe", "socket", "loop"),
    *("/proc/x.jsonl", "x" * 300, "in.jsonl", "alias.jsonl", "stranger.jsonl", "x.parquet", "x.csv", "x.jsonl.gz"),
    *("in.jsonl/x.jsonl", "dangling.jsonl", "/proc/self/fd/1"),
)
MODELS = (
    *("", ".", "none", "./none", "a/b/c", "no/such-model", "/dev/zero", "/dev/null", "pipe", "in.jsonl", "dir", "x.gguf"),
    *("noise.gguf", "+", "bundled-student+", "+bundled-student", "bundled-student+bundled-student", "x" * 5000, "\udcff/x"),
    *("bundled-student+./none", "bundled-student+dir", "~", "http://127.0.0.1/v1", "file:///etc/passwd", "a/b\nc"),
)
SERVERS = ("http://", "https://", "http://[/v1", "http://h:99999/v1", "http://a:b@127.0.0.1/v1", "http://127.0.0.1:x/v1")
VERIFY = ("", "x", "none ", "no_such:judge", "os:nothing", "os:sep", ":x", "x:", "a b:c", "in:jsonl", "os.path:x:y")
SHARDS = ("0/2", "3/2", "x", "1/0", "", "1/1000000", "-1/2", "1/2/3", "1.5/2", LONG + "/2", "\u0661/\u0662")
CONFIGS = {
    "syntax": "a: [",
    "tab": "\tthreshold: 1",
    "list": "- 1",
    "text": "hello",
    "nothing": "",
    "unknown": "no-such-flag: 1",
    "object": "threshold: !!python/object/apply:os.system ['true']",
    "deep": "suppress: " + DEEP,
    "deeper": "a: " + "{a: " * 3000 + "1" + "}" * 3000,
    "date": "seed: 2020-01-01",
    "truth": "seed: true",
    "mapping": "threshold: {a: 1}",
    "nan": "threshold: .nan",
    "infinite": "max-new-tokens: .inf",
    "beyond": "trials: 1e+26",
    "fraction": "trials: 1.5",
    "half a row": "batch-size: 1.5",
    "long": f"seed: {LONG}",
    "nul": 'system-prompt: "\\0"\ntop-p: 7',
    "nul name": 'student: "a\\0b"',
    "nul output": 'output: "a\\0b"',
    "nul input": 'input: "a\\0b"',
    "aliases": "a: &a [1]\nsuppress: [*a, *a]",
    "itself": "suppress: &a [*a]",
    "twice": "threshold: 2\nthreshold: 3",
    "number key": "3: 4",
    "list key": "? [1, 2]\n: 3",
    "binary": "suppress: !!binary aGVsbG8=",
    "set": "suppress: !!set {a, b}",
    "config": "config: x.yaml",
    "kwargs": "chat-template-kwargs: '{\"a\": '",
    "kwargs deep": "chat-template-kwargs: {a: " + DEEP + "}",
    "kwargs date": "chat-template-kwargs: {a: 2020-01-01}",
    "control": "threshold: '\x1b[2J'",
}
ROWS: tuple[Any, ...] = (
    *({"prompt": p} for p in ("", " ", 3, None, True, 1.5, {}, [], [1], [[]], [None], {"role": "user"}, "\0", "\ud800")),
    *({"prompt": [m]} for m in ({}, {"role": 3, "content": "x"}, {"role": "user"}, {"role": "user", "content": None})),
    *({"prompt": [{"role": r, "content": "x"}]} for r in ("assistant", "", "tool", "\ud800", "x" * 1000)),
    *({"prompt": "x", "id": i} for i in (True, 1.5, [], {}, "", "\0", "\ud800", "a\nb", 10**400, -(10**30), "x" * 100_000)),
    *({"prompt": "x", "answer": a} for a in ([], {}, 1e308, "\\frac{1}{0}", "{" * 3000, "9" * 9999, "x^" * 500, "\ud800")),
    {"prompt": "x", "generation": "one", "error": [], "completion": {}, "finish_reason": 3},
    {"prompt": "one two " * 100_000},
    {"prompt": "\U0010ffff" * 500},
    {"prompt": "<|im_end|><think></think>" * 20},
)
# What a file of traces may hold in place of a trace.
TRACES: tuple[Any, ...] = (
    *({"prompt": "x", "completion": c} for c in (3, None, [], {}, [1], [{}], "", [{"content": 3}], ["x", "y"], "x" * 10**6)),
    *({"prompt": p, "completion": "x"} for p in (3, None, [], {}, "", [{}])),
    *({"messages": m} for m in (3, None, [], {}, [1], [{}], [{"role": "assistant"}], [{"role": "user", "content": "x"}])),
    *({"conversations": c} for c in (3, [], [{}], [{"from": "gpt"}], [{"from": "gpt", "value": 3}], [{"from": [], "value": ""}])),
    *({"prompt": "x", "token_ids": t} for t in (3, [], [-1], ["a"], [10**30], [1.5], [True], None)),
    *({"prompt": "x", "completion": "y", "id": i} for i in ([], {}, True, 1.5, 10**400)),
    *({"prompt": "x", "completion": "y", "generation": g} for g in ("one", -1, 10**30, [], True)),
    *({"prompt": "x", "completion": "y", "is_correct": c} for c in ("yes", 3, [], {})),
    *({"prompt": "x", "completion": "y", "error": e} for e in (3, [], {"a": 1}, True)),
    *({"prompt": "x", "completion": "y", n: v} for n in ("local_naturalness", "scoring", "num_tokens") for v in ("x", [], 1e308)),
)
LARGE = ({"big": 1e29}, {"big": 10**29}, {"big": 10**400}, {"big": [1, "a"]}, {"big": {}}, {"big": [[], {}]})


def _deep_row(**columns: Any) -> str:
    return json.dumps({"prompt": "x", **columns})[:-1] + ', "deep": ' + DEEP + "}\n"


def make_files(folder: Path) -> None:
    """Everything that the cases name, in a folder; it is small."""
    good = {"id": "a", "problem": "1 plus 1?", "answer": "2"}
    line, noise = json.dumps(good) + "\n", bytes(range(256)) * 8
    prompts = json.dumps({"prompt": "x"}) + "\n"
    texts = {
        "in.jsonl": line + json.dumps(good | {"id": "b"}) + "\n",
        "stranger.jsonl": '{"diary": "monday"}\n',
        "empty.jsonl": "",
        "blank.jsonl": "\n \n\n",
        "half.jsonl": prompts + '{"prompt": "y',
        "list.jsonl": prompts + "[1]\n",
        "number.json": "3",
        "string.json": '"x"',
        "nan.jsonl": '{"prompt": "x", "n": NaN}\n',
        "twice.jsonl": '{"prompt": "x", "prompt": "y"}\n',
        "deep.jsonl": _deep_row(),
        "deep.json": DEEP,
        "array.json": "[]",
        "mixed.json": '[{"prompt": "x"}, 3]',
        "open.json": '[{"prompt": "x"}',
        "cells.csv": "prompt,b\n1,2,3\n",
        "quote.csv": 'prompt\n"x\n',
        "head.csv": "prompt\n",
        "nul.csv": "prompt\na\0b\n\r\r\n",
        "wide.csv": "prompt\n" + "x" * 200_000 + "\n",
        "long.jsonl": "x" * 3_000_000,
        "same-id.jsonl": line + line,
        "no-prompt.jsonl": '{"text": "x"}\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("noise.bin", "noise.jsonl", "noise.gz", "noise.jsonl.zst", "noise.parquet", "noise.csv", "noise.gguf"):
        (folder / name).write_bytes(noise)
    (folder / "empty.parquet").touch()
    (folder / "zeros.jsonl").write_bytes(bytes(5000))
    (folder / "utf16.jsonl").write_bytes(line.encode("utf-16"))
    (folder / "short.jsonl.gz").write_bytes(gzip.compress(line.encode() * 50)[:-20])
    (folder / "dir").mkdir()
    os.link(folder / "in.jsonl", folder / "alias.jsonl")
    for name, target in (("loop", "loop"), ("dangling.jsonl", "nowhere/x.jsonl")):
        os.symlink(target, folder / name)
    for name in ("pipe", "pipe.jsonl"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as one:
        here = os.open(".", os.O_RDONLY)
        os.chdir(folder)  # an address has a hundred bytes
        one.bind("socket")
        os.fchdir(here)
        os.close(here)
    for name, text in CONFIGS.items():
        (folder / f"config-{name}.yaml").write_text(text, encoding="utf-8")
    for name, rows in (("rows", ROWS), ("traces", TRACES)):
        for i, row in enumerate(rows):
            (folder / f"{name}-{i}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "traces-deep.jsonl").write_text(_deep_row(completion="y"))
    (folder / "rows-all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS if "id" not in r) + prompts)
    (folder / "traces-all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in TRACES))


def make_models(folder: Path) -> list[Path]:
    """Copies of the bundled student, each damaged in one way."""
    damages = {
        "cut": lambda data: data[: len(data) // 2],
        "short": lambda data: data[:-1],
        "zeros": lambda data: bytes(len(data)),
        "zero-head": lambda data: bytes(4096) + data[4096:],
        "zero-middle": lambda data: data[: len(data) // 2] + bytes(4096) + data[len(data) // 2 + 4096 :],
        "garbage": lambda data: bytes(range(256)) * 500,
        "garbage-head": lambda data: os.urandom(64) + data[64:],
        "pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "page": lambda data: b"<!DOCTYPE html><html>",
        "nothing": lambda data: b"",
        "long-head": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
    }
    made = []
    for name, damage in damages.items():
        made.append(Path(shutil.copytree(bundled("student"), folder / name)))
        (made[-1] / WEIGHTS).write_bytes(damage((made[-1] / WEIGHTS).read_bytes()))
    whole = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for i, text in enumerate(("", "{", "[]", "null", "\0", '{"a": ' + DEEP + "}")):
        for name in whole:
            made.append(Path(shutil.copytree(bundled("student"), folder / f"{name}-{i}")))
            (made[-1] / name).write_text(text)
    for i, template in enumerate(t for t in TEMPLATES if not t.startswith("@") and t.strip()):
        made.append(Path(shutil.copytree(bundled("student"), folder / f"template-{i}")))
        (made[-1] / "chat_template.jinja").write_text(template)
    return made


def cases(models: list[Path]) -> Iterator[Case]:
    """All of them; a path is one in the folder of `make_files`, and that is where they run."""
    yield from _flags()
    yield from _texts()
    yield from _files()
    for folder in models:
        codes = BAD if folder.name.split("-")[0] in ("cut", "short", "zeros", "garbage", "pointer", "page") else ODD
        yield Case("models", ("generate", "in.jsonl", *SHORT, "--student", str(folder)), codes)
        if codes == BAD:
            yield Case("models", ("score", "traces-0.jsonl", "--student", str(folder)), codes)


def _flags() -> Iterator[Case]:
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
                yield Case("flags", (command, *rest, f"--{flag(one.name)}={value}"), ODD if fine else BAD)
            for value in ODD_NUMBERS[number] if number and one.name not in BEYOND else ():
                yield Case("flags", (command, *rest, f"--{flag(one.name)}={value}"), ODD)
    for command, value in (("generate", v) for v in ("1e26", "0", "-1", "1.5", "nan", LONG)):
        yield Case("flags", (command, "in.jsonl", *SHORT, f"--trials={value}"))
    for value in (*DEVICES, "mps", "xla", "auto", "cpu:1"):
        codes = BAD if value in DEVICES[:7] else ODD
        for one in ("device", "teacher-device", "student-device"):
            yield Case("flags", ("generate", "in.jsonl", *SHORT, f"--{one}={value}"), codes)
        yield Case("flags", ("score", "traces-0.jsonl", f"--device={value}"), codes)
    for value in SUPPRESS:
        yield Case("flags", ("generate", "in.jsonl", *SHORT, f"--suppress={value}"))
    for value in VERIFY:
        yield Case("flags", ("generate", "in.jsonl", "--limit", "1", f"--verify={value}"), BAD)
    for value in ("", "x", "-1", "1.5", "0%", "101%", "%", "20 %", LONG, "1e3"):
        yield Case("flags", ("score", "traces-0.jsonl", f"--window={value}"))
    for value in SHARDS:
        yield Case("flags", ("generate", "in.jsonl", *SHORT, f"--shard={value}"))
    for value in ("", "x", "0", "-1", "1.5", LONG):
        yield Case("flags", ("generate", "in.jsonl", f"--limit={value}"))
    for rank, world in (("9", "2"), ("1", "99999999"), ("0", LONG)):
        yield Case("flags", ("generate", "in.jsonl", *SHORT), BAD, environment={"RANK": rank, "WORLD_SIZE": world})
    for words in (["--treshold=1"], ["--threshold"], ["a", "b"], ["--want=2"], ["--until-correct", "--verify=none"]):
        yield Case("flags", ("generate", *words))
    for value in ("", "x", "a/b/c", "../x", "a/..", "a b/c", "a/b\nc"):
        yield Case("flags", ("export", "traces-0.jsonl", "--keep", "all", f"--push-to-hub={value}"))


def _texts() -> Iterator[Case]:
    """Texts, templates and JSON, which may be anything."""
    names = ("system-prompt", "completion-prefix", "prompt-column", "answer-column", "teacher-prompt-column", "split")
    for name in (*names, "student-revision", "teacher-revision"):
        for value in TEXTS:
            yield Case("texts", ("generate", "in.jsonl", *SHORT, f"--{name}={value}"), ODD)
    for name in ("response-column", "thinking-column", "prompt-column", "system-prompt", "split"):
        for value in TEXTS:
            yield Case("texts", ("score", "traces-0.jsonl", f"--{name}={value}"), ODD)
    for codes, values in KWARGS.items():
        for value in values:
            yield Case("texts", ("generate", "in.jsonl", *SHORT, f"--chat-template-kwargs={value}"), codes)
            yield Case("texts", ("score", "traces-0.jsonl", f"--chat-template-kwargs={value}"), codes)
    for template in TEMPLATES:
        yield Case("templates", ("generate", "in.jsonl", *SHORT, f"--teacher-template={template}"), ODD)


def _files() -> Iterator[Case]:
    """What is read and written."""
    for source in SOURCES:
        yield Case("sources", ("generate", source, *SHORT), BAD)
        yield Case("sources", ("score", source, "-o", "out.jsonl"), BAD)
        yield Case("sources", ("export", source, "-o", "out.jsonl"), BAD)
        if source not in ("pipe", "pipe.jsonl"):  # each waits for some seconds
            yield Case("sources", ("compare", source, "traces-0.jsonl"), BAD)
            yield Case("sources", ("select", "traces-0.jsonl", source), BAD)
            yield Case("sources", ("merge", source), BAD)
    for stdin in (b"", b"\0" * 100, b"[1]", b"x", b'{"prompt": "x"}\n[', DEEP.encode()):
        yield Case("sources", ("generate", "-", *SHORT), BAD, stdin)
        yield Case("sources", ("score", "-", "-o", "out.jsonl"), BAD, stdin)
    for output in OUTPUTS:
        yield Case("outputs", ("generate", "in.jsonl", *SHORT, "-o", output), ODD if output == "new/" else BAD)
        yield Case("outputs", ("score", "traces-0.jsonl", "-o", output), ODD if output == "new/" else BAD)
        table = output.endswith(".parquet")  # which an export writes
        yield Case("outputs", ("export", "traces-all.jsonl", "--keep=all", "-o", output), ODD if table else BAD)
        yield Case("outputs", ("select", "traces-0.jsonl", "-o", output), BAD)
        page = output.endswith((".parquet", ".csv", ".gz"))  # a page may be called anything
        yield Case("outputs", ("compare", "traces-0.jsonl", "traces-0.jsonl", "--html", output), ODD if page else BAD)
    for text in CONFIGS:
        codes = ODD if text in ("nothing", "aliases", "fraction", "twice", "control") else BAD
        yield Case("configurations", ("generate", "in.jsonl", *SHORT, "--config", f"config-{text}.yaml"), codes)
    for source in ("none", ".", "/dev/zero", "pipe", "noise.bin", "", "loop"):
        yield Case("configurations", ("generate", "in.jsonl", "--config", source))
    for model in MODELS:
        for role in ("teacher", "student"):
            yield Case("models", ("generate", "in.jsonl", *SHORT, f"--{role}={model}"))
        yield Case("models", ("score", "traces-0.jsonl", f"--student={model}"))
    for address in SERVERS:
        yield Case("models", ("generate", "in.jsonl", *SHORT, f"--teacher={address}", "--teacher-model=bundled-teacher"))
    for i in (*map(str, range(len(ROWS))), "all"):
        yield Case("rows", ("generate", f"rows-{i}.jsonl", "--max-new-tokens", "4"), ODD)
    for i in (*map(str, range(len(TRACES))), "all", "deep"):
        yield Case("rows", ("score", f"traces-{i}.jsonl", "-o", "out.jsonl"), ODD)
        yield Case("rows", ("export", f"traces-{i}.jsonl", "--keep=all", "-o", "out.jsonl"), ODD)
        yield Case("rows", ("compare", f"traces-{i}.jsonl", "traces-0.jsonl"), ODD)
        yield Case("rows", ("select", f"traces-{i}.jsonl", "-o", "out.jsonl"), ODD)

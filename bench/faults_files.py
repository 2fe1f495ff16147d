"""Bad values of every kind, and the files that hold them."""

import gzip
import json
import os
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

from rsd.models.bundled import bundled

WEIGHTS = "model.safetensors"
LONG = "9" * 5000
DEEP = "[" * 5000 + "]" * 5000
NUMBERS = {
    int: ("x", "", "1.5", "nan", "inf", "-1", "1e3", "0x10", LONG, "-" + LONG),
    float: ("x", "", "nan", "-1", "-inf", "1e400", "1,5", LONG),
}
ODD_NUMBERS = {
    int: ("0", str(2**31 - 1), str(2**31), str(2**32), str(2**63 - 1), str(2**63), str(10**30)),
    float: ("0", "-0.0", "1", "1e-320", "1e300", "inf"),
}
TEXTS = ("", " ", "x", "a\nb", "\udcff", "\x1b[2J", "-", "x" * 100_000)
DEVICES = (
    "",
    " ",
    "a\nb",
    *"""
    meta cuda:-1 cuda:99 cuda:x cuda:0:1 xpu quantum cpu:x disk fpga
    """.split(),
)
# What is no object of JSON; and arguments that a template, or what renders it, might take for its own.
NO_KWARGS, KWARGS = (
    ("[1]", "{", "null", "3", "", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', '{"a": ' + DEEP + "}"),
    (
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
)
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
    "",
    "x" * 300,
    *"""
    none.jsonl none.parquet pipe pipe.jsonl socket loop dir /dev/zero /dev/full /dev/random /dev/null /dev/tty a/b/c
    no/such-set no/such:part https://x/y.jsonl noise.bin noise.jsonl utf16.jsonl empty.jsonl blank.jsonl half.jsonl
    list.jsonl number.json nan.jsonl twice.jsonl deep.jsonl deep.json array.json mixed.json open.json noise.gz
    short.jsonl.gz noise.jsonl.zst noise.parquet empty.parquet noise.csv cells.csv quote.csv nul.csv wide.csv
    head.csv long.jsonl zeros.jsonl same-id.jsonl no-prompt.jsonl string.json
    """.split(),
)
OUTPUTS = (
    "",
    "x" * 300,
    *"""
    . .. dir dir/ new/ /dev/stdout /dev/null /dev/full /dev/fd/1 pipe socket loop /proc/x.jsonl in.jsonl alias.jsonl
    stranger.jsonl x.parquet x.csv x.jsonl.gz in.jsonl/x.jsonl dangling.jsonl /proc/self/fd/1
    """.split(),
)
MODELS = (
    "",
    "x" * 5000,
    "\udcff/x",
    "a/b\nc",
    *"""
    . none ./none a/b/c no/such-model /dev/zero /dev/null pipe in.jsonl dir x.gguf noise.gguf + bundled-student+
    +bundled-student bundled-student+bundled-student bundled-student+./none bundled-student+dir ~
    http://127.0.0.1/v1 file:///etc/passwd
    """.split(),
)
SERVERS = (
    *"""
    http:// https:// http://[/v1 http://h:99999/v1 http://a:b@127.0.0.1/v1 http://127.0.0.1:x/v1
    """.split(),
)
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


def _each(column: str, values: str, *others: Any, **rest: Any) -> list[dict[str, Any]]:
    """Rows with each of these JSON values in a column, and of other values."""
    return [{**rest, column: value} for value in (*json.loads(f"[{values}]"), *others)]


ROWS = [
    *_each("prompt", r'"", " ", 3, null, true, 1.5, {}, [], [1], [[]], [null], {"role": "user"}, "\u0000", "\ud800"'),
    *_each("prompt", '[{}], [{"role": 3, "content": "x"}], [{"role": "user"}], [{"role": "user", "content": null}]'),
    *_each("prompt", r'[{"role": "tool", "content": "x"}], [{"role": "\ud800", "content": "x"}]'),
    *_each("prompt", '[{"role": "assistant", "content": "x"}]', "one two " * 100_000, "\U0010ffff" * 500),
    *_each("id", r'true, 1.5, [], {}, "", "\u0000", "\ud800", "a\nb"', 10**400, -(10**30), "x" * 100_000, prompt="x"),
    *_each("answer", r'[], {}, 1e308, "\\frac{1}{0}", "\ud800"', "{" * 3000, "9" * 9999, "x^" * 500, prompt="x"),
    {"prompt": "x", "generation": "one", "error": [], "completion": {}, "finish_reason": 3},
    {"prompt": "<|im_end|><think></think>" * 20},
]
MADE = {"prompt": "x", "completion": "y"}
# What a file of traces may hold in place of a trace.
TRACES = [
    *_each("completion", '3, null, [], {}, [1], [{}], "", [{"content": 3}], ["x", "y"]', "x" * 10**6, prompt="x"),
    *_each("prompt", '3, null, [], {}, "", [{}]', completion="x"),
    *_each("messages", '3, null, [], {}, [1], [{}], [{"role": "assistant"}], [{"role": "user", "content": "x"}]'),
    *_each(
        "conversations", '3, [], [{}], [{"from": "gpt"}], [{"from": "gpt", "value": 3}], [{"from": [], "value": ""}]'
    ),
    *_each("token_ids", '3, [], [-1], ["a"], [1e30], [1.5], [true], null', [10**30], prompt="x"),
    *_each("id", "[], {}, true, 1.5, 1e29", 10**29, 10**400, **MADE),
    *_each("generation", '"one", -1, [], true, 1e29', 10**29, **MADE),
    *_each("is_correct", '"yes", 3, [], {}', **MADE, generation=0),
    *_each("error", '3, [], {"a": 1}, true', **MADE, generation=0),
    *_each("num_tokens", '"x", -1, 1e29', 10**29, **MADE, generation=0),
    *_each("acceptance_rate", '"x", [], 1e29', 10**29, **MADE, generation=0),
    *_each("local_naturalness", '"x", [], 1e308', **MADE),
    *_each("scoring", '"x", [], {"steps": []}', **MADE),
]


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

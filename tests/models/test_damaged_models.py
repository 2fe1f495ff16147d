"""A model's files may hold anything: what is wrong is said in one line, and never made up at random."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from conftest import rsd, write
from safetensors.torch import load_file, save_file

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled

WEIGHTS, TENSOR = "model.safetensors", "model.layers.1.mlp.up_proj.weight"
ANY = object()


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(bundled("student"), tmp_path / "student"))


def loaded(folder: Path, **how) -> TraceGenerator:
    generator = TraceGenerator(GenerateConfig(student=str(folder), **how))
    generator.find()
    generator.memory()
    return generator.load()


def refused(folder: Path, **how) -> str:
    """What is said; in one line, with the model's name."""
    with pytest.raises(ValueError) as e:
        loaded(folder, **how)
    said = str(e.value)
    assert "\n" not in said and said.startswith(f"student {folder}") and "cannot be loaded" in said
    return said


def tensors(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


CHANGES = {
    "one is missing": (lambda w: w.pop(TENSOR), f"have no {TENSOR}"),
    "two are missing": (lambda w: (w.pop(TENSOR), w.pop("model.norm.weight")), f"{TENSOR}, model.norm.weight"),
    "another shape": (lambda w: w.update({TENSOR: w[TENSOR][:-1].clone()}), TENSOR),
    "one too many": (
        lambda w: w.update({"model.layers.9.x": w[TENSOR].clone()}),
        "also hold model.layers.9.x",
    ),
    "none": (lambda w: w.clear(), "have no"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_weights_that_are_not_the_models_are_named(how, folder):
    change, said = CHANGES[how]
    tensors(folder, change)
    assert said in refused(folder)


def test_all_renamed(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({f"other.{k}": v for k, v in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    assert "have no" in (said := refused(folder)) and " more" in said


def test_fewer_layers_in_the_configuration_than_in_the_weights(folder):
    edit(folder / "config.json", lambda c: c.update(num_hidden_layers=1, layer_types=["full_attention"]))
    assert "also hold model.layers.1" in refused(folder)
    loaded(folder, skip_check=True)


def test_a_head_that_is_the_embedding_need_not_be_there(folder):
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    loaded(folder)


def cut(share: float):
    return lambda data: data[: int(len(data) * share)]


def header(change):
    def damaged(data: bytes) -> bytes:
        size = struct.unpack("<Q", data[:8])[0]
        made = json.loads(data[8 : 8 + size])
        text = json.dumps(made if (new := change(made)) is None else new).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return damaged


DAMAGES = {
    "empty": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "half a header": lambda data: data[:200],
    "half": cut(0.5),
    "one byte short": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "zeros at its head": lambda data: bytes(4096) + data[4096:],
    "noise": lambda data: bytes(range(256)) * 500,
    "text": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a page": lambda data: b"<!DOCTYPE html><html>",
    "a longer header than the file": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
    "a shorter header": lambda data: struct.pack("<Q", 10) + data[8:],
    "a header that is a list": header(lambda h: [1, 2]),
    "a type that is none": header(lambda h: h[TENSOR].update(dtype="F7")),
    "a shape that is not the data's": header(lambda h: h[TENSOR].update(shape=[3, 3])),
    "a negative shape": header(lambda h: h[TENSOR].update(shape=[-1, 3])),
    "offsets beyond the end": header(lambda h: h[TENSOR].update(data_offsets=[0, 1 << 40])),
    "offsets in a circle": header(lambda h: h[TENSOR].update(data_offsets=[100, 0])),
    "an entry that is a number": header(lambda h: h.update({TENSOR: 3})),
    "a pickle": lambda data: b"PK\x03\x04" + data,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_weights(how, folder):
    file = folder / WEIGHTS
    file.write_bytes(DAMAGES[how](file.read_bytes()))
    said = refused(folder)
    assert f"{WEIGHTS} is damaged" in said and said.endswith("fetch it again")


def test_shards(folder):
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, mine in parts.items():
        save_file({n: weights[n] for n in mine}, folder / part, metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    whole = {"metadata": {}, "weight_map": {n: part for part, mine in parts.items() for n in mine}}
    index.write_text(json.dumps(whole))
    loaded(folder)
    for damaged in ("[1]", "{", "", '{"weight_map": 3}', "{}", '{"weight_map": {"x": "../../etc/passwd"}}'):
        index.write_text(damaged)
        refused(folder)
    index.write_text(json.dumps(whole))
    part = folder / "b.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    assert "b.safetensors is damaged" in refused(folder)
    part.unlink()
    refused(folder)


def edit(file: Path, change) -> None:
    made = json.loads(file.read_text())
    change(made)
    file.write_text(json.dumps(made))


WRONG = ["three", [1], None, -1, 0, 10**12, 1.5, {"a": 1}, True]


@pytest.mark.parametrize("name", sorted(json.loads((bundled("student") / "config.json").read_text())))
def test_wrong_values_in_the_configuration_load_or_are_said(name, folder):
    # Whatever comes of one, it is no other error, and it takes neither all time nor all memory.
    for value in WRONG:
        shutil.copy(bundled("student") / "config.json", folder)
        edit(folder / "config.json", lambda c, v=value: c.update({name: v}))
        try:
            loaded(folder)
        except ValueError as e:
            assert "\n" not in str(e) and len(str(e)) < 600, (name, value)


BROKEN = [
    "",
    "{",
    "[]",
    "3",
    "null",
    '"x"',
    "\0\0\0",
    "{}",
    "\xed\xa0\x80",
]


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_are_not_what_they_should_be(file, folder):
    assert (folder / file).exists()
    for text in BROKEN:
        (folder / file).write_text(text)
        may_do = file in ("tokenizer_config.json", "generation_config.json") and text == "{}"
        if not may_do:
            refused(folder)
    good = (bundled("student") / file).read_text()
    (folder / file).write_text(good[: len(good) // 2])
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(model=3),
        lambda t: t["model"].update(vocab=[1, 2]),
        lambda t: t["model"].update(vocab={}),
        lambda t: t["model"].update(merges="x"),
        lambda t: t["model"].update(merges=[["zz", "qq"]]),
        lambda t: t["model"].update(type="Nonsense"),
        lambda t: t.update(added_tokens=[{"id": "x"}]),
        lambda t: t.update(added_tokens={"a": 1}),
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
        lambda t: t.update(decoder=7),
        lambda t: t.update(normalizer={"type": "Replace"}),
    ],
)
def test_a_broken_tokenizer(change, folder):
    edit(folder / "tokenizer.json", change)
    refused(folder)


def test_values_of_a_generation_config(folder):
    file = folder / "generation_config.json"
    for name, values in {
        "temperature": ["hot", [1], True],
        "top_p": ["x", {}],
        "top_k": [1.5, "20"],
        "eos_token_id": ["x", [1, "y"], {}],
        "suppress_tokens": [5, ["x"], "x"],
    }.items():
        for value in values:
            shutil.copy(bundled("student") / file.name, folder)
            edit(file, lambda c, n=name, v=value: c.update({n: v}))
            assert file.name in refused(folder)
    file.unlink()
    loaded(folder)


def test_the_command_says_it_in_one_line(folder, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "1 + 1?", "completion": [{"role": "assistant", "content": "2"}]}])
    (folder / WEIGHTS).write_bytes(b"")
    commands = [("generate", source, "--student", folder), ("score", source, "--student", folder)]
    for command in commands:
        result = rsd(*command, cwd=tmp_path)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith(f"rsd: --student {folder}: cannot be loaded: ")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.jsonl", "student"]


def test_two_runs_over_whole_weights_are_the_same(folder):
    ids = [loaded(folder).run([{"prompt": "1 + 1?"}])[0].token_ids.tolist() for _ in range(2)]
    assert ids[0] == ids[1] and torch.is_grad_enabled()

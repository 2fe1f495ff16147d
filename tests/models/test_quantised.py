"""4bit and 8bit weights: what bitsandbytes makes of them, exactly; and one line where it cannot."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import SPECIALS, save_tokenizer, write
from jobs import FLAGS, PROBLEMS, files, run
from pairs import decode
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, Qwen3Config

from rsd.cli import main
from rsd.config import GenerateConfig
from rsd.models.loading import find, load
from rsd.models.memory import need
from rsd.models.packed import PackedLinear


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose linear layers have multiples of 64 columns, as 4bit on a CPU wants them."""
    path = tmp_path_factory.mktemp("wide")
    tokenizer = save_tokenizer(path, SPECIALS)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=400,
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=512,
        max_position_embeddings=512,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return str(path)


def loaded(folder, load_in):
    source = find("student", folder, None, trust_remote_code=False, load_in=load_in)
    return load(source, GenerateConfig(device="cpu"))


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
@torch.inference_mode()
def test_weights_are_what_transformers_makes_of_them(load_in, folder):
    bnb = pytest.importorskip("bitsandbytes")
    model, plain = loaded(folder, load_in), loaded(folder, None)
    kind = {"4bit": bnb.nn.Linear4bit, "8bit": bnb.nn.Linear8bitLt}[load_in]
    of = [m for m in model.modules() if isinstance(m, nn.Linear | PackedLinear)]
    assert [type(m) for m in of] == [kind] * 14 + [PackedLinear]  # seven a layer, and the head
    want = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**{f"load_in_{load_in}": True})
    )
    ids = torch.arange(40)[None]
    np.testing.assert_allclose(model(ids).logits, want(ids).logits, atol=1e-3)
    assert (model(ids).logits - plain(ids).logits).abs().max() > 0.05

    taken = [
        need(AutoConfig.from_pretrained(folder), dtype="float32", place="cpu", tokens=9, load_in=n).weights
        for n in (load_in, None)
    ]
    saved = sum(m.in_features * m.out_features for m in of[:-1])
    assert taken[1] - taken[0] == pytest.approx(saved * {"4bit": 3.4375, "8bit": 3}[load_in])
    assert sum(m.weight.nbytes for m in of[:-1]) == saved * {"4bit": 0.5, "8bit": 1}[load_in]
    sources = [find("student", folder, None, trust_remote_code=False, load_in=n) for n in (load_in, None)]
    assert sources[0].fingerprint() == f"{sources[1].fingerprint()} in {load_in}"


def test_recorded_logprobs_of_a_4bit_teacher_equal_a_full_forward(folder):
    pytest.importorskip("bitsandbytes")
    teacher, student = loaded(folder, "4bit"), loaded(folder, None)
    for f in decode(teacher, student, [[1, 2, 3], [4], [5, 6]], rows=2, block=4).values():
        ids = torch.tensor([[[1, 2, 3], [4], [5, 6]][f.request.tag] + f.token_ids.tolist()])
        with torch.inference_mode():
            logprobs = teacher(ids).logits.log_softmax(-1)[0, -len(f.token_ids) - 1 : -1]
        want = logprobs.gather(1, torch.tensor(f.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(f.teacher_logprobs, want, atol=1e-3)


def test_a_job_with_quantised_weights(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    source, made = write(tmp_path / "in.jsonl", PROBLEMS[:2]), {}
    flags = [source, "--teacher", folder, "--student", folder, *FLAGS, "--verify", "none"]
    for name, quantised in {
        "plain": (),
        "teacher": ("--teacher-load-in", "4bit"),
        "student": ("--student-load-in", "8bit"),
    }.items():
        run(*flags, "-o", tmp_path / f"{name}.jsonl", *quantised)
        _, made[name], meta = files(tmp_path / f"{name}.jsonl")
        ours = meta["identity"]
        assert [role for role in ("teacher", "student") if " in " in ours[role]] == [name][: name != "plain"]
    assert made["plain"][0]["token_ids"] != made["student"][0]["token_ids"]
    assert made["plain"][0]["teacher_logprobs"] != made["teacher"][0]["teacher_logprobs"]
    CliRunner().invoke(main, ["export", str(tmp_path / "teacher.jsonl"), "--keep", "all"])
    assert "in 4bit | files " in (tmp_path / "teacher.prompt-completion.md").read_text(encoding="utf-8")
    result = run(*flags, "-o", tmp_path / "teacher.jsonl", "--teacher-load-in", "8bit", expect=2)
    assert "was made with other settings: teacher (there " in result.output and "in 4bit" in result.output


def refused(name, teacher, message, load_in="8bit"):
    result = run("--student", name, "--teacher", teacher, "--student-load-in", load_in, expect=2)
    line = result.output.strip().splitlines()[-1]
    assert line.startswith(f"rsd: --student {name}: cannot be loaded: ") and message in line, result.output


def test_what_cannot_be_quantised_is_one_line(folder, tiny, tmp_path, monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    if bnb.functional.has_avx512bf16():  # there its 4bit product wants multiples of 64, and this has 32 columns
        refused(tiny()["student"], folder, "bitsandbytes cannot compute with its 4bit weights here (shape", "4bit")
    shutil.copytree(folder, "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    refused("./quantised", folder, "its weights are quantised already: load them as they are")
    refused(f"{folder}+.", folder, "an adapter cannot be merged into quantised weights: merge and save it first")


def test_bitsandbytes_is_asked_for_by_name(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refused(folder, folder, "4bit and 8bit need bitsandbytes: pip install 'rsd[quantize]'")
    with pytest.raises(ValueError, match="teacher_load_in must be 4bit or 8bit, not '2bit'"):
        GenerateConfig(teacher_load_in="2bit")

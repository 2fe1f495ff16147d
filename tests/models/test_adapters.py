"""BASE+ADAPTER: what is loaded is what peft computes, and what is nonsense is refused in one line."""

import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from conftest import SPECIALS, read, save_tokenizer
from jobs import files, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd.cli import main
from rsd.config import GenerateConfig
from rsd.models.adapters import split
from rsd.models.bundled import bundled
from rsd.models.loading import find, load

IDS = torch.arange(40)[None]
LAYERS = ["q_proj", "v_proj", "down_proj"]


@torch.no_grad()
def save_adapter(folder: Path, base: str | Path, *, seed: int = 0, width: int | None = None, **how) -> torch.Tensor:
    """A random LoRA over a model in `folder`, and the log-probabilities of IDS that peft computes with it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    if width:
        model.resize_token_embeddings(width)
        model.get_input_embeddings().weight[-5:] = torch.randn(5, model.config.hidden_size)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM"} | how)).eval()
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.copy_(torch.randn_like(p) * 0.1)
    adapted.save_pretrained(folder)
    return adapted(IDS).logits.log_softmax(-1)


@torch.inference_mode()
def logprobs(name: str) -> torch.Tensor:
    source = find("student", name, None, trust_remote_code=False)
    return load(source, GenerateConfig())(IDS).logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("qwen3", {"target_modules": LAYERS}),
        ("qwen3", {"target_modules": LAYERS, "use_dora": True}),
        ("qwen3", {"target_modules": LAYERS, "width": 290}),
        ("gemma2", {"target_modules": LAYERS, "width": 290}),  # tied
        ("gemma2", {"target_modules": [*LAYERS, "embed_tokens"]}),
        ("gemma2", {"target_modules": [*LAYERS, "lm_head"]}),
    ],
)
def test_the_loaded_model_computes_what_peft_computes(kind, how, tiny, tmp_path):
    base = tiny(kind)["student"]
    want = save_adapter(tmp_path, base, **how)
    made = logprobs(f"{base}+{tmp_path}")
    np.testing.assert_allclose(made, want, atol=1e-3)
    if made.shape == (plain := logprobs(base)).shape:
        assert (made - plain).abs().max() > 0.5


def test_the_tokenizer_is_the_adapters_if_it_has_one(tiny, tmp_path):
    base = tiny()["student"]
    save_adapter(tmp_path, base, target_modules=LAYERS, width=290)
    name = f"{base}+{tmp_path}"
    source = find("student", name, None, trust_remote_code=False)
    assert "<hint>" not in source.tokenizer.get_vocab() and source.width == 290
    save_tokenizer(tmp_path, [*SPECIALS, "<think>", "</think>", "<hint>"])
    assert "<hint>" in find("student", name, None, trust_remote_code=False).tokenizer.get_vocab()


def test_the_fingerprint_covers_base_and_adapter(tiny, tmp_path):
    for seed in (0, 1):
        save_adapter(tmp_path / str(seed), tiny()["student"], seed=seed, target_modules=LAYERS)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    config = tmp_path / "2" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    names = [tiny()["student"], *(f"{tiny()[role]}+{tmp_path / a}" for role in ("student", "teacher") for a in "012")]
    prints = [find("student", name, None, trust_remote_code=False).fingerprint() for name in names]
    assert len(set(prints)) == len(prints) == 7
    assert prints[1] == find("student", names[1], None, trust_remote_code=False).fingerprint()


def test_every_command_takes_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter(tmp_path / "ours", bundled("student"), target_modules=LAYERS)
    tokenizer = AutoTokenizer.from_pretrained(bundled("student"))
    tokenizer.chat_template = "!" + tokenizer.chat_template
    tokenizer.save_pretrained("ours")
    shutil.copytree(bundled("teacher"), "big")
    save_adapter(tmp_path / "theirs", "big", target_modules=LAYERS)
    plain, adapted = Path("plain.jsonl"), Path("adapted.jsonl")
    flags = ["--limit", 2, "--max-new-tokens", 40, "--verify", "boxed"]
    run(*flags, "-o", plain)
    run(*flags, "-o", adapted, "--teacher", "big+theirs", "--student", "bundled-student+./ours")
    assert [t["token_ids"] for t in files(plain)[1]] != [t["token_ids"] for t in files(adapted)[1]]
    made = files(adapted)[2]
    assert made["teacher"]["name"] == "big" and made["teacher"]["adapter"]["path"] == str(tmp_path / "theirs")
    for role in ("teacher", "student"):
        assert made["identity"][role] != files(plain)[2]["identity"][role]
    assert "made with other settings: teacher" in run(*flags, "-o", adapted, expect=2).output

    student = ["--student", f"bundled-student+{tmp_path}/ours"]
    for command in (
        ["score", plain, "-o", "before.jsonl"],
        ["score", plain, "-o", "after.jsonl", *student],
        ["select", plain, adapted, "-o", "best.jsonl", "--keep-incorrect", *student],
        ["compare", plain, adapted, *student],
        ["export", adapted, "--keep", "all"],
    ):
        result = CliRunner().invoke(main, [*map(str, command)])
        assert result.exit_code == 0, result.output
        if command[0] == "compare":
            assert "scored by    student bundled-student+ours," in result.output
    before, after, best = (read(Path(f"{name}.jsonl"))[0] for name in ("before", "after", "best"))
    assert before["global_logprob"] != after["global_logprob"]
    assert before["scoring"] != after["scoring"] == best["scoring"]
    # The export reads the adapter's tokenizer again, and says whose traces these are.
    assert "of 2 rows give the sampled ids" in result.output and " 0 of 2 " not in result.output
    card = Path("adapted.prompt-completion.md").read_text(encoding="utf-8")
    assert "bundled-student with the adapter ours" in card and str(tmp_path) not in card


def test_a_directory_may_have_a_plus_in_its_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny()["student"], "a+b")
    save_adapter(tmp_path / "c+d", "a+b", target_modules=LAYERS)
    assert split("a+b") == ("a+b", None) and split("a+b+c+d") == ("a+b", "c+d")
    assert split("owner/name+c+d") == ("owner/name", "c+d") and split("o/n+p/q") == ("o/n", "p/q")
    assert (logprobs("a+b") - logprobs("a+b+c+d")).abs().max() > 0.5


def test_an_adapter_on_the_hub(tiny, tmp_path, monkeypatch):
    # As a download leaves it.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789" * 4
    want = save_adapter(
        tmp_path / "models--owner--name" / "snapshots" / commit, tiny()["student"], target_modules=LAYERS
    )
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    name = f"{tiny()['student']}+owner/name"
    np.testing.assert_allclose(logprobs(name), want, atol=1e-3)
    source = find("student", name, None, trust_remote_code=False)
    assert source.fingerprint().endswith(f"+owner/name@{commit}")
    with pytest.raises(ValueError, match="owner/none: cannot be loaded: "):
        find("student", f"{tiny()['student']}+owner/none", None, trust_remote_code=False)


def test_what_is_no_adapter_of_the_base_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tiny()["student"]

    def refused(name: str, message: str, *flags: str):
        result = run("--student", name, "--teacher", tiny()["teacher"], "--limit", 1, *flags, expect=2)
        line = result.output.strip().splitlines()[-1]
        assert line.startswith(f"rsd: --student {name}: ") and message in line, result.output
        assert "Traceback" not in result.output
        assert len(line.replace(str(tmp_path), "").replace(base, "")) < 400

    save_adapter(tmp_path / "good", base, target_modules=LAYERS)
    refused(f"{base}+./none", "./none: no such directory")
    refused(f"{base}+", "ADAPTER: no such directory")
    refused(f"./none+{tmp_path}/good", "no such directory")
    (tmp_path / "empty").mkdir()
    refused(f"{base}+empty", "empty is no PEFT adapter: it has no adapter_config.json")
    refused("good", "good holds a PEFT adapter: name it after its base, as BASE+good")
    save_adapter(tmp_path / "phi", tiny("phi3")["student"], target_modules=["qkv_proj"])
    refused(f"{base}+phi", "cannot be loaded: Target modules")
    # Of a base with more layers, and with wider ones.
    weights = load_file("good/adapter_model.safetensors")
    more = {k.replace("layers.1.", "layers.7."): v.clone() for k, v in weights.items() if "layers.1." in k}
    shutil.copytree("good", "deep")
    save_file(weights | more, "deep/adapter_model.safetensors")
    refused(f"{base}+deep", "deep is an adapter of another model: see its base_model.model.model.layers.7.")
    save_file({k: v for k, v in weights.items() if "layers.1." not in k}, "deep/adapter_model.safetensors")
    refused(f"{base}+deep", "deep is an adapter of another model: see its base_model.model.model.layers.1.")
    save_file({k: torch.cat([v, v], 1) for k, v in weights.items()}, "deep/adapter_model.safetensors")
    refused(f"{base}+deep", "size mismatch for base_model.model.model.layers.0.")
    Path("deep/adapter_config.json").write_text("{}")
    refused(f"{base}+deep", "cannot be loaded: ")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), prompts).save_pretrained("prompts")
    refused(f"{base}+prompts", "prompts is a PROMPT_TUNING adapter, which cannot be merged")
    # Pickled, which is loaded when it is asked for.
    shutil.copytree("good", "pickled")
    os.remove("pickled/adapter_model.safetensors")
    torch.save(weights, "pickled/adapter_model.bin")
    refused(f"{base}+pickled", "pickled has no adapter_model.safetensors: --allow-pickle loads others")
    source = find("student", f"{base}+pickled", None, trust_remote_code=False)
    made = load(source, GenerateConfig(allow_pickle=True))(IDS).logits.log_softmax(-1)
    np.testing.assert_allclose(made.detach(), logprobs(f"{base}+good"), atol=1e-4)
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(f"{base}+good", "an adapter needs peft: pip install 'rsd[peft]'")

"""Models in GGUF files, and one model in both roles."""

import shutil
import sys

import gguf
import numpy as np
import pytest
import torch
from conftest import SPECIALS, TEMPLATE, read, rsd, save_model, write
from jobs import FLAGS, PROBLEMS, by_key, files, run
from real import smollm2
from test_adapters import LAYERS, save_adapter
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.models.loading import find, load

IDS = torch.arange(40)[None]
MERGED = "\u0100\u0100"  # two zero bytes: there must be a merge in such a file
BASE = [*sorted(pre_tokenizers.ByteLevel.alphabet()), MERGED]


def save_gguf(file, folder):
    """A folder's Qwen3 as a GGUF file, its weights as they are."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    c = model.config
    w = gguf.GGUFWriter(file, "qwen2")
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), c.vocab_size)]
    added = set(tokenizer.get_added_vocab())
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([3 if t in added else 5 if t.startswith("[PAD") else 1 for t in tokens])
    w.add_token_merges([" ".join(MERGED)])
    w.add_eos_token_id(tokenizer.eos_token_id)
    w.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, c.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        w.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy().astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return file


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder, and the same model in a file."""
    root = tmp_path_factory.mktemp("gguf")
    folder = save_model(root / "folder", SPECIALS, kind="qwen2", width=272, seed=1, base=BASE)
    return folder, save_gguf(root / "model.gguf", folder)


def logprobs(name):
    source = find("student", str(name), None, trust_remote_code=False)
    with torch.inference_mode():
        return load(source, GenerateConfig())(IDS).logits.log_softmax(-1)


def test_a_file_is_the_model_that_was_put_into_it(pair):
    folder, file = pair
    torch.testing.assert_close(logprobs(file), logprobs(folder))


def test_nothing_else_in_its_folder_is_read(pair, tmp_path):
    # Hubs and llama.cpp's users keep many files in one folder.
    shutil.copytree(bundled("teacher"), tmp_path / "models")
    file = shutil.copy(pair[1], tmp_path / "models" / "model.gguf")
    torch.testing.assert_close(logprobs(file), logprobs(pair[0]))
    source = find("student", str(file), None, trust_remote_code=False)
    assert source.tokenizer.chat_template == TEMPLATE and source.generation.temperature is None


def test_a_job_with_files_makes_the_traces_of_the_folders(pair, tmp_path):
    folder, file = pair
    source = write(tmp_path / "in.jsonl", PROBLEMS[:4])
    made = {}
    for name in (folder, file):
        out = tmp_path / f"{len(made)}.jsonl"
        result = run(source, "-o", out, "--teacher", bundled_like(folder, tmp_path), "--student", name, *FLAGS)
        made[name] = {key: line["token_ids"] for key, line in by_key(files(out)[1]).items()}
        assert "vocabularies: the same tokens, 260 shared tokens" in result.output
    assert made[file] == made[folder]
    student = files(out)[2]["student"]
    assert student == {"name": str(file), "path": str(file), "revision": None}
    # It is the same model wherever it lies, and another one when it changes.
    moved = shutil.copy(file, tmp_path / "moved.gguf")
    flags = ["--teacher", bundled_like(folder, tmp_path), *FLAGS]
    assert "is finished" in run(source, "-o", out, *flags, "--student", moved).output
    with open(moved, "r+b") as f:
        f.seek(-8, 2)
        f.write(bytes(8))
    assert "other settings: student" in run(source, "-o", out, *flags, "--student", moved, expect=2).output


def bundled_like(folder, root):
    """A teacher with the folder's tokenizer."""
    teacher = root / "teacher"
    return teacher if teacher.exists() else save_model(teacher, SPECIALS, width=288, seed=2, base=BASE)


@pytest.mark.slow
def test_scores_by_a_file_are_those_by_its_folder(pair, tmp_path):
    rows = [{"prompt": "2 plus 2?", "completion": "It is 4.\nSo 4."}]
    source = write(tmp_path / "in.jsonl", rows)
    for i, name in enumerate(pair):
        result = rsd("score", source, "-o", tmp_path / f"{i}.jsonl", "--student", name, cwd=tmp_path)
        assert result.returncode == 0 and "onverting" not in result.stderr, result.stderr
    a, b = (read(tmp_path / f"{i}.jsonl")[0] for i in range(2))
    assert a["perplexity"] == pytest.approx(b["perplexity"], rel=1e-4) and a["scored_tokens"] == b["scored_tokens"]


def test_an_adapter_goes_onto_a_file_as_onto_its_folder(pair, tmp_path):
    folder, file = pair
    want = save_adapter(tmp_path / "adapter", folder, target_modules=LAYERS)
    torch.testing.assert_close(logprobs(f"{file}+{tmp_path / 'adapter'}"), want)


def test_what_is_no_such_file_is_said_in_one_line(pair, tmp_path, monkeypatch):
    folder, file = pair
    source, whole = write(tmp_path / "in.jsonl", PROBLEMS[:1]), file.read_bytes()
    broken = {"text": b"hello", "nothing": b"", "header": whole[:400], "short": whole[:-4000]}
    for name, content in broken.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    flags = [source, "-o", tmp_path / "out.jsonl", "--teacher", folder, *FLAGS]

    def refused(*more):
        said = run(*flags, *more, expect=2).output.splitlines()
        assert len([line for line in said if not line.startswith(("vocab", "sampl", "memory"))]) == 1
        return said[-1]

    assert refused("--student", tmp_path / "none.gguf").endswith("none.gguf: cannot be loaded: no such file")
    for name in broken:
        assert f"{name}.gguf: cannot be loaded: not a GGUF file that can be read" in refused(
            "--student", tmp_path / f"{name}.gguf"
        )
    assert "quantised already" in refused("--student", file, "--student-load-in", "4bit")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'rsd[gguf]'" in refused("--student", file)
    assert not (tmp_path / "out.jsonl").exists()


def test_one_model_in_both_roles_is_loaded_once_and_makes_the_same_traces(tmp_path):
    """Self-distillation: the teacher reads the answer, too, so that both caches hold something else."""
    shutil.copytree(bundled("student"), tmp_path / "a")
    shutil.copytree(bundled("student"), tmp_path / "b")
    rows = read(bundled("problems.jsonl"))[:6]
    made, estimates = [], []
    for teacher, student in (("a", "b"), ("a", "a"), ("a", "../" + tmp_path.name + "/a")):
        config = GenerateConfig(
            teacher=str(tmp_path / teacher),
            student=str(tmp_path / student),
            teacher_template="{{ prompt }} The answer is {{ answer }}.",
            max_new_tokens=60,
            num_generations=2,
            batch_size=5,
        )
        generator = TraceGenerator(config)
        estimates.append(generator.memory())
        made.append([t.token_ids.tolist() for t in generator.run(rows)])
        models = generator._engine.teacher.model.model, generator._engine.student.model
        assert (models[0] is models[1]) == (student != "b")
    assert made[0] == made[1] == made[2] and len(made[0]) == 12
    assert "one model in both roles, loaded once" in estimates[1].text and "loaded once" not in estimates[0].text
    assert weights(estimates[0]) == pytest.approx(2 * weights(estimates[1]), rel=0.1)


def weights(estimate):
    amount, unit = estimate.text.split("weights ")[1].split()[:2]
    return float(amount) * {"GB": 1}[unit.strip(",")]


def test_one_folder_is_two_models_where_they_are_loaded_otherwise():
    def one(**asked):
        generator = TraceGenerator(GenerateConfig(teacher=str(bundled("student")), **asked))
        return "loaded once" in generator.memory().text

    assert one()
    assert not one(teacher_load_in="8bit")
    assert not one(teacher_device_map="auto", batch_size=1)


@pytest.mark.real
def test_a_real_file(tmp_path):
    """SmolLM2-135M in both roles knows a capital."""
    source = write(tmp_path / "in.jsonl", [{"prompt": "What is the capital of France?"}])
    flags = ["--teacher", smollm2(), "--student", smollm2(), "--temperature", "0", "--max-new-tokens", "12"]
    result = rsd("generate", source, "-o", tmp_path / "out.jsonl", *flags, cwd=tmp_path)
    assert result.returncode == 0 and "loaded once" in result.stderr and "onverting" not in result.stderr
    assert "Failed" not in result.stderr  # bitsandbytes' note of what it lacks
    assert "Paris" in read(tmp_path / "out.jsonl")[0]["completion"][0]["content"]

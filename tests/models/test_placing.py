"""Models on several devices: a teacher and a student on one each, and one model spread over some."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import read, write
from devices import Devices, spread
from jobs import command, run, same_rows
from pairs import PLAIN, decode, full_logprobs, random_model, spelled_vocabulary
from transformers import AutoConfig, AutoModelForCausalLM

from rsd import GenerateConfig, ScoreConfig
from rsd.acceptance import Sampling
from rsd.models.bundled import bundled
from rsd.models.loading import dtype_of, find, moved_parts, one_model
from rsd.models.memory import ALL_GPUS, Need, estimate, need
from rsd.models.packed import pack
from rsd.models.selfcheck import check_decoding
from rsd.scoring.naturalness import Reader
from rsd.traces.readers import read_rows

FEW = Sampling(temperature=1.0, top_p=0.95, top_k=5)
PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 2, 3], [10]]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU does")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize("sampling", [PLAIN, FEW], ids=["all tokens", "few candidates"])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])  # one mask for all layers, or one a kind
@pytest.mark.parametrize("whole", [True, False], ids=["on one", "spread"])
def test_no_tensor_of_the_teacher_meets_one_of_the_student_on_another_device(sampling, kind, whole):
    models = [random_model(kind, seed=seed) for seed in (1, 2)]
    how = {"vocabulary": spelled_vocabulary(24, {5: [1, 2]}), "sampling": sampling, "rows": 3, "block": 4}
    want = decode(*models, PROMPTS, **how)
    with Devices() as devices:
        if whole:
            devices.put(models[0], "cuda:0")
        else:
            spread(models[0], devices, "cuda:0", "cuda:2")
        devices.put(models[1], "cuda:1")
        made = decode(*models, PROMPTS, **how)
    assert devices.seen >= {"cuda:0", "cuda:1"} | (set() if whole else {"cuda:2"})
    for i, trace in want.items():
        assert made[i].token_ids.tolist() == trace.token_ids.tolist()
        np.testing.assert_allclose(made[i].tokens["teacher_logprobs"], trace.tokens["teacher_logprobs"], atol=1e-4)


def test_a_student_that_is_spread_checks_itself_and_scores():
    model = random_model("qwen3", seed=3)
    prompt, tokens = [1, 2, 3], [4, 5, 6, 7, 8, 9]
    want = full_logprobs(model, prompt, tokens)
    with Devices() as devices:
        spread(model, devices, "cuda:0", "cuda:1")
        check_decoding(model, "student")
        scores = Reader(model).read(prompt, tokens, [0, 2, 4], [0, 0, 1])
    np.testing.assert_allclose(scores.logprobs, want, atol=1e-4)


def test_what_a_machine_with_two_gpus_refuses_is_noticed():
    with Devices() as devices, torch.inference_mode():
        model = random_model()
        devices.put(model, "cuda:0")
        assert str(model.device) == "cuda:0"
        with pytest.raises(RuntimeError, match="cuda:0"):
            model(torch.tensor([[1, 2]]))
        with pytest.raises(TypeError):
            model(torch.tensor([[1, 2]], device="cuda:0")).logits.numpy()


@no_gpu
def test_a_device_map_where_there_is_no_gpu_is_that_machine(tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:3])
    run(source, "-o", tmp_path / "want.jsonl")
    said = run(source, "-o", tmp_path / "t.jsonl", "--teacher-device-map", "auto", "--student-device", "cpu").output
    assert "free on cpu" in said and "fetched in every pass" not in said
    assert same_rows(read(tmp_path / "t.jsonl"), read(tmp_path / "want.jsonl"))
    command("score", tmp_path / "t.jsonl", "-o", tmp_path / "s.jsonl", "--device-map", "sequential")
    assert dtype_of(GenerateConfig(device_map="balanced")) == "float32"


def test_a_model_of_which_parts_are_fetched_decodes_as_any_other():
    want = decode(*(AutoModelForCausalLM.from_pretrained(bundled(r), dtype=torch.float32) for r in ROLES), IDS, **HOW)
    layers = {f"model.layers.{i}": "disk" if i > 6 else "cpu" for i in range(10)}
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu", **layers}
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(bundled(role), dtype=torch.float32, device_map=where)
        for role, where in zip(ROLES, (places, "cpu"), strict=True)
    )
    assert (moved_parts(teacher), moved_parts(student)) == (3, 0)
    pack(teacher)
    check_decoding(teacher, "teacher")
    made = decode(teacher, student, IDS, **HOW)
    assert [made[i].token_ids.tolist() for i in made] == [want[i].token_ids.tolist() for i in made]


ROLES = ("teacher", "student")
IDS = [[20, 30, 40], [50, 60]]
HOW = {"sampling": FEW, "max_new_tokens": 8, "vocabulary": spelled_vocabulary(768, {})}


def test_a_device_is_one_device_and_a_map_is_a_map():
    config = GenerateConfig(device="cuda:0", teacher_device_map="auto")
    assert (config.place_of("teacher"), config.place_of("student")) == ("auto", "cuda:0")
    config = GenerateConfig(device_map="auto", student_device="cuda:1")
    assert (config.place_of("teacher"), config.place_of("student")) == ("auto", "cuda:1")
    for wrong, said in (
        ({"device": "auto"}, 'device auto is a map and no device: give device_map="auto"'),
        ({"teacher_device": "balanced"}, "give teacher_device_map=.balanced."),
        ({"device": "cpu", "device_map": "auto"}, "give one"),
        ({"student_device": "cpu", "student_device_map": "auto"}, "give one"),
        ({"device_map": "cuda:0"}, "must be auto, balanced"),
        ({"teacher_device_map": "auto", "compile": True}, "one device"),
        ({"teacher_device_map": "auto", "teacher": "http://localhost:1/v1", "teacher_model": "m"}, "loaded there"),
    ):
        with pytest.raises(ValueError, match=said):
            GenerateConfig(**wrong)
    with pytest.raises(ValueError, match='give device_map="auto"'):
        ScoreConfig(device="auto")


def test_one_model_in_both_roles_is_one_where_it_is_in_one_place():
    teacher = find("teacher", str(bundled("teacher")), None, trust_remote_code=False)
    both = teacher, replace(teacher, role="student")
    assert one_model(*both, GenerateConfig(device_map="auto"))
    assert not one_model(*both, GenerateConfig(teacher_device_map="auto", student_device="cpu"))
    assert not one_model(*both, GenerateConfig(tensor_parallel=2))


def test_models_on_several_gpus_share_what_these_have(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 10**9))
    teacher, student = Need("auto", 2 * 10**9, 10**7), Need("cuda:0", 6 * 10**8, 10**7)
    made = estimate(teacher, student, tokens=10, rows=None)
    assert made.rows == 50 and f"4 GB free on {ALL_GPUS}" in made.text  # (0.9 * 4 - 2.6) / 0.02
    made = estimate(Need("cuda:0", 7 * 10**8, 10**7), Need("cuda:1", 10**8, 10**7), tokens=10, rows=None)
    assert made.rows == 20 and "1 GB free on cuda:0, 1 GB free on cuda:1" in made.text
    # Two names of one GPU, which has its memory once.
    made = estimate(Need("cuda", 7 * 10**8, 10**7), Need("cuda:1", 10**8, 10**7), tokens=10, rows=None)
    assert made.rows == 5 and made.text.endswith("(1 GB free on cuda:1)")
    assert dtype_of(GenerateConfig(device_map="auto")) == "bfloat16"


def test_processes_that_hold_a_teacher_together_take_a_part_of_it_each():
    config = AutoConfig.from_pretrained(bundled("teacher"))
    few, many = (
        [need(config, dtype="bfloat16", place="cuda", tokens=tokens, parts=parts) for parts in (1, 2)]
        for tokens in (1000, 2000)
    )
    assert few[1].weights == few[0].weights // 2
    assert many[1].row - few[1].row == (many[0].row - few[0].row) // 2


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize(
    "where",
    [["--teacher-device", "cuda:0", "--student-device", "cuda:1"], ["--teacher-device-map", "auto"]],
    ids=["one each", "spread"],
)
def test_two_gpus_make_what_one_makes(where, tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:8])
    for out, flags in (("want.jsonl", ["--device", "cuda:0"]), ("t.jsonl", where)):
        run(source, "-o", tmp_path / out, "--dtype", "float32", *flags)
    assert same_rows(read(tmp_path / "t.jsonl"), read(tmp_path / "want.jsonl"))

"""Real parts: prompts by real chat templates and tokenizers, and a pretrained model decoded as transformers does."""

import json

import pytest
import torch
from conftest import rsd, write
from real import TOKENIZERS, part, smollm2, tokenizer
from transformers import AutoModelForCausalLM, Qwen3Config

from rsd import GenerateConfig, TraceGenerator
from rsd.models.loading import find, load

pytestmark = pytest.mark.real
ROW = {"id": "a", "question": "Tom has  3 pens.\tHow many?\nSay it in <b>words</b>, é 数."}
# Templates that their packages lack, in the style of the models' own.
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}\n\nReasoning: "
    "{{ reasoning_effort if reasoning_effort is defined else 'medium' }}\n\n# Valid channels: analysis, commentary, "
    "final.<|end|>{% for m in messages %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
GEMMA2 = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(name)`: a real tokenizer with a tiny random model of its width, and perhaps another template."""
    root = tmp_path_factory.mktemp("real")

    def made(name, *, template=None, label=""):
        place = root / f"{name}{label}"
        if place.exists():
            return place
        spelled = tokenizer(name)
        config = Qwen3Config(
            vocab_size=len(spelled),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=16,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(place)
        spelled.save_pretrained(place)
        if template:
            (place / "chat_template.jinja").write_text(template, encoding="utf-8")
        return place

    return made


def shown(tmp_path, teacher, student, *flags):
    """What --dry-run says, and the prompts that it shows: the student's and the teacher's."""
    source = write(tmp_path / "in.jsonl", [ROW])
    result = rsd("generate", source, "--teacher", teacher, "--student", student, *flags, "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not [f for f in tmp_path.iterdir() if f != source]
    said, *prompts = result.stdout.split("--- the ")
    return said, *(p.split("\n", 1)[1][:-1] for p in prompts)


def template_of(name):
    return tokenizer(name).chat_template


def by_template(name, *, system=None, template=None, **kwargs):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": ROW["question"]}]
    return tokenizer(name).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template or template_of(name), **kwargs
    )


@pytest.mark.parametrize(
    ("name", "system", "kwargs"),
    [
        ("qwen3", None, {}),
        ("qwen3", "Be brief.", {"enable_thinking": False}),
        ("qwen3", None, {"enable_thinking": True}),
        ("deepseek_v3", "Be brief.", {}),
        ("gemma3", "Be brief.", {}),
        ("llama3", "Be brief.", {}),
        ("smollm2", None, {}),
    ],
)
def test_the_prompts_shown_are_the_templates_own(folder, tmp_path, name, system, kwargs):
    """The student's, and a teacher's by its own template."""
    other = "Question: {{ messages[-1].content }}\nAnswer:"
    teacher = folder(name, template=other, label="-other")
    flags = ["--teacher-prompt", "own", *(["--system-prompt", system] if system else [])]
    flags += ["--chat-template-kwargs", json.dumps(kwargs)] if kwargs else []
    said, ours, theirs = shown(tmp_path, teacher, folder(name), *flags)
    assert ours == by_template(name, system=system, **kwargs)
    assert theirs == f"Question: {ROW['question']}\nAnswer:"
    assert "vocabularies: the same tokens" in said and "memory: weights" in said and "threshold" in said


def test_harmony_without_its_date(folder, tmp_path):
    student = folder("gptoss", template=HARMONY, label="-harmony")
    kwargs = {"reasoning_effort": "high"}
    said, ours, _ = shown(tmp_path, student, student, "--chat-template-kwargs", json.dumps(kwargs))
    assert ours == by_template(
        "gptoss", template=HARMONY.replace("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"), **kwargs
    )
    assert ours.endswith("<|end|><|start|>assistant") and "prints the date" in said


def test_a_prompt_without_a_template_is_the_text_itself(folder, tmp_path):
    _, *prompts = shown(tmp_path, folder("llama2"), folder("llama2"))
    assert prompts == ["<s> " + ROW["question"]] * 2


def test_gemma_without_a_system_role(folder, tmp_path):
    strict = folder("gemma3", template=GEMMA2 + template_of("gemma3"), label="-strict")
    source = write(tmp_path / "in.jsonl", [ROW])
    flags = ["--teacher", strict, "--student", strict, "--system-prompt", "Be brief.", "--dry-run"]
    result = rsd("generate", source, *flags, cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "System role not supported; if it takes no system message, leave --system-prompt out" in result.stderr


@pytest.mark.parametrize("opened", ["teacher", "student"])
@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "gemma3"])
def test_one_thought_for_real_tokenizers(folder, tmp_path, name, opened):
    """Templates that end as R1's and QwQ's do, on one side alone; two of these tokenizers spell <think> in pieces."""
    ending = "{% if add_generation_prompt %}<think>\n{% endif %}"
    pair = dict.fromkeys(("teacher", "student"), folder(name))
    pair[opened] = folder(name, template=template_of(name) + ending, label="-open")
    said, *prompts = shown(tmp_path, pair["teacher"], pair["student"], "--teacher-prompt", "own")
    assert prompts == [by_template(name) + ("<think>\n" if opened == "student" else "")] * 2
    assert "notice: the student's chat template" in said


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_ends_at_the_tokenizers_end_beside_the_generation_configs(folder, name):
    place = folder(name)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    source = find("student", str(place), None, trust_remote_code=False)
    assert source.eos == {5, 6, tokenizer(name).eos_token_id}


@pytest.mark.parametrize("block", [1, None])
def test_greedy_without_a_threshold_is_what_generate_makes_of_the_teacher(block):
    """SmolLM2-135M, token by token: 40 of each of some real problems."""
    file = smollm2()
    problems = [json.loads(line) for line in part("problems.jsonl").read_text(encoding="utf-8").splitlines()[:4]]
    config = GenerateConfig(
        teacher=str(file), student=str(file), temperature=0.0, threshold=0.0, max_new_tokens=40, block_size=block
    )
    traces = TraceGenerator(config).run(problems)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    for problem, trace in zip(problems, traces, strict=True):
        ids = tokenizer("smollm2").apply_chat_template(
            [{"role": "user", "content": problem["question"]}], add_generation_prompt=True, return_tensors="pt"
        )
        out = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert trace.token_ids.tolist() == out.tolist() and len(out) > 10


@pytest.mark.parametrize(("theirs", "ours"), [("qwen3", "qwen3"), ("llama3", "qwen3"), ("smollm2", "smollm2")])
def test_soft_targets_of_real_tokenizers_are_those_of_plain_forwards(folder, tmp_path, theirs, ours):
    # Where the teacher is between two of its tokens, what it says of a token that both have is its own log-prob.
    teacher, student = (smollm2() if name == "smollm2" else folder(name) for name in (theirs, ours))
    how = {"teacher": str(teacher), "student": str(student), "max_new_tokens": 12, "skip_check": True, "verify": "none"}
    rows = [{"id": "a", "prompt": ROW["question"]}, {"id": "b", "prompt": "2 + 2?"}]
    generator = TraceGenerator(**how, top_logprobs=8, temperature=0.7)
    traces = generator.run(rows)
    pair = generator.find()
    models = {name: loaded(source) for name, source in (("teacher", pair.teacher), ("student", pair.student))}
    for trace in traces:
        soft = trace.soft_targets
        assert soft.k == 8 and trace.error is None
        for name, prompt in (("student", trace.prompt_ids), ("teacher", trace.prompt_ids)):
            if name == "teacher" and theirs != ours:
                continue
            with torch.inference_mode():
                read = torch.tensor([[*prompt, *trace.token_ids.tolist()]])
                want = models[name](read).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            ids, logprobs = getattr(soft, f"{name}_ids"), getattr(soft, f"{name}_logprobs")
            there = want.gather(1, torch.from_numpy(ids).long())
            torch.testing.assert_close(torch.from_numpy(logprobs), there, atol=2e-3, rtol=0)
            torch.testing.assert_close(there, want.topk(8).values, atol=2e-3, rtol=0)
        # In any pair: a distribution, of which the teacher's own log-prob of what was said is a part.
        assert (soft.teacher_logprobs[:, :-1] >= soft.teacher_logprobs[:, 1:]).all()
        for i, token in enumerate(trace.token_ids):
            at = soft.teacher_ids[i] == token
            if at.any() and theirs == ours:
                assert abs(soft.teacher_logprobs[i][at][0] - trace.teacher_logprobs[i]) < 2e-3
    # And the same for anybody's traces: what a pair reads is what it would have made.
    again = TraceGenerator(**how, top_logprobs=8, temperature=0.7, batch_size=1, block_size=1).run(rows)
    for one, other in zip(traces, again, strict=True):
        for mine, yours in zip(one.soft_targets, other.soft_targets, strict=True):
            same = abs(mine - yours) < 2e-3
            assert same.mean() > 0.99


def loaded(source):
    return load(source, GenerateConfig(skip_check=True))

"""What chat templates leave open, print or refuse, and where a text ends: made-up templates, in the style of real ones.

The command's --dry-run shows what each model reads.
"""

import json
import shutil
from datetime import date

import pytest
from conftest import SPECIALS, TEMPLATE, read, save_model, write
from jobs import FLAGS, files, run
from pairs import table_model
from torch import full
from transformers import AutoTokenizer, GenerationConfig

from rsd import GenerateConfig, TraceGenerator
from rsd.models.loading import find

HEAD = "<|im_start|>assistant\n"
ROWS = [{"id": "a", "prompt": "1 plus 1?"}]
USER = "<|im_start|>user\n1 plus 1?<|im_end|>\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_model(root / "plain", SPECIALS, width=272, seed=1)
    save_model(root / "words", [*SPECIALS, "<think>", "</think>"], width=272, seed=2)
    return root


@pytest.fixture
def templated(models, tmp_path):
    """`templated(name, role, template)`: a model's folder with another chat template."""

    def made(name, role, template):
        folder = shutil.copytree(models / name, tmp_path / role)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return made


def ending(text):
    return TEMPLATE.replace("assistant\n{% endif %}", f"assistant\n{text}{{% endif %}}")


def shown(tmp_path, teacher, student, *flags):
    """What --dry-run says, and the prompts that it shows: the student's and the teacher's."""
    source = write(tmp_path / "in.jsonl", ROWS)
    result = run(source, "-o", tmp_path / "out.jsonl", "--teacher", teacher, "--student", student, *flags, "--dry-run")
    assert not (tmp_path / "out.jsonl").exists()
    said, *prompts = result.output.split("--- the ")
    return said, *(p.split("\n", 1)[1][:-1] for p in prompts)


OPEN, EMPTY = "<think>\n", "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("teacher_words", ["plain", "words"])
@pytest.mark.parametrize(
    ("ours", "theirs", "read"),
    [
        # What the student's prompt leaves open or closed, the teacher's, and what the teacher then reads.
        (OPEN, "", OPEN),
        ("", OPEN, ""),
        ("<think>", "<think>\n\n", "<think>\n\n"),
        (OPEN, EMPTY, OPEN),
        (EMPTY, OPEN, EMPTY),
        (EMPTY, "", ""),
        ("", EMPTY, EMPTY),
        (OPEN, "</think>", OPEN),
    ],
)
def test_both_models_read_one_thought(templated, tmp_path, teacher_words, ours, theirs, read):
    student = templated("words", "student", ending(ours))
    teacher = templated(teacher_words, "teacher", ending(theirs))
    said, *prompts = shown(tmp_path, teacher, student, "--teacher-prompt", "own")
    assert prompts == [USER + HEAD + ours, USER + HEAD + read]
    assert ("notice: the student's chat template" in said) == (read != theirs)
    # As it would be tokenized whole.
    generator = TraceGenerator(GenerateConfig(teacher=str(teacher), student=str(student), teacher_prompt="own"))
    (row,) = generator.prepare(ROWS)
    whole = AutoTokenizer.from_pretrained(teacher)(prompts[1])["input_ids"]
    assert generator.find().render(row, generator.config).teacher == whole


def test_a_thought_that_the_completion_prefix_opens_is_opened_once(templated, tmp_path):
    teacher = templated("words", "teacher", ending(OPEN))
    student = templated("words", "student", TEMPLATE)
    _, *prompts = shown(tmp_path, teacher, student, "--teacher-prompt", "own", "--completion-prefix", "<think>\n")
    assert prompts == [USER + HEAD + "<think>\n"] * 2


DATED = "{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + (
    TEMPLATE.replace("{% for", "Today Date: {{ date_string }}|{{ strftime_now('%Y-%m-%d') }}\n{% for", 1)
)


def test_the_date_in_a_template_is_the_same_on_any_day(templated, tmp_path):
    student = templated("words", "student", DATED)
    said, *prompts = shown(tmp_path, student, student)
    assert prompts == ["Today Date: 26 Jul 2024|2024-07-26\n" + USER + HEAD] * 2
    assert "notice: the chat template of the student prints the date" in said
    today = date(2026, 1, 31)
    kwargs = json.dumps({"strftime_now": today.isoformat(), "date_string": "one day"})
    said, *prompts = shown(tmp_path, student, student, "--chat-template-kwargs", kwargs)
    assert prompts == ["Today Date: one day|2026-01-31\n" + USER + HEAD] * 2 and "prints the date" not in said


def test_a_date_that_is_none_is_refused_in_one_line(templated, tmp_path):
    student = templated("words", "student", DATED)
    flags = ["--student", student, "--teacher", student, "--dry-run"]
    for wrong in ('{"strftime_now": "today"}', '{"strftime_now": 7}'):
        result = run(write(tmp_path / "in.jsonl", ROWS), *flags, "--chat-template-kwargs", wrong, expect=2)
        assert len(result.output.splitlines()) == 1 and "chat template refuses the prompt" in result.output


STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE


def test_a_template_without_a_system_role_says_what_to_do(templated, tmp_path):
    student = templated("words", "student", STRICT)
    source, flags = write(tmp_path / "in.jsonl", ROWS), ["--teacher", student, "--student", student]
    result = run(source, *flags, "--dry-run", "--system-prompt", "Be brief.", expect=2)
    want = "the student's chat template refuses the prompt: System role not supported; if it takes no system message"
    assert len(result.output.splitlines()) == 1 and want in result.output
    out = tmp_path / "out.jsonl"
    run(source, "-o", out, *flags, *FLAGS, "--system-prompt", "Be brief.", expect=1)
    assert want in read(out)[0]["error"]
    assert run(source, *flags, "--dry-run").output.endswith(USER + HEAD + "\n")


def test_the_dry_run_shows_settings_and_memory_and_steers_no_terminal(models, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "a\tb\u00a0c\x1b[31m", "hint": "x"}])
    flags = ["--teacher", models / "plain", "--student", models / "words", "--trials", "inf", "--batch-size", 3]
    flags += ["--teacher-template", "{{ prompt }}\n{{ hint }}", "--seed", 7, "--dtype", "bfloat16"]
    said = run(source, *flags, "--dry-run").output
    lines = dict(line.split(None, 1) for line in said.splitlines() if len(line.split(None, 1)) == 2)
    assert lines["trials"] == "inf" and lines["seed"] == "7" and lines["dtype"] == "bfloat16"
    assert lines["threshold"] == "0.01" and lines["batch-size"] == "3" and lines["student"] == str(models / "words")
    assert lines["teacher-template"] == json.dumps("{{ prompt }}\n{{ hint }}")
    assert "memory: weights" in said and ": 3 rows at once" in said
    assert "a\tb\u00a0c\ufffd[31m<|im_end|>" in said and "\x1b" not in said


@pytest.mark.parametrize("named", [None, 258, [256], [256, 258]])
def test_a_text_ends_at_what_the_generation_config_and_the_tokenizer_name(models, tmp_path, named):
    """The tokenizer's end is 258, the padding 256; a student that can write nothing but these two ends at either."""
    folder = shutil.copytree(models / "plain", tmp_path / "student")
    table = full((272, 272), -20.0)
    table[:, [256, 258]] = 0.0
    model = table_model(table)
    model.generation_config = GenerationConfig(eos_token_id=named)
    model.save_pretrained(folder)
    ends = {258} | ({256} if named in ([256], [256, 258]) else set())
    source = find("student", str(folder), None, trust_remote_code=False)
    assert source.eos == ends and source.ends[0] == (256 if named == [256] else 258)
    flags = ["--teacher", folder, "--student", folder, *FLAGS, "--num-generations", 12, "--no-loop-check"]
    run(write(tmp_path / "in.jsonl", ROWS), "-o", tmp_path / "out.jsonl", *flags)
    last = {line["token_ids"][-1] for line in files(tmp_path / "out.jsonl")[1]}
    assert last == ends
    assert all(not ends & set(line["token_ids"][:-1]) for line in files(tmp_path / "out.jsonl")[1])

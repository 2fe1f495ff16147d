"""What a long prompt, an endless template or an unwritable page may cost."""

import errno
import json
import os
import tracemalloc
from dataclasses import replace

import pytest
from conftest import TEMPLATE, read, write
from jobs import FLAGS, NATURAL, WORDY, command, pair, row, run
from real import tokenizer

from rsd.config import BUNDLED_STUDENT, GenerateConfig
from rsd.models import limits
from rsd.models.loading import find
from rsd.pair.prompts import privileged
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import responses
from rsd.scoring.scorer import load_scorer
from rsd.traces.rows import Row, in_memory

ENDLESS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"


def source():
    return find("student", BUNDLED_STUDENT, None, trust_remote_code=False)


def test_a_prompt_far_beyond_the_context_is_not_tokenized_whole(monkeypatch):
    student, seen = source(), []
    kind = type(student.tokenizer)
    encode = kind.encode

    def noted(self, text, *args, **kwargs):
        seen.append(len(text))
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(kind, "encode", noted)
    with pytest.raises(ValueError, match=rf"more than \d+ tokens and the student's context {student.context}"):
        student.prompt_ids([{"role": "user", "content": "one two " * 1_000_000}], {})
    assert seen and max(seen) < 100 * student.context
    # A prompt that fits is read as ever.
    whole = [{"role": "user", "content": "one two " * 20}]
    assert student.prompt_ids(whole, {}) == student.tokenizer.apply_chat_template(
        whole, add_generation_prompt=True, return_dict=False
    )


def test_a_response_far_beyond_the_context_is_an_error_without_tokenizing_it():
    scorer = load_scorer(ScoreConfig())
    (response,) = responses([row(0, "6 plus 5. " * 500_000)], ScoreConfig())
    tracemalloc.start()
    scored = scorer.score(response)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "the trace has more than" in scored.error and peak < 30e6


@pytest.mark.parametrize("template", [ENDLESS, "{{ 'a' * 10**12 }}", "{{ 10 ** (10 ** 10) }}"])
def test_a_teacher_template_has_an_end(tiny, tmp_path, monkeypatch, template):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    rows = write(tmp_path / "in.jsonl", [{"id": 1, "prompt": "a"}])
    flags = [*pair(tiny), *FLAGS, "--teacher-template", template]
    result = run(rows, "-o", tmp_path / "out.jsonl", *flags, expect=2)
    assert "the teacher's template: " in result.output and len(result.output.splitlines()) < 4


def test_a_template_without_end_is_an_error_of_its_row(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    rows = write(tmp_path / "in.jsonl", [{"id": 1, "prompt": "long"}, {"id": 2, "prompt": "short"}])
    template = "{% if prompt == 'long' %}" + ENDLESS + "{% endif %}{{ prompt }}"
    out = tmp_path / "out.jsonl"
    run(rows, "-o", out, *pair(tiny), *FLAGS, "--teacher-template", template, expect=1)
    assert "longer than 0.3 s" in read(out)[0]["error"] and read(out)[1]["error"] is None


def test_a_chat_template_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    student = source()
    student.tokenizer.chat_template = ENDLESS + TEMPLATE
    with pytest.raises(ValueError, match=r"it took longer than 0\.3 s"):
        student.prompt_ids([{"role": "user", "content": "a"}], {})


HUGE = {
    "product": "{{ 'a' * 10**11 }}",
    "product of a list": "{{ ([1] * 10**10)|length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "center": "{{ 'a'|center(10**11) }}",
    "indent": "{{ 'a\n'|indent(10**11, true) }}",
    "format": "{{ '%100000000000d' % 1 }}",
    "format with a star": "{{ '%*d' % (10**11, 1) }}",
    "format filter": "{{ '%100000000000d'|format(1) }}",
    "format method": "{{ '{:100000000000}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(10**11) }}",
    "zfill": "{{ '1'.zfill(10**11) }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by plus": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling of lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "replace": "{{ ('a' * 60000)|replace('a', 'b' * 60000) }}",
    "replace method": "{{ ('a' * 60000).replace('a', 'b' * 60000) }}",
    "join": "{{ (['a' * 60000] * 60000)|join }}",
    "join method": "{{ ''.join(['a' * 60000] * 60000) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**11) }}",
    "output": "{% set x = 'a' * 60000000 %}{% for i in range(90000) %}{{ x }}{% endfor %}",
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}"
    + "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = m(n.x) %}{% endfor %}",
}


@pytest.mark.parametrize("how", HUGE)
def test_no_template_makes_anything_huge(how, monkeypatch):
    student = source()
    student.tokenizer.chat_template = HUGE[how] + TEMPLATE
    monkeypatch.setattr(limits, "SECONDS", 60.0)
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"chat template refuses the prompt: it (makes more|makes a number|formats)"
    ) as e:
        student.prompt_ids([{"role": "user", "content": "a"}], {})
    assert "\n" not in str(e.value)
    asked = in_memory([Row(1, [{"role": "user", "content": "a"}], {})])
    with pytest.raises(ValueError, match=r"the teacher's template: it (makes more|makes a number|formats)"):
        privileged(asked, GenerateConfig(teacher_template=HUGE[how]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9


TALK = [
    {"role": "system", "content": "Be brief. 漢字"},
    {"role": "user", "content": "What is 6 * 7?\n\n{{ x }} <b>"},
    {"role": "assistant", "content": "<think>\nsix sevens\n</think>\n\n42"},
    {"role": "user", "content": "And 7 * 8?"},
]


def as_transformers_renders(one, messages, kwargs):
    """The same template, by another name that the bounds do not know."""
    template = one.tokenizer.get_chat_template() + "{# unbounded #}"
    how = {"tokenize": False, "add_generation_prompt": True, "chat_template": template}
    return one.tokenizer.apply_chat_template(messages, **how, **kwargs)


def assert_renders_as_ever(one):
    for messages in (TALK, TALK[1:2], TALK[:2], TALK[1:]):
        for kwargs in ({}, {"enable_thinking": False}, {"reasoning_effort": "high"}):
            try:
                want = as_transformers_renders(one, messages, kwargs)
            except Exception:  # a template that takes no system message
                with pytest.raises(ValueError, match="refuses the prompt"):
                    one.prompt_ids(messages, kwargs)
                continue
            if not one.dated:
                assert one._apply(messages, kwargs, add_generation_prompt=True) == want


@pytest.mark.parametrize("name", ["bundled-student", "bundled-teacher", "bundled-llama"])
def test_bounded_templates_make_what_they_ever_made(name):
    assert_renders_as_ever(find("student", name, None, trust_remote_code=False))


@pytest.mark.real
@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "deepseek_v3", "smollm2"])  # others have none
def test_bounded_templates_make_what_they_ever_made_of_real_ones(name):
    one = find("student", "bundled-student", None, trust_remote_code=False)
    assert_renders_as_ever(replace(one, tokenizer=tokenizer(name), name=name))


def test_a_page_that_cannot_be_written_costs_neither_table_nor_figures(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a.jsonl", [row(0, WORDY)]), write(tmp_path / "b.jsonl", [row(0, NATURAL[0])])
    page, figures = tmp_path / "c.html", tmp_path / "c.json"
    command("compare", a, b, "--html", page)
    before, replace = page.read_bytes(), os.replace

    def full(source, target):
        if str(target) == str(page):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    result = command("compare", a, b, "--html", page, "--json", figures, "--overwrite", expect=2)
    assert "local naturalness" in result.output and json.loads(figures.read_text())["aligned"] == 1
    assert page.read_bytes() == before

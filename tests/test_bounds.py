"""What a long prompt, an endless template or an unwritable page may cost."""

import json
import tracemalloc

import pytest
from conftest import TEMPLATE, read, write
from jobs import FLAGS, pair, run
from test_compare import NATURAL, WORDY, row
from test_scoring import command

from rsd import limits
from rsd.config import BUNDLED_STUDENT, ScoreConfig
from rsd.models import find
from rsd.responses import responses
from rsd.scoring import load_scorer

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
    assert "teacher-template: " in result.output and len(result.output.splitlines()) < 4


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


def test_a_page_that_cannot_be_written_costs_neither_table_nor_figures(tmp_path):
    a, b = write(tmp_path / "a.jsonl", [row(0, WORDY)]), write(tmp_path / "b.jsonl", [row(0, NATURAL[0])])
    page, figures = tmp_path / "c.html", tmp_path / "c.json"
    page.write_text("the last one")
    (tmp_path / "c.html.tmp").mkdir()  # in the way
    result = command("compare", a, b, "--html", page, "--json", figures, expect=2)
    assert "local naturalness" in result.output and json.loads(figures.read_text())["aligned"] == 1
    assert page.read_text() == "the last one"

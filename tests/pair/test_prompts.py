"""What each model reads: a teacher's own prompt, a completion's beginning, tokens that are never chosen."""

import json
import shutil

import pytest
import torch
from conftest import read, write
from jobs import FLAGS, by_key, command, files, pair, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import read_responses
from rsd.scoring.scorer import load_scorer

ROWS = [{"id": f"p{i}", "problem": f"{i} plus {i}?", "solution": f"It is {2 * i}.", "n": i} for i in range(4)]


def logprobs(folder, context, ids):
    """By one plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        made = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)[len(context) - 1 : -1]
    return made.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def prompt_ids(folder, content, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


# No think tags: what the teacher reads is what was sampled, id for id.
NO_TAGS = ["--suppress", "<think>", "--suppress", "</think>", "--suppress", "259", "--suppress", "<|endoftext|>"]


def check(tiny, out, ours, theirs):
    """Every trace's log-probs are those of each model after its own prompt."""
    rows, tokens, _ = files(out)
    assert rows
    for key, row in by_key(rows).items():
        line = by_key(tokens)[key]
        ids = line["token_ids"]
        assert line["prompt_ids"] == prompt_ids(tiny()["student"], *ours(row))
        prefix = line.get("prefix_ids", [])
        student = logprobs(tiny()["student"], line["prompt_ids"] + prefix, ids)
        assert student == pytest.approx(line["student_logprobs"], abs=1e-4)
        teacher = logprobs(tiny()["teacher"], prompt_ids(tiny()["teacher"], *theirs(row)) + prefix, ids)
        assert teacher == pytest.approx(line["teacher_logprobs"], abs=1e-4)


@pytest.mark.parametrize("prompt", ["student", "own"])
def test_a_template_gives_the_teacher_a_prompt_of_its_own(tiny, tmp_path, prompt):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    template = "{{ prompt }} Hint {{ n }}: {{ solution }}"
    flags = ["--teacher-template", template, "--teacher-prompt", prompt, "--system-prompt", "Be brief."]
    run(source, "-o", out, *pair(tiny), *FLAGS, *NO_TAGS, *flags)

    def hinted(row):
        n = row["n"]
        return f"{n} plus {n}? Hint {n}: It is {2 * n}.", "Be brief."

    check(tiny, out, lambda row: (f"{row['n']} plus {row['n']}?", "Be brief."), hinted)
    for row in read(out):
        assert "Hint" not in json.dumps(row)


def test_a_column_gives_the_teacher_a_prompt_of_its_own_which_no_row_holds(tiny, tmp_path):
    given = ["SECRET 0", [{"role": "user", "content": "SECRET 1"}], "SECRET 2", ""]
    source = write(tmp_path / "in.jsonl", [row | {"hint": h} for row, h in zip(ROWS, given, strict=True)])
    out = tmp_path / "out.jsonl"
    result = run(source, "-o", out, *pair(tiny), *FLAGS, *NO_TAGS, "--teacher-prompt-column", "hint", expect=1)
    assert "hint is empty" in result.output
    assert [file.name for file in tmp_path.glob("out*") if "SECRET" in file.read_text()] == ["out.tokens.jsonl"]
    good = [row for row in read(out) if row["error"] is None]
    assert {row["id"] for row in good} == {"p0", "p1", "p2"}
    write(out, good)
    check(tiny, out, lambda row: (f"{row['n']} plus {row['n']}?",), lambda row: (f"SECRET {row['n']}",))
    # Another hint makes other traces: what is there is not mixed with them.
    write(source, [row | {"hint": "SECRET 9"} for row in ROWS])
    refused = run(source, "-o", out, *pair(tiny), *FLAGS, *NO_TAGS, "--teacher-prompt-column", "hint", expect=2)
    assert "another prompt of the teacher" in refused.output


def test_a_file_can_hold_the_template_and_a_row_without_its_column_is_an_error(tiny, tmp_path):
    (tmp_path / "hint.jinja").write_text("{{ prompt }} ({{ solution }})")
    source = write(tmp_path / "in.jsonl", [*ROWS[:2], {"id": "bare", "problem": "?", "n": 9}])
    out = tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS, "--teacher-template", f"@{tmp_path}/hint.jinja", expect=1)
    rows = {row["id"]: row for row in read(out)}
    assert rows["p0"]["error"] is None and rows["p1"]["error"] is None
    assert rows["bare"]["error"] == "the teacher's template: 'solution' is undefined"


@pytest.mark.parametrize("column", ["prompt", "question", "problem", "text", "messages"])
def test_a_template_can_use_every_column_of_the_row(column):
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    row = {"id": 7, column: turns if column == "messages" else "Q", "hint": "H", "none": None}
    value = "messages[1].content" if column == "messages" else column
    template = "{{ " + value + " }} {{ prompt }} {{ hint }} {{ none }} {{ id }}"
    for given in (None, column):
        config = GenerateConfig(teacher_template=template, prompt_column=given)
        if given or column != "text":
            (made,) = TraceGenerator(config).prepare([row])
            assert (made.error, made.teacher[-1]["content"]) == (None, "Q Q H None 7")
            assert made.columns == {"hint": "H", "none": None}  # the prompt is not kept twice


def test_a_template_that_fails_for_every_row_stops_the_job(tmp_path):
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", [*ROWS, {"id": "empty", "problem": ""}])
    # No weights are read: the folder of the student has none.
    student = shutil.copytree(bundled("student"), tmp_path / "student")
    (student / "model.safetensors").unlink()
    flags = ["--student", student, "--teacher-template", "{{ prompt }} {{ answr }}"]
    said = run(source, "-o", out, *flags, expect=2).output
    assert said.count("\n") == 1 and "teacher-template: no column answr: found problem, " in said
    assert not out.exists()
    # One row that it does not fail for, and the others are errors of their own.
    generator = TraceGenerator(GenerateConfig(teacher_template="{{ prompt }} {{ answr }}"))
    rows = generator.prepare([*ROWS, {"id": "good", "problem": "?", "answr": 5}, {"id": "empty", "problem": ""}])
    assert [row.error for row in rows] == ["the teacher's template: 'answr' is undefined"] * 4 + [
        None,
        "problem is empty",
    ]
    # Where none could be tried there is nothing to say of it.
    assert generator.prepare([{"id": "empty", "problem": ""}])[0].error == "problem is empty"


MISSPELT = {
    "template": ("generate", "--teacher-template", "{{ sloution }}", "teacher-template: no column sloution"),
    "in a branch": ("generate", "--teacher-template", "{% if n > 9 %}{{ sloution }}{% endif %}", "no column sloution"),
    "teacher's prompt": ("generate", "--teacher-prompt-column", "sloution", "--teacher-prompt-column: found"),
    "prompt": ("generate", "--prompt-column", "porblem", "no prompt column: looked for porblem, found"),
    "answer": ("generate", "--answer-column", "sloution", "no column of answers: looked for sloution, found"),
    "scored": ("score", "--response-column", "sloution", "no column sloution: found"),
    "thinking": ("score", "--thinking-column", "sloution", "no column sloution: found"),
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_column_is_refused_before_a_model_is_looked_at(name, tmp_path):
    which, flag, value, words = MISSPELT[name]
    source, nothing = write(tmp_path / "in.jsonl", ROWS), tmp_path / "nothing"
    nothing.mkdir()  # no model, no tokenizer
    for more in ([], ["--dry-run"]) if which == "generate" else ([],):
        made = command(which, source, "--student", nothing, "-o", tmp_path / "out.jsonl", flag, value, *more, expect=2)
        said = " ".join(made.output.split())
        assert words in said and made.output.count("\n") == 1
        assert "solution" in said and f"did you mean {'problem' if 'porblem' in value else 'solution'}?" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "nothing"]


def test_a_template_may_ask_for_what_no_row_has():
    template = (
        "{{ prompt }} {{ hint | default('no hint') }} {% if more is defined %}{{ more }}{% endif %} {{ range(2) }}"
    )
    rows = TraceGenerator(GenerateConfig(teacher_template=template)).prepare(ROWS)
    assert [row.error for row in rows] == [None] * 4 and "no hint" in rows[0].teacher[-1]["content"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--teacher-template", "{{ prompt"], "teacher-template: "),
        (["--teacher-template", "@no/such/file"], "No such file"),
        (["--teacher-prompt-column", "none"], "no column none"),
        (["--teacher-prompt-column", "n", "--teacher-template", "x"], "give one"),
        (["--suppress", "two tokens"], "not one"),
        (["--suppress", "99999"], "no token 99999"),
        (["--suppress", "<|im_end|>", "--suppress", "<|endoftext|>"], "every token that ends a trace"),
        (["--want", "3", "--until-correct"], "raise the latter"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tiny, tmp_path, flags, words):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    assert words in run(source, "-o", out, *pair(tiny), *flags, expect=2).output
    assert not out.exists()


def test_a_template_is_no_program(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", ROWS[:1]), tmp_path / "out.jsonl"
    nasty = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert "unsafe" in run(source, "-o", out, *pair(tiny), *FLAGS, "--teacher-template", nasty, expect=2).output
    # And what stands in a row is text, not a template.
    source = write(tmp_path / "in2.jsonl", [ROWS[0] | {"solution": "{{ 6 * 7 }}"}])
    generator = TraceGenerator(GenerateConfig(**tiny(), teacher_template="{{ solution }}"))
    (row,) = generator.prepare(read(source))
    assert row.teacher == [{"role": "user", "content": "{{ 6 * 7 }}"}]


def test_a_completion_begins_as_it_is_told_to(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    # Bytes that both models spell alike, so that the teacher can be checked id for id.
    run(source, "-o", out, *pair(tiny), *FLAGS, *NO_TAGS, "--completion-prefix", "Well, ")
    check(tiny, out, *[lambda row: (f"{row['n']} plus {row['n']}?",)] * 2)
    rows, tokens, _ = files(out)
    for key, row in by_key(rows).items():
        assert row["completion"][0]["content"].startswith("Well, ")
        line = by_key(tokens)[key]
        assert len(line["prefix_ids"]) == 6 and row["num_tokens"] == len(line["token_ids"])


def test_a_special_token_can_begin_a_completion(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS, "--completion-prefix", "<think>")
    for row, line in zip(*files(out)[:2], strict=True):
        assert row["completion"][0]["content"].startswith("<think>")
        assert line["prefix_ids"] == [259]
        closes = row["completion"][0]["content"].count("</think>")
        assert row["one_think_close"] is (closes == 1)


def test_a_prompt_that_ends_in_an_open_thought(tmp_path):
    """A chat template that opens the thought itself: what is cut off before its end is no answer."""
    for name in ("teacher", "student"):
        shutil.copytree(bundled(name), tmp_path / name)
        template = tmp_path / name / "chat_template.jinja"
        template.write_text(template.read_text().replace("assistant\n{%", "assistant\n<think>{%"))
    flags = ["--teacher", tmp_path / "teacher", "--student", tmp_path / "student"]
    problem = {
        "id": 1,
        "problem": "Tom has 34 pens. Tom gives 12 to Ana and then finds 25 more. How many?",
        "answer": "7",
    }
    source = write(tmp_path / "in.jsonl", [problem])
    run(source, "-o", tmp_path / "cut.jsonl", *flags, "--max-new-tokens", 5)
    (row,) = read(tmp_path / "cut.jsonl")
    assert (row["one_think_close"], row["ended_by_eos"], row["is_correct"]) == (False, False, False)
    run(source, "-o", tmp_path / "whole.jsonl", *flags)
    (row,) = read(tmp_path / "whole.jsonl")
    assert "<think>" not in row["completion"][0]["content"] and row["one_think_close"] is True
    refused = run(source, "-o", tmp_path / "twice.jsonl", *flags, "--completion-prefix", "<think>", expect=1)
    assert "leave --completion-prefix out" in refused.output


def test_suppressed_tokens_are_in_no_trace(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    flags = [*FLAGS, "--num-generations", 8, "--max-new-tokens", 60]
    run(source, "-o", tmp_path / "free.jsonl", *pair(tiny), *flags)
    common = {i for line in files(tmp_path / "free.jsonl")[1] for i in line["token_ids"]} - {256, 258}
    banned = sorted(common)[:40]
    result = run(source, "-o", out, *pair(tiny), *flags, *[x for i in banned for x in ("--suppress", i)])
    assert f"suppressed: {len(banned)} tokens" in result.output
    for line in files(out)[1]:
        assert not set(line["token_ids"]) & set(banned)


def test_the_generation_config_of_the_student_can_suppress_tokens(tiny, tmp_path):
    student = shutil.copytree(tiny()["student"], tmp_path / "student")
    config = json.loads((student / "generation_config.json").read_text())
    (student / "generation_config.json").write_text(json.dumps(config | {"suppress_tokens": [65, 66]}))
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    result = run(source, "-o", out, "--teacher", tiny()["teacher"], "--student", student, *FLAGS)
    assert "suppressed: 2 tokens" in result.output
    assert files(out)[2]["identity"]["suppressed"] == [65, 66]


def test_a_heat_map_knows_nothing_of_the_written_beginning_and_all_of_the_rest(tmp_path):
    source, out = write(tmp_path / "in.jsonl", read(bundled("problems.jsonl"))[:4]), tmp_path / "out.jsonl"
    run(source, "-o", out, "--completion-prefix", "<think>")
    config = ScoreConfig()
    scorer = load_scorer(config)
    for response in read_responses(out, config):
        scored = scorer.score(response)
        assert scored.error is None and scored.token_ids[0] == 760
        assert scored.tokens["from_teacher"][0] == -1 and (scored.tokens["from_teacher"][1:] >= 0).all()
        # The student's own pass over the whole text agrees with what was noted while sampling.
        assert scored.token_scores.logprobs[1:] == pytest.approx(scored.tokens["student_logprobs"][1:], abs=1e-3)

"""Responses in any format, scores in rows, and files that survive."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import read, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jobs import FLAGS, PROBLEMS, command, pair
from jobs import run as generate

import rsd
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.metrics import COLUMNS, METRICS
from rsd.scoring.responses import responses
from rsd.scoring.scorer import load_scorer, token_steps
from rsd.scoring.steps import split
from rsd.traces.tokens import unknown

QUESTION = "What is 6 times 7?"
THINKING, ANSWER = "6*7=42. So it is 42.", "\\boxed{42}"
TEXT = f"<think>\n{THINKING}\n</think>\n\n{ANSWER}"
USER, ASSISTANT = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": TEXT}


@pytest.fixture(scope="module")
def scorer():
    return load_scorer(ScoreConfig())


def text_scored(scorer, text, **settings):
    (response,) = responses([{"prompt": QUESTION, "completion": text}], ScoreConfig(**settings))
    return scorer.score(response)


FORMATS = {
    "prompt-completion": [{"prompt": [USER], "completion": [ASSISTANT]}],
    "strings": [{"prompt": QUESTION, "completion": TEXT}],
    "question": [{"question": QUESTION, "completion": TEXT}],
    "messages": [{"messages": [USER, ASSISTANT]}],
    "reasoning_content": [
        {"messages": [USER, {"role": "assistant", "content": ANSWER, "reasoning_content": THINKING}]}
    ],
    "sharegpt": [{"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": TEXT}]}],
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_scores(kind):
    want = rsd.score(FORMATS["prompt-completion"])[0]
    assert want["score_error"] is None and want["local_naturalness"] < 0
    (made,) = rsd.score(FORMATS[kind])
    assert {k: made[k] for k in COLUMNS} == {k: want[k] for k in COLUMNS}
    assert {k: made[k] for k in FORMATS[kind][0]} == FORMATS[kind][0]


@pytest.mark.parametrize("trajectory", [THINKING, [THINKING]])
def test_columns_named_by_flags(trajectory):
    # As in s1K, which has a raw trace a column; and a completion of ours in the same row is not what is scored.
    row = {"question": QUESTION, "deepseek_thinking_trajectory": trajectory, "deepseek_attempt": ANSWER}
    named = {"thinking_column": "deepseek_thinking_trajectory", "response_column": "deepseek_attempt"}
    want = rsd.score(FORMATS["strings"])[0]
    (made,) = rsd.score([row | {"completion": "Something else."}], **named)
    assert made["scoring"] == want["scoring"] | named
    assert {k: made[k] for k in COLUMNS if k != "scoring"} == {k: want[k] for k in COLUMNS if k != "scoring"}
    (thinking,) = rsd.score([row], thinking_column="deepseek_thinking_trajectory")
    assert 0 < want["scored_tokens"] - thinking["scored_tokens"] < 12


def test_an_earlier_turn_is_part_of_the_prompt(scorer):
    turns = [USER, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Sure?"}, ASSISTANT]
    (response,) = responses([{"messages": turns}], ScoreConfig())
    assert response.messages == turns[:3] and response.text == TEXT
    assert response.prompt == "Sure?"


def test_the_scores_are_those_of_a_plain_forward(scorer):
    import torch

    made = text_scored(scorer, TEXT)
    prompt = scorer.source.tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    ids = scorer.source.tokenizer.encode(TEXT)
    with torch.inference_mode():
        logits = scorer.reader.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    want = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(made.token_scores.logprobs, want, atol=1e-4)
    assert made.metrics["global_logprob"] == pytest.approx(want.mean(), abs=1e-4)
    assert "".join(made.pieces()) == TEXT
    assert [TEXT[a:b] for a, b in made.spans] == ["<think>\n6*7=42.", " So it is 42.\n</think>\n\n", ANSWER]
    assert [made.pieces()[i] for i in made.steps] == ["<think>", " ", "\\boxed"]


def test_every_result_names_how_it_was_scored():
    (row,) = rsd.score(FORMATS["strings"], steps="line", window="20%", weighting="token", threshold=0.1)
    how = {"steps": "line", "window": "20%", "weighting": "token", "threshold": 0.1, "student": "bundled-student"}
    assert how.items() <= row["scoring"].items()
    assert len(row["scoring"]["fingerprint"]) == 32


# Text with what is hard for tokens: several bytes a character, combining characters, special tokens.
HARD = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(
            [
                "漢字。",
                "👩\u200d🔬 ",
                "e\u0301",
                "\U0001d54f\U0001d550",
                "<think>",
                "</think>\n\n",
                "\n\n",
                ". ",
                "3.14 ",
                "\u2028",
            ]
        ),
    ),
    min_size=1,
    max_size=12,
).map("".join)


@settings(max_examples=150, deadline=None)
@example(text="\ufffd0", kind="line")
@example(text="a\ufffd\ufffd\u6f22\ufffd.", kind="line")
@given(text=HARD, kind=st.sampled_from(["sentence", "line", "paragraph"]))
def test_steps_of_tokens_cover_any_text(scorer, text, kind):
    encoded = scorer.source.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [a for a, _ in encoded["offset_mapping"]]
    assert scorer.texts.starts(encoded["input_ids"]) == starts
    spans, steps = token_steps(split(text, steps=kind), starts, len(text))
    assert "".join(text[a:b] for a, b in spans) == text
    if text:
        assert len(spans) == len(steps) and steps[0] == 0 and steps == sorted(set(steps))
    for (a, _), token in zip(spans[1:], steps[1:], strict=True):
        assert starts[token] >= a and starts[token - 1] < a
    made = text_scored(scorer, text)
    assert ("".join(made.pieces()) == text) if text.strip() else (made.error == "the trace is empty")


def test_the_sidecars_arrays_are_those_of_the_tokens_that_are_scored(scorer):
    # Sampled with "So" as two tokens, where the tokenizer chooses one: nothing is known of that one alone.
    tokenizer = scorer.source.tokenizer
    text = "6*7=42. So it is 42. \u6f22\u5b57 times 3"
    ids = tokenizer.encode(text)
    at = max(range(len(ids)), key=lambda i: len(tokenizer.decode([ids[i]])))
    pieces = [i for c in tokenizer.decode([ids[at]]) for i in tokenizer.encode(c)]
    assert len(pieces) > 1
    sampled = [*ids[:at], *pieces, *ids[at + 1 :], next(iter(scorer.source.eos))]
    numbers = np.arange(len(sampled), dtype="float32")
    noted = unknown(sampled)
    noted["teacher_logprobs"] = noted["student_logprobs"] = -numbers
    noted["from_teacher"], noted["proposals"] = 1, sampled
    (response,) = responses([{"prompt": QUESTION, "completion": text}], ScoreConfig())
    made = scorer.score(replace(response, tokens=noted))
    assert made.token_ids.tolist() == ids
    known = [*range(at), None, *range(at + len(pieces), len(sampled) - 1)]
    assert [None if np.isnan(v) else -v for v in made.tokens["teacher_logprobs"]] == known
    assert made.tokens["from_teacher"].tolist() == [-1 if i is None else 1 for i in known]
    assert made.tokens["proposals"].tolist() == [-1 if i is None else sampled[i] for i in known]
    noted["token_ids"] += 1
    whole = scorer.score(replace(response, tokens=noted))
    assert whole.tokens is None and whole.metrics == made.metrics


def test_ids_of_the_row_are_scored_as_they_are(scorer):
    tokenizer = scorer.source.tokenizer
    ids = [i for c in TEXT.removeprefix("<think>").removesuffix("\\boxed{42}") for i in tokenizer.encode(c)]
    text = tokenizer.decode(ids)
    assert ids != tokenizer.encode(text)  # a spelling that the tokenizer would not choose
    eos = next(iter(scorer.source.eos))
    for row in ({"token_ids": ids}, {"token_ids": [*ids, eos], "completion": text}):
        (response,) = responses([{"prompt": QUESTION, **row}], ScoreConfig())
        made = scorer.score(response)
        assert made.error is None and made.token_ids.tolist() == ids and "".join(made.pieces()) == text


BAD = {
    "empty": ({"completion": ""}, "the trace is empty"),
    "white space": ({"completion": " \n"}, "the trace is empty"),
    "no completion": ({"completion": None}, "completion must be"),
    "user's turn": ({"completion": [{"role": "user"}]}, "holds a message that is not"),
    "no prompt": ({"prompt": None}, "prompt must be a string"),
    "empty prompt": ({"prompt": " "}, "prompt is empty"),
    "an error": ({"error": "out of memory"}, "the row is an error itself: out of memory"),
    "unknown id": ({"completion": "", "token_ids": [5, 100000]}, "holds 100000, which the student's tokenizer"),
    "padding id": ({"completion": "", "token_ids": [767]}, "holds 767, which"),
    "negative id": ({"completion": "", "token_ids": [-1]}, "holds -1, which"),
    "no ids": ({"token_ids": ["5"]}, "must be a list of whole numbers"),
    "other ids": ({"token_ids": [5, 6, 7]}, "do not spell the row's text"),
    "too long": ({"completion": "1 " * 5000}, "tokens, the student's context 8192"),
    "surrogate": ({"completion": "a\ud800b"}, ""),
    "another format": ({"prompt": None, "completion": None, "messages": [USER, ASSISTANT]}, "completion must be"),
}


def test_bad_rows_become_error_rows_and_never_a_nan(tmp_path):
    good = {"prompt": QUESTION, "completion": TEXT}
    rows = [{**good, "id": name, **bad} for name, (bad, _) in BAD.items()]
    source = write(tmp_path / "in.jsonl", [*rows, good, {**good, "completion": "7"}, {**good, "completion": "no end"}])
    result = command("score", source, expect=1)
    made = read(tmp_path / "in.scored.jsonl")
    assert len(made) == len(rows) + 3
    for row, (_, error) in zip(made, BAD.values(), strict=False):
        assert error in row["score_error"] and all(row[m] is None for m in METRICS), row
    for row in made[-3:]:
        assert row["score_error"] is None
        assert all(row[m] is None or math.isfinite(row[m]) for m in METRICS)
    single = made[-2]
    assert (single["scored_tokens"], single["num_steps"], single["aslec_drop"]) == (1, 1, None)
    assert made[-1]["num_steps"] == 1
    assert f"{len(rows)} rows have `score_error`" in result.output
    assert "nan" not in result.output.lower().replace("naturalness", "")


@pytest.mark.parametrize(
    ("rows", "args", "error"),
    [
        ([{"x": 1}], [], "no responses: looked for completion, messages, conversations, token_ids, found x"),
        ([{"completion": "a"}], [], "no prompts: looked for prompt"),
        ([{"prompt": "a", "completion": "b"}], ["--response-column", "answer"], "no column answer: found prompt"),
        ([{"prompt": "a", "completion": "b"}], ["--window", "many"], "window must be a number of steps"),
        ([{"prompt": "a", "completion": "b"}], ["--threshold", "2"], "--threshold must be from 0 to 1"),
        ([{"prompt": "a", "completion": "b"}], ["--student", "./nowhere"], "--student ./nowhere: no such directory"),
        ([], [], "holds no rows"),
    ],
)
def test_what_cannot_be_scored_is_one_line(rows, args, error, tmp_path):
    source = write(tmp_path / "in.jsonl", rows)
    result = command("score", source, *args, expect=2)
    assert error in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "in.scored.jsonl").exists()


def test_a_killed_run_goes_on(tmp_path):
    source = write(tmp_path / "in.jsonl", read(bundled("teacher.jsonl"))[:8])
    out = tmp_path / "out.jsonl"
    command("score", source, "-o", out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (b"", b"".join(lines[:3]), b"".join(lines[:3]) + lines[3][:50], lines[0][:1], whole):
        out.write_bytes(left)
        result = command("score", source, "-o", out)
        assert out.read_bytes() == whole
        assert f"rows         8 ({8 - left.count(10)} new)" in result.output
    # Another input or other rules are not this run's; neither is a file of something else.
    other = write(tmp_path / "other.jsonl", read(source)[::-1])
    rules = {
        "window (there '4', now '3')": ["--window", "3"],
        "system_prompt (there None, now 'Be brief.')": ["--system-prompt", "Be brief."],
        "chat_template_kwargs (there None, now {'x': 1})": ["--chat-template-kwargs", '{"x": 1}'],
    }
    tries = [("is not of the input's row 1", [other, "-o", out])]
    tries += [("is not of the input's row 1", [source, "-o", bundled("problems.jsonl")])]
    tries += [(f"was scored with other settings: {what}", [source, "-o", out, *flags]) for what, flags in rules.items()]
    for said, args in tries:
        assert said in command("score", *args, expect=2).output
    assert out.read_bytes() == whole
    # Nor are scores of steps that were found by other rules.
    earlier = [row["scoring"] | {"step_rules": 1} for row in read(out)]
    write(out, [row | {"scoring": how} for row, how in zip(read(out), earlier, strict=True)])
    assert "step_rules (there 1, now" in command("score", source, "-o", out, expect=2).output
    command("score", source, "-o", out, "--window", "3", "--overwrite")
    assert read(out)[0]["scoring"]["window"] == "3"
    other = write(tmp_path / "other.jsonl", [{"x": 1}])
    assert "not overwritten" in command("score", source, "-o", other, "--overwrite", expect=2).output
    assert read(other) == [{"x": 1}]
    assert "is an input itself" in command("score", source, "-o", source, expect=2).output


def test_short_traces_are_scored_together_as_alone_and_wherever_a_run_is_cut_off(scorer, tmp_path):
    rows = read(bundled("teacher.jsonl"))[:75]
    rows[5] |= {"completion": TEXT * 120}  # a long one, and bad ones, in the midst of a window
    rows[9:12] = [rows[9] | {"completion": " "}, rows[10] | {"prompt": ""}, rows[11] | {"completion": "1 " * 3000}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command("score", source, "-o", out, expect=1)
    whole = out.read_bytes()
    for row, response in zip(read(out), responses(rows, ScoreConfig()), strict=True):
        alone = scorer.score(response)
        assert row["score_error"] == alone.error and row["scored_tokens"] == alone.metrics.get("scored_tokens")
        for name, value in alone.metrics.items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert [i for i, row in enumerate(read(out)) if row["score_error"]] == [9, 10]
    lines = whole.splitlines(keepends=True)
    for done in (1, 5, 6, 31, 32, 33, 64, 74):
        out.write_bytes(b"".join(lines[:done]) + lines[done][:40])
        command("score", source, "-o", out, expect=1)
        assert out.read_bytes() == whole
    out.write_bytes(b"".join(lines[:40]))
    command("score", source, "-o", out, "--html", tmp_path / "a.html", expect=1)
    page = (tmp_path / "a.html").read_bytes()
    command("score", source, "-o", out, "--overwrite", "--html", tmp_path / "b.html", expect=1)
    assert out.read_bytes() == whole and (tmp_path / "b.html").read_bytes() == page


def test_one_row_that_the_student_cannot_read_is_the_only_one_without_scores(tmp_path):
    scorer = load_scorer(ScoreConfig())
    rows = [{"prompt": QUESTION, "completion": f"{i}+1={i + 1}."} for i in range(10, 40)]
    rows[7]["completion"] = "<think>a</think>"
    (bad,) = scorer.source.tokenizer.encode("<think>")
    embed = scorer.reader.model.get_input_embeddings()

    def refuse(_, args):
        if (args[0] == bad).any():
            raise RuntimeError("a kernel that fails")

    todo = responses(rows, ScoreConfig())
    want = [scorer.score(one) for one in todo]
    with embed.register_forward_pre_hook(refuse):
        made = list(scorer.score_all(todo))
    assert [i for i, one in enumerate(made) if one.error] == [7] and made[7].error == "a kernel that fails"
    assert [one.metrics for i, one in enumerate(made) if i != 7] == [
        one.metrics for i, one in enumerate(want) if i != 7
    ]


def test_scoring_scored_rows_again_changes_nothing(tmp_path):
    source = write(tmp_path / "in.jsonl", read(bundled("teacher.jsonl"))[:3])
    command("score", source)
    command("score", tmp_path / "in.scored.jsonl", "-o", tmp_path / "again.jsonl")
    assert read(tmp_path / "again.jsonl") == read(tmp_path / "in.scored.jsonl")


@pytest.mark.parametrize("kind", ["qwen3"])
def test_generate_scores_as_score_does(tiny, tmp_path, kind):
    # Random models choose ids that the tokenizer would not, and some prompts are bad.
    source = write(tmp_path / "in.jsonl", [*PROBLEMS, {"id": "bad", "problem": ""}])
    out = tmp_path / "out.jsonl"
    generate(source, "-o", out, *pair(tiny), *FLAGS, "--score", "--num-generations", 2, expect=1)
    command("score", out, "--student", tiny()["student"], expect=1)
    made = {(r["id"], r["generation"]): r for r in read(out)}
    again = {(r["id"], r["generation"]): r for r in read(tmp_path / "out.scored.jsonl")}
    assert set(made) == set(again) and len(made) == 22
    for key, row in made.items():
        assert {k: row[k] for k in COLUMNS if k not in METRICS} == {
            k: again[key][k] for k in COLUMNS if k not in METRICS
        }
        for name in METRICS:
            assert row[name] == (None if row["error"] else pytest.approx(again[key][name], rel=1e-3, abs=1e-4)), name
    # A job that was begun without scores is not continued with them.
    generate(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2, expect=2)


def test_generates_scores_are_of_the_log_probs_that_it_decoded_with(tmp_path):
    out = tmp_path / "out.jsonl"
    generate("-o", out, "--limit", 6, "--score")
    for row, arrays in zip(read(out), read(tmp_path / "out.tokens.jsonl"), strict=True):
        assert row["scored_tokens"] == row["num_tokens"] - 1  # without the EOS
        assert row["global_logprob"] == pytest.approx(np.mean(arrays["student_logprobs"][:-1]), abs=1e-4)


def test_scores_are_of_the_text_whatever_the_sidecar_holds(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:3]), tmp_path / "out.jsonl"
    generate(source, "-o", out, *pair(tiny), *FLAGS)
    sidecar = read(tmp_path / "out.tokens.jsonl")
    want = rsd.score(read(out))
    bad = ([i + 1 for i in sidecar[0]["token_ids"]], [10**30], ["x"], None, 7, [-5])
    for ids in bad:
        write(tmp_path / "out.tokens.jsonl", [r | {"token_ids": ids} for r in sidecar])
        command("score", out, "--overwrite")
        for a, b in zip(want, read(tmp_path / "out.scored.jsonl"), strict=True):
            assert {k: (a[k], b[k]) for k in b if a[k] != b[k]} == {}

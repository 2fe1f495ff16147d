"""Weights of traces from the outside: by hand for tables, the same whatever the batch, and never undefined."""

import math

import numpy as np
import pytest
from conftest import read, write
from jobs import PROBLEMS
from tables import Table

import rsd
from rsd.scoring.steps import STEPS

EOS = "<|im_end|>"
TEXT = "ab\ncd\nab"
ROW = {"prompt": "hi", "completion": TEXT, "answer": "1"}
LINES = {"steps": "line"}
SUMS = [
    "Ana has 12 pens and finds 5 more. How many?",
    "Max is 7 years old. Eva is 3 times as old as Max. How old is Eva?",
]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A teacher, and students: one that says xy in every line, one that ends at once, one that never ends."""
    root = tmp_path_factory.mktemp("tables")
    follows = {
        "teacher": {},
        "student": {"\n": "x", "x": "y", "y": "\n"},
        "ends": {"\n": EOS},
        "endless": {"\n": "x", "x": "x"},
    }
    return {name: Table(root / name, pairs, seed=i) for i, (name, pairs) in enumerate(follows.items())}


def weigh(tables, rows=(ROW,), *, student="student", teacher="teacher", **settings):
    models = {"teacher": tables[teacher].folder, "student": tables[student].folder}
    return rsd.weigh(list(rows), **models, **LINES | settings)


def whole(row):
    """Whether all that a row holds of weights fits together, and nothing is undefined."""
    assert row["weigh_error"] is None
    steps = len(row["step_spans"])
    for name in ("step_weights", "validity_teacher", "validity_student", "student_action"):
        assert len(row[name]) == steps
    assert len(row["token_weights"]) == len(row["token_ids"])
    for w in [*row["step_weights"], *row["token_weights"]]:
        assert isinstance(w, float) and 0 <= w <= 1
    assert all(v is None or math.isfinite(v) for v in row["validity_teacher"] + row["validity_student"])
    return row


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_likelihood_by_hand(tables, temperature):
    row = whole(weigh(tables, weight_temperature=temperature)[0])
    teacher = tables["teacher"]
    theirs = [teacher.said("ab\n").mean(), teacher.said("cd\n").mean(), teacher.said("ab", end=True).mean()]
    ours = [teacher.said("xy\n").mean()] * 3
    assert row["validity_teacher"] == pytest.approx(theirs, abs=1e-4)
    assert row["validity_student"] == pytest.approx(ours, abs=1e-4)
    weights = [sigmoid((a - b) / temperature) for a, b in zip(theirs, ours, strict=True)]
    assert row["step_weights"] == pytest.approx(weights, abs=1e-4)
    assert row["token_weights"] == pytest.approx(np.repeat(weights, 3).tolist(), abs=1e-4)
    assert row["student_action"] == ["xy\n"] * 3
    assert row["step_spans"] == [[0, 3], [3, 6], [6, 8]]
    assert row["token_ids"] == [*map(teacher.id, TEXT), teacher.tokenizer.eos_token_id]


def test_token_by_hand(tables):
    row = whole(weigh(tables, validity="token", weight_temperature=2.0)[0])
    theirs, ours = (tables[name].said(TEXT, end=True) for name in ("teacher", "student"))
    assert row["token_weights"] == pytest.approx([sigmoid(d / 2) for d in theirs - ours], abs=1e-4)
    parts = [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert row["validity_teacher"] == pytest.approx([theirs[p].mean() for p in parts], abs=1e-4)
    assert row["validity_student"] == pytest.approx([ours[p].mean() for p in parts], abs=1e-4)
    assert row["step_weights"] == pytest.approx([sigmoid((theirs - ours)[p].mean() / 2) for p in parts], abs=1e-4)
    assert row["student_action"] == [None] * 3


def test_the_teachers_own_step_in_place_of_the_traces(tables):
    row = whole(weigh(tables, proposals=True, teacher="student", student="endless")[0])
    said = tables["student"]
    assert row["validity_teacher"] == pytest.approx([said.said("xy\n").mean()] * 3, abs=1e-4)
    assert row["student_action"] == ["x" * 64] * 3 and row["teacher_action"] == ["xy\n"] * 3


def test_a_student_that_ends_at_once_is_as_valid_as_that_end(tables):
    row = whole(weigh(tables, student="ends")[0])
    assert row["student_action"] == ["", "", ""]
    assert row["validity_student"] == pytest.approx([tables["teacher"].said("", end=True).item()] * 3, abs=1e-4)


def test_a_step_without_end_is_cut(tables):
    row = whole(weigh(tables, student="endless")[0])
    assert row["student_action"] == ["x" * 64] * 3
    assert row["validity_student"] == pytest.approx([tables["teacher"].said("x" * 64).mean()] * 3, abs=1e-4)


@pytest.mark.parametrize("validity", ["likelihood", "token", "rollout"])
@pytest.mark.parametrize("text", ["a", "ab", "a\n", "\n\na", "a\nb\nc"])
def test_one_step_and_steps_of_one_token(tables, validity, text):
    for reason in ("stop", "length"):
        how = {"validity": validity, "rollouts": 2, "max_new_tokens": 20, "rollout_by": "teacher"}
        row = whole(weigh(tables, [ROW | {"completion": text, "finish_reason": reason}], **how)[0])
        assert len(row["token_ids"]) == len(text) + (reason == "stop")


def test_a_rollout_without_end_is_wrong(tables):
    row = whole(weigh(tables, validity="rollout", rollouts=3, student="endless", max_new_tokens=30)[0])
    # Nor is the last move of the trace right: there is no answer in it.
    assert row["rollouts_teacher"] == row["rollouts_student"] == [0, 0, 0]
    assert row["step_weights"] == [0.5, 0.5, 0.5]


def test_rollouts_are_judged_by_the_rows_answer(tables):
    text = "a\n\\boxed{1}"
    rows = [ROW | {"completion": text, "answer": answer} for answer in ("1", "2")]
    how = {"validity": "rollout", "rollouts": 3, "verify": "boxed", "max_new_tokens": 30, "student": "ends"}
    right, wrong = map(whole, weigh(tables, rows, **how))
    # The student ends after either step: the boxed answer is said by then, or not.
    assert right["rollouts_teacher"] == [0, 3] and right["rollouts_student"] == [0, 0]
    assert wrong["rollouts_teacher"] == [0, 0]
    assert right["step_weights"][1] > 0.6 and right["step_weights"][0] == wrong["step_weights"][1] == 0.5
    assert right["validity_teacher"] == [0.0, 1.0]


def test_the_teacher_as_its_own_student_weighs_a_half(tiny):
    # Of random models traces are cut off; those of the bundled student, which end, it knows by their text alone.
    for model, problems, length in ((tiny()["student"], PROBLEMS[:3], 60), ("bundled-student", SUMS, 200)):
        same = {"teacher": model, "student": model}
        how = {"temperature": 0, "threshold": 1, "max_new_tokens": length, "verify": "none"}
        greedy = rsd.generate(problems, **same, **how)
        rows = greedy if length == 60 else [*greedy, *(trace.row() | {"id": f"{trace.id}b"} for trace in greedy)]
        for settings in ({}, {"proposals": True}, {"validity": "token"}):
            for row in rsd.weigh(rows, **same, **settings):
                whole(row)
                assert set(row["step_weights"]) | set(row["token_weights"]) == {0.5}, settings
    # Whatever the trace is, for what compares its tokens.
    for row in rsd.weigh([{"prompt": "Well?", "completion": "So. It is 4!\nNo."}], **same, validity="token"):
        assert set(whole(row)["token_weights"]) == {0.5}


def values(row):
    return [*row["step_weights"], *row["token_weights"], *row["validity_teacher"], *row["validity_student"]]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen3", {}),
        ("gemma3", {}),  # with windows
        ("gemma3", {"proposals": True}),
        ("qwen3", {"validity": "rollout", "rollout_by": "teacher"}),
    ],
)
def test_a_weight_does_not_depend_on_its_batch(tiny, kind, settings):
    pair = tiny(kind)
    texts = [
        "One. Two is more.\n\nThree, four; five!",
        "x",
        "So 3+4=7.\n" * 6,
        "It is. \\boxed{1}",
        "<think>\nA.\n</think>\nB.",
    ]
    rows = [{"id": f"r{i}", "prompt": f"{i}?", "completion": t, "answer": "1"} for i, t in enumerate(texts)]
    how = settings | pair | {"max_new_tokens": 12, "rollouts": 2, "verify": "boxed"}
    want = rsd.weigh(rows, **how, batch_size=1, block_size=1)
    for more in ({"batch_size": 3}, {"batch_size": 32}, {"batch_size": 7, "block_size": 3}):
        made = rsd.weigh(rows, **how, **more)
        for row, other in zip(made, want, strict=True):
            assert whole(row)["student_action"] == other["student_action"]
            assert values(row) == pytest.approx(values(other), abs=1e-4)
    (alone,) = rsd.weigh(rows[2:3], **how)
    assert values(alone) == pytest.approx(values(want[2]), abs=1e-4)
    assert alone["student_action"] == want[2]["student_action"]


@pytest.mark.parametrize("steps", STEPS)
def test_a_pair_with_other_tokenizers(steps):
    text = "<think>\n6+5=12. 12*3=36.\n</think>\n\n\\boxed{36}"
    question = (
        "Ana is 6 years old. Max is 5 years older. The uncle of Max is 3 times as old as Max. How old is the uncle?"
    )
    rows = [{"prompt": question, "completion": text, "answer": "33"}]
    for settings in ({}, {"validity": "token"}, {"proposals": True}, {"validity": "rollout", "rollout_by": "teacher"}):
        (row,) = rsd.weigh(rows, teacher="bundled-llama", steps=steps, **settings)
        whole(row)
        if steps == "sentence" and not settings:
            # 6+5 is not 12, and the student knows.
            assert row["student_action"][0] == "<think>\n6+5=11."
            assert row["step_weights"][0] < 0.4 < row["step_weights"][1]


def test_the_sidecars_log_probs_are_those_that_a_pass_finds(tmp_path, tiny, monkeypatch):
    out, pair = tmp_path / "t.jsonl", tiny()
    source = write(tmp_path / "in.jsonl", [{"problem": "1+1?"}, {"problem": "2+2?"}])
    rsd.generate(source, out, **pair, max_new_tokens=30, completion_prefix="<think>")
    alone = write(tmp_path / "alone.jsonl", read(out))  # without its sidecar and manifest
    noted, found = (rsd.weigh(file, **pair) for file in (out, alone))
    want = rsd.weigh(out, **pair, validity="token")
    for a, b, row, line in zip(noted, found, want, read(tmp_path / "t.tokens.jsonl"), strict=True):
        assert row["token_ids"] == line["prefix_ids"] + line["token_ids"]
        logprobs = [[math.nan if x is None else x for x in line[f"{of}_logprobs"]] for of in ("teacher", "student")]
        gaps = np.nan_to_num(np.subtract(*logprobs))
        weights = [0.5] * len(line["prefix_ids"]) + [sigmoid(gap) for gap in gaps]  # nobody chose the prefix
        assert row["token_weights"] == pytest.approx(weights, abs=1e-6)
        if a["token_ids"] == b["token_ids"]:  # random bytes are no text that spells them
            assert a["validity_teacher"][1:] == pytest.approx(b["validity_teacher"][1:], abs=1e-4)

    def loaded(*_, **__):
        raise AssertionError("a model is loaded")

    # What the sidecar says of both models is enough, unless other models made it.
    monkeypatch.setattr("rsd.weighing.weigher.load_pair", loaded)
    assert rsd.weigh(out, **pair, validity="token") == want
    scored = write(tmp_path / "t.scored.jsonl", read(out))  # what is made of a job's file has its tokens, too
    assert rsd.weigh(scored, **pair, validity="token") == want
    with pytest.raises(AssertionError, match="a model is loaded"):
        rsd.weigh(out, teacher=pair["student"], student=pair["student"], validity="token")

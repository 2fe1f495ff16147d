"""Anybody's traces, scored with a teacher's soft targets, are exported for trainers that read these."""

import json

import pytest
from conftest import read, write
from jobs import command, soft_of
from test_soft_formats import name, table

RAW = [
    {"question": "What is 6 times 7?", "attempt": "Okay: 6 times 7 is 42.\n</think>\n\\boxed{42}", "answer": "42"},
    {"question": "What is 6 times 8?", "attempt": "6*8=47.\n</think>\n\\boxed{47}", "answer": "48"},
    {"question": "What is 6 times 9?", "attempt": "", "answer": "54"},
    {"question": "What is 6 times 7?", "attempt": "6*7=42.\n</think>\n\\boxed{42}", "answer": "42"},
]
CHAT = [
    {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["attempt"]}]} | r
    for r in RAW
]


@pytest.mark.parametrize("format", ["axolotl-kd", "distillkit"])
@pytest.mark.parametrize(
    ("rows", "flags"), [(RAW, ["--prompt-column", "question", "--response-column", "attempt"]), (CHAT, [])]
)
def test_rows_of_any_shape_are_exported_with_their_soft_targets(tmp_path, monkeypatch, rows, flags, format):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", rows)
    command("score", "raw.jsonl", *flags, "--top-logprobs", "4", expect=1)
    soft = soft_of(tmp_path / "raw.scored.jsonl")
    assert len(soft) == 3
    said = command("export", "raw.scored.jsonl", "--format", format, "-o", name(format)).output
    assert "4 read, 2 for training" in said and "1 wrong" in said and "1 error" in said
    card = (tmp_path / "out.md").read_text()
    assert "Reasoning traces that are there already" in card and "reverse speculative decoding" not in card
    assert "already, in the tokens of bundled-student." in card
    whole = [[*one.prompt_ids.tolist(), *one.token_ids.tolist()] for one in soft.values()]
    if format == "axolotl-kd":
        made = read(tmp_path / name(format))
        assert [row["messages"][-1]["content"] for row in made] == [RAW[0]["attempt"], RAW[3]["attempt"]]
        lengths = {len(one.token_ids) for one in soft.values()}
        assert {len(row["target_token_ids"]) - 1 for row in made} <= lengths  # and the template's line break
    else:
        ids = [row["input_ids"] for row in table(tmp_path / name(format))]
        assert all(any(row[: len(one)] == one for one in whole) for row in ids)
    # Again, and other formats, which need to know how a trace was made.
    command("export", "raw.scored.jsonl", "--format", format, "-o", name(format), "--overwrite")
    assert "no rows of rsd generate" in command("export", "raw.scored.jsonl", expect=2).output


def test_rows_that_are_no_longer_those_that_were_scored_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw.jsonl", CHAT)
    command("score", "raw.jsonl", "--top-logprobs", "4", expect=1)
    rows = read(tmp_path / "raw.scored.jsonl")
    kd = ("export", "raw.scored.jsonl", "--format", "distillkit", "-o", "out.parquet", "--keep", "all")
    for changed in (
        [{**row, "scoring": {**row["scoring"], "response_column": 3}} for row in rows],
        [{**row, "scoring": {**row["scoring"], "response_column": "nowhere"}} for row in rows],
        [{**row, "messages": "x"} for row in rows],
        [*rows, {**rows[0], "messages": [*rows[0]["messages"][:1], {"role": "assistant", "content": "Other."}]}],
    ):
        (tmp_path / "raw.scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        said = command(*kd, expect=2).output.strip().splitlines()
        assert len(said) == 1 and "Traceback" not in said[0], said

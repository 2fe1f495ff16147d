"""Verdicts for traces that exist: by the same judges as of `rsd generate`, for every command that reads traces."""

import json
import subprocess
import sys
import time

import pytest
from conftest import environment, read, write
from jobs import NATURAL, WORDY, command, row
from jobs import run as generate

import rsd
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

VERDICT = ("is_correct", "verify_error", "verified_by")
RIGHT, WRONG = NATURAL[0], NATURAL[1]  # the answer is 33


def verdicts(file):
    return [(r["id"], r["is_correct"]) for r in read(file)]


def without(rows, *columns):
    return [{k: v for k, v in r.items() if k not in columns} for r in rows]


def test_traces_of_a_job_get_the_verdicts_that_the_job_gave_them(tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:24])
    traces, out = tmp_path / "t.jsonl", tmp_path / "v.jsonl"
    generate(source, "-o", traces, "--threshold", 1, "--max-new-tokens", 120, "--verify", "boxed")
    said = {r["id"]: r["is_correct"] for r in read(traces)}
    assert set(said.values()) == {True, False}
    bare = write(tmp_path / "bare.jsonl", without(read(traces), *VERDICT))
    result = command("verify", bare, "-o", out, "--verify", "boxed")
    assert {r["id"]: r["is_correct"] for r in read(out)} == said
    assert without(read(out), *VERDICT) == read(bare) and [*read(out)[0]][-3:] == [*VERDICT]
    right = sum(said.values())
    assert f"answers      {right} correct, {24 - right} wrong, 0 not verified" in result.stdout
    # A verdict that is there is found out anew, and what has changed is said.
    lies = write(tmp_path / "lies.jsonl", [r | {"is_correct": True} for r in read(bare)])
    result = command("verify", lies, "--verify", "boxed")
    assert verdicts(tmp_path / "lies.verified.jsonl") == verdicts(out)
    assert f"changed      {24 - right} rows" in result.stdout


FORMATS = {
    "s1K": (
        {"question": "6+5, times 3?", "solution": "33", "deepseek_thinking_trajectory": "6+5=11"},
        "deepseek_attempt",
        ["--response-column=deepseek_attempt", "--thinking-column=deepseek_thinking_trajectory"],
    ),
    "answer is the trace": (
        {"question": "6+5, times 3?", "final_answer": 33},
        "answer",
        ["--response-column=answer"],
    ),
    "a column of one's own": ({"prompt": "?", "truth": [33], "answer": "7"}, "completion", ["--answer-column=truth"]),
    "GSM8K": ({"question": "?", "answer": "6+5=11, 11*3=33\n#### 33"}, "completion", []),
    "an empty answer": ({"prompt": "?", "answer": " ", "solution": r"So it is $\boxed{33}$."}, "completion", []),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_other_peoples_files(tmp_path, kind):
    given, column, flags = FORMATS[kind]
    source = write(tmp_path / "in.jsonl", [given | {column: r"So \boxed{33}."}, given | {column: r"\boxed{34}"}])
    command("verify", source, *flags)
    made = read(tmp_path / "in.verified.jsonl")
    assert [r["is_correct"] for r in made] == [True, False] and without(made, *VERDICT) == read(source)
    settings = {flag[2:].split("=")[0].replace("-", "_"): flag.split("=")[1] for flag in flags}
    assert rsd.verify(read(source), **settings) == made


def test_sharegpt(tmp_path):
    turns = [{"from": "human", "value": "6+5, times 3?"}, {"from": "gpt", "value": RIGHT}]
    source = write(tmp_path / "in.jsonl", [{"conversations": turns, "answer": "33"}])
    command("verify", source)
    assert read(tmp_path / "in.verified.jsonl")[0]["is_correct"] is True


def test_a_thought_that_was_cut_off_has_no_answer_however_it_was_opened(tmp_path):
    cut = row(1, r"I try \boxed{33} and", answer="33")
    source = write(tmp_path / "in.jsonl", [cut, cut | {"id": "opened", "one_think_close": False}])
    command("verify", source)
    assert verdicts(tmp_path / "in.verified.jsonl") == [("p1", True), ("opened", False)]


def test_what_cannot_be_judged_is_not_known_and_says_why(tmp_path):
    rows = [
        row(0, RIGHT, answer="33"),
        row(1, RIGHT, solution="Proof. We see that the number is even. Hence it is divisible by two."),
        row(2, RIGHT, answer=None),
        row(3, "", answer="33") | {"prompt": ""},
    ]
    result = command("verify", write(tmp_path / "in.jsonl", rows), expect=1)
    made = read(tmp_path / "in.verified.jsonl")
    assert [r["is_correct"] for r in made] == [True, None, None, None]
    assert "no answer that can be read" in made[1]["verify_error"] and made[3]["verify_error"] == "prompt is empty"
    assert "not judged   2 rows" in result.stdout
    again = command("verify", tmp_path / "in.jsonl", expect=1)  # nothing is left to do, and as little is right
    assert "rows         4 (0 new)" in again.stdout and read(tmp_path / "in.verified.jsonl") == made


def test_a_killed_run_goes_on(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time\ndef judge(text, row):\n    time.sleep(0.02)\n    return row['id'] < 'p5'\n"
    )
    source = write(tmp_path / "in.jsonl", [row(i, RIGHT) for i in range(100)])
    args = [sys.executable, "-m", "rsd", "verify", source, "-o", tmp_path / "out.jsonl", "--verify", "slow:judge"]
    whole = tmp_path / "whole.jsonl"
    for out in (whole, tmp_path / "out.jsonl"):
        args[5 + 1] = out
        process = subprocess.Popen(list(map(str, args)), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
        if out != whole:
            while not out.exists() or out.read_bytes().count(b"\n") < 20:
                time.sleep(0.01)
            process.kill()
        process.communicate()
    with open(tmp_path / "out.jsonl", "ab") as file:
        file.write(b'{"id": "p')
    result = subprocess.run(list(map(str, args)), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0 and "resuming" in result.stderr, result.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
    other = command("verify", source, "-o", whole, "--verify", "boxed", "--answer-column", "id", expect=2)
    assert "was verified by slow:judge, and now by boxed" in other.output
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("rows", "args", "error"),
    [
        ([row(0, RIGHT)], [], "no column of answers"),
        ([row(0, RIGHT, answer="33")], ["--verify", "none"], "verify none judges nothing"),
        ([row(0, RIGHT, answer="33")], ["--answer-column", "anser"], "anser"),
        ([row(0, RIGHT, answer="33")], ["--verify", "nowhere:judge"], "nowhere"),
        ([row(0, RIGHT, answer="33")], ["--verify", "often"], "verify must be"),
        ([{"a": 1}], [], "no responses"),
    ],
)
def test_what_cannot_be_verified_is_one_line(rows, args, error, tmp_path):
    result = command("verify", write(tmp_path / "in.jsonl", rows), "-o", tmp_path / "out.jsonl", *args, expect=2)
    assert error in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes()


def test_a_strangers_file_is_left_alone(tmp_path):
    source = write(tmp_path / "in.jsonl", [row(0, RIGHT, answer="33")])
    mine = write(tmp_path / "in.verified.jsonl", [{"my": "own"}])
    before = mine.read_bytes()
    for flags in ([], ["--overwrite"]):
        assert command("verify", source, *flags, expect=2).output.startswith("rsd: ")
    assert mine.read_bytes() == before


def test_score_judges_where_there_is_an_answer_and_no_verdict(tmp_path):
    rows = [
        row(0, RIGHT, answer="33"),
        row(1, WRONG, answer="33"),
        row(2, WRONG, answer="33", is_correct=True),  # somebody else has judged it
        row(3, RIGHT, answer=""),
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    result = command("score", source, "-o", out)
    assert [r["is_correct"] for r in read(out)] == [True, False, True, None]
    assert "answers      2 correct, 1 wrong, 1 not verified" in result.stdout
    assert [r.get("verified_by") is None for r in read(out)] == [False, False, True, False]
    assert rsd.score(rows) == read(out)
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])  # a crash
    command("score", source, "-o", out)
    assert out.read_bytes() == whole
    for flags, by in ((["--verify", "boxed"], "boxed"), (["--verify", "none"], "none")):
        said = command("score", source, "-o", out, *flags, expect=2).output
        assert f"and now by {by}" in said or "is not of the input's row" in said  # row 2 has another verdict now
    assert out.read_bytes() == whole
    command("score", source, "-o", tmp_path / "none.jsonl", "--verify", "none")
    assert [r.get("is_correct") for r in read(tmp_path / "none.jsonl")] == [None, None, True, None]
    command("score", source, "-o", tmp_path / "all.jsonl", "--verify", "boxed")
    assert [r["is_correct"] for r in read(tmp_path / "all.jsonl")] == [True, False, False, None]
    # Scores that are there are scored again as what they are: rows with verdicts of their own.
    command("score", out, "-o", tmp_path / "again.jsonl")
    assert read(tmp_path / "again.jsonl") == read(out)


def test_processes_that_share_a_file_judge_as_one(tmp_path):
    rows = [row(i, (RIGHT, WRONG, WORDY)[i % 3], answer=("33", "34")[i % 2]) for i in range(70)]
    source, one, many = write(tmp_path / "in.jsonl", rows), tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    command("score", source, "-o", one)
    for shard in ("1/2", "1/3", "2/3", "3/3"):  # another number of processes goes on with what there is
        command("score", source, "-o", many, "--shard", shard)
    assert many.read_bytes() == one.read_bytes()


def test_compare_says_what_is_right_of_files_that_never_were_judged(tmp_path):
    raw = [{k: v for k, v in row(i, WORDY if i else WRONG, answer="33").items() if k != "id"} for i in range(4)]
    ours = [row(i, RIGHT, answer="33") for i in range(4)]
    sides = write(tmp_path / "raw.jsonl", raw), write(tmp_path / "ours.jsonl", ours)
    figures = tmp_path / "out.json"
    table = command("compare", *sides, "--json", figures).stdout
    assert ["correct", "75.0%", "100.0%"] in map(str.split, table.splitlines())
    assert json.loads(figures.read_text())["correct"] == [0.75, 1.0]
    assert "not known" in command("compare", *sides, "--verify", "none").stdout


def test_select_takes_the_best_of_the_right_ones(tmp_path):
    sides = (
        write(tmp_path / "a.jsonl", [row(i, WRONG, answer="33") for i in range(2)]),
        write(tmp_path / "b.jsonl", [row(i, WORDY, answer="33") for i in range(2)]),
    )
    out = tmp_path / "out.jsonl"
    command("select", *sides, "-o", out)
    assert [(r["teacher"], r["is_correct"]) for r in read(out)] == [("b", True)] * 2
    said = command("select", *sides, "-o", tmp_path / "none.jsonl", "--verify", "none", expect=2).output
    assert "rsd verify" in said and not (tmp_path / "none.jsonl").exists()

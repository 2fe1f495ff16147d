"""What of a completion was not sampled as a whole trace: prefixes to train on, and a beginning that was written."""

import json

from conftest import read, write
from exports import FORMATS, export, made, traces  # noqa: F401 (fixtures)
from jobs import by_key, files, run

from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows


def test_prefixes_of_unsolved_problems(traces, tmp_path):
    export(traces, "--format", "token-ids", "--prefix-tokens", 7, "-o", tmp_path / "out.jsonl")
    rows, tokens, source = read(tmp_path / "out.jsonl"), by_key(files(traces)[1]), read(traces)
    solved = {r["id"] for r in source if r["is_correct"]}
    unsolved = {r["id"] for r in source if r["is_correct"] is False} - solved
    assert "never" in unsolved and "open" not in unsolved
    prefixes = [r for r in rows if r["is_prefix"]]
    assert {r["id"] for r in prefixes} == unsolved and len(prefixes) == len(unsolved)
    for r in prefixes:
        line = tokens[r["id"], r["generation"]]
        assert r["input_ids"] == line["prompt_ids"] + line["token_ids"][:7]
        assert r["is_correct"] is False
    assert all(r["is_correct"] for r in rows if not r["is_prefix"])
    assert "is_prefix" not in json.dumps(by_key(read_export(traces, tmp_path / "none.jsonl"))[rows[0]["id"], 0])
    refused = export(traces, "--prefix-tokens", 7, "-o", tmp_path / "no.jsonl", expect=2)
    assert "needs --format token-ids" in refused


def read_export(traces, out):
    export(traces, "--format", "token-ids", "-o", out)
    return read(out)


def test_prefixes_never_hold_the_end(traces, tmp_path):
    export(traces, "--format", "token-ids", "--prefix-tokens", 5000, "-o", tmp_path / "out.jsonl")
    for r in read(tmp_path / "out.jsonl"):
        assert (r["input_ids"][-1] == 759) is not r["is_prefix"]


def test_a_written_beginning_is_a_part_of_what_is_learnt(tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:3])
    run(source, "-o", tmp_path / "out.jsonl", "--completion-prefix", "<think>")
    output = export(tmp_path / "out.jsonl", "--keep", "all")
    assert "3 of 3 rows give the sampled ids" in output
    export(tmp_path / "out.jsonl", "--keep", "all", "--format", "token-ids")
    for row in read(tmp_path / "out.token-ids.jsonl"):
        learnt = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
        assert learnt[0] == 760 and learnt == [i for i in row["labels"] if i >= 0]
        assert learnt.count(760) == 1

"""Weights of tokens, as `rsd weigh` writes them, on their way into a data set that trains."""

import json
import shutil

import pytest
from conftest import read, write
from exports import export, made, traces  # noqa: F401 (fixtures)
from jobs import by_key, files, run

from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows


def weighed(traces, **others):
    """The file that `rsd weigh` would leave of a job: a weight for every token, which tells where it stands."""
    lines = by_key(files(traces)[1])
    rows = []
    for row in read(traces):
        ids = []
        if line := lines.get((row["id"], row["generation"])):
            ids = [*line.get("prefix_ids", []), *line["token_ids"]]
        weights = [round((i + 1) / (len(ids) + 1), 6) for i in range(len(ids))]
        rows.append({**row, "token_ids": ids or None, "token_weights": weights or None, "weigh_error": None, **others})
    return write(traces.with_suffix(".weighed.jsonl"), rows)


def test_weights_lie_beside_the_tokens_that_they_are_of(traces, tmp_path):
    file = weighed(traces)
    export(file, "--format", "token-ids", "-o", tmp_path / "out.jsonl")
    export(traces, "--format", "token-ids", "-o", tmp_path / "plain.jsonl")
    source, plain = by_key(read(file)), by_key(read(tmp_path / "plain.jsonl"))
    rows = by_key(read(tmp_path / "out.jsonl"))
    assert rows.keys() == plain.keys()
    for key, row in rows.items():
        assert len({len(row[c]) for c in ("input_ids", "completion_mask", "labels", "loss_weights")}) == 1
        assert [w for w, label in zip(row["loss_weights"], row["labels"], strict=True) if label >= 0] == source[key][
            "token_weights"
        ]
        assert all(w == 0 for w, label in zip(row["loss_weights"], row["labels"], strict=True) if label < 0)
        assert "loss_weights" not in plain[key]
        assert {c: v for c, v in row.items() if c != "loss_weights"} == plain[key]
    assert "loss_weights" in (tmp_path / "out.md").read_text()
    export(file, "--format", "token-ids", "-o", tmp_path / "out.jsonl", "--overwrite")  # it knows its own file
    export(file, "-o", tmp_path / "text.jsonl")
    assert "weights" not in (tmp_path / "text.jsonl").read_text()  # a text is tokenized anew


def test_a_written_beginning_has_weights_and_prefixes_are_cut_with_theirs(tmp_path):
    source = write(tmp_path / "in.jsonl", [row | {"answer": "-1"} for row in read_rows(bundled("problems.jsonl"))[:2]])
    run(source, "-o", tmp_path / "traces.jsonl", "--completion-prefix", "<think>")
    file = weighed(tmp_path / "traces.jsonl")
    flags = ["--format", "token-ids", "--keep", "all", "--prefix-tokens", "5", "-o", tmp_path / "out.jsonl"]
    export(file, *flags)
    weights = by_key(read(file))
    prefixes = [row for row in read(tmp_path / "out.jsonl") if row["is_prefix"]]
    assert len(prefixes) == 2
    for row in prefixes:
        learnt = [w for w, m in zip(row["loss_weights"], row["completion_mask"], strict=True) if m]
        assert len(learnt) == 6 and learnt == weights[row["id"], row["generation"]]["token_weights"][:6]


@pytest.mark.parametrize(
    "odd",
    [
        {"token_weights": None},
        {"token_weights": "0.5"},
        {"token_weights": [0.5]},
        {"token_weights": [None]},
        {"token_weights": "one is 2"},
        {"token_ids": [0]},
    ],
    ids=json.dumps,
)
def test_a_row_whose_weights_are_not_of_its_tokens_is_left_out(traces, tmp_path, odd):
    rows = read(weighed(traces))
    export(traces, "--format", "token-ids", "-o", tmp_path / "plain.jsonl")
    kept = [(r["id"], r["generation"]) for r in read(tmp_path / "plain.jsonl")]
    for row in rows:
        if (row["id"], row["generation"]) == kept[1]:
            row |= odd
            if odd == {"token_weights": "one is 2"}:
                row["token_weights"] = [2.0] * len(row["token_ids"])
    write(tmp_path / "traces.weighed.jsonl", rows)
    output = export(tmp_path / "traces.weighed.jsonl", "--format", "token-ids", "-o", tmp_path / "out.jsonl")
    assert "1 without a weight for each token" in output
    assert [(r["id"], r["generation"]) for r in read(tmp_path / "out.jsonl")] == [kept[0], *kept[2:]]


def test_without_any_weight_that_fits_nothing_is_written(traces, tmp_path):
    weighed(traces, token_weights=[0.5])
    output = export(tmp_path / "traces.weighed.jsonl", "--format", "token-ids", expect=2)
    assert len(output.strip().splitlines()) == 1 and "without a weight for each token" in output
    assert not list(tmp_path.glob("*.token-ids.*"))


def test_what_was_made_of_a_jobs_file_finds_its_tokens(traces, tmp_path):
    for name in ("traces.weighed.jsonl", "traces.scored.weighed.jsonl", "traces.weighed.scored.kept.jsonl"):
        shutil.copy(traces, tmp_path / name)
        export(tmp_path / name, "--format", "token-ids", "-o", tmp_path / "out.jsonl", "--overwrite")
        assert read(tmp_path / "out.jsonl")

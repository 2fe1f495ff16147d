"""`rsd export`: files that train as they are, and what is left out."""

import json
import shutil

import pytest
from click.testing import CliRunner
from conftest import read, write
from exports import FORMATS, export, made, traces  # noqa: F401 (fixtures)
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import by_key, files, run
from transformers import AutoTokenizer

from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.traces.filters import keep
from rsd.traces.readers import read_rows


@pytest.mark.parametrize("format", FORMATS)
def test_every_count_adds_up_to_the_rows(traces, tmp_path, format):
    output = export(traces, "--format", format, "--test-share", "0.3", "-o", tmp_path / "out.jsonl")
    train, test = read(tmp_path / "out.jsonl"), read(tmp_path / "out.test.jsonl")
    rows = read(traces)
    kept, dropped = keep(rows, "correct", max_fallback_rate=1.0)
    distinct = {(r["id"], r["completion"][0]["content"]) for r in kept}
    dropped["duplicates"] = len(kept) - len(distinct)
    assert dropped["duplicates"] > 0 and {"wrong", "not verified", "error"} <= dropped.keys()
    assert len(train) + len(test) == len(distinct) and len(rows) == len(distinct) + sum(dropped.values())
    assert f"rows         {len(rows)} read, {len(train)} for training, {len(test)} for testing" in output
    for why, n in dropped.items():
        assert f"{n} {why}" in output
    solved = {r["id"] for r in kept}
    assert f"problems     23, {23 - len(solved) - 2} of them without a correct trace" in output
    # All traces of a problem are on one side.
    assert train and test and not {r["id"] for r in train} & {r["id"] for r in test}
    assert {(r["id"], r["generation"]) for r in train + test} <= {(r["id"], r["generation"]) for r in kept}
    for line in train + test:
        source = by_key(rows)[line["id"], line["generation"]]
        for column in ("is_correct", "num_tokens", "acceptance_rate", "fallback_rate"):
            assert line[column] == source[column]


def test_what_the_formats_hold(traces, tmp_path):
    tokens = by_key(files(traces)[1])
    rows = by_key(read(traces))
    of = {}
    for format in FORMATS:
        export(traces, "--format", format, "-o", tmp_path / f"{format}.jsonl")
        of[format] = by_key(read(tmp_path / f"{format}.jsonl"))
    assert len({frozenset(made) for made in of.values()}) == 1
    for key in of["messages"]:
        prompt, answer = rows[key]["prompt"], rows[key]["completion"][0]["content"]
        turn = {"role": "assistant", "content": answer}
        assert of["prompt-completion"][key]["prompt"] == prompt
        assert of["prompt-completion"][key]["completion"] == [turn]
        assert of["messages"][key]["messages"] == [*prompt, turn]
        assert of["sharegpt"][key]["conversations"] == [
            {"from": "human", "value": prompt[0]["content"]},
            {"from": "gpt", "value": answer},
        ]
        alpaca = of["alpaca"][key]
        assert (alpaca["instruction"], alpaca["input"], alpaca["output"]) == (prompt[0]["content"], "", answer)
        ids, line = of["token-ids"][key], tokens[key]
        assert ids["input_ids"] == line["prompt_ids"] + line["token_ids"]
        n = len(line["prompt_ids"])
        assert ids["completion_mask"] == [0] * n + [1] * len(line["token_ids"])
        assert ids["labels"] == [-100] * n + line["token_ids"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A job that gave its chat template something, which the bundled one does not look at."""
    folder = tmp_path_factory.mktemp("told")
    source = write(folder / "in.jsonl", read_rows(bundled("problems.jsonl"))[:3])
    run(source, "-o", folder / "traces.jsonl", "--chat-template-kwargs", '{"enable_thinking": false, "n": [1]}')
    return folder / "traces.jsonl"


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_chat_template_was_given_is_said(told, tmp_path, format):
    kwargs = {"enable_thinking": False, "n": [1]}
    for out in (tmp_path / "rows.jsonl", tmp_path / "table.parquet"):
        output = export(told, "--keep", "all", "--format", format, "-o", out)
        assert len(output.split("no place for the job's chat_template_kwargs")) == 1 + (
            format in ("alpaca", "sharegpt")
        )
    import pyarrow.parquet

    card = (tmp_path / "rows.md").read_text()
    assert ("this format has no place" in card) is (format in ("alpaca", "sharegpt"))
    rows = read(tmp_path / "rows.jsonl")
    assert pyarrow.parquet.read_table(tmp_path / "table.parquet").to_pylist() == rows
    for row in rows:
        assert row.get("chat_template_kwargs") == (kwargs if format in ("prompt-completion", "messages") else None)


def test_what_the_chat_template_was_given_is_not_known_without_a_manifest(told, tmp_path):
    shutil.copy(told, tmp_path / "bare.jsonl")
    assert "there is no manifest here" in export(tmp_path / "bare.jsonl", "--keep", "all")
    assert "chat_template_kwargs" not in (tmp_path / "bare.prompt-completion.jsonl").read_text()
    # The manifest alone is enough.
    shutil.copy(told.with_suffix(".meta.json"), tmp_path / "bare.meta.json")
    assert "no manifest" not in export(tmp_path / "bare.jsonl", "--keep", "all", "--overwrite")
    assert all(row["chat_template_kwargs"] for row in read(tmp_path / "bare.prompt-completion.jsonl"))


def test_system_prompts_and_histories_are_kept(tmp_path):
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Tom has 34 pens. Tom gives 12 to Ana. How many?"},
        {"role": "assistant", "content": "22"},
        {"role": "user", "content": "Tom has 30 pens. Tom gives 12 to Ana. How many?"},
    ]
    source = write(tmp_path / "in.jsonl", [{"id": 1, "messages": turns}])
    run(source, "-o", tmp_path / "out.jsonl")
    for format in ("alpaca", "sharegpt"):
        export(tmp_path / "out.jsonl", "--keep", "all", "--format", format)
    (alpaca,) = read(tmp_path / "out.alpaca.jsonl")
    assert (alpaca["system"], alpaca["history"]) == ("S", [[turns[1]["content"], "22"]])
    assert alpaca["instruction"] == turns[3]["content"]
    (sharegpt,) = read(tmp_path / "out.sharegpt.jsonl")
    assert [t["from"] for t in sharegpt["conversations"]] == ["system", "human", "gpt", "human", "gpt"]


def test_text_gives_the_sampled_ids_again_or_is_counted(traces, tmp_path):
    output = export(traces, "-o", tmp_path / "out.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(bundled("student"))
    tokens, others = by_key(files(traces)[1]), 0
    rows = read(tmp_path / "out.jsonl")
    for row in rows:
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        line = tokens[row["id"], row["generation"]]
        sampled = line["prompt_ids"] + line["token_ids"]
        others += ids[: len(sampled)] != sampled
    assert f"tokens       {len(rows) - others} of {len(rows)} rows give the sampled ids" in output
    # Without the tokens the raw teacher spells <think> in pieces, which the student's tokenizer never would.
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:3])
    without = ["--suppress", "<think>", "--suppress", "</think>"]
    run(source, "-o", tmp_path / "raw.jsonl", "--threshold", 0, *without)
    assert "0 of 3 rows give the sampled ids" in export(tmp_path / "raw.jsonl", "--keep", "all")


def test_where_nothing_is_left_nothing_is_written(tmp_path):
    source = write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:2])
    run(source, "-o", tmp_path / "own.jsonl", "--threshold", 1)
    assert "nothing is left to export" in export(tmp_path / "own.jsonl", "--max-fallback-rate", "0.9", expect=2)
    assert not list(tmp_path.glob("own.prompt-completion*"))


def test_a_student_that_is_gone_costs_the_check_alone(traces, tmp_path):
    manifest = traces.with_suffix(".meta.json")
    meta = json.loads(manifest.read_text())
    meta["student"] |= {"name": "/no/such/model", "path": "/no/such/model"}
    manifest.write_text(json.dumps(meta))
    assert "is not checked: the student cannot be read" in export(traces, "-o", tmp_path / "out.jsonl")
    for file in tmp_path.glob("traces.*.json*"):
        file.unlink()
    output = export(traces, "-o", tmp_path / "bare.jsonl")
    assert "some rows have no tokens here" in output
    assert read(tmp_path / "bare.jsonl") == read(tmp_path / "out.jsonl")
    assert "token-ids needs every trace's tokens" in export(traces, "--format", "token-ids", expect=2)


def test_the_split_depends_on_seed_and_prompt_alone(traces, tmp_path):
    def split(seed, *flags):
        out = tmp_path / f"{seed}{len(flags)}.jsonl"
        export(traces, "--test-share", "0.4", "--seed", seed, "-o", out, *flags)
        return {r["id"] for r in read(out)}, {r["id"] for r in read(out.with_suffix(".test.jsonl"))}

    train, test = split(0)
    fewer = split(0, "--keep", "shortest-correct")
    assert fewer[0] == train and fewer[1] == test
    assert split(1)[1] != test
    lines = traces.read_text().splitlines()
    traces.write_text("\n".join(reversed(lines)) + "\n")
    assert split(2) == split(2, "--keep", "correct")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=30)), min_size=1, max_size=6))
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("text")
    row = read_rows(bundled("teacher.jsonl"))[0]
    rows = [
        row
        | {
            "id": i,
            "is_correct": True,
            "prompt": [{"role": "user", "content": a}],
            "completion": [{"role": "assistant", "content": b}],
        }
        for i, (a, b) in enumerate(texts)
    ]
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    export(source, "-o", folder / "out.jsonl")
    export(source, "-o", folder / "table.parquet")
    want = list(dict.fromkeys(texts))
    got = [json.loads(line) for line in (folder / "out.jsonl").read_bytes().decode().split("\n")[:-1]]
    assert [(r["prompt"][0]["content"], r["completion"][0]["content"]) for r in got] == want
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / "table.parquet").to_pylist()
    assert table == got


def test_a_column_of_a_table_has_one_type(tmp_path):
    rows = read_rows(bundled("teacher.jsonl"))[:3]
    rows[1]["id"] = 7
    write(tmp_path / "in.jsonl", rows)
    export(tmp_path / "in.jsonl", "-o", tmp_path / "out.parquet")
    export(tmp_path / "in.jsonl", "-o", tmp_path / "rows.jsonl")
    assert [r["id"] for r in read(tmp_path / "rows.jsonl")] == [str(r["id"]) for r in rows]
    write(tmp_path / "odd.jsonl", [row | {"id": 2**70 + i} for i, row in enumerate(rows)])
    assert "parquet cannot hold this" in export(tmp_path / "odd.jsonl", "-o", tmp_path / "odd.parquet", expect=2)
    manifest = {"teacher": {}, "student": {}, "identity": {"chat_template_kwargs": {"nothing": {}}}}
    (tmp_path / "odd.meta.json").write_text(json.dumps(manifest))
    write(tmp_path / "odd.jsonl", rows)
    assert "parquet cannot hold this" in export(tmp_path / "odd.jsonl", "-o", tmp_path / "told.parquet", expect=2)
    assert not list(tmp_path.glob("told*"))
    assert not list(tmp_path.glob("odd.parquet*"))


def test_an_interrupted_job_can_be_exported_up_to_its_torn_line(traces, tmp_path):
    with open(traces, "ab") as file:
        file.write(b'{"id": "torn", "gener')
    output = export(traces, "-o", tmp_path / "out.jsonl")
    rows = len(traces.read_bytes().splitlines())
    assert f"{rows} read" in output and "1 torn lines" in output


def test_scored_rows_find_the_tokens_of_their_job(traces, tmp_path):
    result = CliRunner().invoke(main, ["score", str(traces)])
    assert result.exit_code == 1, result.output  # one problem is an error
    scored = tmp_path / "traces.scored.jsonl"
    export(scored, "--keep", "best-ln", "--format", "token-ids", "-o", tmp_path / "best.jsonl")
    rows = by_key(read(scored))
    for r in read(tmp_path / "best.jsonl"):
        of = [s for s in rows.values() if s["id"] == r["id"] and s["is_correct"]]
        best = max(s["local_naturalness"] for s in of)
        assert rows[r["id"], r["generation"]]["local_naturalness"] == best
    assert "score them first" in export(traces, "--keep", "best-ln", expect=2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--test-share", "1"], "test-share"),
        (["--max-fallback-rate", "2"], "max-fallback-rate"),
        (["-o", "out.csv"], "ends in .jsonl or .parquet"),
        (["-o", "{traces}"], "is an input itself"),
        (["-o", "{traces}/out.jsonl"], "Not a directory"),
        (["--private"], "--push-to-hub"),
        (["--push-to-hub", "noowner"], "owner/name"),
        (["--push-to-hub", "../../etc"], "owner/name"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(traces, tmp_path, flags, words):
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    output = export(traces, *[f.format(traces=traces, folder=tmp_path) for f in flags], expect=2)
    assert words in output and len(output.strip().splitlines()) == 1
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_files_are_not_overwritten_by_accident(traces, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    assert "exists" in export(traces, "-o", out, expect=2)
    assert out.read_text() == "mine\n"
    assert "not a file that this command wrote" in export(traces, "-o", out, "--overwrite", expect=2)
    assert out.read_text() == "mine\n"
    out.unlink()
    export(traces, "-o", out)
    assert "--overwrite to replace it" in export(traces, "-o", out, expect=2)
    export(traces, "-o", out, "--overwrite")
    assert len(read(out)) > 5
    shutil.copy(traces, tmp_path / "job.jsonl")
    shutil.copy(traces.with_suffix(".meta.json"), tmp_path / "job.meta.json")
    assert "belongs to a job" in export(traces, "-o", tmp_path / "job.jsonl", "--overwrite", expect=2)
    for nonsense in ("", "hello\n", '{"a": 1}\n', "[1]\n"):
        (tmp_path / "bad.jsonl").write_text(nonsense)
        assert "no rows of rsd generate" in export(tmp_path / "bad.jsonl", expect=2)
    assert "cannot be read" in export(tmp_path / "none.jsonl", expect=2)


NASTY = [None, True, -1, 1.5, "x", "", [], [1], [{}], [{"role": 1, "content": "a"}], {}, {"a": []}]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_rows_of_any_shape_are_exported_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("nasty")
    good = read_rows(bundled("teacher.jsonl"))[:3]
    column = data.draw(st.sampled_from(sorted(good[0])))
    value = data.draw(st.sampled_from(NASTY))
    rows = [good[0], {**good[1], column: value}, good[2]]
    if data.draw(st.booleans()):
        rows[1].pop(column)
    source = write(folder / "in.jsonl", rows)
    sidecar = {"id": good[0]["id"], "generation": 0, "token_ids": [1, 2], "prompt_ids": [3]}
    sidecar[data.draw(st.sampled_from(sorted(sidecar)))] = data.draw(st.sampled_from(NASTY))
    write(folder / "in.tokens.jsonl", [sidecar])
    manifest = {"teacher": {}, "student": {}, "identity": {}}
    manifest[data.draw(st.sampled_from(sorted(manifest)))] = data.draw(st.sampled_from(NASTY))
    (folder / "in.meta.json").write_text(json.dumps(manifest))
    how = data.draw(st.sampled_from(["all", "correct", "shortest-correct", "best-ln"]))
    suffix = data.draw(st.sampled_from(["jsonl", "parquet"]))
    flags = ["--keep", how, "-o", folder / f"out.{suffix}", "--format", data.draw(st.sampled_from(FORMATS))]
    result = CliRunner().invoke(main, ["export", str(source), *map(str, flags)])
    assert result.exit_code in (0, 2), result.output
    if result.exit_code:
        assert isinstance(result.exception, SystemExit) and len(result.output.strip().splitlines()) == 1
        assert not list(folder.glob("out*"))


def test_a_dry_run_says_what_an_export_would_hold_and_writes_nothing(traces, tmp_path):
    before = sorted(p.name for p in tmp_path.iterdir())
    told = export(traces, "-o", tmp_path / "out.jsonl", "--test-share", "0.3", "--dry-run")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    said = export(traces, "-o", tmp_path / "out.jsonl", "--test-share", "0.3")
    assert told.splitlines()[:-1] == said.splitlines()[:-1] and "to write" in told.splitlines()[-1]

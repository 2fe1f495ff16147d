"""Rows that hold what JSON cannot, columns of ours that are missing or hold nonsense, tokens that are none."""

import json
import math
import random
import shutil

import pytest
from click.testing import CliRunner
from conftest import read, write
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import FLAGS, files, pair, run

from rsd import GenerateConfig, TraceGenerator
from rsd.cli import main
from rsd.files import encode
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import read_responses, responses
from rsd.traces.filters import KEEP, keep
from rsd.traces.readers import read_rows
from rsd.traces.rows import prepare
from rsd.traces.trace import COLUMNS


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def command(*args, expect=0):
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == expect, result.output + str(result.exception)
    if expect == 2:
        assert len(result.output.strip().splitlines()) == 1
    return result.output


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("NaN", "'level' holds NaN, which JSON cannot hold: write null"),
        ('[1, {"a": -Infinity}]', "'level' holds -Infinity"),
        ("1e999", "'level' holds 1e999"),
        ("-1" + "0" * 400 + ".5", "'level' holds -100000000000000..."),
        ("1" + "0" * 5000, "Exceeds the limit"),
        ('{"a": 1, "a": 2}', "the name 'a' stands twice"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ("[" * 100_000 + "]" * 100_000, "nested deeper than 100"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_line_and_column(tmp_path, value, why):
    source = tmp_path / "in.jsonl"
    source.write_text(
        f'{{"id": 1, "problem": "1?", "completion": "a"}}\n{{"id": 2, "problem": "2?", "level": {value}}}\n'
    )
    with pytest.raises(ValueError, match="line 2: not a JSON object: ") as refused:
        read_rows(source)
    assert why in str(refused.value) and len(str(refused.value).splitlines()) == 1
    for args in (["generate"], ["score"]):
        assert why in command(*args, source, "-o", tmp_path / "out.jsonl", expect=2)
    assert not (tmp_path / "out.jsonl").exists()


def test_deep_values_and_odd_letters_pass_through_a_job(tiny, tmp_path):
    deep = "end"
    for _ in range(98):
        deep = [deep]
    odd = {"deep": deep, "big": 10**400, "small": 1e-320, "lone": "\ud800", "lines": "\x85\u2028", "1e999": "1e999"}
    source, out = write(tmp_path / "in.jsonl", [{"id": 1, "problem": "1?"} | odd]), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS, "--keep", "all")
    for file in (out, tmp_path / "out.kept.jsonl"):
        (row,) = [strict(line) for line in file.read_bytes().splitlines()]
        assert {k: row[k] for k in odd} == odd


def test_settings_are_json_too(tmp_path):
    said = CliRunner().invoke(
        main, ["generate", "--chat-template-kwargs", '{"a": NaN}', "-o", str(tmp_path / "o.jsonl")]
    )
    assert said.exit_code == 2 and "'a' holds NaN" in said.output and not list(tmp_path.iterdir())


def test_missing_values_of_a_table_are_none(tiny):
    config = GenerateConfig(teacher=tiny()["teacher"], student=tiny()["student"], max_new_tokens=4)
    rows = [
        {"prompt": "1?", "id": math.nan, "answer": "1", "level": math.nan, "more": [{"x": -math.inf}, 2.5]},
        {"prompt": "2?", "id": "b", "answer": math.nan, "level": 3.0, "more": []},
    ]
    first, second = (trace.row() for trace in TraceGenerator(config).run(rows))
    assert (first["level"], first["more"], second["level"]) == (None, [{"x": None}, 2.5], 3.0)
    assert first["id"] == prepare([{"prompt": "1?"}])[0].id and first["error"] is None
    assert (second["is_correct"], second["verify_error"]) == (None, None)
    strict(json.dumps([first, second]))


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -1, 0, 1, "x", "", "true"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.text(max_size=3), ANY))
@settings(deadline=None)
def test_every_line_that_is_written_is_strict_json(row):
    line = encode(row)
    strict(line)
    assert line.count(b"\n") == 1 and len(line.decode().splitlines()) == 1


GOOD = {
    "prompt": [{"role": "user", "content": "What is 1 + 1?"}],
    "completion": [{"role": "assistant", "content": "It is \\boxed{2}."}],
    "id": "a",
    "generation": 0,
    "finish_reason": "stop",
    "is_correct": True,
    "verify_error": None,
    "ended_by_eos": True,
    "one_think_close": True,
    "num_tokens": 9,
    "acceptance_rate": 0.9,
    "fallback_rate": 0.1,
    "error": None,
}
OURS = [*COLUMNS, "local_naturalness", "scoring", "step_spans", "score_error", "token_ids", "teacher"]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_nonsense_in_our_columns_is_refused_in_one_line_or_is_not_known(data):
    rows = []
    for i in range(2):
        row = GOOD | {"generation": i} | data.draw(st.dictionaries(st.sampled_from(OURS), ANY, max_size=2))
        for column in data.draw(st.lists(st.sampled_from(OURS), max_size=2)):
            row.pop(column, None)
        rows.append(row)
    for make in (
        *(lambda how=how: keep(rows, how, max_fallback_rate=0.5) for how in KEEP),
        lambda: responses(rows, ScoreConfig()),
        lambda: prepare(rows),
    ):
        try:
            make()
        except ValueError as e:
            assert len(str(e).splitlines()) == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    run("-o", folder / "traces.jsonl", "--limit", 6, "--num-generations", 3)
    return folder


@pytest.fixture
def traces(made, tmp_path):
    for file in made.glob("traces*"):
        shutil.copy(file, tmp_path)
    return tmp_path / "traces.jsonl"


def rewrite(traces, change, *, of=1):
    """Change a row of a file."""
    rows = read(traces)
    change(rows[of])
    write(traces, rows)


KNOWN = [
    "is_correct",
    "verify_error",
    "ended_by_eos",
    "one_think_close",
    "num_tokens",
    "acceptance_rate",
    "finish_reason",
]


def test_a_row_without_our_columns_is_read_and_what_they_say_is_not_known(traces, tmp_path):
    def change(row):
        row["completion"][0]["content"] += " "  # no duplicate of another
        for column in [*KNOWN, "fallback_rate", "error"]:
            row.pop(column)

    rewrite(traces, change)
    for i, how in enumerate(KEEP[:3]):
        for form in ("prompt-completion", "token-ids"):
            out = tmp_path / f"{form}{i}.jsonl"
            said = command("export", traces, "--keep", how, "--format", form, "-o", out)
            assert how == "all" or "1 not verified" in said
            assert how != "all" or any(r["num_tokens"] is None for r in read(out))
    command("score", traces, "-o", tmp_path / "scored.jsonl")
    command("export", tmp_path / "scored.jsonl", "--keep", "best-ln", "-o", tmp_path / "best.jsonl")
    command("compare", traces, tmp_path / "scored.jsonl", "--json", tmp_path / "figures.json")
    strict((tmp_path / "figures.json").read_text())
    shutil.copy(traces, tmp_path / "other.jsonl")
    command("select", traces, tmp_path / "other.jsonl", "-o", tmp_path / "selected.jsonl")
    before = files(traces)[2]["totals"]
    run("-o", traces, "--limit", 6, "--num-generations", 3, "--keep", "shortest-correct")  # makes it again
    assert files(traces)[2]["totals"] == before


@pytest.mark.parametrize("column", ["local_naturalness", "step_spans"])
def test_scores_that_are_none_are_made_again(traces, tmp_path, column):
    scored = tmp_path / "scored.jsonl"
    command("score", traces, "-o", scored)
    shutil.copy(scored, tmp_path / "other.jsonl")
    command("select", scored, tmp_path / "other.jsonl", "-o", tmp_path / "before.jsonl")

    def change(row):
        end = row["step_spans"][-1][1]
        row[column] = [7, [0, end]] if column == "step_spans" else 10**400

    for i in range(18):
        rewrite(scored, change, of=i)
    command("select", scored, tmp_path / "other.jsonl", "-o", tmp_path / "after.jsonl")
    assert read(tmp_path / "after.jsonl") == read(tmp_path / "before.jsonl")


@pytest.mark.parametrize("ids", [[[1], [2]], [-1, 2], [1.5, 2], [True, 2], "ab", [None, 1]])
def test_arrays_that_are_none_are_not_read(tmp_path, ids):
    line = {"id": "a", "generation": 0, "token_ids": [1, 2], "teacher_proposals": [3, None]}
    write(tmp_path / "t.tokens.jsonl", [line, line | {"id": "b", "token_ids": ids}])
    write(tmp_path / "t.jsonl", [{"id": name, "prompt": "?", "completion": "!", "generation": 0} for name in "abc"])
    read = {r.id: r.tokens for r in read_responses(tmp_path / "t.jsonl", ScoreConfig())}
    assert read["a"]["token_ids"].tolist() == [1, 2] and read["b"] is None and read["c"] is None


def test_the_shortest_of_rows_without_a_length_is_not_known():
    rows = [GOOD | {"generation": 0, "num_tokens": None}, GOOD | {"generation": 1}]
    kept, why = keep(rows, "shortest-correct", max_fallback_rate=1.0)
    assert [r["generation"] for r in kept] == [1] and why == {"length not known": 1}
    with pytest.raises(ValueError, match="no correct row has num_tokens"):
        keep(rows[:1], "shortest-correct", max_fallback_rate=1.0)
    truncated = {k: v for k, v in GOOD.items() if k != "ended_by_eos"} | {"finish_reason": "length"}
    assert keep([truncated], "correct", max_fallback_rate=1.0)[1] == {"not ended by EOS": 1}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("num_tokens", "9"),
        ("num_tokens", -1),
        ("num_tokens", 10**400),
        ("is_correct", "true"),
        ("is_correct", 1),
        ("ended_by_eos", "yes"),
        ("fallback_rate", "0.1"),
        ("fallback_rate", [0.1]),
        ("generation", True),
        ("error", {}),
        ("id", None),
        ("completion", "text"),
    ],
)
def test_what_rsd_never_writes_is_refused_with_its_line_and_column(traces, tmp_path, column, value):
    rewrite(traces, lambda row: row.update({column: value}), of=2)
    before = {f: f.read_bytes() for f in tmp_path.iterdir()}
    for how in KEEP[:2]:
        said = command("export", traces, "--keep", how, "-o", tmp_path / "out.jsonl", expect=2)
        assert f"line 3: {column} must be " in said
    assert {f: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_an_inputs_column_that_is_called_as_a_score_is_only_a_column(tiny, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"id": 1, "problem": "1?", "local_naturalness": "high"}])
    for _ in range(2):
        run(source, "-o", tmp_path / "out.jsonl", *pair(tiny), *FLAGS, "--keep", "all")
    command("export", tmp_path / "out.jsonl", "--keep", "all")
    rows = [GOOD | {"local_naturalness": "high"}]
    with pytest.raises(ValueError, match="row 1: local_naturalness must be a number or null, not 'high'"):
        keep(rows, "best-ln", max_fallback_rate=1.0)


def test_only_a_last_line_can_be_torn(traces, tmp_path):
    lines = traces.read_bytes().splitlines(keepends=True)
    traces.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert "1 torn lines" in command("export", traces, "-o", tmp_path / "a.jsonl")
    traces.write_bytes(b"".join(lines)[:-1])  # an editor left the last line without its end
    assert "torn" not in command("export", traces, "-o", tmp_path / "b.jsonl")
    traces.write_bytes(lines[0] + lines[1][:50] + b"\n" + lines[2])
    assert "line 2: not a JSON object" in command("export", traces, "-o", tmp_path / "c.jsonl", expect=2)


@pytest.mark.parametrize(
    ("column", "ids", "what"),
    [
        ("token_ids", [], "token_ids is empty"),
        ("prompt_ids", None, "prompt_ids is empty"),
        ("token_ids", [5, -1], "token_ids holds -1, which is no token id"),
        ("token_ids", [5, 1.5], "token_ids holds 1.5"),
        ("token_ids", [5, True], "token_ids holds True"),
        ("token_ids", [5, "7"], "token_ids holds '7'"),
        ("prompt_ids", [768], "prompt_ids holds 768, which is no token id (the student has 768 tokens)"),
        ("prefix_ids", [10**30], "prefix_ids holds 1000000"),
        ("token_ids", "12", "token_ids must be a list of token ids"),
    ],
)
def test_ids_that_are_none_are_refused_with_their_row(traces, tmp_path, column, ids, what):
    sidecar = tmp_path / "traces.tokens.jsonl"
    lines = read(sidecar)
    lines[4][column] = ids
    write(sidecar, lines)
    said = command("export", traces, "--format", "token-ids", "-o", tmp_path / "out.jsonl", expect=2)
    assert what in said
    assert f"row {str(lines[4]['id'])!r}, generation {lines[4]['generation']}: " in said
    command("export", traces, "-o", tmp_path / "text.jsonl")  # a text needs none


def test_which_rows_are_kept_does_not_depend_on_the_order_of_the_lines(traces, tmp_path):
    rows = read(traces)
    for row in rows[:9]:  # equal in all that is compared; some are duplicates, too
        row |= {"is_correct": True, "ended_by_eos": True, "one_think_close": True, "num_tokens": 7}
        row["local_naturalness"] = -1.0
    for row in rows[9:]:
        row |= {"is_correct": False}
    found = set()
    for seed in range(4):
        random.Random(seed).shuffle(rows)
        write(traces, rows)
        kept = [keep(rows, how, max_fallback_rate=1.0)[0] for how in KEEP]
        assert all(of == [r for r in rows if r in of] for of in kept)  # in the order of the file
        exported = []
        for flags in (["correct"], ["correct", "--prefix-tokens", 3], ["shortest-correct"]):
            out = tmp_path / "out.jsonl"
            command("export", traces, "--format", "token-ids", "--keep", *flags, "-o", out, "--overwrite")
            exported.append(read(out))
        found.add(json.dumps([sorted((str(r["id"]), r["generation"]) for r in of) for of in [*kept, *exported]]))
    assert len(found) == 1

"""Rows: prompts found, ids stable, nothing lost, bad rows told apart from bad files."""

import json

import jsonlines
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.traces.readers import read_rows
from rsd.traces.rows import prepare


@pytest.mark.parametrize("column", ["prompt", "question", "problem"])
def test_known_columns(column):
    (row,) = prepare([{column: "What?", "answer": "4", "id": 7}])
    assert row.messages == [{"role": "user", "content": "What?"}]
    assert (row.id, row.columns, row.error) == (7, {"answer": "4"}, None)


def test_messages_end_before_the_assistants_last_turn():
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "6*7?"), ("assistant", "42")]
    messages = [{"role": r, "content": c, "extra": 1} for r, c in turns]
    (row,) = prepare([{"messages": messages}])
    assert [m["content"] for m in row.messages] == ["Be brief.", "Hi", "Yes?", "6*7?"]


def test_a_named_column_wins():
    (row,) = prepare([{"prompt": "no", "text": "yes"}], prompt_column="text")
    assert row.messages[0]["content"] == "yes" and row.columns == {"prompt": "no"}


def test_a_system_prompt_goes_before_prompts_that_have_none():
    rows = prepare(
        [{"prompt": "a"}, {"prompt": [{"role": "system", "content": "own"}, {"role": "user", "content": "b"}]}],
        system_prompt="given",
    )
    assert [r.messages[0]["content"] for r in rows] == ["given", "own"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "  \n"}, "empty"),
        ({"prompt": 5}, "not int"),
        ({"prompt": None}, "not NoneType"),
        ({}, "not NoneType"),
        ({"prompt": [{"role": "user"}]}, "role"),
        ({"prompt": ["text"]}, "role"),
        ({"prompt": []}, "empty"),
        ({"prompt": [{"role": "assistant", "content": "only me"}]}, "empty"),
        ({"prompt": "fine", "id": 1.5}, "id must be"),
        ({"prompt": "fine", "id": True}, "id must be"),
    ],
)
def test_a_bad_row_is_one_error(bad, why):
    rows = prepare([{"prompt": "good"}, bad])
    assert rows[0].error is None
    assert why in rows[1].error


def test_ids_given_and_made():
    rows = prepare([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    ids = [r.id for r in rows]
    assert len(set(ids)) == 4
    assert ids[1] == f"{ids[0]}-2" and ids[3] == f"{ids[0]}-3"
    # A prompt's id depends neither on its neighbours nor on other columns.
    assert prepare([{"prompt": "b", "answer": 3}])[0].id == ids[2]


def test_duplicate_ids_are_refused():
    with pytest.raises(ValueError, match="duplicate id '1' in rows 1 and 3"):
        prepare([{"prompt": "a", "id": 1}, {"prompt": "b"}, {"prompt": "c", "id": "1"}])


def test_no_prompt_column_names_those_found():
    with pytest.raises(ValueError, match="found text, answer; name yours with prompt_column"):
        prepare([{"text": "a", "answer": "b"}])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from(["prompt", "id", "x", "messages"]), JSON, max_size=4), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_rows_are_prepared_or_refused(rows):
    try:
        prepared = prepare(rows)
    except ValueError:
        return
    assert len(prepared) == len(rows)
    assert len({str(r.id) for r in prepared}) == len(rows)
    for given_row, row in zip(rows, prepared, strict=True):
        assert (row.error is None) or isinstance(row.error, str)
        if row.error is None:
            assert row.messages
        assert all(given_row[k] == v for k, v in row.columns.items())
    assert [r.id for r in prepare(rows)] == [r.id for r in prepared]


def test_reading(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "line separators \u2028 stay", "n": 2**60}, {"prompt": "β 漢 🙂"}]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no rows"),
        (b"\n\n", "holds no rows"),
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2: not a JSON object"),
        (b'{"prompt": "a"}\n\n[1, 2]\n', "line 3: not a JSON object"),
        (b'{"prompt": "\xff"}\n', "not a UTF-8"),
        (b"PAR1\x00\x01\x02", "not a JSON object"),
        (b"[" * 100_000, "not a JSON array"),
    ],
)
def test_bad_files(tmp_path, content, why):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=why):
        read_rows(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="cannot be read as a data set"):
        read_rows(tmp_path)


def test_jsonlines_reads_what_was_written(tmp_path):
    with jsonlines.open(tmp_path / "rows.jsonl", "w") as f:
        f.write_all([{"prompt": "a"}] * 3)
    assert len(read_rows(tmp_path / "rows.jsonl")) == 3

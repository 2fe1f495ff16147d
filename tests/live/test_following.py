"""However a job's files grow, what is read on is what they hold."""

import json

from conftest import write
from hypothesis import given
from hypothesis import strategies as st

from rsd.live import following
from rsd.live.following import FIRST, LAST, SHOWN, Following
from rsd.traces.totals import totals

PIECES = ["a", "\u00e4"[:1], "\u00f0\u009f", "\u0098\u0080", None]  # bytes as Latin-1: half an emoji, and the rest


def row(i: int, **columns) -> dict:
    text = [{"role": "assistant", "content": "aa"}]
    prompt = [{"role": "user", "content": "?"}]
    given = {"is_correct": i % 3 == 0 or None, "num_tokens": 2, "acceptance_rate": 0.5, "fallback_rate": 0.5}
    return (
        {"prompt": prompt, "completion": text, "id": f"p{i}", "generation": 0, "finish_reason": "stop"}
        | given
        | columns
    )


def record(i: int, ids=(0, 0)) -> dict:
    n = len(ids)
    return {"id": f"p{i}", "generation": 0, "prompt_ids": [], "token_ids": list(ids)} | {
        "teacher_logprobs": [None] * n,
        "student_logprobs": [-1.0] * n,
        "from_teacher": [1] * (n - 1) + [0],
        "teacher_proposals": [0] * n,
    }


def in_bytes(lines: list) -> bytes:
    return "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines).encode()


@given(st.lists(st.sampled_from(["row", "error", "torn", "stranger"]), max_size=20), st.lists(st.integers(0, 4000)))
def test_files_that_grow_byte_by_byte_are_what_they_are_in_the_end(tmp_path_factory, kinds, cuts):
    out = tmp_path_factory.mktemp("job") / "t.jsonl"
    other = {"error": row(0, error="bad", completion=[]), "torn": '{"id": "p", "gen\n', "stranger": {"generation": "x"}}
    lines = [row(i) if kind == "row" else other[kind] for i, kind in enumerate(kinds)]
    rows = in_bytes(lines)
    write(out.with_suffix(".tokens.jsonl"), [record(i) for i in range(len(kinds))])
    reading = Following(out, PIECES)
    reading.look()  # there is nothing yet
    for cut in sorted(cuts):
        out.write_bytes(b"") if not out.exists() else None
        with open(out, "ab") as file:
            file.write(rows[file.tell() : cut])
        reading.look()
    with open(out, "ab") as file:
        file.write(rows[file.tell() :])
    reading.look()
    ours = [line for line, kind in zip(lines, kinds, strict=True) if kind in ("row", "error")]
    assert reading.totals.sums() == totals(ours) and not reading.behind
    shown = reading.shown(0)
    assert [t["id"] for t in shown] == [line["id"] for line in ours][-SHOWN:]
    assert all(t["pieces"] == ["a", "a"] for t in shown if not t["error"])


def test_a_file_that_is_written_anew_is_counted_anew(tmp_path):
    out = tmp_path / "t.jsonl"
    write(out, [row(i) for i in range(5)])
    reading = Following(out, PIECES)
    reading.look()
    write(tmp_path / "new", [row(i) for i in range(10, 19)]).replace(out)  # longer than before
    write(tmp_path / "t.part-1-of-2.jsonl", [row(20)])
    reading.look()
    assert reading.totals.sums()["rows"] == 10
    (tmp_path / "t.part-1-of-2.jsonl").unlink()
    out.write_bytes(in_bytes([row(1)]))  # in place
    reading.look()
    assert reading.totals.sums()["rows"] == 1 and [t["id"] for t in reading.shown(0)] == ["p1"]


def test_a_long_trace_is_shown_by_both_ends_and_characters_are_whole(tmp_path):
    out = tmp_path / "t.jsonl"
    count = 30_000
    write(out, [row(0, num_tokens=count), row(1), row(2)])
    odd = record(2) | {"student_logprobs": [float("inf"), -float("inf")]}  # a damaged line
    write(tmp_path / "t.tokens.jsonl", [record(0, [0] * count), record(1, [2, 3, 4, 99, 2]), odd])
    reading = Following(out, PIECES)
    reading.look()
    long, short, damaged = reading.shown(0)
    assert (len(long["pieces"]), long["cut"], long["left_out"]) == (FIRST + LAST, FIRST, count - FIRST - LAST)
    assert long["own"] == [FIRST + LAST - 1]
    assert short["pieces"] == ["", "\U0001f600", "<4>", "<99>", "\ufffd"]
    assert short["wanted"] == {0: "a", 1: "a", 2: "a", 3: "a", 4: "a"}
    assert damaged["text"] == "aa" and "pieces" not in damaged


def test_what_is_much_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "ROWS", 1000)
    lines = [row(i) for i in range(50)]
    out = write(tmp_path / "t.jsonl", lines)
    write(tmp_path / "t.tokens.jsonl", [record(i) for i in range(50)])
    read = Following(out, PIECES)
    looks = 0
    while not looks or read.behind:
        read.look()
        looks += 1
    assert looks > 5 and read.totals.sums() == totals(lines)
    assert read.shown(0)[-1]["pieces"] == ["a", "a"]

"""Rows are read as people have them, and what cannot be read is said in one line."""

import csv
import datetime
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import pyarrow
import pytest
from conftest import environment, read
from hypothesis import given
from hypothesis import strategies as st
from jobs import PROBLEMS, run, same_rows
from pyarrow import parquet

from rsd.traces import readers
from rsd.traces.readers import read_rows

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
TABLE = st.lists(st.fixed_dictionaries({"id": TEXT, "prompt": TEXT, "answer": TEXT}), min_size=1, max_size=6)


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list) -> bytes:
    made = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def sheet(rows: list) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FORMS = {
    "rows.jsonl": lines,
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "rows.parquet": table,
    "rows.csv": sheet,
    "lines.json": lines,
    "array.jsonl": lambda rows: b"\n  " + json.dumps(rows).encode(),
}
ENDS = {"": bytes, ".gz": gzip.compress, ".zst": lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", FORMS)
@given(rows=TABLE)
def test_the_same_rows_whatever_they_come_in(tmp_path_factory, name, end, rows):
    file = tmp_path_factory.mktemp("rows") / f"{name}{end}"
    file.write_bytes(ENDS[end](FORMS[name](rows)))
    if name == "rows.csv":  # which tells no empty text from a missing one
        rows = [{k: v or None for k, v in row.items()} for row in rows]
    assert read_rows(file) == rows


def test_tables_hold_more_than_json(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "?"}],
        "day": datetime.date(2026, 1, 2),
        "at": datetime.datetime(2026, 1, 2, 3, 4),
        "none": None,
        "x": 0.5,
        "n": 7,
    }
    (tmp_path / "t.parquet").write_bytes(table([row]))
    assert read_rows(tmp_path / "t.parquet") == [row | {"day": "2026-01-02", "at": "2026-01-02T03:04:00"}]
    (tmp_path / "t.parquet").write_bytes(table([{"prompt": b"bytes"}]))
    with pytest.raises(ValueError, match="row 1: a column holds bytes"):
        read_rows(tmp_path / "t.parquet")


@pytest.mark.slow
def test_data_sets(tmp_path):
    datasets.Dataset.from_list(PROBLEMS).save_to_disk(tmp_path / "one")
    assert read_rows(tmp_path / "one") == PROBLEMS
    both = {"train": datasets.Dataset.from_list(PROBLEMS[:3]), "test": datasets.Dataset.from_list(PROBLEMS[3:])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    assert read_rows(tmp_path / "two") == PROBLEMS[:3]
    assert read_rows(tmp_path / "two", split="test") == PROBLEMS[3:]
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "train.jsonl").write_bytes(lines(PROBLEMS))
    assert read_rows(tmp_path / "three") == PROBLEMS
    assert read_rows(tmp_path / "three", split="train[:2]") == PROBLEMS[:2]
    for name, split in ((tmp_path / "two", "dev"), (tmp_path / "three", "dev"), ("nobody/nothing-of-this-name", None)):
        with pytest.raises(ValueError, match=r"cannot be read as a data set: .+") as error:
            read_rows(name, split=split)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(lines(PROBLEMS))[:-9], "cannot be read"),
        ("a.jsonl.zst", b"not zstd", "cannot be read"),
        ("a.parquet", b"PAR1 but nothing else", "cannot be read as parquet"),
        ("a.csv", b"prompt,answer\nx\n", "line 2: not 2 cells"),
        ("a.csv", b"prompt\nx,y\n", "line 2: not 1 cells"),
        ("a.csv", b'prompt\n"x', "not CSV"),
        ("a.json", b"[1, 2]", "item 1: not a JSON object"),
        ("a.json", b'[{"a": NaN}]', "not a JSON array"),
        ("a.json", b'[{"a": 1}', "not a JSON array"),
        ("a.jsonl", b"\xff\xfe", "not a UTF-8 text file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, raw, words):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=words) as error:
        read_rows(tmp_path / name)
    assert "\n" not in str(error.value)


def test_pipes_and_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "WRITER", 0.3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"no process has written to for 0.3 s"):
        read_rows(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(lines(PROBLEMS)))
    writer.start()
    assert read_rows(pipe) == PROBLEMS
    writer.join()
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ValueError, match="is a device"):
            read_rows(device)
    with pytest.raises(ValueError, match="split is for a data set"):
        (tmp_path / "a.jsonl").write_bytes(lines(PROBLEMS))
        read_rows(tmp_path / "a.jsonl", split="train")


def test_commands_read_them_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(lines(PROBLEMS[:3]))
    run("in.jsonl", "-o", "want.jsonl", "--max-new-tokens", "8")
    Path("in.csv.gz").write_bytes(gzip.compress(sheet(PROBLEMS[:3])))
    run("in.csv.gz", "-o", "made.jsonl", "--max-new-tokens", "8")
    made, same = (
        {row["id"]: {k: v for k, v in row.items() if k != "level"} for row in read(Path(name))}
        for name in ("made.jsonl", "want.jsonl")
    )
    assert made == same
    command = [sys.executable, "-m", "rsd", "generate", "-", "-o", "piped.jsonl", "--max-new-tokens", "8"]
    result = subprocess.run(command, input=lines(PROBLEMS[:3]), capture_output=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert same_rows(read(Path("piped.jsonl")), read(Path("want.jsonl")))

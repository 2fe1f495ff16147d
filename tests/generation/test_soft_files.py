"""The file of soft targets: whole, or made again, whatever was killed, torn or damaged; nobody else's is touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import read, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jobs import PROBLEMS, assert_same_soft, command, files, run, same_rows, soft_of

import rsd
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows
from rsd.traces.soft import SoftFile, SoftTargets, batch, head, schema_of, soft_file

ROOT = Path(rsd.__file__).parents[1]
ROWS = read_rows(bundled("problems.jsonl"))[:12]
SHORT = ["--max-new-tokens", "40", "--top-logprobs", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "in.jsonl", ROWS)
    run(folder / "in.jsonl", "-o", folder / "t.jsonl", *SHORT)
    return folder


@pytest.fixture
def job(whole, tmp_path, monkeypatch):
    """The same job's files, in the current folder."""
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return ["in.jsonl", "-o", "t.jsonl", *SHORT]


def assert_whole(whole: Path) -> None:
    made, want = files(Path("t.jsonl")), files(whole / "t.jsonl")
    assert same_rows(made[0], want[0]) and len(made[1]) == len(want[1])
    assert_same_soft(soft_of(Path("t.jsonl")), soft_of(whole / "t.jsonl"))


@st.composite
def soft(draw, k):
    length = draw(st.integers(0, 5))
    ids = arrays.arrays(np.int32, (length, k), elements=st.integers(-1, 200_000))
    logprobs = arrays.arrays(np.float16, (length, k), elements=st.floats(-100, 0, width=16))
    one = arrays.arrays(np.int32, st.just(length), elements=st.integers(0, 200_000))
    prompt = arrays.arrays(np.int32, st.integers(0, 3), elements=st.integers(0, 200_000))
    return SoftTargets(*map(draw, (prompt, one, ids, logprobs, ids, logprobs)))


@given(st.data(), st.integers(1, 4))
def test_what_was_written_whole_is_read_again_wherever_the_file_is_torn(tmp_path_factory, data, k):
    keys = data.draw(st.lists(st.tuples(st.text(), st.integers(0, 9)), max_size=4, unique=True))
    made = {key: data.draw(soft(k)) for key in keys}
    parts = [head(schema_of(k)), *(batch(schema_of(k), key, one) for key, one in made.items())]
    cut = data.draw(st.integers(0, len(b"".join(parts))))
    file = tmp_path_factory.mktemp("soft") / "t.logprobs.arrow"
    file.write_bytes(b"".join(parts)[:cut])
    if cut < len(parts[0]):
        with pytest.raises(ValueError, match="holds no soft targets"):
            SoftFile(file)
        return
    ends = np.cumsum([len(part) for part in parts])
    there = SoftFile(file)
    assert there.k == k and len(there.order) == int((ends[1:] <= cut).sum()) and there.size == ends[ends <= cut][-1]
    for key, _ in there.order:
        for mine, theirs in zip(there.get(key), made[key], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_it_is_what_python_is_given(whole):
    there = soft_of(whole / "t.jsonl")
    traces = rsd.generate(ROWS, max_new_tokens=40, top_logprobs=3)
    assert {t.key for t in traces} == there.keys()
    assert_same_soft({t.key: t.soft_targets for t in traces}, there)
    lines = {(line["id"], line["generation"]): line for line in read(whole / "t.tokens.jsonl")}
    for key, one in there.items():
        assert one.token_ids.tolist() == lines[key]["token_ids"]
        assert one.prompt_ids.tolist() == lines[key]["prompt_ids"]


def test_a_killed_job_goes_on(whole, tmp_path, monkeypatch):
    write(tmp_path / "in.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    crawl = ["--batch-size", "1", "--block-size", "1"]
    args = [sys.executable, "-m", "rsd", "generate", "in.jsonl", "-o", "t.jsonl", *SHORT, *crawl]
    process = subprocess.Popen(args, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 300
    while not (Path("t.jsonl").exists() and Path("t.jsonl").read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "resuming" in run("in.jsonl", "-o", "t.jsonl", *SHORT).output
    assert_whole(whole)


@pytest.mark.parametrize("left", [0, 1, 400, -1, -3000])
def test_what_is_torn_is_made_again(job, whole, left):
    file = soft_file("t.jsonl")
    torn = file.read_bytes()[:left]
    file.write_bytes(torn)
    assert "resuming" in run(*job).output or left in (0, 1, 400)
    assert_whole(whole)
    assert "is finished" in run(*job).output


def test_what_is_damaged_or_gone_is_made_again(job, whole):
    file = soft_file("t.jsonl")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    file.write_bytes(data)
    run(*job)
    assert_whole(whole)
    file.unlink()
    run(*job)
    assert_whole(whole)
    # Tokens whose row is gone take their soft targets with them.
    rows = Path("t.jsonl").read_text().splitlines(keepends=True)
    Path("t.jsonl").write_text("".join(rows[:4]))
    run(*job)
    assert_whole(whole)


def test_a_job_with_another_number_or_none_is_another_job(job, whole):
    for other in (["--top-logprobs", "4"], ["--top-logprobs", "0"]):
        said = run(*job, *other, expect=2).output
        assert "was made with other settings: top_logprobs" in said
    assert_whole(whole)
    run(*job, "--top-logprobs", "0", "--overwrite")
    assert not soft_file("t.jsonl").exists()


def test_a_strangers_file_is_left_alone(job, tmp_path):
    for name in ("t.jsonl", "t.tokens.jsonl", "t.meta.json"):
        Path(name).unlink()
    for content in (b"mine", b"ARROW1\0\0" * 9):
        soft_file("t.jsonl").write_bytes(content)
        for more in ([], ["--overwrite"]):
            assert "holds no soft targets of this job" in run(*job, *more, expect=2).output
            assert soft_file("t.jsonl").read_bytes() == content
    soft_file("t.jsonl").write_bytes(b"mine")
    run(*job[:3], "--max-new-tokens", "10", "--overwrite")
    assert soft_file("t.jsonl").read_bytes() == b"mine"
    assert "belongs to the input" in command("score", "t.jsonl", "-o", "t.logprobs.arrow", expect=2).output


def test_what_cannot_be_is_said_in_one_line(tmp_path, monkeypatch):
    write(tmp_path / "in.jsonl", PROBLEMS)
    monkeypatch.chdir(tmp_path)
    assert "name an -o" in run("in.jsonl", "-o", "-", "--top-logprobs", "3", expect=2).output
    assert "from 0 to 256" in run("in.jsonl", "--top-logprobs", "-1", expect=2).output
    block = "import sys; sys.modules['pyarrow'] = None; from rsd.cli import main; main()"
    args = [sys.executable, "-c", block, "generate", "in.jsonl", "--top-logprobs", "3", "-o", "new.jsonl"]
    made = subprocess.run(args, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert made.returncode == 2 and "pip install 'rsd[parquet]'" in made.stderr.splitlines()[-1]
    assert not Path("new.jsonl").exists()


SCORE = ["--top-logprobs", "3"]


def test_scoring_reads_what_was_generated_as_it_was(job):
    made = soft_of(Path("t.jsonl"))
    command("score", "t.jsonl", *SCORE)
    again = soft_of(Path("t.scored.jsonl"))
    assert_same_soft(again, made)
    plain = command("score", "t.jsonl", "-o", "plain.jsonl")
    assert plain.output
    columns = ("local_naturalness", "num_steps", "scored_tokens", "step_spans")
    for row, other in zip(read(Path("t.scored.jsonl")), read(Path("plain.jsonl")), strict=True):
        assert {c: row[c] for c in columns} == {c: other[c] for c in columns}


@pytest.mark.parametrize("teacher", ["bundled-teacher", "bundled-llama"])
def test_anybodys_traces_have_soft_targets_of_any_pair(tmp_path, monkeypatch, teacher):
    monkeypatch.chdir(tmp_path)
    raw = [
        {"prompt": "What is 6 times 7?", "completion": "Okay: 6 times 7 is 42.\n</think>\n\\boxed{42}", "id": "a"},
        {"prompt": "What is 6 times 7?", "completion": "", "id": "bad"},
        {"prompt": "Tom has 3 pens.", "completion": "3+4=7.", "id": "b"},
    ]
    write(tmp_path / "raw.jsonl", raw)
    command("score", "raw.jsonl", "--teacher", teacher, *SCORE, expect=1)
    made = soft_of(Path("raw.scored.jsonl"))
    assert made.keys() == {("a", 0), ("b", 0)}
    student = rsd.TraceGenerator().find().student
    for key, one in made.items():
        text = next(row["completion"] for row in raw if row["id"] == key[0])
        assert student.tokenizer.decode(one.token_ids[:-1]) == text and one.token_ids[-1] in student.eos
        assert np.isfinite(one.teacher_logprobs[:, 0]).all() and (np.diff(one.student_logprobs) <= 0).all()
    # One that is killed, torn or damaged goes on, and ends up the same.
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    soft, rows = soft_file("raw.scored.jsonl"), Path("raw.scored.jsonl")
    for torn in (soft.read_bytes()[:-5], soft.read_bytes()[: len(head(schema_of(3)))], b""):
        soft.write_bytes(torn)
        command("score", "raw.jsonl", "--teacher", teacher, *SCORE, expect=1)
        assert rows.read_bytes() == before[rows.name]
        assert_same_soft(soft_of(rows), made)
    rows.write_bytes(rows.read_bytes()[:-300])
    command("score", "raw.jsonl", "--teacher", teacher, *SCORE, expect=1)
    assert rows.read_bytes() == before[rows.name]
    assert_same_soft(soft_of(rows), made)


def test_of_scores_that_are_there_soft_targets_are_made_later(job):
    command("score", "t.jsonl")
    command("score", "t.jsonl", *SCORE)
    assert_same_soft(soft_of(Path("t.scored.jsonl")), soft_of(Path("t.jsonl")))
    assert "is finished" in command("score", "t.jsonl", *SCORE).output
    said = command("score", "t.jsonl", *SCORE, "--shard", "1/2", expect=2).output
    assert "--top-logprobs with several processes" in said
    said = command("score", "t.jsonl", *SCORE, "--teacher", "http://127.0.0.1:9/v1", expect=2).output
    assert "must be loaded here" in said
    with pytest.raises(ValueError, match="for an output"):
        rsd.score("t.jsonl", top_logprobs=3)
    with pytest.raises(ValueError, match="no setting top_logprobs"):
        rsd.compare("t.jsonl", "t.jsonl", top_logprobs=3)


def test_an_id_that_is_no_text_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{**row, "id": name} for row, name in zip(ROWS, ("\ud83d", 'a"\\ud83d', 7), strict=False)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["in.jsonl", "-o", "t.jsonl", *SHORT]
    run(*job)
    file = SoftFile(soft_file("t.jsonl"))
    assert all(file.get((str(row["id"]), 0)) is not None for row in rows)
    before = soft_file("t.jsonl").read_bytes()
    Path("t.meta.json").unlink()  # so that all is looked at
    assert "is finished" in run(*job).output and soft_file("t.jsonl").read_bytes() == before

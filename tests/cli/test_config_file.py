"""Flags in a file, a summary for scripts, and outputs in folders that are not there yet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import yaml
from click.testing import CliRunner
from conftest import environment, read, rsd, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import FLAGS, PROBLEMS, by_key, command, files, run, same_rows

from rsd.cli import main, options


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", PROBLEMS[:3])
    return tmp_path


def test_a_file_of_flags_is_as_good_as_flags(folder):
    run("in.jsonl", "-o", "a.jsonl", *FLAGS, "--suppress", "3", "--suppress", "<|im_start|>", "--limit", "2")
    asked = {"input": "in.jsonl", "output": "b.jsonl", "max-new-tokens": 30, "temperature": 1, "top_k": 0, "top-p": 1}
    asked |= {"suppress": [3, "<|im_start|>"], "limit": 3, "threshold": None}
    Path("job.yaml").write_text(yaml.safe_dump(asked))
    command("generate", "--config", "job.yaml", "--limit", "2")  # which wins
    (mine, tokens, manifest), (theirs, wanted, one) = files(Path("b.jsonl")), files(Path("a.jsonl"))
    texts, ids = ({k: v[c] for k, v in by_key(m).items()} for m, c in ((mine, "completion"), (tokens, "token_ids")))
    assert len(texts) == 2 and texts == {k: v["completion"] for k, v in by_key(theirs).items()}
    assert ids == {k: v["token_ids"] for k, v in by_key(wanted).items()}
    assert manifest["identity"] == one["identity"]


def test_what_is_printed_makes_the_same_job_again(folder):
    flags = [*FLAGS, "--trials", "inf", "--chat-template-kwargs", '{"a": [1, "x"]}', "--limit", "2", "--no-loop-check"]
    said = command("generate", "in.jsonl", "-o", "a.jsonl", "--preset", "paper", *flags, "--print-config").output
    assert not Path("a.jsonl").exists()
    Path("job.yaml").write_text(said)
    assert yaml.safe_load(said)["accept-top-k"] == 20  # the preset's
    assert yaml.safe_load(command("generate", "--config", "job.yaml", "--print-config").output) == yaml.safe_load(said)
    run("in.jsonl", "-o", "b.jsonl", "--preset", "paper", *flags)
    command("generate", "--config", "job.yaml")
    assert files(Path("a.jsonl"))[2]["identity"] == files(Path("b.jsonl"))[2]["identity"]
    made, want = ({k: v["completion"] for k, v in by_key(read(Path(f))).items()} for f in ("a.jsonl", "b.jsonl"))
    assert made == want
    for other in (["score", "a.jsonl"], ["compare"], ["select", "a.jsonl"], ["export", "a.jsonl"]):
        made = yaml.safe_load(command(*other, "--print-config").output)
        assert made.get("student", made.get("format")) in ("bundled-student", "prompt-completion")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("treshold: 1", "no flag treshold: threshold?"),
        ("threshold: {a: 1}", "threshold cannot be {'a': 1}"),
        ("threshold: no", "threshold cannot be False"),
        ("threshold: x", "'x' is not a valid float"),
        ("compile: 3", "compile cannot be 3"),
        ("suppress: [[1]]", "suppress cannot be [[1]]"),
        ("threshold-on: other", "'other' is not one of"),
        ("- a\n- b", "not a mapping of flags to values"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("\0", "not YAML"),
        ("suppress: " + "[" * 5000, "recursion"),
        (f"seed: {'9' * 5000}", "4300 digits"),
        ("batch-size: 1.5", "1.5 is neither a whole number nor auto"),
        ("trials: 1.5", "1.5 is neither a whole number nor inf"),
        ("max-new-tokens: 1.5", "max-new-tokens cannot be 1.5"),
        ("max-new-tokens: .inf", "max-new-tokens cannot be inf"),
        ("chat-template-kwargs: {a: 2020-01-01}", "not JSON: Object of type date"),
    ],
)
def test_a_bad_file_of_flags_is_said_in_a_line(folder, text, words):
    Path("job.yaml").write_text(text)
    assert words in command("generate", "--config", "job.yaml", expect=2).output
    assert "No such file" in command("generate", "--config", "none.yaml", expect=2).output
    assert {f.name for f in folder.iterdir()} == {"in.jsonl", "job.yaml"}


@pytest.mark.parametrize("flag", ["--config", "--teacher-template"])
def test_what_has_no_end_is_not_read_as_a_text(folder, flag, monkeypatch):
    monkeypatch.setattr(options, "WRITER", 0.1)
    os.mkfifo("pipe")
    at = "@" if flag == "--teacher-template" else ""
    assert "no process has written to" in run("in.jsonl", flag, f"{at}pipe", expect=2).output
    assert "/dev/zero is no file" in run("in.jsonl", flag, f"{at}/dev/zero", expect=2).output
    with open("large", "wb") as file:
        file.truncate(1 << 40)
    assert "more than 16 MB" in run("in.jsonl", flag, f"{at}large", expect=2).output


def test_a_text_may_come_from_a_pipe(folder):
    os.mkfifo("pipe")
    writer = Thread(target=lambda: Path("pipe").write_text("threshold: 2"))
    writer.start()
    assert "not 2.0" in run("in.jsonl", "--config", "pipe", expect=2).output
    writer.join()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_no_value_is_a_traceback(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("flags") / "job.yaml"
    for name in ("threshold", "suppress", "compile", "chat-template-kwargs", "trials", "input", "batch-size", "device"):
        file.write_text(yaml.safe_dump({name: value}), encoding="utf-8")
        result = CliRunner().invoke(main, ["generate", "--config", str(file), "--print-config"])
        assert result.exit_code in (0, 2), (name, value, result.exception)


def test_missing_folders_are_made(folder):
    run("in.jsonl", "-o", "new/folder/a.jsonl", *FLAGS)
    assert len(read(Path("new/folder/a.jsonl"))) == 3
    command("score", "new/folder/a.jsonl", "-o", "scores/s.jsonl")
    command("compare", "new/folder/a.jsonl", "scores/s.jsonl", "--html", "pages/p.html", "--json", "pages/p.json")
    assert json.loads(Path("pages/p.json").read_text())["aligned"] == 3 and Path("pages/p.html").exists()
    command("export", "new/folder/a.jsonl", "--keep", "all", "-o", "sets/one/x.jsonl")
    assert len(read(Path("sets/one/x.jsonl"))) == 3
    # Where nothing comes of it, none is made.
    assert "no prompt column" in run(write(folder / "bad.jsonl", [{"x": 1}]), "-o", "never/a.jsonl", expect=2).output
    assert not Path("never").exists()


def test_a_summary_for_scripts_and_nothing_else(folder):
    result = rsd("generate", "in.jsonl", "-o", "a.jsonl", *FLAGS, "--json", "--quiet", cwd=folder)
    assert result.returncode == 0 and result.stderr == ""
    made = json.loads(result.stdout)
    assert (made["rows"], made["new_rows"], made["errors"], made["output"]) == (3, 3, 0, "a.jsonl")
    assert made["tokens"] == made["new_tokens"] == sum(row["num_tokens"] for row in read(folder / "a.jsonl"))
    again = json.loads(rsd("generate", "in.jsonl", "-o", "a.jsonl", *FLAGS, "--json", cwd=folder).stdout)
    assert (again["rows"], again["new_rows"]) == (3, 0)
    result = rsd("score", "a.jsonl", "--quiet", cwd=folder)
    assert result.returncode == 0 and result.stderr == "" and "local_naturalness" in result.stdout


def test_rows_to_standard_output(folder):
    run("in.jsonl", "-o", "a.jsonl", *FLAGS)
    result = rsd("generate", "in.jsonl", "-o", "-", *FLAGS, cwd=folder)
    assert result.returncode == 0 and "cannot be resumed" in result.stderr
    assert same_rows([json.loads(line) for line in result.stdout.splitlines()], read(folder / "a.jsonl"))
    assert {f.name for f in folder.iterdir()} == {"in.jsonl", "a.jsonl", "a.tokens.jsonl", "a.meta.json"}
    for more in ("--overwrite", "--json", "--shard=1/2", "--keep=all"):
        assert "standard output alone" in run("in.jsonl", "-o", "-", *FLAGS, more, expect=2).output
    write(folder / "bad.jsonl", [{"problem": ""}])
    assert '"error": "problem is empty"' in run("bad.jsonl", "-o", "-", expect=1).output


def test_a_shell_is_told_how_to_complete():
    def asked(**variables: str) -> str:
        command = [sys.executable, "-c", "from rsd.cli import main; main(prog_name='rsd')"]
        return subprocess.run(command, env=environment() | variables, capture_output=True, text=True).stdout

    assert "complete -o nosort -F _rsd_completion rsd" in asked(_RSD_COMPLETE="bash_source")
    said = asked(_RSD_COMPLETE="bash_complete", COMP_WORDS="rsd generate --thr", COMP_CWORD="2")
    assert {line.partition(",")[2] for line in said.split()} == {"--threshold", "--threshold-on"}

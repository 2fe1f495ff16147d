"""Outputs: what a command made itself it replaces, whole or not at all."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from conftest import environment, read, rsd, write
from jobs import stopped_while_writing
from outputs import COMMANDS, KEEP, PAIR, ROWS, command, folder, there, whole  # noqa: F401 (fixtures)

from rsd.files import replacing, sweep, write_rows, write_text


def own(name: str, output: str) -> list[str]:
    """A command that replaces an output of its own by another one."""
    changed = {"score": ["--window", "2"], "select": ["--by", "global"], "export": [*KEEP, "--seed", "1"]}
    more = changed.get(name, ["--window", "2"])
    return [*COMMANDS[name][:-1], *more, COMMANDS[name][-1], output]


@pytest.mark.parametrize("name", ["score", "select", "export", "compare --json", "compare --html"])
def test_its_own_output_is_replaced_through_a_link_too(name, folder):
    output = {**ROWS, "compare --json": "figures.json", "compare --html": "page.html"}[name]
    end = Path(output).suffix
    Path("far").mkdir()
    target, link, lost = Path(f"far/made{end}"), Path(f"link{end}"), Path(f"lost{end}")
    Path(output).rename(target)
    target.chmod(0o640)
    link.symlink_to(target)
    lost.symlink_to(f"far/new{end}")
    Path(f"far/made{end}.tmp").write_text("mine")
    Path(f"link{end}.tmp").write_text("mine")
    before = target.read_bytes()
    command(*own(name, str(link)))
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.read_bytes() != before or name == "export"
    made = [p for p in Path("far").iterdir() if not p.name.endswith(".tmp")]
    assert made == [target] and Path(f"far/made{end}.tmp").read_text() == Path(f"link{end}.tmp").read_text() == "mine"
    old = os.umask(0o027)
    command(*own(name, str(lost)))
    os.umask(old)
    assert lost.is_symlink() and stat.S_IMODE(Path(f"far/new{end}").stat().st_mode) == 0o640
    assert Path(f"far/new{end}").stat().st_size and not list(folder.rglob(".*.tmp"))
    # An empty file is nothing, with or without --overwrite.
    Path(f"empty{end}").touch()
    command(*(a for a in own(name, f"empty{end}") if a != "--overwrite"))
    assert Path(f"empty{end}").stat().st_size


def test_what_a_command_made_of_its_own_output_is_its_own(folder):
    # Columns of other commands among its own do not hide whose it is, and do not make it another's.
    select = "select", "best.jsonl", "--keep-incorrect", "--overwrite", "-o"
    command("score", "best.jsonl")
    command("score", "best.jsonl", "--overwrite")
    for source in ("best.jsonl", "best.scored.jsonl"):
        for _ in range(2):
            command("select", "raw.jsonl", source, "--keep-incorrect", "--overwrite", "-o", f"again.{source}")
        command("score", "raw.jsonl", "--overwrite", "-o", f"again.{source}", expect=2)
    command(*select, "best.scored.jsonl", expect=2)
    command("generate", "problems.jsonl", "--num-generations", 2, "-o", "traces.jsonl", *KEEP)
    shutil.copy("best.jsonl", "traces.kept.jsonl")
    command("generate", "problems.jsonl", "--num-generations", 2, "-o", "traces.jsonl", *KEEP, expect=2)
    command("score", "traces.jsonl", "-o", "of.jsonl")
    shutil.copy("of.jsonl", "traces.kept.jsonl")
    command("generate", "problems.jsonl", "--num-generations", 2, "-o", "traces.jsonl", *KEEP, expect=2)
    assert Path("traces.kept.jsonl").read_bytes() == Path("of.jsonl").read_bytes()
    scored = "generate", "problems.jsonl", "-o", "new.jsonl", "--score", *KEEP
    command(*scored)
    command(*scored, "--overwrite")


def test_a_copy_under_another_name_stays_when_scores_are_made_anew(folder):
    Path("copy.jsonl").hardlink_to("scored.jsonl")
    before = Path("copy.jsonl").read_bytes()
    command(*COMMANDS["score"], "scored.jsonl", "--window", 2)
    assert Path("copy.jsonl").read_bytes() == before != Path("scored.jsonl").read_bytes()


def test_a_write_protected_file_and_folder_are_left_alone(whole):
    # Root may write them: the process gives up being root, once it has what is imported late and only root may read.
    code = "import difflib, os, sys, rsd.api, rsd.traces.given, rsd.traces.ours; from rsd.cli import main; "
    code += "os.geteuid() or os.setuid(65534); main()"
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are of one user alone
        folder = Path(name)
        for file in (*PAIR, "best.jsonl"):
            shutil.copy(whole / file, folder)
        shutil.copytree(folder, folder / "locked")
        for file, mode in (("best.jsonl", 0o444), ("locked", 0o555), (".", 0o777)):
            (folder / file).chmod(mode)
        before = there(folder)
        for output, said in (("best.jsonl", "is write-protected"), ("locked/best.jsonl", "cannot write to the folder")):
            args = [sys.executable, "-c", code, *COMMANDS["select"], output]
            result = subprocess.run(args, cwd=folder, capture_output=True, text=True, env=environment())
            assert result.returncode == 2 and said in result.stderr, result.stderr
            assert there(folder) == before
        (folder / "locked").chmod(0o755)


def test_two_outputs_are_two_files(folder):
    Path("link").symlink_to("x")
    Path("a").touch()
    Path("b").hardlink_to("a")
    before = there(folder)
    for page, figures in (("x", "./x"), ("x", "link"), ("link", f"{folder}/x"), ("a", "b")):
        said = command("compare", *PAIR, "--html", page, "--json", figures, expect=2)
        assert "cannot be both" in said and there(folder) == before
    # Of an export: its card is what a link for its rows names, and its testing rows are its rows.
    Path("set.new.jsonl").symlink_to("set.new.md")
    Path("one.test.jsonl").symlink_to("one.jsonl")
    before = there(folder)
    for output in ("set.new.jsonl", "one.jsonl"):
        said = command("export", "traces.jsonl", *KEEP, "-o", output, expect=2)
        assert "cannot be both" in said and there(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size")
@pytest.mark.parametrize("args", [["select", "raw.jsonl", "large.jsonl", "--keep-incorrect"], ["export", "large"]])
def test_a_full_disk_leaves_the_old_file(args, folder):
    import resource

    if args[0] == "export":
        for end in ("jsonl", "tokens.jsonl", "meta.json"):
            shutil.copy(f"traces.{end}", f"large.{end}")
        rows = read(Path("traces.jsonl"))
        rows[-1]["completion"][0]["content"] = "x" * 200_000
        write(folder / "large.jsonl", rows)
        args, output = ["export", "large.jsonl", *KEEP], "set.jsonl"
    else:
        write(folder / "large.jsonl", [r | {"note": "x" * 100_000} for r in read(Path("other.jsonl"))])
        output = "best.jsonl"
    before = there(folder)
    result = rsd(
        *args,
        *("--overwrite", "-o", output),
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000)),
    )
    assert result.returncode == 2 and f"{output}: File too large" in result.stderr, result.stderr
    assert there(folder) == before


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_midway_leaves_the_old_file(sent, tmp_path):
    out = write(tmp_path / "out.jsonl", [{"old": 1}])
    before = there(tmp_path)
    stopped_while_writing(out, sent)
    assert there(tmp_path) == before


def test_what_a_killed_process_left_half_written_is_removed_by_the_next(tmp_path):
    out = write(tmp_path / "out.jsonl", [{"old": 1}])
    stopped_while_writing(out, signal.SIGKILL)
    assert read(out) == [{"old": 1}]
    (half,) = there(tmp_path).keys() - {"out.jsonl"}
    write_rows([], tmp_path / "other.jsonl")  # another file is no business of it
    assert there(tmp_path).keys() == {"out.jsonl", "other.jsonl", half}
    with replacing(out) as file:  # who is still writing is not disturbed
        file.write(b'{"last": 1}\n')
        write_rows([{"first": 1}], out)
        assert read(out) == [{"first": 1}]
    assert read(out) == [{"last": 1}] and there(tmp_path).keys() == {"out.jsonl", "other.jsonl"}


def test_sweeping_takes_nothing_from_who_has_just_begun(tmp_path):
    out, done, count = tmp_path / "out.json", threading.Event(), 400

    def sweeping() -> None:
        while not done.is_set():
            sweep(out)

    threads = [threading.Thread(target=sweeping) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        for i in range(count):
            write_text(out, str(i))
    finally:
        done.set()
        for t in threads:
            t.join()
    assert out.read_text() == str(count - 1) and list(tmp_path.iterdir()) == [out]


def test_of_two_writers_the_last_wins_whole(tmp_path):
    out = tmp_path / "out.jsonl"
    write_rows([{"by": 0}] * 100, out)
    seen = []

    def writing(by: int) -> None:
        for _ in range(20):
            write_rows(({"by": by} for _ in range(100)), out)
            seen.append(out.read_text())

    threads = [threading.Thread(target=writing, args=(by,)) for by in (1, 2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for text in seen:
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows) == 100 and len({r["by"] for r in rows}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    out = tmp_path / ("x" * 255)
    write_text(out, "one\ud800")
    with pytest.raises(RuntimeError), replacing(out) as file:
        file.write(b"two")
        raise RuntimeError
    assert out.read_text() == "one\\ud800" and list(tmp_path.iterdir()) == [out]

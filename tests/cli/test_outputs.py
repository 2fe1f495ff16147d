"""Outputs: a command replaces only what it made itself, whole or not at all, and never an input."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import environment, read, rsd, write

from rsd.cli import main
from rsd.files import place, replacing, write_rows, write_text
from rsd.models.bundled import bundled
from rsd.traces.rows import read_rows

KEEP = "--keep", "all"
ROWS = {"score": "scored.jsonl", "select": "best.jsonl", "export": "set.jsonl"}
PAIR = "raw.jsonl", "other.jsonl"
COMMANDS = {  # each up to its output's name; inputs first
    "generate": ["generate", "problems.jsonl", *KEEP, "-o"],
    "score": ["score", "raw.jsonl", "--overwrite", "-o"],
    "score, resumed": ["score", "raw.jsonl", "-o"],
    "compare --json": ["compare", *PAIR, "--json"],
    "compare --html": ["compare", *PAIR, "--html"],
    "select": ["select", *PAIR, "--keep-incorrect", "--overwrite", "-o"],
    "export": ["export", "traces.jsonl", "--overwrite", "-o"],
}
INPUTS = {"generate": "problems.jsonl", "export": "traces.jsonl"}  # of the others: raw.jsonl


def command(*args, expect=0):
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == expect, (args, result.output, result.exception)
    return result.output


def there(folder: Path) -> dict[str, tuple]:
    """All that a folder holds: kinds, permissions, what links name, contents."""
    held = {}
    for p in sorted(folder.rglob("*")):
        mode = p.lstat().st_mode
        content = p.read_bytes() if stat.S_ISREG(mode) else os.readlink(p) if stat.S_ISLNK(mode) else None
        held[str(p.relative_to(folder))] = mode, content
    return held


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a job, and an output of every command."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    os.chdir(folder)
    write(folder / "problems.jsonl", read_rows(bundled("problems.jsonl"))[:4])
    command("generate", "problems.jsonl", "-o", "traces.jsonl", "--num-generations", 2, *KEEP)
    raw = [{"id": f"r{i}", "prompt": f"{i} plus {i}?", "completion": f"So {2 * i}. Yes."} for i in range(3)]
    write(folder / "raw.jsonl", raw)
    write(folder / "other.jsonl", [row | {"completion": f"It is {2 * i}."} for i, row in enumerate(raw)])
    for name in ("score", "select"):
        command(*(a for a in COMMANDS[name] if a != "--overwrite"), ROWS[name])
    command("export", "traces.jsonl", *KEEP, "--test-share", 0.5, "-o", "set.jsonl")
    command("compare", *PAIR, "--json", "figures.json", "--html", "page.html")
    write(folder / "mine.jsonl", [{"precious": 1}])
    (folder / "torn.jsonl").write_text("precious, and no line's end")
    os.chdir(before)
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    for p in whole.iterdir():
        shutil.copy(p, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_the_commands_own_is_refused(name, folder):
    source = INPUTS.get(name, "raw.jsonl")
    Path("link.jsonl").symlink_to(source)
    Path("hard.jsonl").hardlink_to(source)
    Path("job.jsonl").symlink_to("traces.jsonl")
    Path("around.jsonl").symlink_to("around.jsonl")
    Path("lost.jsonl").symlink_to("none/out.jsonl")
    Path("place").mkdir()
    os.mkfifo("pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket.jsonl")
    cases = {
        source: "is an input itself",
        f"./place/../{source}": "is an input itself",
        "link.jsonl": "is an input itself",
        "hard.jsonl": "is an input itself",
        source.replace(".jsonl", ".tokens.jsonl"): "belongs to",  # whether there is one or not
        source.replace(".jsonl", ".meta.json"): "belongs to",
        "traces.tokens.jsonl": "belongs to",
        "traces.meta.json": "belongs to",
        "traces.kept.jsonl": "belongs to a job of rsd generate",
        "mine.jsonl": "",
        "torn.jsonl": "",
        "place": "is a folder",
        "place/": "is a folder",
        "none/": "is a folder's name",
        "": "'' is no name of a file",
        "-": "an output is a file, and no stream: give the output a file name",
        "/dev/fd/1": "no stream",
        "/proc/self/fd/1": "no stream",
        "pipe.jsonl": "is a device, a pipe or a socket: give the output a file name",
        "socket.jsonl": "is a device, a pipe or a socket",
        "around.jsonl": "symbolic links",
        "lost.jsonl": "there is no folder",
        "none/out.jsonl": "there is no folder none",
        "mine.jsonl/out.jsonl": "Not a directory",
        "/proc/out.jsonl": "cannot write to the folder",
        "x" * 300 + ".jsonl": "File name too long",
        "a\0b.jsonl": "is no name of a file",
    }
    if name != "generate":
        cases |= {"traces.jsonl": "is an input itself" if name == "export" else "belongs to a job"}
        cases |= {"job.jsonl": "is an input itself" if name == "export" else "belongs to a job"}
    for other in ("scored.jsonl", "best.jsonl", "set.jsonl", "set.test.jsonl", "set.md", "figures.json", "page.html"):
        if other != ROWS.get(name.split(",")[0]) and not (name == "export" and other == "set.test.jsonl"):
            cases.setdefault(other, "")
    cases.pop({"compare --json": "figures.json", "compare --html": "page.html"}.get(name), None)
    if os.geteuid() == 0:
        os.mknod("node.jsonl", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        cases["node.jsonl"] = "is a device, a pipe or a socket"
    before = there(folder)
    for output, words in cases.items():
        said = command(*COMMANDS[name], output, expect=2)
        if name != "export" or output.endswith(".jsonl"):  # else the name is refused for its end
            assert words in said, (output, said)
        assert said.splitlines()[-1].startswith("rsd: ") and "Traceback" not in said, (output, said)
        assert there(folder) == before, output


@pytest.mark.skipif(not hasattr(os, "mknod") or os.geteuid() != 0, reason="making a device node needs root")
def test_a_device_stays_a_device(folder):
    os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    for name in ("select", "score, resumed", "compare --json", "compare --html", "generate"):
        result = rsd(*COMMANDS[name], "null", cwd=folder)
        assert result.returncode == 2 and "is a device" in result.stderr and stat.S_ISCHR(os.lstat("null").st_mode)
    for write_it in (lambda: write_rows([], "null"), lambda: write_text("null", "x")):
        with pytest.raises(ValueError, match="is a device"):
            write_it()
    assert stat.S_ISCHR(os.lstat("null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/null", "/dev/fd/63"])
def test_a_place_in_dev_is_none_for_a_file(name):  # asked and not tried: the machine's own are not to be risked
    with pytest.raises(ValueError, match="give the output a file name"):
        place(name)


@pytest.mark.parametrize("beside", ["kept.jsonl", "tokens.jsonl", "meta.json"])
@pytest.mark.parametrize("how", ["itself", "link", "hard link", "linked to"])
def test_generate_spares_an_input_that_has_the_name_of_one_of_its_files(folder, beside, how):
    place, source = Path(f"new.{beside}"), Path(f"new.{beside}")
    Path("problems.jsonl").rename(place)
    if how != "itself":
        source = Path("source.jsonl")
    if how == "link":
        source.symlink_to(place)
    elif how == "hard link":
        source.hardlink_to(place)
    elif how == "linked to":
        place.rename(source)
        place.symlink_to(source)
    before = there(folder)
    said = command("generate", source, "-o", "new.jsonl", *KEEP, expect=2)
    assert "is an input itself" in said and there(folder) == before


@pytest.mark.parametrize("beside", ["test.jsonl", "md"])
def test_export_spares_what_has_the_name_of_one_of_its_files(folder, beside):
    for content in ("mine", Path("scored.jsonl").read_text(), "---\nlicense: mit\n---\n# Mine\n"):
        Path(f"new.{beside}").write_text(content)
        for flags in ([], ["--overwrite"], ["--overwrite", "--test-share", 0.5]):
            before = there(folder)
            command("export", "traces.jsonl", *KEEP, "-o", "new.jsonl", *flags, expect=2)
            assert there(folder) == before
    Path(f"new.{beside}").unlink()
    Path(f"new.{beside}").hardlink_to("traces.jsonl")
    said = command("export", "traces.jsonl", *KEEP, "-o", "new.jsonl", "--overwrite", expect=2)
    assert "is an input itself" in said


def test_an_export_of_its_own_is_no_test_split_of_another(folder):
    command("export", "traces.jsonl", *KEEP, "-o", "new.test.jsonl")
    before = there(folder)
    assert "new.test.jsonl is not" in command("export", "traces.jsonl", "-o", "new.jsonl", "--overwrite", expect=2)
    assert there(folder) == before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_no_test_rows_of_an_earlier_export_stay(folder, kind):
    out = f"new.{kind}"
    args = "export", "traces.jsonl", *KEEP, "-o", out
    command(*args, "--test-share", 0.5)
    assert Path(f"new.test.{kind}").exists()
    assert "exists: use another -o" in command(*args, expect=2)
    command(*args, "--overwrite")
    assert sorted(map(str, Path().glob("new*"))) == sorted(["new.md", out])
    assert "test" not in Path("new.md").read_text().split("---")[1]
    # A test split alone is enough to be asked for.
    command(*args, "--overwrite", "--test-share", 0.5)
    Path(out).unlink()
    assert f"new.test.{kind} exists" in command(*args, expect=2)


def test_no_kept_rows_of_traces_that_are_no_more_stay(folder):
    args = "generate", "problems.jsonl", "--num-generations", 2, "-o", "traces.jsonl"
    before = Path("traces.kept.jsonl").read_bytes()
    command(*args)
    assert Path("traces.kept.jsonl").read_bytes() == before
    command(*args, "--seed", 1, "--overwrite")
    assert not Path("traces.kept.jsonl").exists()
    shutil.copy("mine.jsonl", "traces.kept.jsonl")
    command(*args, "--seed", 2, "--overwrite")
    assert read(Path("traces.kept.jsonl")) == [{"precious": 1}]


@pytest.mark.parametrize("failing", range(4))
def test_an_export_that_fails_between_its_files_mixes_no_rows(folder, monkeypatch, failing):
    command("export", "traces.jsonl", *KEEP, "-o", "new.jsonl", "--test-share", 0.5)
    replace, count = os.replace, 0

    def replacing_some(a, b):
        nonlocal count
        count += 1
        if count > failing:
            raise OSError(28, "No space left on device", str(a))
        replace(a, b)

    monkeypatch.setattr(os, "replace", replacing_some)
    args = "export", "traces.jsonl", *KEEP, "-o", "new.jsonl", "--test-share", 0.5, "--seed", 3, "--overwrite"
    said = command(*args, expect=2 if failing < 3 else 0)
    assert failing == 3 or ("new." in said.splitlines()[-1] and "No space left" in said)
    test = {r["id"] for r in read(Path("new.test.jsonl"))} if Path("new.test.jsonl").exists() else set()
    assert not test & {r["id"] for r in read(Path("new.jsonl"))}
    assert not [p for p in Path().iterdir() if p.name.endswith(".tmp")]


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
    code = (
        "import difflib, os, sys, rsd.traces.ours; from rsd.cli import main; os.geteuid() or os.setuid(65534); main()"
    )
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
    write(tmp_path / "out.jsonl", [{"old": 1}])
    before = there(tmp_path)
    code = """
import time
from rsd.files import write_rows

def rows():
    for i in range(10**6):
        yield {"new": "x" * 1000}
        if i == 1000:
            print("begun", flush=True)

write_rows(rows(), "out.jsonl")
"""
    args = [sys.executable, "-c", code]
    job = subprocess.Popen(
        args,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
        # The suite may itself run where interrupts are ignored, which would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert job.stdout.readline() == b"begun\n"
    job.send_signal(sent)
    assert job.wait() != 0
    assert there(tmp_path) == before


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

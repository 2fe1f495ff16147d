"""Outputs: a command replaces only what it made itself, and never an input."""

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
from conftest import read, rsd
from outputs import COMMANDS, INPUTS, KEEP, PAIR, ROWS, command, folder, there, whole  # noqa: F401 (fixtures)

from rsd.files import place, write_rows, write_text


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
        "lost.jsonl": "is a link into a folder that is not there",
        "problems.jsonl/out.jsonl": "Not a directory",
        "mine.jsonl/out.jsonl": "Not a directory",
        "/proc/out.jsonl": "cannot write to the folder",
        "x" * 300 + ".jsonl": "File name too long",
        "a\0b.jsonl": "is no name of a file",
    }
    if name == "generate":
        cases["-"] = "writes rows to standard output alone: leave"  # with the --keep of this command
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
    assert "exists: name another output" in command(*args, expect=2)
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


def test_a_page_and_figures_are_replaced_when_one_says_so(folder):
    """As exports are; and by the command that made them alone."""
    compare, page = ("compare", *PAIR, "--json", "figures.json", "--html", "page.html"), Path("page.html")
    before = there(folder)
    assert "exists: name another output, or --overwrite to replace it" in command(*compare, expect=2)
    assert "exists" in command("compare", *PAIR, "--json", "figures.json", expect=2) and there(folder) == before
    command(*compare, "--overwrite")
    score = "score", "raw.jsonl", "-o", "rows.jsonl", "--html"
    assert "exists: name another output" in command(*score, "page.html", expect=2)
    assert "is not a file that this command wrote" in command(*score, "page.html", "--overwrite", expect=2)
    command(*score, "one.html")
    first = Path("one.html").read_bytes()
    assert "exists" in command(*score, "one.html", expect=2) and Path("one.html").read_bytes() == first
    command(*score, "two.html")  # the rows are there: they are read again
    command(*score, "one.html", "--overwrite")
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes() == first and page.exists()
    assert b"<title>rsd score: raw.jsonl" in first
    write_rows([{"id": "a", "prompt": "Why?", "completion": ""}], "bad.jsonl")
    said = command(
        "score", "bad.jsonl", "--html", "three.html", expect=2
    )  # the rows are written, and told of, all the same
    assert "1 (1 new), 1 of them with an error" in said and "no trace could be scored: the trace is empty" in said
    assert len(read(Path("bad.scored.jsonl"))) == 1 and not Path("three.html").exists()

"""The README's commands give the README's output."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment, rsd

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOW_BUILT = (ROOT / "rsd" / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


NUMBER = re.compile(r" *[+-]?\d+(?:\.\d+)?")


def block(name: str) -> str:
    return re.search(rf"<!-- {name} -->\n```\w+\n(.+?)\n```", README + CONTRIBUTING + HOW_BUILT, re.S).group(1)


def lines_without_time(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith(("time ", "memory: "))]


def test_ci_runs_the_test_command_that_contributors_read():
    assert block("test") in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for name in ("run", "test"):
        assert "torch==2.13.0 " in block(name)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    return folder, rsd("generate", cwd=folder)


def test_the_output_shown_is_the_output(generated):
    _, result = generated
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith(("vocab", "sampling"))]
    assert lines_without_time(block("output")) == said + lines_without_time(result.stdout)


def nearly_shown(lines: list[str], shown: str) -> None:
    """That these lines are those shown, but for what "..." stands for and for what processors round otherwise."""
    at = 0
    for part in shown.split("\n...\n"):
        for line in part.splitlines():
            words = NUMBER.split(line)
            at = next(i for i in range(at, len(lines)) if NUMBER.split(lines[i]) == words)
            numbers, made = ([float(n) for n in NUMBER.findall(text)] for text in (line, lines[at]))
            assert made == pytest.approx(numbers, rel=0.03, abs=0.005), line
            at += 1


def test_the_comparison_shown_is_the_comparison(tmp_path):
    command = block("compare").split()
    result = rsd(*command[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    nearly_shown(result.stdout.splitlines(), block("compared"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_the_examination_shown_is_the_examination(tmp_path):
    result = rsd(*block("doctor").split()[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    own = re.compile(r"tokens/s|tokens a round|tokens in both caches|at once \(|^memory")  # of this machine
    shown, made = ([x for x in text.splitlines() if not own.search(x)] for text in (block("doctored"), result.stdout))
    nearly_shown(made, "\n".join(shown))


def test_the_python_example_runs(tmp_path):
    code = re.search(r"```python\n(from rsd import.+?)\n```", README, re.S).group(1)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\\boxed{") >= 1


def test_the_example_shown_is_the_example(tmp_path):
    script = [sys.executable, ROOT / "bench" / "example.py"]
    result = subprocess.run(script, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shown = [line for line in result.stdout.splitlines() if line and not line.isupper()]
    assert len(shown) > 10
    for line in shown:
        assert line in README


def test_help_is_fast_and_imports_no_torch():
    code = "import sys; sys.argv = ['rsd', '--help']\nfrom rsd.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "generate" in result.stdout and result.stdout.endswith("[]\n")


COMMANDS = ("doctor", "generate", "score", "compare", "select", "export")


def test_every_flag_is_explained():
    said = "".join(rsd(command, "--help", cwd=ROOT).stdout for command in COMMANDS)
    for flag in re.findall(r"`[^`\n]*?(--[a-z-]+)", README):
        assert flag in said
    assert rsd("--version", cwd=ROOT).stdout.strip() == "rsd, version 0.1.0"


def test_the_exported_files_are_as_shown(generated):
    said = ""
    for command in block("train").splitlines():
        result = rsd(*command.split()[1:], cwd=generated[0])
        assert result.returncode == 0, result.stderr
        said += result.stdout
    assert lines_without_time(said) == lines_without_time(block("exported"))


def test_the_trace_shown_is_shown(generated):
    result = rsd(*block("show").split()[1:], cwd=generated[0])
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip() == block("shown")


@pytest.mark.slow
def test_the_first_command_in_a_fresh_clone(tmp_path):
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    started = time.monotonic()
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("run")],
        cwd=tmp_path / "clone",
        env={k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON"))},
        capture_output=True,
        text=True,
    )
    print(f"{time.monotonic() - started:.0f} s with the installation")
    assert result.returncode == 0, result.stderr
    assert (
        lines_without_time(result.stdout)
        == lines_without_time(block("output"))[-len(lines_without_time(result.stdout)) :]
    )
    assert len((tmp_path / "clone" / "traces.jsonl").read_text().splitlines()) == 256


PAGES = ("README.md", "rsd/README.md", "bench/README.md", ".github/CONTRIBUTING.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), link
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert not anchor or anchor in anchors, link


def test_modules_that_are_named_exist():
    """What the pages call by a path in the code is there."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:rsd|tests|bench|data)/[\w./-]+\.(?:py|jsonl|json))`", text):
            assert (ROOT / path).exists(), (page, path)
    layers = (ROOT / "rsd" / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:decoding|traces|scoring|pair|models|generation|dataset|cli)/\w+\.py)`", layers):
        assert (ROOT / "rsd" / name).exists(), name

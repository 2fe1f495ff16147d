"""The process that judges: what code it runs, and that it ends with its job."""

import subprocess
import sys
import time

import psutil
import pytest
from conftest import environment, write
from jobs import files

from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

# Names that the judge, a library of its, or Python itself looks for when it starts.
LIBRARIES = "json random sympy gmpy2 math_verify mpmath logging sitecustomize usercustomize rsd".split()
SHORT = ["--limit", "2", "--max-new-tokens", "40"]


@pytest.fixture
def littered(tmp_path):
    """A folder of files that are called as libraries are, and say when they are run."""
    for name in LIBRARIES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'a').write({name + ' '!r})\n")
    return tmp_path


def generate(folder, *flags, **env):
    """The command as its console script runs it: with no folder of the user's on the path."""
    command = [sys.executable, "-P", "-m", "rsd", "generate", *map(str, flags), "-o", "out.jsonl"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment() | env)
    assert result.returncode == 0, result.stderr
    return files(folder / "out.jsonl")[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["boxed", "math", "auto"])
def test_nothing_in_the_current_directory_is_run(littered, how):
    # Numbers are compared in the job itself; what only laws make equal is asked of the judge.
    problem = read_rows(bundled("problems.jsonl"))[0]
    answers = [problem["answer"], rf"{problem['answer']} + \cos^2 x + \sin^2 x - 1"]
    source = write(littered / "in.jsonl", [problem | {"id": a, "answer": a} for a in answers])
    rows = generate(littered, source, "--verify", how, "--temperature", "0")
    assert not (littered / "marker").exists()
    assert [r["verify_error"] for r in rows] == [None, None]
    said = {r["id"]: r["is_correct"] for r in rows}
    assert said == {answers[0]: True, answers[1]: how != "boxed"}


OWN = """
import json, random
import beside

def judge(text, row):
    return json.loads("true") and random.random() < 2 and beside.RIGHT
"""


def test_a_users_module_is_found_there_and_what_it_imports_is_not_shadowed(littered):
    (littered / "checks.py").write_text(OWN)
    (littered / "beside.py").write_text("RIGHT = True\n")
    rows = generate(littered, *SHORT, "--verify", "checks:judge")
    assert not (littered / "marker").exists()
    assert [(r["is_correct"], r["verify_error"]) for r in rows] == [(True, None)] * 2


def judged(folder, how, **env):
    code = f"from rsd.answers.verifier import Verifier\nprint(Verifier({how!r}).submit('', {{}}, None).result(60))"
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment() | env).stdout


def test_a_users_module_may_be_called_as_a_library_is(littered):
    (littered / "test.py").write_text(OWN)
    (littered / "beside.py").write_text("RIGHT = True\n")
    assert "correct=True" in judged(littered, "test:judge")
    assert not (littered / "marker").exists()


def test_a_folder_that_the_user_names_is_searched(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "checks.py").write_text("def judge(text, row):\n    return True\n")
    assert "ModuleNotFoundError: No module named" in judged(tmp_path, "checks:judge")
    path = f"{environment().get('PYTHONPATH', '')}:{tmp_path / 'theirs'}"
    assert "correct=True" in judged(tmp_path, "checks:judge", PYTHONPATH=path)


SLOW = """
import pathlib, subprocess, sys, time

def judge(text, row):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("begun.part").write_text(str(child.pid))
    pathlib.Path("begun.part").rename("begun")
    time.sleep(600)
"""


def started(folder, code):
    """A job whose judge is in the middle of a case, and the processes below it."""
    (folder / "slow.py").write_text(SLOW)
    job = subprocess.Popen([sys.executable, "-P", "-c", code], cwd=folder, env=environment())
    while not (folder / "begun").exists():
        assert job.poll() is None
        time.sleep(0.02)
    return job, psutil.Process(job.pid).children(recursive=True)


def test_a_judge_in_the_middle_of_a_case_ends_when_its_job_is_killed(tmp_path):
    code = (
        "import time\nfrom rsd.answers.verifier import Verifier\n"
        "Verifier('slow:judge', case_limit=600).submit('', {}, None)\ntime.sleep(600)"
    )
    job, below = started(tmp_path, code)
    assert len(below) == 2  # the judge, and what the user's function has started
    job.kill()
    job.wait()
    # The case's own limit would be half an hour away.
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


def test_a_case_that_takes_too_long_ends_with_all_that_it_started(tmp_path):
    code = (
        "import time\nfrom rsd.answers.verifier import Verifier\n"
        "said = Verifier('slow:judge', case_limit=1.5).submit('', {}, None).result()\n"
        "open('said', 'w').write(str(said.error))\ntime.sleep(600)"
    )
    job, below = started(tmp_path, code)
    try:
        _, alive = psutil.wait_procs(below, timeout=30)
        assert len(below) == 2 and not alive and job.poll() is None
    finally:
        job.kill()
        job.wait()
    assert "took longer than 1.5 s" in (tmp_path / "said").read_text()

"""Answers: found in a text, compared as text, as mathematics, and by a user's own function."""

import json
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import environment, rsd, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import FLAGS, files, pair, run

from rsd.answers.normalise import after_thinking, boxed, reference
from rsd.answers.verifier import Judgement, Verifier
from rsd.traces.trace import one_think_close

INSIDE = st.recursive(
    st.text(alphabet="ab1 \\$,.", max_size=4).filter(lambda s: not s.endswith("\\")),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=6,
)


@given(st.text(max_size=30).filter(lambda s: "\\" not in s), INSIDE.filter(lambda s: "boxed" not in s))
def test_a_box_holds_what_its_own_braces_enclose(before, inside):
    assert boxed(f"{before.replace('{', '').replace('}', '')} \\boxed{{{inside}}} and so on") == inside


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no box, $5$", None),
        (r"\boxed{4} but then \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and, cut off, \boxed{5", "4"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"{ \boxed{3}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {8}", "8"),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_brace_matched_box_counts(text, found):
    assert boxed(text) == found


HOSTILE = {
    "open": "\\boxed{" * 50_000,
    "nested": "{" * 200_000 + "}" * 200_000,
    "many": "\\boxed{1}" * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name):
    half, whole = HOSTILE[name][: len(HOSTILE[name]) // 8], HOSTILE[name]
    times = []
    for text in (half, whole):
        started = time.perf_counter()
        boxed(text)
        times.append(time.perf_counter() - started)
    assert times[1] < 40 * times[0] + 0.05  # quadratic would be 64 times


@pytest.mark.parametrize(
    ("text", "opened", "answer", "once"),
    [
        ("<think>\n1+1\n</think>\n\n2", False, "\n\n2", True),
        ("1+1\n</think>\n2", True, "\n2", True),
        ("plain, 2", False, "plain, 2", None),
        ("<think>\n\\boxed{2} but", False, None, False),
        ("\\boxed{2} but", True, None, False),
        ("<think>a</think>b</think>c", False, "c", False),
    ],
)
def test_the_answer_follows_the_thinking_and_a_truncated_thought_has_none(text, opened, answer, once):
    assert after_thinking(text, opened=opened) == answer
    assert one_think_close(text, opened=opened) is once


def test_references_are_short_answers_boxes_and_gsm8k():
    assert reference("72") == "72"
    assert reference("3 + 4 = 7\n#### 7") == "7"
    assert reference(r"So it is $\boxed{\frac12}$, since ...") == r"\frac12"


def judged(verifier, said, answer="1/2", **row):
    return verifier.submit(said, row, answer).result(60)


@pytest.fixture(scope="module")
def math():
    verifier = Verifier("math", case_limit=2)
    yield verifier
    verifier.stop()


@pytest.mark.parametrize(
    ("said", "answer", "verdict"),
    [
        (r"\boxed{0.5}", "1/2", True),
        (r"\boxed{\frac{2}{4}}", "1/2", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", True),
        ("The answer is 0.5.", "1/2", False),
        ("So it is $\\frac{1}{2}$", "1/2", False),
        (r"\boxed{2/3}", "1/2", False),
        (r"\boxed{78}", "77", False),
        ("I do not know.", "1/2", False),
        (r"<think> \boxed{1/2}", "1/2", False),
        (r"\boxed{1/2}", "", None),
        (r"\boxed{1/2}", None, None),
        (r"\boxed{1/2}", ["1/2"], True),
        (r"\boxed{2}", 2, True),
        (r"\boxed{2}", {"value": 2}, None),
    ],
)
def test_mathematical_equality(math, said, answer, verdict):
    assert judged(math, said, answer).correct is verdict


def test_boxed_needs_a_box_and_leaves_out_what_needs_laws():
    verifier = Verifier("boxed")
    assert judged(verifier, r"\boxed{0.5}").correct is True
    assert judged(verifier, r"\boxed{1 / 2}").correct is True
    assert judged(verifier, "1/2").correct is False
    assert judged(verifier, r"\boxed{\cos^2 x + \sin^2 x}", "1").correct is False


def test_an_answer_that_never_ends_costs_its_own_verdict_alone(math):
    hostile = judged(math, r"\boxed{9^{9^{9^{9^9}}}!}", "7x")
    assert hostile.correct is not True
    if hostile.correct is None:
        assert hostile.error and "\n" not in hostile.error
    slow = judged(math, r"\boxed{" + "+".join(f"\\sqrt[{i}]{{x^{i}+{i}}}" for i in range(2, 60)) + "}", "7x^2+x!")
    assert slow.correct is not True
    assert judged(math, r"\boxed{0.5}").correct is True


def test_it_works_in_any_thread(math):
    got = []
    threads = [
        threading.Thread(target=lambda i=i: got.append(judged(math, rf"\boxed{{{i}/4}}", f"{i}*0.25").correct))
        for i in range(1, 9)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [True] * 8


def _in_a_daemon(queue):
    queue.put(Verifier("math").submit(r"\boxed{0.5}", {}, "1/2").result(60).correct)


def test_it_works_in_a_daemonic_worker_process():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_a_daemon, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60) is True
    process.join()


OWN = """
import time

def judge(text, row):
    print("what a function prints is no verdict")
    if row["id"] == "p0":
        raise KeyError("two\\nlines")
    if row["id"] == "p1":
        return "yes"
    if row["id"] == "p2":
        return None
    if row["id"] == "p3":
        raise SystemExit(3)
    return row["level"] % 2 == 0 and len(text) > 0
"""


def test_a_users_own_function(tiny, tmp_path, monkeypatch):
    (tmp_path / "checks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    problems = [{"id": f"p{i}", "problem": f"{i}?", "level": i} for i in range(8)]
    source = write(tmp_path / "in.jsonl", problems)
    result = rsd("generate", source, "-o", "out.jsonl", *pair(tiny), *FLAGS, "--verify", "checks:judge", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["id"]: row for row in files(tmp_path / "out.jsonl")[0]}
    said = {i: (row["is_correct"], row["verify_error"]) for i, row in rows.items()}
    assert said["p0"] == (None, "KeyError: 'two\\nlines'")
    assert said["p1"][0] is None and "must be True, False or None, not str" in said["p1"][1]
    assert said["p2"] == (None, None)
    assert said["p3"][0] is None and "died" in said["p3"][1]
    assert {i: v for i, v in said.items() if i > "p3"} == {f"p{i}": (i % 2 == 0, None) for i in range(4, 8)}
    assert "3 rows have `verify_error` set" in result.stdout
    assert "2 correct, 2 wrong, 4 not verified" in result.stdout


@pytest.mark.parametrize(
    "how", ["no_such_module:judge", "json:no_such_function", "json:__name__", "sometimes", "a:b:c"]
)
def test_what_cannot_judge_is_refused_in_one_line_before_any_work(tiny, tmp_path, how):
    source, out = write(tmp_path / "in.jsonl", [{"id": 1, "problem": "1?"}]), tmp_path / "out.jsonl"
    result = run(source, "-o", out, *pair(tiny), "--verify", how, expect=2)
    assert len(re.findall(r"^rsd: .*verify", result.output, re.M)) == 1
    assert not out.exists()


def test_answers_that_were_asked_for_and_are_not_there(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", [{"id": 1, "problem": "1?", "key": "1"}]), tmp_path / "out.jsonl"
    for flags in (["--verify", "boxed"], ["--answer-column", "gold"], ["--until-correct"]):
        result = run(source, "-o", out, *pair(tiny), *flags, expect=2)
        assert "no column of answers" in result.output and "found key" in result.output
    run(source, "-o", out, *pair(tiny), *FLAGS)
    assert files(out)[0][0]["is_correct"] is None


def test_a_worker_does_not_outlive_the_job_even_in_the_middle_of_a_case(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef judge(text, row):\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n"
    )
    code = (
        "import time\nfrom rsd.answers.verifier import Verifier\n"
        "Verifier('slow:judge', case_limit=1).submit('', {}, None)\ntime.sleep(600)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment())
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    workers = psutil.Process(job.pid).children()
    job.kill()
    job.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_an_interrupted_job_does_not_wait_for_verdicts(tiny, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef judge(text, row):\n"
        "    if row['id'] < 4: return True\n    pathlib.Path('begun').touch()\n    time.sleep(600)\n"
    )
    source = write(tmp_path / "in.jsonl", [{"id": i, "problem": f"{i}?"} for i in range(40)])
    command = [sys.executable, "-m", "rsd", "generate", source, "-o", "out.jsonl", *pair(tiny), *FLAGS]
    job = subprocess.Popen(
        [*map(str, command), "--verify", "slow:judge"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130 and b"run the same command again" in said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} <= set(range(4)) and all(row["is_correct"] for row in rows)


def test_three_verdicts_are_three_things():
    assert Judgement(None) != Judgement(False) != Judgement(True)

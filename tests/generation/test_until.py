"""Sampling until right: which traces are made, whatever runs together, and the books of a job."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import environment, read, write
from hypothesis import given
from hypothesis import strategies as st
from jobs import by_key, files, run

from rsd import GenerateConfig, TraceGenerator
from rsd.generation.schedule import Schedule
from rsd.models.bundled import bundled
from rsd.traces.filters import flaw, keep
from rsd.traces.readers import read_rows
from rsd.traces.rows import Row, in_memory

PROBLEMS = read_rows(bundled("problems.jsonl"))[:24]
# The bundled student alone, which answers about every second problem right.
ALONE = ["--threshold", "1", "--max-new-tokens", "120"]


def shortest_run(right: list[bool], want: int) -> int:
    """How many generations it takes, one after the other."""
    count = 0
    for i, r in enumerate(right):
        if count == want:
            return i
        count += r
    return len(right)


@given(st.data())
def test_a_schedule_makes_the_shortest_run_of_generations(data):
    n, want = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    want = min(want, n)
    right = data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=5))
    rows = [Row(i, [], {}) for i in range(len(right))]
    slots, order = data.draw(st.integers(1, 6)), random.Random(data.draw(st.integers(0, 99)))
    everything = {(str(i), g): r for i, of in enumerate(right) for g, r in enumerate(of)}
    done = {k: everything[k] for k in data.draw(st.sets(st.sampled_from(sorted(everything))))}
    schedule = Schedule(in_memory(rows), generations=n, want=want, done=done)
    running, made = [], Counter()
    while True:
        while len(running) < slots and (wanted := schedule.pop()) is not None:
            running.append(wanted)
        assert schedule.at_most >= len(running)
        if not running:
            break
        row, generation = running.pop(order.randrange(len(running)))
        made[row.id, generation] += 1
        schedule.tell(row, right=right[row.id][generation])
    assert schedule.at_most == 0
    needed = {(i, g) for i, of in enumerate(right) for g in range(shortest_run(of, want))}
    assert made == Counter({(i, g): 1 for i, g in needed if (str(i), g) not in done})


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_without_a_wish_every_generation_is_made_in_order(count, n, data):
    keys = [(str(i), g) for i in range(count) for g in range(n)]
    done = dict.fromkeys(data.draw(st.sets(st.sampled_from([*keys, ("0", n + 3), ("another", 0)]))), True)
    rows = [Row(i, [], {}) for i in range(count)]
    schedule = Schedule(in_memory(rows), generations=n, want=None, done=done)
    assert schedule.at_most == len(set(keys) - done.keys())
    popped = list(iter(schedule.pop, None))
    assert [(str(row.id), g) for row, g in popped] == [key for key in keys if key not in done]
    for row, _ in popped:
        schedule.tell(row, right=False)
    assert schedule.at_most == 0 and schedule.pop() is None


def test_any_number_of_generations_begins_at_once(tmp_path):
    """All were planned before the first began, which took the memory of a big job of a million, and no end."""
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "rsd", "generate", source, "-o", out, *ALONE, "--num-generations", 10**9]
    job = subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    while job.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    assert "stopped; run the same command again" in job.communicate()[1]
    assert {row["id"] for row in read(out)} == {PROBLEMS[0]["id"]}
    made = len(read(out))
    assert (
        f"found {made} finished traces" in run(source, "-o", out, *ALONE, "--limit", 1, "--num-generations", 99).output
    )


@pytest.mark.slow
def test_the_rows_do_not_depend_on_what_runs_together(tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    every = tmp_path / "all.jsonl"
    run(source, "-o", every, *ALONE, "--num-generations", 6)
    everything = by_key(read(every))
    for want, batch, block in ((1, 32, 8), (1, 3, 1), (2, 5, 4)):
        out = tmp_path / f"{want}-{batch}.jsonl"
        flags = [
            "--until-correct",
            "--want",
            want,
            "--num-generations",
            6,
            "--batch-size",
            batch,
            "--block-size",
            block,
        ]
        run(source, "-o", out, *ALONE, *flags)
        got = by_key(read(out))
        needed = set()
        for problem in PROBLEMS:
            right = [everything[problem["id"], g]["is_correct"] for g in range(6)]
            needed |= {(problem["id"], g) for g in range(shortest_run(right, want))}
        assert set(got) == needed
        for key, row in got.items():
            assert (row["completion"], row["is_correct"]) == (
                everything[key]["completion"],
                everything[key]["is_correct"],
            )


def test_what_cannot_be_judged_is_made_as_often_as_it_is_wanted(tmp_path):
    """A proof for an answer burnt all generations, each of them wrong."""
    proof = "Proof. We see that the number is even, since it is a sum of two equal ones. Hence the claim."
    rows = [
        PROBLEMS[0] | {"answer": proof},
        PROBLEMS[1] | {"answer": None},
        PROBLEMS[2] | {"answer": "", "solution": "\\boxed{4.5}"},
        PROBLEMS[3] | {"answer": "no such number"},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    flags = ["--until-correct", "--want", 2, "--num-generations", 6]
    first = run(source, "-o", out, *ALONE, *flags, "--limit", 2)
    said = "the traces of 2 of 2 rows cannot be judged, so that 2 of each are made; the first, 'shop-000'"
    assert said in first.output
    made = by_key(read(out))
    assert set(made) == {(PROBLEMS[i]["id"], g) for i in range(2) for g in range(2)}
    assert {row["is_correct"] for row in made.values()} == {None}
    assert all(
        "no answer that can be read" in row["verify_error"] for (i, _), row in made.items() if i == PROBLEMS[0]["id"]
    )
    again = run(source, "-o", out, *ALONE, *flags, "--limit", 2)
    assert "is finished" in again.output and by_key(read(out)) == made
    run(source, "-o", out, *ALONE, *flags)
    counts = Counter(row["id"] for row in read(out))
    assert [counts[p["id"]] for p in PROBLEMS[:4]][::3] == [2, 6] and counts[PROBLEMS[1]["id"]] == 2
    judged = [row["is_correct"] for row in read(out) if row["id"] in (PROBLEMS[2]["id"], PROBLEMS[3]["id"])]
    assert len(judged) >= 8 and None not in judged


def test_the_library_stops_too():
    config = GenerateConfig(threshold=1.0, until_correct=True, num_generations=4, max_new_tokens=120)
    traces = TraceGenerator(config).run(PROBLEMS[:8])
    of = {p["id"]: [t for t in traces if t.id == p["id"]] for p in PROBLEMS[:8]}
    for made in of.values():
        assert [t.generation for t in made] == list(range(len(made)))
        assert [t.is_correct for t in made[:-1]] == [False] * (len(made) - 1)
        assert made[-1].is_correct or len(made) == 4


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    flags = [*ALONE, "--until-correct", "--num-generations", "6", "--batch-size", "2"]
    run(source, "-o", tmp_path / "whole.jsonl", *flags)
    out = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "rsd", "generate", str(source), "-o", str(out), *map(str, flags)]
    for lines in (5, 20):
        job = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL)
        while job.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < lines):
            time.sleep(0.01)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        with open(out, "ab") as file:
            file.write(b'{"id": "torn')
    run(source, "-o", out, *flags)
    want, got = files(tmp_path / "whole.jsonl"), files(out)
    assert by_key(want[0]) == by_key(got[0]) and len(want[0]) == len(got[0])
    assert want[2]["totals"] == got[2]["totals"]
    again = run(source, "-o", out, *flags)
    assert "(0 new)" in again.output
    assert by_key(got[0]) == by_key(read(out))


def test_more_may_be_wanted_later_and_less(tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    flags = [*ALONE, "--num-generations", 6, "--until-correct"]
    run(source, "-o", out, *flags)
    first = by_key(read(out))
    run(source, "-o", out, *flags, "--want", 2)
    second = by_key(read(out))
    assert first.items() <= second.items() and len(second) > len(first)
    assert "(0 new)" in run(source, "-o", out, *flags).output


def test_a_changed_answer_is_refused_since_the_verdicts_are_of_the_old_one(tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:3]), tmp_path / "out.jsonl"
    run(source, "-o", out, *ALONE)
    before = out.read_bytes()
    write(source, [PROBLEMS[0] | {"answer": "1"}, *PROBLEMS[1:3]])
    assert "another answer for id" in run(source, "-o", out, *ALONE, expect=2).output
    assert out.read_bytes() == before


def books(rows, totals, max_fallback_rate):
    """Every count of a summary, counted again from the rows."""
    assert totals["rows"] == len(rows) == sum(totals["finish_reasons"].values())
    assert totals["correct"] + totals["wrong"] + totals["not_verified"] == len(rows)
    for name, verdict in (("correct", True), ("wrong", False), ("not_verified", None)):
        assert totals[name] == sum(r["is_correct"] is verdict for r in rows)
    flaws = Counter(flaw(r, max_fallback_rate=max_fallback_rate) for r in rows)
    flaws.pop(None, None)
    assert totals["unfit"] == flaws
    assert totals["errors"] == sum(r["error"] is not None for r in rows) == flaws["error"]
    ids = {r["id"] for r in rows}
    assert totals["problems"] == len(ids) == totals["solved"] + totals["unsolved"] + totals["unknown"]
    right = {r["id"] for r in rows if r["is_correct"] and not flaw(r, max_fallback_rate=max_fallback_rate)}
    assert totals["solved"] == len(right)
    assert totals["unknown"] == len({i for i in ids if all(r["is_correct"] is None for r in rows if r["id"] == i)})


@pytest.mark.parametrize("rate", [1.0, 0.02])
def test_the_books_add_up_to_the_rows(tmp_path, rate):
    # One problem has no answer, one an unusable one, one is no problem, and traces are cut short.
    odd = [
        {"id": "none", "problem": PROBLEMS[0]["problem"], "answer": None},
        {"id": "odd", "problem": PROBLEMS[1]["problem"], "answer": {"is": 4}},
        {"id": "bad", "problem": "", "answer": "4"},
    ]
    source, out = write(tmp_path / "in.jsonl", PROBLEMS + odd), tmp_path / "out.jsonl"
    flags = ["--num-generations", 2, "--max-fallback-rate", rate, "--max-new-tokens", 40]
    result = run(source, "-o", out, *flags, "--keep", "correct", expect=1)
    rows, _, meta = files(out)
    totals = meta["totals"]
    books(rows, totals, rate)
    assert totals["unfit"]["not ended by EOS"] and totals["errors"] == 2 and totals["verify_errors"] == 2
    assert totals["unknown"] == 3
    for words in (
        f"answers      {totals['correct']} correct, {totals['wrong']} wrong, {totals['not_verified']} not verified",
        f"problems     27: {totals['solved']} solved, {totals['unsolved']} unsolved, 3 not known",
        f"{totals['unfit']['not ended by EOS']} not ended by EOS",
        "not judged   2 rows",
    ):
        assert words in result.output
    kept = read(tmp_path / "out.kept.jsonl")
    want = [r for r in rows if r["is_correct"] and flaw(r, max_fallback_rate=rate) is None]
    assert kept == want and f"kept         {len(want)} rows" in result.output
    if rate < 1:
        assert totals["unfit"]["fallback rate too high"]
        assert all(r["fallback_rate"] <= rate for r in kept)


def row(id, generation, tokens, **changes):
    made = {
        "id": id,
        "generation": generation,
        "num_tokens": tokens,
        "is_correct": True,
        "ended_by_eos": True,
        "one_think_close": True,
        "fallback_rate": 0.1,
        "local_naturalness": -float(tokens),
        "error": None,
    }
    return made | changes


def test_what_is_kept():
    rows = [
        row("a", 0, 9),
        row("a", 1, 5),
        row("a", 2, 5),
        row("a", 3, 2, is_correct=False),
        row("a", 4, 1, ended_by_eos=False),
        row("a", 5, 1, one_think_close=False),
        row("a", 6, 1, fallback_rate=0.6),
        row("b", 0, 7, is_correct=None),
        row("b", 1, 8, error="oh"),
        row("c", 0, 3, one_think_close=None, local_naturalness=None),
        row("c", 1, 4),
    ]

    def kept(how):
        made, dropped = keep(rows, how, max_fallback_rate=0.5)
        assert len(made) + sum(dropped.values()) == len(rows)
        return [(r["id"], r["generation"]) for r in made], dropped

    assert kept("all")[0] == [(r["id"], r["generation"]) for r in rows if r["error"] is None]
    correct, why = kept("correct")
    assert correct == [("a", 0), ("a", 1), ("a", 2), ("c", 0), ("c", 1)]
    assert why == {
        "wrong": 1,
        "not ended by EOS": 1,
        "not exactly one </think>": 1,
        "fallback rate too high": 1,
        "not verified": 1,
        "error": 1,
    }
    assert kept("shortest-correct")[0] == [("a", 1), ("c", 0)]
    assert kept("best-ln")[0] == [("a", 1), ("c", 1)]


def test_the_best_by_naturalness_is_kept_at_the_end(tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:6]), tmp_path / "out.jsonl"
    run(source, "-o", out, "--num-generations", 3, "--keep", "best-ln", "--threshold", "0.0")
    rows, kept = read(out), read(tmp_path / "out.kept.jsonl")
    for r in kept:
        of = [x["local_naturalness"] for x in rows if x["id"] == r["id"] and x["is_correct"]]
        assert r["local_naturalness"] == max(of)
    assert {r["id"] for r in kept} == {r["id"] for r in rows if r["is_correct"]}
    assert json.loads((tmp_path / "out.meta.json").read_text())["identity"]["score"]

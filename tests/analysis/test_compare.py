"""Two files side by side, and the best of several: alignment, statistics, books."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import read, write
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import NATURAL, WORDY, command, row
from scipy.stats import binomtest, ttest_1samp

from rsd.analysis.compare import SHOWN, as_json, bootstrap, compare, sign_test, table
from rsd.cli import main
from rsd.scoring.config import ScoreConfig
from rsd.scoring.measure import set_rsr
from rsd.scoring.metrics import METRICS
from rsd.scoring.responses import responses
from rsd.scoring.scorer import load_scorer


@pytest.fixture(scope="module")
def scorer():
    return load_scorer(ScoreConfig())


def scored(scorer, rows):
    return [scorer.score(r) for r in responses(rows, ScoreConfig())]


def compared(scorer, baseline, candidate):
    return compare(scored(scorer, baseline), scored(scorer, candidate), names=("a", "b"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_the_sign_test(wins, losses):
    want = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(want, rel=1e-6, abs=1e-300)


def test_the_bootstrap():
    # Near the t-interval for a mean of many values, in every column, and the same every time.
    values = np.random.default_rng(1).normal([0, 3, -5], [1, 2, 0.1], size=(400, 3))
    low, high = bootstrap(values, lambda sample: sample.mean(0))
    for i in range(3):
        want = ttest_1samp(values[:, i], 0).confidence_interval()
        width = want.high - want.low
        assert abs(low[i] - want.low) < width / 10 and abs(high[i] - want.high) < width / 10
    assert all(np.array_equal(a, b) for a, b in zip((low, high), bootstrap(values, lambda s: s.mean(0)), strict=True))


def test_means_differences_and_books(scorer):
    # p0, p1 on both sides (two generations of p0), p2 missing, p3 new, p4 without a scored trace on one side.
    baseline = [row(0, WORDY), row(1, WORDY + " Yes."), row(2, WORDY), row(4, "")]
    candidate = [row(0, NATURAL[0]), row(0, NATURAL[1]), row(1, NATURAL[0]), row(3, WORDY), row(4, WORDY)]
    c = compared(scorer, baseline, candidate)
    assert (len(c.pairs), c.missing, c.new, c.unscored) == (2, 1, 1, 1)
    assert [len(e) for e in c.errors] == [1, 0]
    before, after = scored(scorer, baseline), scored(scorer, candidate)
    for name, m in c.metrics.items():
        b = [before[0].metrics[name], before[1].metrics[name]]
        a = [(after[0].metrics[name] + after[1].metrics[name]) / 2, after[2].metrics[name]]
        assert m.baseline == pytest.approx(np.mean(b)) and m.candidate == pytest.approx(np.mean(a))
        assert m.delta == pytest.approx(np.mean(a) - np.mean(b))
        low, high = sorted(y - x for x, y in zip(b, a, strict=True))
        assert low - 1e-9 <= m.ci[0] <= m.delta + 1e-9 and m.delta - 1e-9 <= m.ci[1] <= high + 1e-9
        assert m.p_value == (0.5 if low * high > 0 else 1.0) and m.ids == 2
    assert c.metrics["local_naturalness"].delta > 1
    ranks = [s.metrics["rsr"] * -s.metrics["global_logprob"] for s in before[:2]]
    assert c.rsr[0] == pytest.approx(sum(ranks) / -sum(s.metrics["global_logprob"] for s in before[:2]))
    assert [p.key for p in c.ranked()] == [p.key for p in sorted(c.pairs, key=lambda p: -p.deltas["local_naturalness"])]


def test_aligned_by_id_or_by_prompt(scorer):
    both = [row(i, WORDY) for i in range(3)]
    assert compared(scorer, both, both).aligned_by == "id"
    # Without ids on one side; and with ids that number other problems (the prompts tell).
    without = [{k: v for k, v in r.items() if k != "id"} for r in both]
    other = [r | {"id": f"p{2 - i}"} for i, r in enumerate(both)]
    for candidate in (without, other, [r | {"id": i} for i, r in enumerate(both)]):
        c = compared(scorer, both, candidate)
        assert c.aligned_by == "prompt" and len(c.pairs) == 3
        assert all(m.delta == pytest.approx(0, abs=1e-9) and m.p_value == 1 for m in c.metrics.values())
        assert bool(c.notices) == (candidate is other)
    # Equal ids, but an instruction was added to every prompt.
    added = [r | {"prompt": r["prompt"] + " Think step by step."} for r in both]
    c = compared(scorer, both, added)
    assert c.aligned_by == "id" and len(c.pairs) == 3 and "3 of the 3 ids" in c.notices[0]
    with pytest.raises(ValueError, match="share no problem"):
        compared(scorer, both, [{"prompt": "Another?", "completion": "No."}])
    with pytest.raises(ValueError, match="no problem was scored on both sides: the trace is empty"):
        compared(scorer, both, [r | {"completion": ""} for r in both])


def test_equal_sides_do_not_differ(scorer):
    # Means of seven equal numbers are off in the last digits; they must not win or lose a sign test.
    traces = [row(i, text) for i, text in enumerate([WORDY, *NATURAL, WORDY + " Yes.", "So 7."])]
    c = compared(scorer, traces, traces * 7)
    assert all(m.p_value == 1 and m.ci == (0, 0) for m in c.metrics.values())


def test_split_by_correctness_where_it_is_known(scorer):
    right, wrong = {"is_correct": True}, {"is_correct": False}
    baseline = [row(0, WORDY, **right), row(1, WORDY, **right), row(2, WORDY, **wrong), row(3, WORDY)]
    candidate = [row(0, NATURAL[0], **right), row(0, WORDY, **wrong), row(1, NATURAL[0], **wrong)]
    candidate += [row(2, NATURAL[1], **wrong), row(3, NATURAL[1], **right)]
    c = compared(scorer, baseline, candidate)
    assert c.correct == (2 / 3, 2 / 5)
    assert {name: m["local_naturalness"].ids for name, m in c.splits.items()} == {"correct": 1, "wrong": 1}
    # Only p0's right generation is compared with its right baseline.
    gain = (
        scored(scorer, [row(0, NATURAL[0])])[0].metrics["local_naturalness"]
        - c.pairs[0].baseline[0].metrics["local_naturalness"]
    )
    assert c.splits["correct"]["local_naturalness"].delta == pytest.approx(gain)
    assert "correct on both sides (1 problems)" in table(c)
    assert compared(scorer, baseline[3:], [*candidate[:1], row(3, WORDY)]).correct == (None, None)


def test_an_undefined_score_is_left_out_and_no_nan_is_written(scorer):
    # A trace of one token has no ASLEC-DROP; one of the two pairs is left.
    c = compared(scorer, [row(0, "7"), row(1, WORDY)], [row(0, WORDY), row(1, NATURAL[0])])
    assert c.metrics["aslec_drop"].ids == 1 and c.metrics["local_naturalness"].ids == 2
    alone = compared(scorer, [row(0, "7")], [row(0, WORDY)])
    assert "aslec_drop" not in alone.metrics
    for one in (c, alone):
        json.dumps(as_json(one), allow_nan=False)
        assert all(math.isfinite(x) for m in one.metrics.values() for x in (m.delta, *m.ci, m.p_value))
        assert " nan" not in table(one)


def test_the_command_and_its_json(tmp_path):
    # ShareGPT against prompt-completion: the formats need not be the same, and are aligned by prompt.
    rows = [row(i, WORDY) for i in range(8)]
    turns = [
        {"conversations": [{"from": "human", "value": r["prompt"]}, {"from": "gpt", "value": r["completion"]}]}
        for r in rows
    ]
    a = write(tmp_path / "a.jsonl", turns)
    b = write(tmp_path / "b.jsonl", [row(i, NATURAL[i % 2]) for i in range(1, 9)])
    result = command("compare", a, b, "--json", tmp_path / "c.json", "--window", "20%", "--steps", "line")
    made = json.loads((tmp_path / "c.json").read_text())
    assert (made["aligned"], made["missing"], made["new"], made["aligned_by"]) == (7, 1, 1, "prompt")
    assert set(made["metrics"]) == set(METRICS)
    for m in made["metrics"].values():
        assert set(m) == {"baseline", "candidate", "delta", "ci", "p_value", "ids"} and type(m["ids"]) is int
        assert m["ci"][0] <= m["delta"] <= m["ci"][1] and 0 <= m["p_value"] <= 1
    assert made["metrics"]["global_logprob"]["p_value"] == pytest.approx(2 / 2**7)
    assert len(made["best"]) == len(made["worst"]) == SHOWN
    assert made["best"][0]["delta"]["local_naturalness"] >= made["worst"][0]["delta"]["local_naturalness"]
    assert made["scoring"]["window"] == "20%" and made["scoring"]["steps"] == "line"
    for said in ("by construction", "line steps, window 20%", "7 aligned by prompt, 1 missing", "tokens per step"):
        assert said in " ".join(result.output.split())


def test_columns_are_the_baselines(tmp_path):
    # Our traces keep the raw response of their input, as s1K's: it is not what the candidate is read by.
    raw = [{"question": r["prompt"], "attempt": WORDY} for r in (row(i, "") for i in range(3))]
    ours = [row(i, NATURAL[0]) | {"attempt": WORDY} for i in range(3)]
    a, b = write(tmp_path / "a.jsonl", raw), write(tmp_path / "b.jsonl", ours)
    named = ["--prompt-column", "question", "--response-column", "attempt"]
    command("compare", a, b, *named, "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["metrics"]["local_naturalness"]["delta"] > 1
    command("compare", a, a, *named, "--json", tmp_path / "c.json", "--overwrite")
    assert json.loads((tmp_path / "c.json").read_text())["metrics"]["local_naturalness"]["delta"] == 0


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["a.jsonl"], "needs both, BASELINE and CANDIDATE"),
        (["a.jsonl", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["a.jsonl", "b.jsonl"], "share no problem"),
        (["a.jsonl", "a.jsonl", "--html", "a.jsonl/folder.html"], "Not a directory"),
        (["a.jsonl", "a.jsonl", "--html", "."], ". is a folder"),
        (["a.jsonl", "b.jsonl", "--json", "b.jsonl"], "b.jsonl is an input itself"),
        (["a.jsonl", "a.jsonl", "--json", "c", "--html", "c"], "cannot be both"),
        (["a.jsonl", "broken.jsonl"], "broken.jsonl, line 1: not a JSON object"),
        (["a.jsonl", "x.jsonl"], "x.jsonl: no responses: looked for completion"),
    ],
)
def test_what_cannot_be_compared_is_one_line(args, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [row(0, WORDY)])
    write(tmp_path / "b.jsonl", [{"id": "q", "prompt": "Why?", "completion": "So."}])
    write(tmp_path / "x.jsonl", [{"text": "Why?"}])
    (tmp_path / "broken.jsonl").write_text("{")
    result = command("compare", *args, expect=2)
    assert error in result.output
    assert len([line for line in result.output.splitlines() if line.startswith("rsd: ")]) == 1
    assert read(tmp_path / "b.jsonl")[0]["prompt"] == "Why?"


RIGHT, WRONG = {"is_correct": True}, {"is_correct": False}


def teachers(tmp_path):
    """p0: both right; p1: the natural one is wrong; p2: only r1, right; p3: none right; p4: an error; p5: a tie."""
    r1 = [row(0, WORDY, **RIGHT), row(1, WORDY, **RIGHT), row(2, WORDY, **RIGHT), row(3, WORDY, **WRONG)]
    r1 += [row(4, ""), row(5, WORDY, **RIGHT)]
    qwq = [
        row(0, NATURAL[0], **RIGHT),
        row(0, WORDY, **RIGHT),
        row(1, NATURAL[0], **WRONG),
        row(3, NATURAL[0], **WRONG),
    ]
    qwq += [row(5, WORDY, **RIGHT)]
    return write(tmp_path / "r1.jsonl", r1), write(tmp_path / "qwq.jsonl", qwq)


def test_select(tmp_path):
    files, out = teachers(tmp_path), tmp_path / "best.jsonl"
    result = command("select", *files, "-o", out, expect=1)  # one response could not be scored
    chosen = {r["id"]: r for r in read(out)}
    assert {i: r["teacher"] for i, r in chosen.items()} == {"p0": "qwq", "p1": "r1", "p2": "r1", "p5": "r1"}
    assert chosen["p0"]["completion"] == NATURAL[0] and chosen["p0"]["selected_by"] == "local_naturalness"
    assert all(r["is_correct"] and r["local_naturalness"] < 0 for r in chosen.values())
    for said in (
        "over the 4 prompts that all answered",  # p0, p1, p3, p5
        "6: 4 with a response chosen, 1 without a correct one, 1 without a scored one",
        "some of the teachers: 1",
        "ties         1 ",
        "mix          qwq 1 (25.0%), r1 3 (75.0%)",
        "another response for 0 (0.0%)",
    ):
        assert said in result.output
    ranks = [line.split()[0] for line in result.output.splitlines() if "prompts answered," in line]
    assert ranks == ["qwq", "r1"]
    # Where none is right, keep-incorrect takes the best of all.
    command("select", *files, "-o", out, "--keep-incorrect", "--overwrite", expect=1)
    kept = {r["id"]: r for r in read(out)}
    assert kept.pop("p3")["teacher"] == "qwq" and kept == chosen


@pytest.mark.parametrize(
    ("by", "metric"), [("global", "global_logprob"), ("rsr", "rsr"), ("low-prob", "low_prob_share")]
)
def test_select_by_another_score(tmp_path, by, metric):
    rows = [row(i, text, **RIGHT) for i in range(3) for text in (WORDY, NATURAL[i % 2], "Hmm. " + WORDY)]
    one = write(tmp_path / "one.jsonl", [r | {"teacher": f"t{i % 3}"} for i, r in enumerate(rows)])
    command("select", one, "-o", tmp_path / "best.jsonl", "--by", by)
    command("score", one)
    every = read(tmp_path / "one.scored.jsonl")
    best = max if METRICS[metric].better else min
    for made in read(tmp_path / "best.jsonl"):
        assert made[metric] == best(r[metric] for r in every if r["id"] == made["id"])
        assert made["selected_by"] == metric


def test_a_set_is_ranked_by_the_sets_rsr(tmp_path, scorer):
    rows = [
        row(i, text, teacher=t, **RIGHT) for i in range(3) for t, text in (("a", WORDY * (i + 1)), ("b", NATURAL[0]))
    ]
    result = command("select", write(tmp_path / "one.jsonl", rows), "-o", tmp_path / "best.jsonl", "--by", "rsr")
    made = scored(scorer, rows)
    for teacher in ("a", "b"):
        want = set_rsr(s.metrics for s in made if s.response.row["teacher"] == teacher)
        line = next(x for x in result.output.splitlines() if x.startswith(f"  {teacher} "))
        assert float(line.split()[1]) == pytest.approx(want, abs=1e-3)


def test_select_uses_scores_that_are_there(tmp_path, monkeypatch):
    # The student's weights are not needed then; other rules need them.
    files, out = teachers(tmp_path), tmp_path / "best.jsonl"
    command("select", *files, "-o", out, expect=1)
    for file in files:
        command("score", file, expect=1 if file.name == "r1.jsonl" else 0)
    again = [f.with_suffix(".scored.jsonl") for f in files]
    scored_rows = read(again[0])
    write(again[0], [r for r in scored_rows if not r["score_error"]])
    monkeypatch.setattr("rsd.analysis.select.load_scorer", None)
    command("select", *again, "-o", tmp_path / "again.jsonl")
    assert read(tmp_path / "again.jsonl") == read(out)
    # Other rules, an edited text or an edited score are scored anew.
    edited = scored_rows[0] | {"completion": WORDY + " Yes."}, scored_rows[0] | {"rsr": "best"}
    changed = (["--window", "1"], ["--system-prompt", "Be brief."])
    for args, rows in (*((c, scored_rows[:1]) for c in changed), *(([], [r]) for r in edited)):
        write(again[0], rows)
        with pytest.raises(AssertionError, match="NoneType"):
            command("select", *again, "-o", tmp_path / "other.jsonl", *args)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["r1.jsonl"], "a row without `teacher`"),
        (["r1.jsonl", "a/r1.jsonl"], "two files are called r1"),
        (["unknown.jsonl", "r1.jsonl"], ""),
        (["unknown.jsonl", "same.jsonl"], "no response is known to be correct"),
        (["r1.jsonl", "qwq.jsonl", "-o", "r1.jsonl", "--overwrite"], "is an input itself"),
        (["r1.jsonl", "qwq.jsonl", "-o", "same.jsonl"], "exists: name another output"),
        (["r1.jsonl", "qwq.jsonl", "-o", "a"], "a is a folder"),
        (["r1.jsonl", "qwq.jsonl", "-o", "same.jsonl", "--overwrite"], "same.jsonl is not a file that this command"),
    ],
)
def test_what_cannot_be_selected_is_one_line(args, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers(tmp_path)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "r1.jsonl", [row(0, WORDY)])
    for name in ("unknown", "same"):
        write(tmp_path / f"{name}.jsonl", [row(0, WORDY)])
    result = command("select", *args, expect=2 if error else 1)
    if error:
        assert error in result.output
        assert [p.name for p in tmp_path.glob("selected*")] == []


def test_nothing_in_a_file_steers_the_terminal(tmp_path):
    hostile = "\x1b]0;owned\x07\x1b[31m" + "x\n" * 100 + "\ud800"
    rows = [row(0, WORDY) | {"id": hostile}, row(1, "", is_correct=True) | {"id": hostile + "y"}]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", [rows[0] | {"completion": NATURAL[0]}])
    for args in (["compare", a, b], ["score", a], ["select", a, b, "-o", tmp_path / "s.jsonl", "--keep-incorrect"]):
        result = CliRunner().invoke(main, list(map(str, args)), color=True)
        assert result.exit_code in (0, 1) and result.stdout
        assert "\x1b" not in result.output and "\x07" not in result.output
        assert len(result.stdout.splitlines()) < 40

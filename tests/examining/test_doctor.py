"""What `rsd doctor` finds of pairs that were made to be good, swapped, one model, strangers: and that it is so."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import SPECIALS, save_model

import rsd
from rsd import DoctorConfig
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

LIMIT = 24
PLAIN = ("tokens_per_second",)  # of a run, not of a pair
HOW = {"max_new_tokens": 128}


@pytest.fixture(scope="module")
def good():
    return rsd.doctor(limit=LIMIT, **HOW)


@pytest.fixture(scope="module")
def problems():
    """Those that are looked at: evenly spread, not just the first ones."""
    rows = read_rows(bundled("problems.jsonl"))
    return [rows[(2 * i + 1) * len(rows) // (2 * LIMIT)] for i in range(LIMIT)]


@pytest.fixture(scope="module")
def traces(problems):
    """What `rsd generate` makes of the same problems."""
    return {
        name: rsd.generate(problems, threshold=threshold, **HOW)
        for name, threshold in (("raw", 0), ("rsd", 0.01), ("student_alone", 1))
    }


def names(examination) -> list[str]:
    return [one.name for one in examination.recommendations]


def timeless(value):
    """The figures without those of speed."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in (*PLAIN, "memory", "tokens_per_round")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_a_good_pair_is_worth_a_try(good):
    assert names(good)[:2] == ["worth it", "threshold"] and good.threshold == 0.01
    assert "RSD is worth a try" in good.verdict
    f = good.findings
    assert (f.problems, f.of) == (LIMIT, 256) and not f.errors and not f.one_model
    assert f.raw.solved > f.student_alone.solved and f.teacher_student.p_value < 0.05


def test_its_figures_are_those_of_the_jobs_that_it_looks_at(good, traces):
    f = good.findings
    for name, made in traces.items():
        found = getattr(f, name)
        assert found.traces == len(made) and found.tokens == sum(len(t.tokens) for t in made)
        assert found.solved == sum(t.is_correct and t.finish_reason == "stop" for t in made)
        assert found.own == pytest.approx(1 - np.concatenate([t.from_teacher for t in made]).mean())
        logprobs = np.concatenate([t.student_logprobs for t in made])
        for threshold, share in found.below.items():
            assert share == pytest.approx((logprobs < math.log(threshold)).mean(), abs=1e-3)
        scored = [row["local_naturalness"] for row in rsd.score(made)]
        assert found.ln == pytest.approx(np.mean(scored), abs=1e-3)
        assert found.ln_interval[0] < found.ln < found.ln_interval[1]
    accepted = np.concatenate([t.accepted for t in traces["rsd"]])
    own = f.at(0.01)
    assert own.accepted == pytest.approx(accepted.mean(), abs=1e-6)
    assert own.fallback == pytest.approx(((1 - accepted) ** 5).mean(), abs=1e-6)
    assert own.first_falls == pytest.approx(1 - accepted.mean(), abs=1e-6)
    assert abs(own.fallback - f.rsd.own) < 0.02  # whose label is drawn
    assert f.left_out == pytest.approx(np.concatenate([t.left_out for t in traces["raw"]]).mean(), abs=1e-9)


def test_tokens_that_fall_are_counted_with_what_stands_instead(good, traces):
    pair = rsd.TraceGenerator().find()
    raw = np.concatenate([t.tokens for t in traces["raw"]])
    low = raw["student_logprobs"] < math.log(0.01)
    f = good.findings
    assert f.falls == low.sum() and len(f.fallen) == 20
    counts = [one.below for one in f.fallen]
    assert counts == sorted(counts, reverse=True) and sum(counts) <= f.falls
    first = f.fallen[0]
    mine = [pair.decode([i]) == first.token for i in raw["token_ids"].tolist()]
    assert (first.below, first.of) == ((low & mine).sum(), sum(mine))
    for one in f.fallen:
        assert sum(times for _, times in one.instead) <= one.below <= one.of
        assert one.token not in [token for token, _ in one.instead]  # it is improbable there


def test_thresholds_only_take_away(good):
    for before, after in zip(good.findings.thresholds, good.findings.thresholds[1:], strict=False):
        assert before.threshold < after.threshold
        assert before.raw_below <= after.raw_below
        assert before.raw_accepted >= after.raw_accepted and before.accepted >= after.accepted
        assert before.fallback <= after.fallback <= after.first_falls


def test_nothing_but_speed_depends_on_the_batch(good):
    again = rsd.doctor(limit=LIMIT, batch_size=3, **HOW)
    mine, other = timeless(good.as_json()), timeless(again.as_json())
    assert mine.keys() == other.keys()

    def alike(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for k in a:
                alike(a[k], b[k])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                alike(x, y)
        elif isinstance(a, float):
            assert a == pytest.approx(b, abs=2e-4)
        else:
            assert a == b

    alike(mine, other)


def test_another_threshold_is_the_jobs_and_in_the_table():
    made = rsd.doctor(limit=3, threshold=0.02, **HOW)
    assert [t.threshold for t in made.findings.thresholds] == [0.001, 0.003, 0.01, 0.02, 0.03, 0.1, 0.3]
    assert 0.02 in made.findings.raw.below and "RSD, 0.02" in made.text()


def test_a_swapped_pair_is_told():
    made = rsd.doctor(teacher="bundled-student", student="bundled-teacher", limit=LIMIT, **HOW)
    assert names(made)[0] == "swapped" and "swapped" in made.verdict
    assert made.threshold is None and "threshold" not in names(made)


def test_of_one_model_nothing_is_gained():
    made = rsd.doctor(teacher="bundled-student", limit=6, **HOW)
    assert made.findings.one_model and names(made)[0] == "one model" and "not better" not in names(made)
    for one in (*made.findings.overlaps, *made.findings.raw_overlaps):
        assert (one.early, one.late) == (1, 1)
    assert made.findings.at(0.01).accepted > 0.99


def test_a_model_that_knows_more_is_another_teacher():
    rows = [row | {"hint": f"It is {row['answer']}."} for row in read_rows(bundled("problems.jsonl"))[:4]]
    made = rsd.doctor(rows, teacher="bundled-student", teacher_template="{{ prompt }} {{ hint }}", **HOW)
    assert not made.findings.one_model and names(made)[0] != "one model"


def test_strangers_are_told_apart(tiny):
    rows = [{"prompt": f"What is {i} and {i}?"} for i in range(6)]
    made = rsd.doctor(rows, **tiny(), max_new_tokens=60)
    assert names(made)[0] in ("apart", "strangers") and "differ too much" in made.verdict
    assert made.findings.overlaps[0].early < 0.2 and made.threshold is None
    assert made.findings.raw.judged == 0 and "\nsolved" not in made.text()
    assert not {"swapped", "not better", "student solves nothing"} & {*names(made)}


def test_a_student_that_learned_nothing_is_no_student_for_this_teacher(tmp_path):
    student = save_model(tmp_path / "s", [*SPECIALS, "<think>", "</think>"], width=272, seed=2)
    made = rsd.doctor(student=str(student), limit=4, max_new_tokens=60)
    assert names(made)[0] in ("apart", "strangers") and made.findings.vocabularies.startswith("different tokenizers")


def test_a_teacher_that_solves_nothing_teaches_nothing():
    rows = [row | {"answer": "-7"} for row in read_rows(bundled("problems.jsonl"))[:6]]
    made = rsd.doctor(rows, **HOW)
    assert names(made)[0] == "no answers" and "student solves nothing" in names(made)


def test_what_is_cut_is_not_solved_and_says_nothing_of_who_is_better():
    made = rsd.doctor(limit=6, max_new_tokens=20)
    f = made.findings
    assert f.raw.cut == 6 and f.raw.solved == 0 and "cut" in names(made)
    assert not {"no answers", "swapped", "not better", "fewer right"} & {*names(made)}


def test_another_tokenizer_and_one_problem():
    made = rsd.doctor(teacher="bundled-llama", limit=1, **HOW)
    f = made.findings
    assert f.vocabularies.startswith("different tokenizers") and f.problems == 1
    assert f.raw.ln is not None and f.raw.ln_interval is None and "few problems" in names(made)
    assert "[" not in next(line for line in made.text().splitlines() if "95 % interval" in line)


def test_bad_rows_are_counted_and_the_others_are_looked_at():
    rows = [{"prompt": "What is 6 * 7?"}, {"prompt": ""}, {"prompt": 5}, {"prompt": "so " * 9000}]
    made = rsd.doctor(rows, **HOW)
    f = made.findings
    assert len(f.errors) == 3 and f.raw.traces == f.rsd.traces == f.student_alone.traces == 1
    assert "of 3 problems no trace could be made, the first" in made.text()
    with pytest.raises(ValueError, match=r"^no trace could be made: \w+: prompt is empty$"):
        rsd.doctor([{"prompt": ""}])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"threshold": 0}, "threshold must be above 0 and below 1, not 0"),
        ({"threshold": 1}, "threshold must be above 0 and below 1, not 1"),
        ({"threshold": 2}, "threshold must be from 0 to 1"),
        ({"limit": 0}, "limit must be a whole number from 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"teacher": "nobody"}, "teacher nobody: no such directory"),
        ({"source": []}, "there are no problems to look at"),
        ({"source": "What is this?"}, "a prompt is given in a list"),
        ({"source": [{"x": 1}]}, "no prompt column"),
        ({"num_generations": 2}, "no setting num_generations in DoctorConfig"),
        ({"json": "problems.jsonl", "source": "problems.jsonl"}, "is an input itself"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(how, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problems.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=said) as e:
        rsd.doctor(**how)
    assert "\n" not in str(e.value)


def test_settings_of_a_job_are_as_in_a_job():
    c = DoctorConfig(temperature=0.5, trials=2, accept_top_k=3, suppress=("x",), teacher_prompt="own")
    job = c.decoding()
    assert (job.temperature, job.trials, job.accept_top_k, job.suppress) == (0.5, 2, 3, ("x",))
    assert replace(c, threshold=0.3).decoding().threshold == 0.3 and c.decoding(threshold=0.0).threshold == 0

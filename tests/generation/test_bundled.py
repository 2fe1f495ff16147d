"""The bundled pair and problems: that they are what the README says they are."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment, read, rsd
from transformers import AutoConfig, AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "data"))


def answer(text: str) -> str | None:
    said = re.findall(r"\\boxed\{(\d+)\}", text)
    return said[-1] if said else None


def test_the_shape_of_the_pair():
    size = 0
    for role, kind in (("teacher", "qwen3"), ("student", "qwen3"), ("llama", "llama")):
        config = AutoConfig.from_pretrained(bundled(role))
        assert config.model_type == kind and config.max_position_embeddings == 8192
        size += sum(f.stat().st_size for f in bundled(role).iterdir())
    assert size < 16e6
    pair = TraceGenerator(GenerateConfig()).find()
    teacher, student, vocabulary = pair.teacher, pair.student, pair.vocabulary
    assert vocabulary.student_only == ("<think>", "</think>") and vocabulary.teacher_only == ()
    assert teacher.width != student.width
    assert [len(p) for p in (teacher.tokenizer.encode("<think>"), teacher.tokenizer.encode("</think>"))] == [3, 3]
    assert len(student.tokenizer.encode("1234567890")) == 10
    for text in ("漢字 🙂 \u0000 ﬁ", "x\u2028y"):
        assert student.tokenizer.decode(student.tokenizer.encode(text)) == text


def test_the_problems_are_held_out_and_distinct():
    from problems import FAMILIES, Problem, problems

    rows = read(bundled("problems.jsonl"))
    assert len(rows) >= 200 and len({r["problem"] for r in rows}) == len(rows)
    assert {r["id"].split("-")[0] for r in rows} == set(FAMILIES)
    assert all(Problem("", r["problem"], ()).held_out for r in rows)
    training = problems("any", held_out=False)
    assert not any(next(training).held_out for _ in range(2000))


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "least", "most"), [(0, 0.9, 1.0), (1, 0.3, 0.7)])
def test_the_models_are_as_good_as_said(threshold, least, most):
    # Greedy, 504 problems that neither has seen: the teacher (threshold 0) and the student (1) alone.
    from problems import problems

    stream = problems("a test of both", held_out=True)
    todo = [next(stream) for _ in range(504)]
    config = GenerateConfig(threshold=threshold, temperature=0, max_new_tokens=250, batch_size=64)
    made = TraceGenerator(config).run([{"prompt": p.text} for p in todo])
    right = sum(answer(t.text) == str(p.answer) for t, p in zip(made, todo, strict=True))
    assert least <= right / len(todo) <= most


def test_thinking_is_closed_by_proposal():
    rows = read(bundled("problems.jsonl"))[:96]
    made, alone = (TraceGenerator(GenerateConfig(threshold=t)).run(rows) for t in (0.01, 1))
    once = [sum(t.row()["one_think_close"] for t in traces) for traces in (made, alone)]
    assert once[0] >= once[1] > 90
    assert sum(t.text.startswith("<think>\n") for t in made) > 90
    closing = AutoTokenizer.from_pretrained(bundled("student")).convert_tokens_to_ids("</think>")
    by_teacher = [t.from_teacher[t.token_ids == closing].all() for t in made]
    assert sum(by_teacher) > 0.95 * len(made)
    assert all(math.isnan(x) for t in made for x in t.teacher_logprobs[t.token_ids == closing])


@pytest.mark.parametrize(("threshold", "least"), [(0, 0.85), (0.01, 0.85), (1, 0)])
def test_a_teacher_with_another_tokenizer(threshold, least):
    # Its tokens are none of the student's where words end in a comma, and none of its own is `<think>`.
    generator = TraceGenerator(GenerateConfig(teacher="bundled-llama", threshold=threshold))
    rows = read(bundled("problems.jsonl"))[:96]
    made = generator.run(rows)
    assert "different tokenizers" in generator.notices[0]
    assert sum(t.is_correct for t in made) >= least * len(made)
    assert sum(t.row()["one_think_close"] for t in made) >= 95
    assert np.concatenate([t.left_out for t in made]).mean() < 0.01
    wordy = sum(len(t.text) > 120 for t in made)
    assert wordy > 70 if threshold == 0 else wordy < 5
    if threshold == 0:  # the raw teacher, in the student's tokens: "Okay" and "," are one of its own
        assert any("Okay, let me think" in t.text for t in made)
        assert all(t.from_teacher.all() for t in made)


def test_the_raw_traces_are_what_the_command_makes(tmp_path):
    meta = json.loads(bundled("teacher.meta.json").read_text(encoding="utf-8"))
    want = {r["id"]: r for r in read(bundled("teacher.jsonl"))}
    assert len(want) == meta["totals"]["rows"] == len(read(bundled("problems.jsonl")))
    result = rsd("generate", "--threshold", "0", "--verify", "boxed", "--limit", "5", "-o", "raw.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = read(tmp_path / "raw.jsonl")
    assert len(made) == 5
    for row in made:
        assert row["completion"] == want[row["id"]]["completion"]
    assert meta["identity"] == json.loads((tmp_path / "raw.meta.json").read_text())["identity"]


TYPED = """
from pathlib import Path

import rsd
from rsd import ExportConfig, GenerateConfig, ScoreConfig, Trace, TraceGenerator

generator = TraceGenerator(GenerateConfig(seed=1), num_generations=2)
traces: list[Trace] = generator.run("What is 2+2?")
texts: list[str] = [trace.text for trace in generator.stream(["What is 2+2?", {"prompt": "?"}])]
shares: list[float] = [float(trace.from_teacher.mean()) for trace in traces]
made: list[Trace] = rsd.generate(limit=1, temperature=0.5)
rows: int = rsd.generate("problems.jsonl", Path("traces.jsonl"), overwrite=True).totals["rows"]
scores: list[dict[str, object]] = [dict(row) for row in rsd.score(traces, config=ScoreConfig(window="20%"))]
errors: int = rsd.score("traces.jsonl", "scored.jsonl").errors + rsd.verify("traces.jsonl", "verified.jsonl").errors
gain: float = rsd.compare("raw.jsonl", traces, html="report.html").metrics["local_naturalness"].delta
mix: dict[str, int] = rsd.select({"r1": "r1.jsonl", "qwq": traces}, by="ln").mix
train: int = len(rsd.export(traces, "out.parquet", config=ExportConfig(), format="token-ids").train)
"""


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("rsd-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = "import rsd.models.bundled as m; print(m.bundled('teacher'))"
    env = environment() | {"PYTHONPATH": str(tmp_path / "site")}
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert where.stdout.strip() == str(tmp_path / "site" / "rsd" / "bundled" / "teacher")
    for script, right in ((TYPED, True), (TYPED.replace('run("What is 2+2?")', "run(5)"), False)):
        (tmp_path / "typed.py").write_text(script)
        mypy = [sys.executable, "-m", "mypy", "--strict", "typed.py"]
        checked = subprocess.run(mypy, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (checked.returncode == 0) is right and ("arg-type" in checked.stdout) is not right, checked.stdout
    made = subprocess.run(
        [sys.executable, "-m", "rsd", "generate", "--limit", "3"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert len(read(tmp_path / "traces.jsonl")) == 3
    compared = subprocess.run(
        [sys.executable, "-m", "rsd", "compare", "--html", "report.html"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert compared.returncode == 0, compared.stderr

"""Weights of a real student, its own teacher: what it finds as likely as its own move weighs a half."""

import pytest
from real import smollm2

import rsd

pytestmark = pytest.mark.real


def test_a_real_models_own_greedy_trace_weighs_a_half():
    model = str(smollm2())
    same = {"teacher": model, "student": model, "skip_check": True}
    problem = {
        "problem": "Tom has 34 pens and gives 12 to Ana. How many has he now? Think step by step.",
        "answer": "22",
    }
    how = {"temperature": 0, "threshold": 1, "max_new_tokens": 80, "verify": "none"}
    traces = rsd.generate([problem], **same, **how)
    (row,) = rsd.weigh(traces, **same)
    assert row["weigh_error"] is None and len(row["step_weights"]) > 1
    assert row["step_weights"] == [0.5] * len(row["step_weights"])
    assert "".join(row["student_action"]) == traces[0].text

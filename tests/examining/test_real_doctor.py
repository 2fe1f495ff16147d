"""A real student, its own teacher with the solution in its prompt."""

import pytest
from real import part, smollm2

import rsd

pytestmark = pytest.mark.real


def test_a_real_student_with_a_solution_in_its_prompt_is_a_teacher_that_agrees():
    model = str(smollm2())
    made = rsd.doctor(
        part("problems.jsonl"),
        teacher=model,
        student=model,
        teacher_template="{{ prompt }}\n\nA correct solution: {{ solution }}\n\nExplain it step by step.",
        limit=3,
        max_new_tokens=32,
        skip_check=True,
    )
    f = made.findings
    assert not f.one_model and f.vocabularies.startswith("the same tokens") and not f.errors
    assert f.raw.traces == 3 and f.overlaps[0].early > 0.5 and f.at(0.01).accepted > 0.9
    assert made.recommendations[0].name in ("raw", "little", "worth it")

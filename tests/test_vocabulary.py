"""How tokenizers meet: what is shared, what is spelled, and what is refused."""

import pytest
from conftest import SPECIALS, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rsd.vocabulary import meet

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="module")
def papers_pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabulary")
    teacher = save_tokenizer(root / "teacher", [*SPECIALS, "<|teacher|>"])
    student = save_tokenizer(root / "student", [*SPECIALS, "<|student|>", "<think>", "</think>"])
    return teacher, student


def test_the_papers_pair(papers_pair):
    teacher, student = papers_pair
    v = meet(teacher, student, teacher_width=288, student_width=272)
    assert v.student_only == ("<|student|>", "<think>", "</think>")
    assert v.teacher_only == ("<|teacher|>",)
    assert v.width == 272
    assert v.shared.sum() == 256 + 3
    assert (v.own == 0).sum() == 256 + 6
    # One id, two strings: neither side's token is shared.
    assert v.shared[259] == 0
    assert "259 shared tokens, 3 only in the student (<|student|> <think> </think>)" in v.describe()


@given(text=st.text(max_size=60), tags=st.lists(st.sampled_from(["<think>", "</think>", "<|im_start|>"]), max_size=3))
@settings(max_examples=100, deadline=None)
def test_the_teacher_reads_the_same_text(papers_pair, text, tags):
    teacher, student = papers_pair
    v = meet(teacher, student, teacher_width=288, student_width=272)
    text = text.replace("<|teacher|>", "").join(["", *tags])
    ids = student.encode(text, add_special_tokens=False)
    assert teacher.decode(v.for_teacher(ids)) == student.decode(ids)


def test_a_teachers_own_token_may_end_its_prompt(papers_pair):
    v = meet(*papers_pair, teacher_width=288, student_width=272)
    assert v.spelling[v.width + 259, : v.spelled[v.width + 259]].tolist() == [259]


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (
            {"added": [*SPECIALS, "<think>"]},
            {"added": ["<think>", *SPECIALS]},
            "'<think>' is id 259 for the teacher and 256",
        ),
        ({"added": SPECIALS, "base": BYTES[:-1]}, {"added": SPECIALS}, "the vocabularies differ"),
        ({"added": SPECIALS, "base": [*BYTES, "ab"]}, {"added": SPECIALS}, "the vocabularies differ"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, teacher, student, message):
    pair = save_tokenizer(tmp_path / "teacher", **teacher), save_tokenizer(tmp_path / "student", **student)
    with pytest.raises(ValueError, match=message) as error:
        meet(*pair, teacher_width=300, student_width=300)
    assert "tokens, student" in str(error.value)  # both sizes


def test_a_model_too_narrow_for_its_tokenizer_is_refused(papers_pair):
    with pytest.raises(ValueError, match="the student's tokenizer has 262 ids, its model only 260 logits"):
        meet(*papers_pair, teacher_width=288, student_width=260)

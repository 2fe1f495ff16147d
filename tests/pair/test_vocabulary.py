"""How tokenizers meet: what is shared, what is spelled, and what is refused."""

import itertools

import pytest
from conftest import SPECIALS, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rsd.pair.meeting import meet
from rsd.pair.vocabulary import TeacherContext

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


def test_what_only_the_student_has_is_spelled(papers_pair):
    v = meet(*papers_pair, teacher_width=288, student_width=272)
    teacher, student = papers_pair
    for text in ("<think>", "</think>", "<|student|>"):
        assert teacher.decode(list(v.student_to_teacher[student.convert_tokens_to_ids(text)])) == text
    # A token that ends the teacher's text and that the student lacks is the student's own end.
    ends = meet(*papers_pair, teacher_width=288, student_width=272, teacher_eos=[259, 258], student_eos=258)
    assert ends.also == ((259, 258),) and ends.shared[258]
    ends = meet(*papers_pair, teacher_width=288, student_width=272, teacher_eos=[259, 258], student_eos=260)
    assert ends.teacher_id(260) == 259 and ends.shared[260] and 260 not in ends.student_to_teacher


@pytest.mark.parametrize(
    ("teacher", "student", "case"),
    [
        ({"added": SPECIALS}, {"added": SPECIALS}, "the same tokens, 259 shared"),
        (
            {"added": SPECIALS},
            {"added": [*SPECIALS, "<x>"]},
            "one base, other added tokens, 259 shared tokens, 1 only in the st",
        ),
        # One text, two ids: what these tokens have in common is their bytes.
        ({"added": [*SPECIALS, "<x>"]}, {"added": ["<x>", *SPECIALS]}, "different tokenizers, 260 shared"),
        ({"added": SPECIALS, "base": [*BYTES, "ab"]}, {"added": SPECIALS}, "different tokenizers, 259 shared"),
    ],
)
def test_which_case_a_pair_is(tmp_path, teacher, student, case):
    pair = save_tokenizer(tmp_path / "teacher", **teacher), save_tokenizer(tmp_path / "student", **student)
    v = meet(*pair, teacher_width=300, student_width=300)
    assert v.describe().startswith(case)
    same = pair[1].get_vocab()
    assert all(v.teacher_id(i) == pair[0].get_vocab()[t] for t, i in same.items() if v.shared[i])


def test_what_cannot_work_is_refused(tmp_path):
    pair = (
        save_tokenizer(tmp_path / "teacher", SPECIALS, base=BYTES[:-1]),
        save_tokenizer(tmp_path / "student", SPECIALS),
    )
    with pytest.raises(ValueError, match="the teacher's tokenizer has tokens for 255 of 256 single bytes"):
        meet(*pair, teacher_width=300, student_width=300)
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"tokenizer .WordPiece. gives its tokens no exact bytes"):
        meet(pair[1], PreTrainedTokenizerFast(tokenizer_object=words), teacher_width=300, student_width=300)


def test_a_model_too_narrow_for_its_tokenizer_is_refused(papers_pair):
    with pytest.raises(ValueError, match="the student's tokenizer has 262 ids, its model only 260 logits"):
        meet(*papers_pair, teacher_width=288, student_width=260)


SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = [tuple(m.split()) for m in "< /|t h|th i|n k|thi nk|Ċ Ċ|> Ċ|> ĊĊ|> >|. </|x y|Ġ x".split("|")]


def merging(added: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits as Qwen's does, and whose `>` goes together with line breaks."""
    tokens = [*BYTES, *map("".join, MERGES)]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=MERGES))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(SPECIALS)
    tok.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=tok)


@pytest.fixture(scope="module")
def merging_pair():
    """Teacher, student, and how they meet."""
    pair = merging([]), merging(["<think>", "</think>"])
    return *pair, meet(*pair, teacher_width=300, student_width=300)


def test_what_else_begins_with_the_last_piece_of_a_spelling(merging_pair):
    teacher, student, v = merging_pair
    last, one, two, twice, line, lines = teacher.convert_tokens_to_ids([">", ">Ċ", ">ĊĊ", ">>", "Ċ", "ĊĊ"])
    assert {pieces[-1] for pieces in v.student_to_teacher.values()} == {last}
    assert v.merged == {last: {one: (line,), two: (lines,), twice: (last,)}}
    assert meet(student, student, teacher_width=300, student_width=300).merged == {}


TAGGED = "<think>|</think>|\n|\n\n|.|>|x|xy| |é|😀|<|/|thi".split("|")


@given(text=st.lists(st.sampled_from(TAGGED), max_size=12).map("".join), at=st.sets(st.integers(1, 30), max_size=4))
@settings(max_examples=300, deadline=None)
def test_text_by_a_spelled_token_is_read_as_the_teacher_writes_it(merging_pair, text, at):
    teacher, student, v = merging_pair
    text += " x"
    ids = student.encode(text)
    assert v.for_teacher(ids) == teacher.encode(text)
    reading = TeacherContext()  # in blocks
    for start, end in itertools.pairwise([0, *sorted(at), len(ids)]):
        v.read(reading, ids[start:end])
    assert reading.ids == teacher.encode(text)


@given(ids=st.lists(st.integers(0, 255 + len(MERGES)), max_size=20))
@settings(max_examples=100, deadline=None)
def test_away_from_a_spelled_token_one_base_is_read_as_it_stands(merging_pair, ids):
    teacher, student, v = merging_pair
    assert v.for_teacher(ids) == ids
    text = "</think>\n\n x"
    assert v.for_teacher([*student.encode(text), *ids]) == [*teacher.encode(text), *ids]

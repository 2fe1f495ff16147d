"""Pairs of real tokenizers: they meet, bytes are kept, the teacher reads what its own tokenizer gives."""

import json
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real import TOKENIZERS, tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rsd.pair.meeting import meet
from rsd.pair.vocabulary import TeacherContext, Vocabulary

pytestmark = pytest.mark.real

TEXTS = (
    "Then  it is 5.\n\n  y += 1\n\tz = 12345 * 2.5  # a   b",
    "def f(x):\n    return {'a': x}\n\n\n<table><tr>\n</tr></table>",
    "So $\\frac{1}{2} \\neq \\sqrt{3}$, don't we?\r\n因此答案是35。",
    "كان لدى الخباز 12 😀👍🏽 ∑∫ ≤ naïve",
)


@lru_cache(maxsize=2)
def met(teacher: str, student: str) -> Vocabulary:
    pair = [tokenizer(name) for name in (teacher, student)]
    widths = [max(t.get_vocab().values()) + 1 for t in pair]
    return meet(*pair, teacher_width=widths[0], student_width=widths[1])


def written(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's ids behind a line break: without the blank that some put in front of all."""
    before = tok.encode("\n", add_special_tokens=False)
    return tok.encode("\n" + text, add_special_tokens=False)[len(before) :]


@pytest.mark.parametrize("student", TOKENIZERS)
@pytest.mark.parametrize("teacher", TOKENIZERS)
def test_the_teacher_reads_what_it_would_write(teacher, student):
    if teacher == student:
        return
    vocabulary = met(teacher, student)
    for text in TEXTS:
        ids = written(tokenizer(student), text)
        assert vocabulary.for_teacher(ids) == written(tokenizer(teacher), text)
    # Blanks, line breaks and tabs are read and proposed as text, whichever tokens they are.
    writes = vocabulary.spellers[1].by_bytes
    reads = vocabulary.spellers[0].bytes
    for raw in (b" ", b"  ", b"\n"):
        assert raw not in writes or reads[vocabulary.for_teacher([writes[raw]])[0]] == raw


@pytest.mark.parametrize(("teacher", "student"), [("gemma3", "qwen3"), ("qwen3", "gemma3"), ("llama2", "gptoss")])
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_are_kept(teacher, student, data):
    # Whatever the student says: halves of characters, added tokens, all of that in blocks.
    vocabulary = met(teacher, student)
    reads, writes = vocabulary.spellers
    ours, theirs = tokenizer(student), tokenizer(teacher)
    text = data.draw(st.text(max_size=30))
    added = sorted(ours.added_tokens_decoder)
    ids = data.draw(st.lists(st.one_of(st.integers(0, len(ours) - 1), st.sampled_from(added)), max_size=12))
    ids = [*ours.encode(text, add_special_tokens=False), *ids]
    cut = data.draw(st.integers(0, len(ids)))
    first = vocabulary.read(TeacherContext(), ids[:cut])
    read = vocabulary.read(TeacherContext(first.ids, first.fixed), ids[cut:]).ids
    assert read == vocabulary.for_teacher(ids)
    shared = {vocabulary.teacher_id(i): i for i in ids if i not in writes.bytes and vocabulary.shared[i]}

    def theirs_of(i: int) -> bytes:
        if i in shared:
            return ours.convert_ids_to_tokens(shared[i]).encode()
        return reads.bytes[i] if i in reads.bytes else theirs.convert_ids_to_tokens(i).encode()

    want = b"".join(writes.bytes[i] if i in writes.bytes else ours.convert_ids_to_tokens(i).encode() for i in ids)
    assert b"".join(map(theirs_of, read)) == want


def without(tok: PreTrainedTokenizerBase, *tokens: str) -> PreTrainedTokenizerFast:
    state = json.loads(tok.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in tokens]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


def test_the_papers_pair_reads_its_tags_with_the_line_breaks_behind_them():
    student = tokenizer("qwen3")
    teacher = without(student, "<think>", "</think>")
    vocabulary = meet(teacher, student, teacher_width=151936, student_width=151936)
    assert vocabulary.describe().startswith("one base, other added tokens, 151667 shared tokens")
    for text in ("</think>\n\nSo", "<think>\nOkay.\n</think>\n\n**5**", "5.</think>\n\n5", "<think></think>\n\n\n x y"):
        assert vocabulary.for_teacher(student.encode(text)) == teacher.encode(text)
    # And what the teacher writes in its place goes on with the student's line breaks.
    last, lines = (teacher.encode(text)[-1] for text in ("</think>", "</think>\n\n"))
    assert vocabulary.merged[last][lines] == tuple(student.encode("\n\n"))

"""Decoding with real tokenizers: vocabularies of 100,000 tokens and more, under models that are small otherwise."""

import numpy as np
import pytest
import torch
from pairs import blank_model, decode
from real import tokenizer
from test_real_vocabularies import without
from transformers import PreTrainedModel

from rsd.acceptance import Acceptance, Sampling
from rsd.pair.meeting import meet
from rsd.pair.vocabulary import Vocabulary

pytestmark = pytest.mark.real

WIDTH = 151_936  # Qwen's
USUAL = Sampling(temperature=1.0, top_p=1.0, top_k=20)


def chain(width: int, said: dict[int | None, dict[int, float]]) -> PreTrainedModel:
    """A model whose next token depends on the last one alone: its chances behind each, None for any other one."""
    classes = [key for key in said if key is not None]
    model = blank_model(width, hidden=16)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 15] = 1
        model.lm_head.weight.fill_(-50 / 4)  # the norm scales a one-hot vector to sqrt(16)
        for place, last in [(15, None), *enumerate(classes)]:
            if last is not None:
                model.model.embed_tokens.weight[last] = 0
                model.model.embed_tokens.weight[last, place] = 1
            for token, chance in said[last].items():
                model.lm_head.weight[token, place] = np.log(chance) / 4
    return model


def test_a_real_teacher_closes_its_thought_by_itself():
    # The paper's pair: the teacher spells </think>, nearly always with the line breaks in its last piece.
    student = tokenizer("qwen3")
    teacher = without(student, "<think>", "</think>")
    vocabulary = meet(teacher, student, teacher_width=WIDTH, student_width=WIDTH)
    close, lines, word = student.encode("</think>") + student.encode("\n\n") + student.encode(" so")
    (open_, think, bare), (*_, merged) = teacher.encode("</think>"), teacher.encode("</think>\n\n")
    chances = {
        None: {open_: 0.95, word: 0.05},
        open_: {think: 1.0},
        think: {merged: 0.97, bare: 0.03},
        merged: {word: 1.0},
        bare: {word: 1.0},
    }
    made = decode(
        chain(WIDTH, chances),
        chain(WIDTH, {None: {close: 0.5, word: 0.5}, close: {lines: 0.5, word: 0.5}}),
        [[word]] * 60,
        vocabulary=vocabulary,
        sampling=USUAL,
        acceptance=Acceptance(threshold=0.01, trials=5),
        rows=20,
        block=4,
        max_new_tokens=12,
    )
    tokens = np.concatenate([f.token_ids for f in made.values()])
    by_teacher = np.concatenate([f.from_teacher for f in made.values()])
    accepted = np.concatenate([f.accepted for f in made.values()])
    closed = tokens == close
    assert closed.sum() > 150 and by_teacher[closed].mean() > 0.99
    np.testing.assert_allclose(accepted, 1, atol=1e-5)
    following = np.concatenate([f.token_ids[1:][f.token_ids[:-1] == close] for f in made.values()])
    assert (following == lines).mean() == pytest.approx(0.97, abs=0.04)


PAIRS = [("llama3", "qwen3"), ("qwen3", "llama3"), ("gemma3", "qwen3"), ("qwen3", "gemma3"), ("gptoss", "smollm2")]


def sentences(name: str, vocabulary_width: int) -> tuple[PreTrainedModel, list[int]]:
    """A model that writes some words, blanks, digits, tags and Chinese of its tokenizer's in any order."""
    texts = [
        " The",
        " sum",
        " is",
        " 12",
        "125",
        " x",
        "+",
        "\n\n",
        "  ",
        "</",
        "think",
        ">",
        ">\n",
        "数学",
        "é",
        " 😀",
        ".",
    ]
    ids = sorted({i for text in texts for i in tokenizer(name).encode(text, add_special_tokens=False)})
    return chain(vocabulary_width, {None: dict.fromkeys(ids, 1 / len(ids))}), ids


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_different_real_tokenizers_decode_the_same_however_rows_and_blocks_are_cut(theirs, ours):
    widths = {name: (max(tokenizer(name).get_vocab().values()) // 64 + 1) * 64 for name in (theirs, ours)}
    vocabulary: Vocabulary = meet(
        tokenizer(theirs), tokenizer(ours), teacher_width=widths[theirs], student_width=widths[ours]
    )
    (teacher, _), (student, ids) = sentences(theirs, widths[theirs]), sentences(ours, widths[ours])
    prompts = [[ids[i], ids[-1 - i]] for i in range(6)]
    made = {}
    for rows, block in ((1, 1), (6, 5)):
        made[rows] = decode(
            teacher,
            student,
            prompts,
            vocabulary=vocabulary,
            sampling=USUAL,
            acceptance=Acceptance(threshold=0.001),
            rows=rows,
            block=block,
            max_new_tokens=40,
        )
    for one, batched in zip(made[1].values(), (made[6][i] for i in made[1]), strict=True):
        assert one.token_ids.tolist() == batched.token_ids.tolist() and len(one.token_ids) == 40
        for values in (one.left_out, one.accepted):
            assert np.isfinite(values).all() and (values >= 0).all()
    shares = np.concatenate([f.from_teacher for f in made[1].values()])
    assert shares.mean() > 0.3, "the teacher hardly ever had a proposal that stood"

"""Traces that go on from each of a text's beginnings: one prefill for all, and ends that a request chooses itself."""

import numpy as np
import pytest
from pairs import full_logprobs, random_model, spelled_vocabulary, twin_vocabulary

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Request
from rsd.pair.vocabulary import TeacherContext

TEXT = np.random.default_rng(0).integers(1, 20, 300).tolist()
PLACES = [290, 289, 200, 150, 149, 77, 30, 5, 1]


def engine(teacher, student, vocabulary, *, rows=4, block=None, threshold=1.0, temperature=1.0, eos=()):
    how = {"sampling": Sampling(temperature=temperature, top_p=1.0, top_k=0), "eos": eos, "rows": rows, "block": block}
    return Engine(teacher, student, vocabulary, acceptance=Acceptance(threshold=threshold), **how)


def beginnings(vocabulary, places, *, ends=None, length=12):
    return [
        Request(
            TEXT[:n],
            vocabulary.read(TeacherContext(), TEXT[:n]).ids,
            row_key(0, str(n), 0),
            length,
            tag=n,
            ends=ends,
        )
        for n in places
    ]


@pytest.mark.parametrize("threshold", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("spelled", [False, True])
def test_a_beginning_of_a_text_goes_on_as_it_does_alone(rows, threshold, spelled):
    vocabulary = spelled_vocabulary(24, {22: [7], 23: [1, 2, 3], 5: [4, 4]}) if spelled else twin_vocabulary(24)
    teacher, student = random_model(vocab=22 if spelled else 24, seed=1), random_model(seed=2)
    made = {
        f.request.tag: f
        for f in engine(teacher, student, vocabulary, rows=rows, threshold=threshold).run(
            beginnings(vocabulary, PLACES)
        )
    }
    assert [*sorted(made)] == sorted(PLACES)
    for n, f in made.items():
        (alone,) = engine(teacher, student, vocabulary, rows=1, block=1, threshold=threshold).run(
            beginnings(vocabulary, [n])
        )
        assert f.token_ids.tolist() == alone.token_ids.tolist()
        np.testing.assert_allclose(f.student_logprobs, full_logprobs(student, TEXT[:n], f.token_ids), atol=1e-4)
        np.testing.assert_allclose(f.teacher_logprobs, alone.teacher_logprobs, atol=1e-4)


def test_a_text_is_read_once_for_all_of_its_beginnings():
    teacher, student = random_model(seed=1), random_model(seed=2)
    read = {}
    for name, model in (("teacher", teacher), ("student", student)):
        read[name] = []
        model.register_forward_pre_hook(
            lambda _, __, given, name=name: read[name].append(given["input_ids"].numel()), with_kwargs=True
        )
    vocabulary = twin_vocabulary(24)
    assert len([*engine(teacher, student, vocabulary, block=1).run(beginnings(vocabulary, PLACES, length=2))]) == 9
    for name in read:
        assert sum(n for n in read[name] if n > 4) == PLACES[0] - 1, name


def third(ids):
    """Ends with the third token of those below 12, which it does not keep."""
    low = [i for i, token in enumerate(ids) if token < 12]
    return low[2] if len(low) > 2 else None


@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("block", [None, 1, 4])
def test_a_request_says_itself_where_its_trace_ends(rows, block):
    teacher, student, vocabulary = random_model(seed=1), random_model(seed=2), twin_vocabulary(24)
    eos = (13,)
    whole = {
        f.request.tag: f
        for f in engine(teacher, student, vocabulary, rows=1, block=1, eos=eos).run(beginnings(vocabulary, PLACES))
    }
    made = engine(teacher, student, vocabulary, rows=rows, block=block, eos=eos).run(
        beginnings(vocabulary, PLACES, ends=third)
    )
    reasons = set()
    for f in made:
        ids = whole[f.request.tag].token_ids.tolist()
        keep = third(ids)
        assert f.token_ids.tolist() == ids[:keep]
        assert f.finish_reason == (whole[f.request.tag].finish_reason if keep is None else "cut")
        reasons.add(f.finish_reason)
    assert {"cut", "stop"} <= reasons

"""What the teacher proposes, against brute force over its own text."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from pairs import decode, fits, random_model, spelled_vocabulary, table_model

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.sampling import accept_mask, target, warp

# The teacher has the ids 0 to 4. Two spellings begin alike, one goes on where another ends, one repeats a piece.
SPELLED = {5: [1, 2], 6: [1, 2, 3], 7: [4, 0], 8: [3, 3, 1]}
WIDTH, THEIRS = 9, 5
LONGEST = 3
SAMPLING = Sampling(temperature=2.0, top_p=0.98, top_k=0)


def parse(text):
    """A teacher's text in units: spellings first, the longest one."""
    units, at = [], 0
    by_length = sorted(SPELLED.items(), key=lambda item: -len(item[1]))
    while at < len(text):
        unit = next((u for u, pieces in by_length if list(text[at : at + len(pieces)]) == pieces), text[at])
        units.append(unit)
        at += len(SPELLED.get(unit, [unit]))
    return units


class Oracle:
    """The chance of every next unit, from the chances of all texts that the teacher may go on with."""

    def __init__(self, teacher, prompt, sampling=SAMPLING):
        self.teacher, self.prompt, self.sampling, self.known = teacher, prompt, sampling, {}

    def chances(self, text):
        if text not in self.known:
            with torch.inference_mode():
                logits = self.teacher(torch.tensor([[*self.prompt, *text]])).logits[0, -1].double()
            self.known[text] = warp(logits, self.sampling).double().numpy()
        return self.known[text]

    def next_unit(self, units):
        said = tuple(piece for u in units for piece in SPELLED.get(u, [u]))
        q = np.zeros(WIDTH)
        for more in itertools.product(range(THEIRS), repeat=LONGEST):
            read = parse([*said, *more])
            if read[: len(units)] == list(units):
                q[read[len(units)]] += math.prod(self.chances(said + more[:n])[t] for n, t in enumerate(more))
        return q / q.sum() if q.sum() else None


@functools.cache
def oracle():
    """One for all tests: what it has found of a text it remembers."""
    return Oracle(random_model(vocab=THEIRS, seed=5), [2, 0, 3])


@pytest.mark.parametrize("rows", [15, 200])  # from 16 rows on, a row that needs more columns waits
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("threshold", [0, 0.06])
def test_units_follow_the_teachers_text(threshold, block, rows):
    prompt, traces, student = oracle().prompt, 1200, random_model(vocab=WIDTH, seed=6)
    vocabulary, acceptance = spelled_vocabulary(WIDTH, SPELLED), Acceptance(threshold=threshold, trials=2)
    made = decode(
        oracle().teacher,
        student,
        [prompt] * traces,
        vocabulary=vocabulary,
        sampling=SAMPLING,
        acceptance=acceptance,
        block=block,
        rows=rows,
        max_new_tokens=3,
        seed=block,
    )
    tokens = np.array([f.token_ids for f in made.values()])
    tested = 0
    for n in range(3):
        for before, count in zip(*np.unique(tokens[:, :n], axis=0, return_counts=True), strict=True):
            q = oracle().next_unit(before.tolist())
            if count < 40 or q is None:  # what a student alone would say
                continue
            with torch.inference_mode():
                logits = student(torch.tensor([[*prompt, *before]])).logits[0, -1].double()
            p = warp(logits, SAMPLING)
            stands = accept_mask(logits.log_softmax(-1), p, acceptance, SAMPLING)
            goal = target(torch.tensor(q, dtype=torch.float32), p.float(), stands, acceptance.trials)
            here = (tokens[:, :n] == before).all(1)
            assert fits(tokens[here, n], goal.r.double().numpy()), (before, q)
            shares = [f.accepted[n] for f, mine in zip(made.values(), here, strict=True) if mine]
            np.testing.assert_allclose(shares, float(goal.accepted), atol=1e-4)
            likeliest = [f.proposals[n] for f, mine in zip(made.values(), here, strict=True) if mine]
            assert threshold or set(likeliest) == {int(q.argmax())}  # what cannot stand is not looked up
            tested += 1
    assert tested >= 8 and np.isin(tokens, list(SPELLED)).any(0).all()  # spelled ones at every position


def first_chances(teacher, vocabulary, favourites, *, threshold=0.05):
    """a = q(A) of the first token, where the student gives 0.3 and more to `favourites` and nothing to all others."""
    logits = torch.full((WIDTH, WIDTH), -8.0)
    logits[:, favourites] = 0
    made = decode(
        teacher,
        table_model(logits),
        [[2, 0, 3]],
        vocabulary=vocabulary,
        sampling=SAMPLING,
        acceptance=Acceptance(threshold=threshold),
        max_new_tokens=1,
    )
    return float(made[0].accepted[0])


@pytest.mark.parametrize("favourites", [[5], [6], [5, 7], [8, 0], [5, 1], [6, 3]])
def test_a_units_chance_does_not_hold_that_of_a_longer_one_that_cannot_stand(favourites):
    q = oracle().next_unit([])
    a = first_chances(oracle().teacher, spelled_vocabulary(WIDTH, SPELLED), favourites)
    assert a == pytest.approx(q[favourites].sum(), abs=1e-5)


def test_a_teacher_with_nothing_to_say_leaves_out_nothing():
    # After 1 the teacher says 2 for sure, which makes the unit 5; the student says 1 and nothing else.
    theirs, ours = torch.zeros(THEIRS, THEIRS), torch.full((WIDTH, WIDTH), -60.0)
    theirs[1, 2] = 200.0
    ours[:, 1] = 0
    made = decode(
        table_model(theirs),
        table_model(ours),
        [[2, 0, 3]],
        vocabulary=spelled_vocabulary(WIDTH, {5: [1, 2]}),
        acceptance=Acceptance(threshold=0.05),
        max_new_tokens=8,
    )[0]
    assert made.token_ids.tolist() == [1] * 8 and made.finish_reason == "length"
    for values in (made.left_out, made.accepted):
        assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1 + 1e-6).all()
    assert (made.accepted[1:] == 0).all()


@pytest.mark.parametrize("top_k", [0, 6])
@pytest.mark.parametrize("block", [1, 3])
def test_a_last_piece_may_begin_a_longer_token(block, top_k):
    # The teacher's 5 is its 2 and what the student writes as 3; its 6, its 2 and what the student writes as 4, 0.
    # It hardly ever ends the unit 7 (1, 2) with a bare 2.
    width, theirs, unit = 8, 7, 7
    vocabulary = spelled_vocabulary(width, {unit: [1, 2]})
    vocabulary.merged[2] = {5: (3,), 6: (4, 0)}
    torch.manual_seed(1)
    table = torch.randn(theirs, theirs)
    table[1] = torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0, 2.0, 1.5])
    traces = 6000
    made = decode(
        table_model(table),
        table_model(torch.zeros(width, width)),
        [[0]] * traces,
        vocabulary=vocabulary,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=top_k),
        acceptance=Acceptance(threshold=0),
        block=block,
        rows=200,
        max_new_tokens=3,
    )
    q = table.double()
    if top_k:
        q = torch.where(q < q.topk(top_k).values[:, -1:], -torch.inf, q)
    q = q.softmax(-1).numpy()
    tokens = np.array([f.token_ids for f in made.values()])

    def check(mine, chances):
        assert len(mine) > 100 and fits(mine, chances), (len(mine), chances)

    ends = {(): q[1, 2], (3,): q[1, 5], (4, 0): q[1, 6]}
    closes = sum(ends.values())
    first = np.append(q[0], q[0, 1] * closes)
    first[1] -= first[unit]
    check(tokens[:, 0], first)
    # Behind the unit it is between two tokens, in the midst of its 5 or of its 6.
    second = np.append(q[2], q[2, 1] * closes)
    second[1] -= second[unit]
    second *= ends[()] / closes
    second[3] += ends[3,] / closes
    second[4] += ends[4, 0] / closes
    closed = tokens[tokens[:, 0] == unit]
    check(closed[:, 1], second)
    assert (second[[3, 4]] > 0.2).all()
    # And behind the 4 there, nearly always in the midst of it still.
    third = np.append(q[4], q[4, 1] * closes)
    third[1] -= third[unit]
    begun = ends[()] / closes * q[2, 4]
    third *= begun / second[4]
    third[0] += 1 - begun / second[4]
    check(closed[closed[:, 1] == 4][:, 2], third)
    # Having said 1 and not the unit, it goes on with none of the three.
    other = np.append(np.where(np.isin(range(theirs), [2, 5, 6]), 0, q[1]), q[1, 1] * closes)
    other[1] -= other[unit]
    check(tokens[tokens[:, 0] == 1][:, 1], other / (1 - closes))

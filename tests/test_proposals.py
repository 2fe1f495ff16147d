"""What the teacher proposes, against brute force over its own text."""

import itertools
import math

import numpy as np
import pytest
import torch
from pairs import decode, random_model, spelled_vocabulary
from test_engine import fits

from rsd.config import Acceptance, Sampling
from rsd.sampling import acceptable, target, warp

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

    def __init__(self, teacher, prompt):
        self.teacher, self.prompt, self.known = teacher, prompt, {}

    def chances(self, text):
        if text not in self.known:
            with torch.inference_mode():
                logits = self.teacher(torch.tensor([[*self.prompt, *text]])).logits[0, -1].double()
            self.known[text] = warp(logits, SAMPLING).double().numpy()
        return self.known[text]

    def next_unit(self, units):
        said = tuple(piece for u in units for piece in SPELLED.get(u, [u]))
        q = np.zeros(WIDTH)
        for more in itertools.product(range(THEIRS), repeat=LONGEST):
            read = parse([*said, *more])
            if read[: len(units)] == list(units):
                q[read[len(units)]] += math.prod(self.chances(said + more[:n])[t] for n, t in enumerate(more))
        return q / q.sum() if q.sum() else None


@pytest.mark.parametrize("rows", [15, 24])  # from 16 rows on, a row that needs more columns waits
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("threshold", [0, 0.06])
def test_units_follow_the_teachers_text(threshold, block, rows):
    teacher, student = random_model(vocab=THEIRS, seed=5), random_model(vocab=WIDTH, seed=6)
    vocabulary, acceptance = spelled_vocabulary(WIDTH, SPELLED), Acceptance(threshold=threshold, trials=2)
    prompt, traces = [2, 0, 3], 1200
    made = decode(
        teacher,
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
    oracle, tested = Oracle(teacher, prompt), 0
    for n in range(3):
        for before, count in zip(*np.unique(tokens[:, :n], axis=0, return_counts=True), strict=True):
            q = oracle.next_unit(before.tolist())
            if count < 40 or q is None:  # what a student alone would say
                continue
            with torch.inference_mode():
                logits = student(torch.tensor([[*prompt, *before]])).logits[0, -1].double()
            p = warp(logits, SAMPLING)
            stands = acceptable(logits.log_softmax(-1), p, acceptance, SAMPLING)
            goal = target(torch.tensor(q, dtype=torch.float32), p.float(), stands, acceptance.trials)
            here = (tokens[:, :n] == before).all(1)
            assert fits(tokens[here, n], goal.r.double().numpy()), (before, q)
            shares = [f.accepted[n] for f, mine in zip(made.values(), here, strict=True) if mine]
            np.testing.assert_allclose(shares, float(goal.accepted), atol=1e-4)
            likeliest = [f.proposals[n] for f, mine in zip(made.values(), here, strict=True) if mine]
            assert threshold or set(likeliest) == {int(q.argmax())}  # what cannot stand is not looked up
            tested += 1
    assert tested >= 8 and np.isin(tokens, list(SPELLED)).any(0).all()  # spelled ones at every position

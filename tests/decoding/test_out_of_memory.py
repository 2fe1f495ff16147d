"""A device that has no more room: fewer rows at once, and the same traces."""

import numpy as np
import pytest
import torch
from pairs import decode, random_model, requests, spelled_vocabulary

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine

PROMPTS = [[1 + i % 5, 2 + i % 7] for i in range(12)]


class OutOfMemory:
    """Makes a model fail for lack of memory as long as a condition on the shape of its input holds."""

    def __init__(self, model, condition):
        self.hits, self.condition = 0, condition
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, _, __, given):
        if self.condition(given["input_ids"].shape, int(given["position_ids"].max())):
            self.hits += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(
    ("condition", "rows_left"),
    [
        (lambda shape, last: shape[0] > 3 and last > 20, {2, 3}),  # in the middle of the traces
        (lambda shape, last: shape[0] > 3, {2, 3}),  # from the first prompts on
    ],
)
def test_out_of_memory_halves_the_rows_and_changes_no_trace(side, block, condition, rows_left):
    # Id 23 is spelled in three pieces, so that some rows are interrupted with a pending spelling.
    vocabulary = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]})
    models = [random_model(vocab=22, seed=3), random_model(seed=4)]
    want = decode(*models, PROMPTS, vocabulary=vocabulary, rows=1, max_new_tokens=40)
    short = OutOfMemory(models[side], condition)
    for rows in (12, 8):
        tight = Engine(
            *models,
            vocabulary,
            sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0),
            acceptance=Acceptance(threshold=0.02),
            eos=(),
            rows=rows,
            block=block,
        )
        made = {f.request.tag: f for f in tight.run(requests(PROMPTS, max_new_tokens=40, vocabulary=vocabulary))}
        assert short.hits > 0 and tight.rows in rows_left
        assert sorted(made) == sorted(want)
        for i, f in made.items():
            assert f.error is None and f.token_ids.tolist() == want[i].token_ids.tolist()
            np.testing.assert_allclose(f.student_logprobs, want[i].student_logprobs, atol=1e-4)


def test_a_row_that_does_not_fit_alone_ends_as_an_error():
    teacher, student = random_model(seed=1), random_model(seed=2)
    prompts = [[1, 2], [3] * 40, [4, 5]]
    OutOfMemory(teacher, lambda shape, last: last >= 38)
    made = decode(teacher, student, prompts, rows=4, max_new_tokens=10)
    assert made[1].finish_reason == "error" and "out of memory" in made[1].error and len(made[1].token_ids) == 0
    assert [made[i].finish_reason for i in (0, 2)] == ["length", "length"]


def test_another_error_is_no_lack_of_memory():
    teacher, student = random_model(seed=1), random_model(seed=2)

    def fail(*_):
        raise RuntimeError("another")

    teacher.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="another"):
        decode(teacher, student, [[1, 2, 3]])

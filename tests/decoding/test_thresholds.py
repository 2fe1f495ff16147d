"""a = q(A) at thresholds that a trace was not made by: what an engine with that threshold finds in the same places."""

from dataclasses import replace

import numpy as np
import pytest
from pairs import random_model, spelled_vocabulary
from test_proposals import SPELLED, THEIRS, WIDTH

from rsd import GenerateConfig
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.loading import engine_of, find_pair, load_pair
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Request
from rsd.traces.rows import Row
from rsd.traces.tokens import TOKEN

PROMPTS = (
    "Tom has 34 pens. Tom gives 12 to Ana and then finds 25 more. How many pens does Tom have now?",
    "What is 6 * 7?",
    "Nora is 9 years old. Mia is 4 years older. How old is Mia?",
)
THRESHOLDS = (0.001, 0.03, 0.3)
WHOLE = {"temperature": 1.3, "top_p": 1.0, "top_k": 0}
HOWS = {
    "as it is": {},
    "raw": {"threshold": 0},
    "the student alone": {"threshold": 1},
    "no filter": WHOLE,
    "greedy": {"temperature": 0},
    "what is sampled counts": {"threshold_on": "sampled"},
    "the student's likeliest": {"accept_top_k": 2},
    "another tokenizer": {"teacher": "bundled-llama"},
    "another tokenizer, no filter": {"teacher": "bundled-llama", **WHOLE},
}


class Made:
    """A pair, and what it makes of the prompts, or reads in their place."""

    def __init__(self, config):
        self.config, self.pair = config, find_pair(config)
        self.models = load_pair(self.pair, config, rows=2)

    def run(self, *, given=None, thresholds=(), **other):
        config = replace(self.config, **other)
        engine = engine_of(self.pair, self.models, config, rows=2, thresholds=thresholds)

        def requests():
            for i, text in enumerate(PROMPTS):
                row = Row(id=i, messages=[{"role": "user", "content": text}], columns={})
                prompt = self.pair.render(row, config)
                ids = given[i]["token_ids"].tolist() if given else []
                how = {"key": row_key(0, str(i), 0), "max_new_tokens": len(ids) or 40, "tag": i, "given": ids}
                yield Request(student_prompt=prompt.student, teacher_prompt=prompt.teacher, **how)

        return {one.request.tag: one.tokens for one in engine.run(requests())}


@pytest.mark.parametrize("how", HOWS)
def test_they_are_what_an_engine_of_that_threshold_finds(how):
    made = Made(GenerateConfig(**HOWS[how]))
    plain, told = made.run(), made.run(thresholds=THRESHOLDS)
    for i, tokens in told.items():
        assert tokens["accepted_at"].shape == (len(tokens), len(THRESHOLDS))
        for name in {*TOKEN.names} - {"proposals"}:  # nothing else changes, but that more spellings are looked up
            np.testing.assert_allclose(tokens[name], plain[i][name], atol=1e-4)
    seen = 0.0
    for n, threshold in enumerate(THRESHOLDS):
        read = made.run(given=told, threshold=threshold)
        for i, tokens in told.items():
            np.testing.assert_allclose(tokens["accepted_at"][:, n], read[i]["accepted"], atol=2e-4)
            seen = max(seen, float(np.ptp(tokens["accepted_at"], axis=1).max()))
    assert seen > 0.01  # they differ


@pytest.mark.parametrize("how", ["as it is", "another tokenizer", "no filter"])
def test_they_do_not_depend_on_block_or_on_other_columns(how):
    made = [
        Made(GenerateConfig(**HOWS[how], **other)).run(thresholds=THRESHOLDS)
        for other in ({}, {"block_size": 1}, {"block_size": 5, "top_logprobs": 20})
    ]
    for other in made[1:]:
        for i, tokens in made[0].items():
            np.testing.assert_allclose(other[i]["accepted_at"], tokens["accepted_at"], atol=2e-4)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=2.0, top_p=0.98, top_k=0), Sampling(temperature=2.0, top_k=4)]
)
def test_what_the_teacher_spells_is_looked_up_for_the_lowest_of_them(sampling):
    """Where a spelling could stand at a lower threshold alone, its first piece would else have its probability, too."""
    models = random_model(vocab=THEIRS, seed=5), random_model(vocab=WIDTH, seed=6)
    vocabulary, prompt, lower = spelled_vocabulary(WIDTH, SPELLED), [2, 0, 3], (0.001, 0.02, 0.1)

    def run(threshold, thresholds=(), given=None):
        engine = Engine(
            *models,
            vocabulary,
            sampling=sampling,
            acceptance=Acceptance(threshold=threshold),
            eos=(),
            rows=6,
            thresholds=thresholds,
        )
        asked = [
            Request(
                student_prompt=prompt,
                teacher_prompt=prompt,
                key=row_key(0, str(i), 0),
                max_new_tokens=12,
                tag=i,
                given=given[i]["token_ids"].tolist() if given else (),
            )
            for i in range(12)
        ]
        return {one.request.tag: one.tokens for one in engine.run(asked)}

    told = run(0.3, lower)
    for n, threshold in enumerate(lower):
        read = run(threshold, given=told)
        for i, tokens in told.items():
            np.testing.assert_allclose(tokens["accepted_at"][:, n], read[i]["accepted"], atol=1e-5)

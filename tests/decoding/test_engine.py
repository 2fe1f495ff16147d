"""The engine from the outside: exact log-probs, exact distribution, and the same trace everywhere."""

import itertools
import math

import numpy as np
import pytest
import torch
from pairs import (
    CONFIGS,
    decode,
    fits,
    full_logits,
    full_logprobs,
    random_model,
    requests,
    spelled_vocabulary,
    table_model,
    twin_vocabulary,
)

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import target
from rsd.models.attention import unfold

PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], [9, 9], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 3, 4, 5, 6, 7, 8], [11, 12, 13]]


def test_a_kernel_may_leave_its_columns_before_its_heads():
    # As the memory-efficient attention of a GPU does: [rows, columns, heads, size] in memory.
    for heads, kept, width in ((4, 2, 1), (14, 2, 3), (32, 8, 2), (4, 4, 5)):
        groups = heads // kept
        out = torch.randn(3, groups * width, kept, 6).transpose(1, 2)
        made = unfold(out, heads, width)
        for head in range(heads):
            first = head % groups * width
            assert made[:, head].equal(out[:, head // groups, first : first + width])


MIXED = [("gemma3", "llama"), ("qwen3_moe", "gemma2"), ("gpt_oss", "qwen3")]


@pytest.mark.parametrize(("kind", "students"), [*zip(CONFIGS, CONFIGS, strict=True), *MIXED])
@pytest.mark.parametrize("block", [1, 5])
def test_recorded_logprobs_equal_a_full_forward(kind, students, block):
    # Two rows at a time and unequal lengths: slots are refilled, moved, and (in blocks) most drafts of
    # this disagreeing pair are wrong and get written over.
    teacher, student = random_model(kind, layers=3, seed=1), random_model(students, seed=2)
    endless = decode(teacher, student, PROMPTS, rows=2, block=block, max_new_tokens=20)
    eos = {int(endless[0].token_ids[15]), int(endless[1].token_ids[9])}
    made = decode(teacher, student, PROMPTS, rows=2, block=block, eos=tuple(eos), max_new_tokens=20)
    assert sorted(made) == list(range(len(PROMPTS)))
    for i, f in made.items():
        whole = endless[i].token_ids.tolist()
        end = next((n for n, token in enumerate(whole, 1) if token in eos), None)
        assert f.token_ids.tolist() == whole[:end]
        assert f.finish_reason == ("stop" if end else "length")
    for i, f in [*endless.items(), *made.items()]:
        for model, logprobs in ((teacher, f.teacher_logprobs), (student, f.student_logprobs)):
            np.testing.assert_allclose(logprobs, full_logprobs(model, PROMPTS[i], f.token_ids), atol=1e-4)
        assert f.proposals.tolist() == full_logits(teacher, PROMPTS[i], f.token_ids).argmax(-1).tolist()


@pytest.mark.parametrize("rows", [3, 20])  # from 16 rows on, a row waits while the teacher reads a spelling
@pytest.mark.parametrize("block", [1, 2, 4])
def test_contexts_of_unequal_length(block, rows):
    # Ids 22 and 23 are the student's alone; the teacher, which has 20 ids, spells them.
    vocabulary = spelled_vocabulary(24, {20: [5], 21: [3, 4], 22: [7], 23: [1, 2, 3]})
    teacher, student = random_model(vocab=20, seed=3), random_model(seed=4)
    prompts = [[*p, 23, 2] for p in PROMPTS * 3] + [[4, 23], [21]]
    made = decode(teacher, student, prompts, vocabulary=vocabulary, rows=rows, block=block, max_new_tokens=40)
    alone = decode(teacher, student, prompts, vocabulary=vocabulary, rows=7, max_new_tokens=40)
    spelled = 0
    for i, f in made.items():
        assert f.token_ids.tolist() == alone[i].token_ids.tolist()
        np.testing.assert_allclose(f.student_logprobs, full_logprobs(student, prompts[i], f.token_ids), atol=1e-4)
        for t, token in enumerate(f.token_ids.tolist()):
            context = vocabulary.for_teacher([*prompts[i], *f.token_ids[:t].tolist()])
            if token >= 20:
                spelled += 1
                assert np.isnan(f.teacher_logprobs[t])
            else:
                want = full_logprobs(teacher, context, [token])[0]
                assert f.teacher_logprobs[t] == pytest.approx(want, abs=1e-4)
    assert spelled > 10


@pytest.mark.parametrize("length", [3, 2100])
def test_a_prompt_is_read_once_for_all_its_generations(length):
    # 20 prompts of three requests each: more than one group that is read together.
    teacher, student = random_model(seed=1), random_model(seed=2)
    for model in (teacher, student):
        model.config.max_position_embeddings = 4096
    count = 20 if length < 10 else 3
    prompts = [[1 + i, *[2] * length] for i in range(count) for _ in range(3)]
    read = []
    student.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].shape), with_kwargs=True)
    decode(teacher, student, prompts, rows=2, max_new_tokens=2)
    # A prefill has several columns, and a pass of at most 512 of them.
    passes = [rows for rows, columns in read if columns > 1]
    assert sum(passes) == count * -(-length // 512)


def test_of_countless_requests_few_are_taken_before_the_first_ends():
    taken = itertools.count()
    vocabulary = twin_vocabulary(24)
    endless = (
        requests([[1, 2, 3]], max_new_tokens=2, vocabulary=vocabulary)[0] for _ in iter(lambda: next(taken), 10**5)
    )
    how = {"sampling": Sampling(), "acceptance": Acceptance(), "eos": (), "rows": 2, "block": 1}
    made = Engine(random_model(seed=1), random_model(seed=2), vocabulary, **how).run(endless)
    assert len([next(made) for _ in range(3)]) == 3 and next(taken) < 1000


def test_a_long_prompt_is_read_in_pieces():
    teacher, student = random_model(seed=1), random_model(seed=2)
    for model in (teacher, student):
        model.config.max_position_embeddings = 4096
    prompts = [list(np.random.default_rng(0).integers(0, 24, n).tolist()) for n in (1300, 5, 700)]
    made = decode(teacher, student, prompts, max_new_tokens=6)
    for i, f in made.items():
        np.testing.assert_allclose(f.teacher_logprobs, full_logprobs(teacher, prompts[i], f.token_ids), atol=1e-4)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("trials", [1, 5, math.inf])
@pytest.mark.parametrize("threshold", [0, 0.05, 1])
def test_a_trace_depends_on_its_row_alone(greedy, trials, threshold):
    teacher, student = random_model(seed=1), random_model(seed=2)
    sampling = Sampling(temperature=0 if greedy else 0.9, top_p=0.95, top_k=8)
    acceptance = Acceptance(threshold=threshold, trials=trials)
    kwargs = {"sampling": sampling, "acceptance": acceptance, "eos": (0,)}
    together = decode(teacher, student, PROMPTS, rows=8, **kwargs)
    variants = [
        decode(teacher, student, PROMPTS, rows=1, **kwargs),
        decode(teacher, student, PROMPTS, rows=3, block=4, **kwargs),
        decode(teacher, student, PROMPTS, rows=8, block=7, **kwargs),
    ]
    for other in variants:
        for i, f in together.items():
            assert f.token_ids.tolist() == other[i].token_ids.tolist()
            assert f.from_teacher.tolist() == other[i].from_teacher.tolist()
            assert f.finish_reason == other[i].finish_reason


def test_the_seed_and_the_row_decide():
    teacher, student = random_model(seed=1), random_model(seed=2)
    one = decode(teacher, student, [[1]] * 4, seed=1)
    other = decode(teacher, student, [[1]] * 4, seed=2)
    assert len({tuple(f.token_ids) for f in [*one.values(), *other.values()]}) == 8


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("trials", [1, 5, math.inf])
def test_tokens_follow_r(trials, block):
    # 4,000 traces of a table-lookup pair: the second token given the first is distributed as r.
    torch.manual_seed(0)
    tables = torch.randn(2, 6, 6) * 1.5
    teacher, student = table_model(tables[0]), table_model(tables[1])
    made = decode(
        teacher,
        student,
        [[2]] * 4000,
        acceptance=Acceptance(threshold=0.12, trials=trials),
        rows=500,
        block=block,
        max_new_tokens=3,
    )
    tokens = np.array([f.token_ids for f in made.values()])
    q, p = tables.softmax(-1)
    r = target(q, p, (p >= 0.12).float(), trials).r.double().numpy()
    assert fits(tokens[:, 0], r[2])
    for first in range(6):
        seconds = tokens[tokens[:, 0] == first, 1]
        if len(seconds) > 300:
            assert fits(seconds, r[first])


def test_labels_add_up_to_their_posterior():
    torch.manual_seed(1)
    tables = torch.randn(2, 6, 6)
    made = decode(
        table_model(tables[0]),
        table_model(tables[1]),
        [[2]] * 800,
        acceptance=Acceptance(threshold=0.15, trials=1),
        rows=400,
        max_new_tokens=20,
    )
    q, p = tables.softmax(-1)
    goal = target(q, p, (p >= 0.15).float(), 1)
    posterior = (goal.by_teacher / goal.r).numpy()
    mean, variance, labels = 0.0, 0.0, 0
    for f in made.values():
        before = [2, *f.token_ids[:-1].tolist()]
        chance = posterior[before, f.token_ids]
        mean, variance = mean + chance.sum(), variance + (chance * (1 - chance)).sum()
        labels += f.from_teacher.sum()
    assert variance > 1000
    assert abs(labels - mean) < 4 * variance**0.5


@pytest.mark.parametrize(
    ("teacher", "student", "threshold", "accepted"),
    [
        ([8.0, 0, 0, 0], [8.0, 0, 0, 0], 0.01, "always"),
        ([40.0, 0, 0, 0], [0, 40.0, 0, 0], 0.01, "never"),
        ([1.0, 1, 0, 0], [2.0, 0, 0, 0], 0.2, "sometimes"),
    ],
)
def test_constant_logits(teacher, student, threshold, accepted):
    made = decode(
        table_model(torch.tensor([teacher] * 4)),
        table_model(torch.tensor([student] * 4)),
        [[3]] * 50,
        acceptance=Acceptance(threshold=threshold, trials=1),
    )
    share = np.mean([f.from_teacher.mean() for f in made.values()])
    a = np.mean([f.accepted.mean() for f in made.values()])
    if accepted == "always":
        assert share > 0.99 and a > 0.99
    elif accepted == "never":
        assert share == 0 and a < 1e-6
        assert all((f.token_ids == 1).all() for f in made.values())
    else:
        assert a == pytest.approx(float(torch.tensor(teacher).softmax(-1)[0]), abs=1e-5)
        assert share == pytest.approx(a, abs=0.05)


def test_every_proposal_of_the_teacher_reaches_the_threshold():
    teacher, student = random_model(seed=5), random_model(seed=6)
    made = decode(teacher, student, PROMPTS * 4, acceptance=Acceptance(threshold=0.05), rows=8, max_new_tokens=60)
    taken = 0
    for i, f in made.items():
        logprobs = full_logprobs(student, (PROMPTS * 4)[i], f.token_ids)
        assert (logprobs[f.from_teacher] >= math.log(0.05) - 1e-4).all()
        taken += f.from_teacher.sum()
    assert taken > 50


def test_extreme_thresholds_are_the_models_alone():
    teacher, student = random_model(seed=5), random_model(seed=6)
    greedy = Sampling(temperature=0, top_p=1, top_k=0)
    for threshold, model in ((0, teacher), (1, student)):
        made = decode(teacher, student, PROMPTS, sampling=greedy, acceptance=Acceptance(threshold=threshold))
        for i, f in made.items():
            ids = torch.tensor([PROMPTS[i]])
            want = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            assert f.token_ids.tolist() == want.tolist()
            assert f.from_teacher.all() if threshold == 0 else not f.from_teacher.any()


@pytest.mark.parametrize("at_once", [1, 16])  # alone, a prompt of one token leaves nothing read
def test_a_broken_row_harms_no_other(at_once, monkeypatch):
    # Reading token 7 gives NaN; the slot of a broken row is refilled, and its NaN must not leak.
    monkeypatch.setattr("rsd.decoding.engine.AT_ONCE", at_once)
    table = torch.zeros(8, 8)
    table[:, 7] = -50.0
    sound, broken = table_model(table), table_model(table)
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = torch.nan
    # The second row breaks with NaN in slots 3 to 5, and [4] takes its place beside a row that is longer.
    prompts = [[1, 2, 3, 4, 5, 6], [2, 3, 1, 7, 7, 7], [4], [7], [5], [7, 3, 7], [6, 6, 6], [1, 2], [3]]
    made = decode(broken, sound, prompts, rows=2, max_new_tokens=6)
    alone = decode(sound, sound, prompts, rows=1, max_new_tokens=6)
    for i, prompt in enumerate(prompts):
        if 7 in prompt:
            assert made[i].error and len(made[i].token_ids) == 0
            continue
        assert made[i].error is None
        assert np.isfinite(made[i].teacher_logprobs).all()
        assert made[i].token_ids.tolist() == alone[i].token_ids.tolist()


def test_the_teachers_context_ends_a_trace():
    # The teacher's context fills first, since it spells a token in three pieces.
    vocabulary = spelled_vocabulary(8, {7: [1, 2, 3]})
    teacher, student = random_model(vocab=8, seed=1), table_model(torch.eye(8)[torch.full((8,), 7)] * 50)
    teacher.config.max_position_embeddings = 20
    for block, rows in ((1, 1), (4, 1), (1, 17), (2, 17), (4, 17)):
        made = decode(
            teacher,
            student,
            [[1, 2]] * rows,
            rows=rows,
            vocabulary=vocabulary,
            acceptance=Acceptance(threshold=1),
            block=block,
            max_new_tokens=100,
        )
        assert {f.finish_reason for f in made.values()} == {"length"}
        assert {len(f.token_ids) for f in made.values()} == {
            7
        }  # 2 for the prompt, then six tokens of three pieces read


def test_recurrent_models_are_refused_by_name():
    model = random_model()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="qwen3 has linear_attention layers"):
        decode(model, random_model(), [[1]], vocabulary=twin_vocabulary(24))

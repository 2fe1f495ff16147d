"""Blocks: the same traces as lockstep, the same distribution, and a length that pays."""

import itertools
import math

import numpy as np
import pytest
import torch
from pairs import decode, proposed, random_model, requests, spelled_vocabulary, twin_vocabulary
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, GPT2Config

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.block_size import BlockController
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import accept_mask, row_key, target, warp
from rsd.decoding.sequence import Request
from rsd.models.bundled import bundled
from rsd.models.packed import PackedLinear, pack
from rsd.traces.readers import read_rows

SETTINGS = [
    (temperature, threshold, trials, *filters)
    for i, (temperature, threshold, trials) in enumerate(
        itertools.product([0, 0.7, 1.0], [0, 0.01, 0.1, 1], [1, 5, math.inf])
    )
    for filters in [[(0.95, 20), (1.0, 0), (0.8, 0), (1.0, 5)][i % 4]]
]


@pytest.fixture(scope="module")
def pair():
    """The bundled pair, loaded once."""
    return TraceGenerator(GenerateConfig()).load()


def engine(pair, *, rows, block, sampling=None, acceptance=None, **kwargs):
    found = pair.find()
    return Engine(
        pair._engine.teacher.model.model,
        pair._engine.student.model,
        found.vocabulary,
        sampling=sampling or found.sampling,
        acceptance=acceptance or Acceptance(),
        eos=found.student.eos,
        rows=rows,
        block=block,
        **kwargs,
    )


def bundled_requests(pair, count, *, max_new_tokens=48):
    rows = [
        (row, pair.find().render(row, pair.config))
        for row in pair.prepare(read_rows(bundled("problems.jsonl"))[:count])
    ]
    return [
        Request(p.student, p.teacher, key=row_key(0, str(row.id), 0), max_new_tokens=max_new_tokens, tag=row.id)
        for row, p in rows
    ]


@pytest.mark.parametrize(("temperature", "threshold", "trials", "top_p", "top_k"), SETTINGS)
def test_a_trace_is_the_same_for_every_block_batch_and_order(pair, temperature, threshold, trials, top_p, top_k):
    settings = {
        "sampling": Sampling(temperature=temperature, top_p=top_p, top_k=top_k),
        "acceptance": Acceptance(threshold=threshold, trials=trials),
    }
    todo = bundled_requests(pair, 6 if threshold else 3)  # raw traces are long
    want = {f.request.tag: f for f in engine(pair, rows=6, block=1, **settings).run(todo)}
    variants = [(1, 8, todo), (3, 2, todo[::-1]), (6, 5, todo[3:] + todo[:3]), (17, 16, todo), (4, None, todo)]
    first = SETTINGS.index((temperature, threshold, trials, top_p, top_k))
    for rows, block, order in (variants[(first + i) % 5] for i in range(3)):  # three of them with each of the settings
        made = list(engine(pair, rows=rows, block=block, **settings).run(order))
        assert len(made) == len(todo)
        for f in made:
            lockstep = want[f.request.tag]
            assert f.token_ids.tolist() == lockstep.token_ids.tolist()
            assert f.from_teacher.tolist() == lockstep.from_teacher.tolist()
            assert f.finish_reason == lockstep.finish_reason
            np.testing.assert_allclose(f.teacher_logprobs, lockstep.teacher_logprobs, atol=1e-3)
            np.testing.assert_allclose(f.accepted, lockstep.accepted, atol=1e-3)


@pytest.mark.parametrize("count", [5_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_traces_of_blocks_and_of_lockstep_follow_r(pair, count):
    # In the middle of a question, where neither model knows how it goes on (b is 0.6): the first token
    # against r, and the second against r after the commonest first one.
    teacher, student = pair._engine.teacher.model.model, pair._engine.student.model
    vocabulary = pair.find().vocabulary
    sampling, acceptance = Sampling(temperature=1.3, top_p=0.98, top_k=40), Acceptance(threshold=0.02, trials=2)
    prompt = bundled_requests(pair, 2)[1].student_prompt[:9]
    exact = {}

    def r(after):
        if after not in exact:
            ours = [*prompt, *after]
            with torch.inference_mode():
                logits = student(torch.tensor([ours])).logits[0, -1].double()
                theirs = teacher(torch.tensor([vocabulary.for_teacher(ours)])).logits[0, -1].double()
            p = warp(logits + vocabulary.own, sampling)
            stands = accept_mask(logits.log_softmax(-1), p, acceptance, sampling)
            q = proposed(theirs, vocabulary, sampling)
            exact[after] = target(q, p, stands, acceptance.trials).r.double().numpy()
        return exact[after]

    for rows, block in ((1000, 4), (1000, 1)):
        todo = [
            Request(prompt, vocabulary.for_teacher(prompt), row_key(block, str(i), 0), max_new_tokens=2)
            for i in range(count)
        ]
        made = engine(pair, rows=rows, block=block, sampling=sampling, acceptance=acceptance).run(todo)
        tokens = np.array([[*f.token_ids, -1][:2] for f in made])
        assert len(tokens) == count
        first = np.bincount(tokens[:, 0]).argmax()
        for seen, want in ((tokens[:, 0], r(())), (tokens[tokens[:, 0] == first, 1], r((int(first),)))):
            counts = np.bincount(seen, minlength=len(want))
            assert counts[want == 0].sum() == 0
            expected = len(seen) * want / want.sum()
            many = expected >= 5  # the rest is one cell
            cells = [*counts[many], counts[~many].sum()], [*expected[many], expected[~many].sum()]
            assert many.sum() > 10 and len(seen) > 1000
            cells = [c[:-1] if cells[1][-1] == 0 else c for c in cells]
            assert chisquare(*cells).pvalue > 0.001


def test_a_finished_row_is_refilled_at_once():
    # One long trace and sixteen short ones on two rows: the short ones pass through the other slot.
    model, vocabulary = random_model(), twin_vocabulary(24)
    lengths = [64] + [4] * 16
    todo = [Request([1], [1], key=i, max_new_tokens=n) for i, n in enumerate(lengths)]
    settings = {"sampling": Sampling(), "acceptance": Acceptance(), "eos": (), "rows": 2}
    lockstep = Engine(model, model, vocabulary, block=1, **settings)
    assert sorted(len(f.token_ids) for f in lockstep.run(todo)) == sorted(lengths)
    assert lockstep.blocks.statistics()["rounds"] == 64


def test_caches_grow_with_the_traces():
    model, vocabulary = random_model(), twin_vocabulary(24)
    made = Engine(model, model, vocabulary, sampling=Sampling(), acceptance=Acceptance(), eos=(), rows=2)
    for tokens, slots in ((30, 256), (300, 512)):
        for _ in made.run([Request([1], [1], key=1, max_new_tokens=tokens)]):
            assert set(made.teacher.model.cache.pools) == set(made.student.cache.pools) == {slots}
        assert not made.student.cache.held()


PROMPTS = [[1 + i % 5, 2 + i % 7] for i in range(12)]


class AnyChoice(BlockController):
    """Looks up, drafts and asks as chance will have it, never what would pay."""

    def __init__(self, seed):
        super().__init__()
        self.random, self.found, self.uneven = np.random.default_rng(seed), 0, 0

    def look_up(self, rows, streak):
        self.found += 1
        return int(self.random.integers(0, 9))

    def chance_looked_up(self, sure, uniform):
        return self.random.random(len(sure)) * 2  # mostly it is taken before the student's own draft

    def most(self):
        return int(self.random.integers(1, 9))

    def plan(self, rows):
        return self.most()

    def goes_on(self, reach):
        return bool(self.random.random() < 0.8)

    def counts(self, reach):
        counts = np.maximum(self.random.integers(1, 9, len(reach)) * (reach > 0).sum(1) // 8, 1)
        self.uneven += len(set(counts)) > 1
        return counts


def with_choices(made, blocks):
    made.blocks = made.rounds.blocks = blocks
    return made


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])  # a pass without padding, and one with
@pytest.mark.parametrize("loop", [False, True])
def test_a_trace_is_the_same_whatever_is_drafted_looked_up_and_asked_for(temperature, kind, loop):
    # Ids 22 and 23 are spelled in pieces, so that the teacher's columns are other ones than the drafts.
    vocabulary = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]})
    teacher, student = random_model(kind, vocab=22, seed=3), random_model(kind, seed=4)
    settings = {
        "sampling": Sampling(temperature=temperature, top_p=0.9, top_k=5),
        "acceptance": Acceptance(threshold=0.05),
        "eos": (0,),
    }
    # Few tokens and peaked models: a trace soon goes as it did before. Some teachers have read another trace already.
    prompts = [*PROMPTS[:5], *([1, 2, 3, 4, 5] * 3 for _ in range(3))]
    todo = requests(prompts, max_new_tokens=40, vocabulary=vocabulary)
    lockstep = Engine(teacher, student, vocabulary, rows=4, block=1, **settings)
    want = {f.request.tag: f for f in lockstep.run(todo)}
    seen = {"found": 0, "uneven": 0}
    for seed in range(3):
        run = Engine(teacher, student, vocabulary, rows=4, **settings)
        with_choices(run, AnyChoice(seed))
        if loop:
            run.rounds.loop = DraftLoop(run.rounds.student.step, run.student, capture=False)
        made = {f.request.tag: f for f in run.run(todo)}
        assert made.keys() == want.keys()
        for i, f in made.items():
            assert f.token_ids.tolist() == want[i].token_ids.tolist()
            assert f.from_teacher.tolist() == want[i].from_teacher.tolist()
            np.testing.assert_allclose(f.teacher_logprobs, want[i].teacher_logprobs, atol=1e-3)
            np.testing.assert_allclose(f.student_logprobs, want[i].student_logprobs, atol=1e-3)
        seen["found"] += run.blocks.found
        seen["uneven"] += run.blocks.uneven
    assert seen["found"] > 20 and seen["uneven"] > 20


@pytest.mark.parametrize("top_k", [0, 6])
def test_a_token_that_was_looked_up_stands_as_often_as_r_has_it(top_k):
    # The teacher has read what the student is to say; the student knows nothing of it.
    vocabulary, text = twin_vocabulary(24), [5, 9, 3, 7, 11, 2]
    teacher, student = random_model(seed=1), random_model(seed=2)
    settings = {
        "sampling": Sampling(temperature=1.0, top_p=1.0, top_k=top_k),
        "acceptance": Acceptance(threshold=0.02),
        "eos": (),
    }
    found = {}
    for choices in (None, AnyChoice(0)):
        run = Engine(teacher, student, vocabulary, rows=100, block=1 if choices is None else None, **settings)
        if choices:
            with_choices(run, choices)
        todo = [Request(text[:4], [*text, 4, *text[:4]], row_key(1, str(i), 0), max_new_tokens=2) for i in range(4000)]
        found[choices is None] = {f.request.key: f.token_ids.tolist() for f in run.run(todo)}
        if choices:
            assert choices.found >= 4000
    assert found[True] == found[False]
    first = np.array([ids[0] for ids in found[False].values()])
    ours = student(torch.tensor([text[:4]])).logits[0, -1].double()
    theirs = teacher(torch.tensor([[*text, 4, *text[:4]]])).logits[0, -1].double()
    p, q = warp(ours, settings["sampling"]), warp(theirs, settings["sampling"])
    stands = accept_mask(ours.log_softmax(-1), p, settings["acceptance"], settings["sampling"])
    r = target(q.double(), p.double(), stands.double(), settings["acceptance"].trials).r.detach().numpy()
    counts = np.bincount(first, minlength=24)
    many = r * len(first) >= 5
    cells = [[*x[many], x[~many].sum()] for x in (counts, len(first) * r / r.sum())]
    cells = [c[:-1] if cells[1][-1] == 0 else c for c in cells]
    assert chisquare(*cells).pvalue > 0.001


def test_the_books_add_up(pair):
    todo = bundled_requests(pair, 12)
    for block in (1, 6, None):
        run = engine(pair, rows=4, block=block)
        made = list(run.run(todo))
        books = run.blocks.statistics()
        assert books["tokens"] == sum(len(f.token_ids) for f in made)
        assert books["rounds"] == sum(books["block_sizes"].values())
        if block is not None:
            assert set(books["block_sizes"]) == {str(block)}
            assert len(books["drafts_judged"]) == block
        assert books["drafts_judged"][0] <= books["row_rounds"] <= books["rounds"] * 4
        # Every committed token is a draft that was judged: it survived, or was replaced.
        assert sum(books["drafts_judged"]) == books["tokens"]
        for judged, survived, following in itertools.zip_longest(
            books["drafts_judged"], books["drafts_survived"], books["drafts_judged"][1:], fillvalue=0
        ):
            assert following <= survived <= judged


@pytest.mark.parametrize("block", [1, 3])
def test_the_loop_that_a_gpu_captures_drafts_the_same(block):
    # Its steps run one by one here, in the same tensors at fixed addresses, over a cache that grows.
    teacher, student = random_model(seed=1), random_model(seed=2)
    vocabulary = twin_vocabulary(24)
    settings = {"sampling": Sampling(top_k=6), "acceptance": Acceptance(), "eos": (0,), "rows": 5, "block": block}
    todo = requests(PROMPTS, max_new_tokens=280, vocabulary=vocabulary)
    eager, fixed = (Engine(teacher, student, vocabulary, **settings) for _ in range(2))
    fixed.rounds.loop = DraftLoop(fixed.rounds.student.step, fixed.student, capture=False)
    want = {f.request.tag: f.token_ids.tolist() for f in eager.run(todo)}
    assert {f.request.tag: f.token_ids.tolist() for f in fixed.run(todo)} == want
    assert max(map(len, want.values())) > 256


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_packed_layers_compute_the_same(kind):
    plain, packed = (random_model(kind, vocab=4000) for _ in range(2))
    big = torch.nn.Linear(300, 200)
    assert torch.allclose(PackedLinear(big)(x := torch.randn(3, 5, 300)), big(x), atol=1e-5)
    pack(packed)
    assert isinstance(packed.lm_head, PackedLinear) == torch.backends.mkldnn.is_available()
    assert not isinstance(packed.model.layers[0].mlp.up_proj, PackedLinear)
    ids = torch.randint(2000, (2, 9))
    with torch.inference_mode():
        np.testing.assert_allclose(packed(ids).logits, plain(ids).logits, atol=1e-4)


@pytest.mark.slow
def test_compiled_traces_are_the_eager_ones():
    teacher, student = random_model(seed=1), random_model(seed=2)
    want = decode(teacher, student, PROMPTS, rows=3, max_new_tokens=12)
    made = decode(teacher, student, PROMPTS, rows=3, block=3, max_new_tokens=12, compile=True)
    for i, f in made.items():
        assert f.token_ids.tolist() == want[i].token_ids.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_makes_the_traces_of_the_cpu(compile):
    teacher, student = random_model(seed=1), random_model(seed=2)
    want = decode(teacher, student, PROMPTS, rows=3, max_new_tokens=24)
    for block in (1, 4, None):
        made = decode(teacher.cuda(), student.cuda(), PROMPTS, rows=3, block=block, max_new_tokens=24, compile=compile)
        for i, f in made.items():
            assert f.token_ids.tolist() == want[i].token_ids.tolist()


@pytest.mark.parametrize("block", [1, 5])
def test_blocks_may_reach_past_a_learned_position(block):
    # GPT-2 has a table of 32 positions; a trace that fills them ends in the middle of a block.
    def gpt2(seed):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=24, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    made = decode(gpt2(1), gpt2(2), [[1, 2], [3, 4, 5]], block=block, max_new_tokens=30)
    want = decode(gpt2(1), gpt2(2), [[1, 2], [3, 4, 5]], rows=1, max_new_tokens=30)
    for i, f in made.items():
        assert f.token_ids.tolist() == want[i].token_ids.tolist()
    assert [len(made[i].token_ids) for i in (0, 1)] == [30, 30]

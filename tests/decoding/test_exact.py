"""A served teacher's distribution on the tokens that may stand: that of the teacher at hand, where it can be."""

import asyncio
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairs import twin_vocabulary
from scipy.stats import chisquare
from stub import Stub
from test_served import ROWS, SHORT, assert_same, command, config, stub, traces  # noqa: F401 (fixtures)

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding import listed
from rsd.decoding.exact import Matter, with_exact
from rsd.decoding.proposals import Proposals
from rsd.decoding.sampling import accept_mask, target, warp
from rsd.decoding.served_teacher import ServedTeacher
from rsd.decoding.teacher import TokenTree, here
from rsd.models.bundled import bundled
from rsd.pair.vocabulary import TeacherContext
from rsd.serving.client import Client
from rsd.serving.completions import Completions, packed
from rsd.serving.told import TOP, Asked, Chain, Told

FLAT = {"temperature": 1.5, "top_p": 0.99, "top_k": 0}  # so flat that lists settle little
MODES = {"processed_logprobs": "processed", "raw_logprobs": "raw"}


@pytest.fixture(scope="module")
def server():
    with Stub(bundled("teacher"), name="teacher") as one:
        one.contexts = [11, 22, 33, 44, 55]  # of no meaning: nothing is likely there
        one.drafts = [66, 7, 300, 120]
        rows = [[*one.contexts, *one.drafts[:n]] for n in range(len(one.drafts))]
        with torch.inference_mode():
            one.truth = one.logits(rows)
        yield one


def read(server, sampling, ids, mode):
    """q [K, V] before drafts, as far as `ids` of each are concerned, and what was counted; by a server of this mode."""
    server.logprobs_mode = mode
    width = server.truth.shape[-1]
    vocabulary, client = twin_vocabulary(width), Client(f"{server.url}/v1")
    api = Completions(client, "teacher", width=width, by_ids=MODES[mode])
    how = listed.mode_of(sampling, Acceptance(threshold=0.01), by_ids=MODES[mode])
    teacher = ServedTeacher(client, api, sampling=sampling, mode=how, width=width, context=100)
    tree = TokenTree(vocabulary, TeacherContext(server.contexts), server.drafts)
    tree.matter = lambda draft: ids[draft]
    (output,) = here(teacher.read([tree]))
    pool, rest = with_exact(
        Proposals(vocabulary, sampling, torch.device("cpu")).pool(output.logits), output.exact, np.arange(4)
    )
    masses = pool.masses
    if pool.ids is not None:
        masses = torch.zeros(4, width, dtype=masses.dtype).scatter_add_(-1, pool.ids, masses)
    return masses / (masses.sum(-1) + (0 if rest is None else rest))[:, None], teacher


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 0.2, 0.7, 1, 1.3, 2.5]) | st.floats(0.05, 3),
    top_p=st.sampled_from([1, 0.95, 0.5, 0.999]) | st.floats(0.01, 1),
    top_k=st.sampled_from([0, 1, 20, 21, 60, 831, 832, 5000]),
)


@settings(max_examples=60, deadline=None)
@given(sampling=SAMPLINGS, threshold=st.floats(0.002, 0.5), student=st.integers(0, 99), steep=st.floats(0.5, 4))
def test_q_on_a_is_that_of_the_teacher_at_hand(server, sampling, threshold, student, steep):
    generator = torch.Generator().manual_seed(student)
    p = (torch.randn(server.truth.shape, generator=generator) * steep + server.truth / 2).softmax(-1)
    ids = [(row >= threshold).nonzero()[:, 0].tolist() for row in p]
    q, teacher = read(server, sampling, ids, "processed_logprobs")
    want = warp(server.truth, sampling)
    # Where top-p's end is a tie but for rounding, either is right.
    assume(sampling.top_p == 1 or sampling.temperature == 0 or _clear(server.truth, sampling))
    assert teacher.counts["renormalised"] == 0
    for mine, theirs, some in zip(q, want, ids, strict=True):
        np.testing.assert_allclose(mine[some], theirs[some], atol=1e-5)
        assert int(mine.argmax()) == int(theirs.argmax())


def _clear(logits, sampling):
    """Whether what top-p drops is no matter of rounding."""
    kept = torch.full_like(logits, -torch.inf)
    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    values, ids = logits.topk(k)
    probs = (kept.scatter(-1, ids, values).double() / sampling.temperature).softmax(-1)
    before = probs.sort(descending=True).values.cumsum(-1)
    return bool(((before - sampling.top_p).abs() > 1e-5).all())


@settings(max_examples=40, deadline=None)
@given(sampling=SAMPLINGS)
def test_what_a_list_settles_is_so_without_the_rest(server, sampling):
    assume(sampling.temperature == 0 or sampling.top_p == 1 or _clear(server.truth, sampling))
    logprobs = server.truth.double().log_softmax(-1)
    values, ids = logprobs.topk(TOP)
    told = [Told(i, v) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    lists = listed.read(told, sampling, width=logprobs.shape[-1])
    want = warp(server.truth, sampling).double()
    mine = warp(torch.full_like(server.truth, -torch.inf).scatter(-1, ids, values.float()), sampling)
    top = want.max(-1).values.numpy()
    if sampling.temperature:
        assert (lists.least <= top + 1e-5).all() and (lists.most >= top - 1e-5).all()
    for n in range(len(told)):
        if lists.settled[n]:
            np.testing.assert_allclose(mine[n], want[n], atol=2e-6)
    if 0 < sampling.top_k <= TOP or sampling.temperature == 0:
        assert lists.settled.all()


def test_lists_of_a_teacher_that_is_sure_settle_what_it_says(server):
    sure = Told(list(range(TOP)), [math.log1p(-1e-6), *[math.log(1e-6 / TOP)] * (TOP - 1)])
    flat = Told(list(range(TOP)), [math.log(0.03)] * TOP)
    lists = listed.read([sure, flat], Sampling(temperature=0.7, top_p=0.95, top_k=0), width=150_000)
    assert lists.settled.tolist() == [True, False]


def test_renormalised_is_said_and_counted(server):
    ids = [[3, 4, 5]] * 4
    _, teacher = read(server, Sampling(**FLAT), ids, "raw_logprobs")
    assert teacher.mode == "top-20 renormalised"
    assert teacher.counts == {"settled": 0, "by_ids": 0, "renormalised": 4}
    _, teacher = read(server, Sampling(temperature=1, top_p=1, top_k=0), ids, "raw_logprobs")
    assert teacher.mode == "exact on A" and teacher.counts["renormalised"] == 0
    _, teacher = read(server, Sampling(**FLAT), [None] * 4, "processed_logprobs")
    assert teacher.mode == "exact on A" and teacher.counts["renormalised"] == 4  # too many tokens matter
    _, teacher = read(server, Sampling(), ids, "raw_logprobs")
    assert teacher.mode == "complete top-k" and teacher.counts["settled"] == 4


@pytest.mark.parametrize("changed", [{}, {"top_k": 50, "top_p": 1.0}, {"threshold_on": "sampled"}, {"accept_top_k": 4}])
def test_traces_are_those_of_the_teacher_at_hand(stub, changed):
    stub.logprobs_mode = "processed_logprobs"
    asked = FLAT | {"max_new_tokens": 24} | changed
    generator = TraceGenerator(config(stub, **asked))
    made, want = generator.run(ROWS), traces(GenerateConfig(**SHORT | asked))
    assert generator.known["by_ids"] > 20 and generator.known["renormalised"] == 0
    for mine, theirs in zip(made, want, strict=True):
        assert mine.error is None and mine.token_ids.tolist() == theirs.token_ids.tolist()
        assert mine.from_teacher.tolist() == theirs.from_teacher.tolist()
        np.testing.assert_allclose(mine.accepted, theirs.accepted, atol=5e-5)  # the padding's mass is told to nobody


@pytest.mark.parametrize("mode", MODES)
def test_usual_sampling_without_top_k(stub, mode):
    stub.logprobs_mode = mode
    asked = {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "max_new_tokens": 30}
    assert_same(traces(config(stub, **asked)), traces(GenerateConfig(**SHORT | asked)))


def test_another_tokenizer_and_a_server_that_is_not_exact(monkeypatch):
    asked = FLAT | {"max_new_tokens": 16}
    want = traces(GenerateConfig(teacher="bundled-llama", **SHORT | asked))
    differs = {}
    for mode in MODES:
        with Stub(bundled("llama"), name="llama") as stub:
            stub.logprobs_mode = mode
            made = traces(config(stub, teacher_model="llama", teacher_tokenizer="bundled-llama", **asked))
        differs[mode] = max(
            float(np.abs(a.accepted[:4] - b.accepted[:4]).max()) for a, b in zip(made, want, strict=True)
        )
    assert differs["processed_logprobs"] < 1e-3 < differs["raw_logprobs"]


def test_draws_are_of_r(stub):
    stub.logprobs_mode = "processed_logprobs"
    asked = {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "completion_prefix": "<think>\nSo", "max_new_tokens": 1}
    figures = draws(config(stub, batch_size=256, num_generations=3000, **asked), ROWS[1])
    assert figures.p > 1e-3 and figures.tokens > 1


def draws(asked, row):
    """Draws of the token after a prompt, against r of both models' plain forwards with everything at hand."""
    generator = TraceGenerator(asked)
    said = [int(t.token_ids[-1]) for t in generator.run([row])]
    pair = generator.find()
    at_hand = TraceGenerator(GenerateConfig()).load()
    prompt = pair.render(generator.prepare([row])[0], asked)
    r = exact_r(at_hand, pair, prompt, asked)
    counts = np.bincount(said, minlength=len(r))
    assert counts[r < 1e-12].sum() == 0
    kept = r * len(said) >= 5
    found, expected = np.append(counts[kept], counts[~kept].sum()), np.append(r[kept], r[~kept].sum()) * len(said)
    if expected[-1] < 5:  # with the least of the others
        found, expected = [np.append(x[:-2], x[-2:].sum()) for x in (found, expected)]
    expected *= found.sum() / expected.sum()  # but for rounding
    return SimpleNamespace(p=chisquare(found, expected).pvalue, tokens=int(kept.sum()), known=generator.known)


def exact_r(at_hand, pair, prompt, asked):
    rounds = at_hand._engine.rounds
    with torch.inference_mode():
        theirs = rounds.proposer.teacher.model.model(
            torch.tensor([[*prompt.teacher, *pair.vocabulary.for_teacher(prompt.prefix)]])
        ).logits[0, -1]
        ours = rounds.student.model.model(torch.tensor([[*prompt.student, *prompt.prefix]])).logits[0, -1]
    sampling = Sampling(temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k)
    q = warp(theirs, sampling)[: len(pair.vocabulary.shared)].double() * pair.vocabulary.shared
    p = warp(ours + pair.vocabulary.own, sampling).double()
    mask = accept_mask(ours.log_softmax(-1), p, asked.acceptance(), sampling)
    return target(q / q.sum(), p, mask, asked.trials).r.numpy()


def test_a_server_of_another_mode_is_noticed(stub, tmp_path):
    flags = ["--temperature", 1.5, "--top-p", 0.99, "--top-k", 0, "--block-size", 2]
    stub.logprobs_mode = "processed_logprobs"
    whole = stub.completions

    def turning(body, **how):
        stub.logprobs_mode = "processed_logprobs" if len(stub.bodies) < 20 else "raw_logprobs"
        return whole(body, **how)

    stub.completions = turning
    result = command(stub, tmp_path, *flags)
    assert result.exit_code == 1 and "of another kind than it did" in result.output.splitlines()[-1]
    result = command(stub, tmp_path, *flags)  # begins as the other one now
    assert result.exit_code == 2 and "teacher_q" in result.output
    stub.completions = whole
    stub.logprobs_mode = "processed_logprobs"
    assert command(stub, tmp_path, *flags).exit_code == 0
    made = json.loads((tmp_path / "t.meta.json").read_text(encoding="utf-8"))
    assert made["identity"]["teacher_q"] == "exact on A" and made["decoding"]["known"]["by_ids"] > 0


def test_a_server_that_knows_no_ids_renormalises_and_says_so(stub, tmp_path):
    stub.by_ids = False
    result = command(stub, tmp_path, "--temperature", 1.5, "--top-p", 0.99, "--top-k", 0)
    assert result.exit_code == 0 and "top-20 renormalised" in result.output
    assert "renormalised" in result.output.splitlines()[-1] or "of places" in result.output
    made = json.loads((tmp_path / "t.meta.json").read_text(encoding="utf-8"))
    assert made["decoding"]["known"]["renormalised"] > 0


def test_lists_that_another_client_spoils_are_asked_for_again(stub):
    want = traces(config(stub))
    generator = TraceGenerator(config(stub)).load()
    stub.stranger = 3
    assert_same(generator.run(ROWS), want)
    assert stub.stranger == 0


def test_lists_and_requests_by_ids_take_turns(stub):
    stub.logprobs_mode = "processed_logprobs"
    client = Client(f"{stub.url}/v1")
    api = Completions(client, "teacher", width=760, by_ids="processed")
    texts = [[11, 22, 33, n] for n in range(8)]

    async def ask():
        lists = [api.likeliest([[Chain(text, [3, 4])]]) for text in texts]
        named = [api.of_ids([Asked(text, {1, 2, 3})], Sampling(**FLAT)) for text in texts]
        return await asyncio.gather(*[one for pair in zip(lists, named, strict=True) for one in pair])

    said = client.begin(ask()).result()
    assert stub.lost == 0 and all(len(told.ids) == TOP for (row,) in said[::2] for told in row[0])


def test_requests_name_no_more_ids_than_a_server_takes():
    rng = np.random.default_rng(0)
    asked = [Asked([i], {*rng.integers(0, 1000, size=rng.integers(1, 300)).tolist()}) for i in range(50)]
    requests = packed(asked)
    assert all(len(ids) <= 128 and len(at) <= 64 for at, ids in requests)
    named = {(i, t) for at, ids in requests for i in at for t in ids}
    assert all((i, t) in named for i, one in enumerate(asked) for t in one.ids)
    few = packed([Asked([i], {1, 2, i % 5}) for i in range(60)])
    assert len(few) == 1


def test_a_large_vocabulary_costs_nothing_by_the_token():
    width, rng = 150_000, np.random.default_rng(0)
    table = torch.cat([torch.arange(width), torch.tensor([-1])])
    units = SimpleNamespace(by_head={}, open=lambda tokens: [])
    matter = Matter(table, units, width=width)
    drafts = SimpleNamespace(stand=lambda row, draft: [5, 7, 149_999], told=[[9]])
    assert matter(drafts, 0, 0, before=[]) == {5, 7, 9, 149_999}
    told = [
        Told(
            rng.choice(width, 20, replace=False).tolist(),
            np.log(np.sort(rng.dirichlet(np.ones(21)))[1:][::-1]).tolist(),
        )
        for _ in range(128)
    ]
    sampling, began = Sampling(temperature=0.7, top_p=0.95, top_k=0), time.process_time()
    lists = listed.read(told, sampling, width=width)
    for n in range(len(told)):
        matter(drafts, 0, 0, before=[])
        listed.masses(lists, n, {int(lists.ids[n][0]): -1.0, 5: -3.0}, sampling)
    assert time.process_time() - began < 5  # a loop over all tokens would take a minute

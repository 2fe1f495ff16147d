"""The student's reading of a trace: equal to one plain forward a step, whatever is batched or chunked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import CONFIGS, random_model, table_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, MistralConfig

import rsd.scoring.naturalness
from rsd.reading import Scoring
from rsd.scoring.measure import measure
from rsd.scoring.naturalness import LOGITS, Reader, TraceIds, documents

VOCAB = 40
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
    "initializer_range": 0.4,
    "sliding_window": 12,
}


def model(kind):
    if kind in ("qwen3", "llama"):
        return random_model(kind, vocab=VOCAB, layers=3)
    torch.manual_seed(0)
    if kind == "gemma3":  # mixed layers
        config = Gemma3TextConfig(**SMALL, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    elif kind == "gemma2":  # caps its logits after the head, needs eager attention
        config = Gemma2Config(**SMALL, final_logit_softcapping=2.0, query_pre_attn_scalar=8)
    else:
        config = MistralConfig(**SMALL)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@torch.inference_mode()
def one_forward_a_step(model, prompt, tokens, steps, first):
    """Prompt, window and step, in a forward of their own for each step."""
    ends = [*steps[1:], len(tokens)]
    made = []
    for i, (start, end) in enumerate(zip(steps, ends, strict=True)):
        ids = [*prompt, *tokens[steps[first[i]] : end]]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        made += [logprobs[len(ids) - (end - t) - 1, tokens[t]].item() for t in range(start, end)]
    return made


@torch.inference_mode()
def one_forward(model, prompt, tokens):
    logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    ranks = [1 + int((row > row[t]).sum()) for row, t in zip(logits, tokens, strict=True)]
    return chosen.numpy(), ranks


def random_trace(rng, tokens):
    steps = [0, *sorted(rng.choice(np.arange(1, tokens), size=min(tokens - 1, tokens // 5), replace=False).tolist())]
    return rng.integers(0, VOCAB, tokens).tolist(), steps


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3", "gemma2"])
@pytest.mark.parametrize("small", [{}, {"COLUMNS": 24, "CHUNK": 7, "EAGER_CHUNK": 7, "LOGITS": 5 * VOCAB, "SLOTS": 60}])
def test_equal_to_one_forward_a_step(kind, small, monkeypatch):
    for name, value in small.items():
        monkeypatch.setattr(rsd.scoring.naturalness, name, value)
    student = model(kind)
    plain = model(kind)
    reader = Reader(student)
    rng = np.random.default_rng(0)
    for prompt_size, size, window in ((1, 60, "4"), (19, 120, "2"), (5, 90, "0"), (8, 100, "20%"), (3, 1, "4")):
        prompt = rng.integers(0, VOCAB, prompt_size).tolist()
        tokens, steps = random_trace(rng, size)
        first = [Scoring(window=window).first(i) for i in range(len(steps))]
        made = reader.read(prompt, tokens, steps, first)
        logprobs, ranks = one_forward(plain, prompt, tokens)
        np.testing.assert_allclose(made.logprobs, logprobs, atol=1e-4)
        np.testing.assert_allclose(made.local, one_forward_a_step(plain, prompt, tokens, steps, first), atol=1e-4)
        assert np.mean(made.ranks != ranks) < 0.02  # near-ties
        if window == "2":
            assert np.abs(made.local - made.logprobs).max() > 0.01


def many_traces(rng, count=14):
    """Prompts and traces of unlike lengths, some of which have no documents, in windows of two steps."""
    made = []
    for i in range(count):
        tokens, steps = random_trace(rng, (1, 3, 40, 77)[i % 4] + i)
        first = [Scoring(window="2").first(j) for j in range(len(steps))]
        made.append(TraceIds(rng.integers(0, VOCAB, 1 + (7 * i) % 23).tolist(), tokens, steps, first))
    return made


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("small", [{}, {"COLUMNS": 200, "CHUNK": 7, "EAGER_CHUNK": 7, "LOGITS": 90 * VOCAB}])
def test_what_is_read_together_is_what_is_read_alone(kind, small, monkeypatch):
    for name, value in small.items():
        monkeypatch.setattr(rsd.scoring.naturalness, name, value)
    reader, plain = Reader(random_model(kind, vocab=VOCAB)), random_model(kind, vocab=VOCAB)
    traces = many_traces(np.random.default_rng(5))
    batches = reader.together(traces)
    assert sorted(place for batch in batches for place in batch) == list(range(len(traces)))
    assert max(map(len, batches)) > 1 and (len(batches) > 3) == bool(small)
    for batch in batches:
        assert sum(len(traces[i].prompt) + len(traces[i].tokens) for i in batch) <= 2048 or len(batch) == 1
        for place, made in zip(batch, reader.read_all([traces[i] for i in batch]), strict=True):
            alone = reader.read(*traces[place])
            np.testing.assert_allclose(made.logprobs, alone.logprobs, atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(made.local, alone.local, atol=1e-5, rtol=1e-5)
            assert np.mean(made.ranks != alone.ranks) < 0.02
            logprobs, _ = one_forward(plain, *traces[place][:2])
            np.testing.assert_allclose(made.logprobs, logprobs, atol=2e-4)
            np.testing.assert_allclose(made.local, one_forward_a_step(plain, *traces[place]), atol=2e-4)


def test_a_trace_of_which_nothing_can_be_made_harms_none_that_is_read_beside_it():
    student = model("qwen3")
    with torch.no_grad():
        student.get_input_embeddings().weight[[0, 7]] = torch.nan  # 0 is what others pad with
    rng = np.random.default_rng(6)
    traces = [TraceIds([1], [x + 8 for x in t.tokens if x < 20] + [9], [0], [0]) for t in many_traces(rng)]
    traces[3] = TraceIds([1, 7], [8, 9, 10], [0, 1], [0, 1])
    reader = Reader(student)
    (batch,) = reader.together(traces)
    for place, made in zip(batch, reader.read_all([traces[i] for i in batch]), strict=True):
        assert np.isfinite(made.logprobs).all() == np.isfinite(made.local).all() == (place != 3)


def test_a_step_longer_than_everything_that_is_read_at_once(monkeypatch):
    monkeypatch.setattr(rsd.scoring.naturalness, "COLUMNS", 16)
    student = model("qwen3")
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB, 100).tolist()
    steps, first = [0, 3, 6, 80], [0, 1, 2, 3]
    made = Reader(student).read([1, 2], tokens, steps, first)
    want = one_forward_a_step(model("qwen3"), [1, 2], tokens, steps, first)
    np.testing.assert_allclose(made.local, want, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(["0", "1", "4", "7%", "20%", "100%"])))
)
def test_documents_judge_every_step_once_in_its_window(case):
    count, window = case
    steps = [3 * i for i in range(count)]
    first = [Scoring(window=window).first(i) for i in range(count)]
    judged = {}
    for d in documents(steps, first, 3 * count):
        assert 0 < d.start <= d.wanted < d.end
        for step in range(d.wanted // 3, d.end // 3):
            assert step not in judged
            judged[step] = d.start // 3
    assert judged == {i: f for i, f in enumerate(first) if f > 0}


@pytest.mark.parametrize(
    ("window", "wanted"), [("2", [0, 0, 0, 1, 2]), ("50%", [0, 0, 1, 1, 2]), ("20%", [0, 0, 1, 2, 3]), ("0", range(5))]
)
def test_the_window(window, wanted):
    assert [Scoring(window=window).first(i) for i in range(5)] == list(wanted)


@pytest.mark.parametrize("window", ["", "-1", "4.5", "0%", "101%", "x", "%", "1e3", "٣"])
def test_no_window(window):
    with pytest.raises(ValueError, match="window must be"):
        Scoring(window=window)


def test_scores_by_hand():
    # After 0 come 0, 1, 2 with 1/2, 1/4, 1/4; after 1 with 1/8, 3/4, 1/8; after 2 always 0 (1e-6 else).
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [1 - 2e-6, 1e-6, 1e-6]])
    reader = Reader(table_model(probs.log()))
    # Prompt 0; steps [1, 1], [2, 0, 0], [1]. Only the last token counts: without a window, that is the prompt's.
    tokens, steps = [1, 1, 2, 0, 0, 1], [0, 2, 5]
    p = [1 / 4, 3 / 4, 1 / 8, 1, 1 / 2, 1 / 4]
    for window in ("0", "1", "4"):
        reading = reader.read([0], tokens, steps, [Scoring(window=window).first(i) for i in range(3)])
        made = measure(reading, steps, Scoring(window=window, threshold=0.2))
        logs = [math.log(x) for x in p]
        second = math.log(1 / 4) if window == "0" else logs[2]
        by_step = [sum(logs[0:2]) / 2, (second + logs[3] + logs[4]) / 3, logs[5]]
        assert made["local_naturalness"] == pytest.approx(sum(by_step) / 3, abs=1e-4)
        assert made["global_logprob"] == pytest.approx(sum(logs) / 6, abs=1e-4)
        assert made["perplexity"] == pytest.approx(math.exp(-sum(logs) / 6), abs=1e-4)
        # Ranks 2 (one of two), 1, 2, 1, 1, 2 (ties share the better rank).
        assert made["rsr"] == pytest.approx(9 / -sum(logs), abs=1e-3)
        assert made["aslec_drop"] == pytest.approx((logs[1] + logs[3] + logs[4]) / 3, abs=1e-4)
        assert made["low_prob_share"] == pytest.approx(1 / 6, abs=1e-6)
        assert made["surprisal_p50"] == pytest.approx(np.percentile([-x for x in logs], 50), abs=1e-4)
        assert (made["scored_tokens"], made["num_steps"], made["tokens_per_step"]) == (6, 3, 2)
    token = measure(reading, steps, Scoring(weighting="token"))
    assert token["local_naturalness"] == pytest.approx(token["global_logprob"], abs=1e-4)


def test_a_local_score_does_not_see_what_is_outside_its_window():
    student = Reader(model("qwen3"))
    rng = np.random.default_rng(2)
    tokens, steps = rng.integers(0, VOCAB, 40).tolist(), list(range(0, 40, 4))
    first = [max(0, i - 2) for i in range(10)]
    before = student.read([1], tokens, steps, first)
    other = [*rng.integers(0, VOCAB, 8).tolist(), *tokens[8:]]
    after = student.read([1], other, steps, first)
    assert np.abs(before.logprobs[16:] - after.logprobs[16:]).max() > 1e-2
    np.testing.assert_allclose(before.local[16:], after.local[16:], atol=1e-5)


def test_a_long_prompt_is_not_copied_for_many_rows():
    # 100 documents of 10 tokens after 5,000: the keys of a layer, copied for all, would have 16 million entries.
    student = model("llama")
    student.config.max_position_embeddings = 8192
    rng = np.random.default_rng(4)
    prompt, tokens = rng.integers(0, VOCAB, 5000).tolist(), rng.integers(0, VOCAB, 500).tolist()
    steps = list(range(0, 500, 5))
    with Largest() as largest:
        Reader(student).read(prompt, tokens, steps, [max(0, i - 1) for i in range(100)])
    assert largest.entries < 3e6


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes():  # views are of another's storage
                self.entries = max(self.entries, x.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize(
    ("kind", "vocab", "tokens", "most"),
    [("qwen3", 151_936, 600, LOGITS), ("qwen3", VOCAB, 8192, 8192 * 700), ("gemma2", VOCAB, 4096, 4096 * 700)],
)
def test_neither_all_logits_nor_a_full_mask_are_ever_held(kind, vocab, tokens, most):
    # Unchunked these would be 91 million logits, a mask of 67 million entries, and four heads' scores as large.
    student = model(kind) if vocab == VOCAB else random_model(kind, vocab=vocab, layers=1)
    student.config.max_position_embeddings = 16384
    reader = Reader(student)
    ids = np.random.default_rng(3).integers(0, vocab, tokens).tolist()
    for steps in (list(range(0, tokens, 20)), [0, 10, 20, 30, 40, 50]):  # and one with an endless last step
        with Largest() as largest:
            reader.read([1, 2, 3], ids, steps, [max(0, i - 4) for i in range(len(steps))])
        assert largest.entries <= most


def test_a_rank_counts_for_no_more_than_a_hundred():
    # RSR caps ranks at 100: here the tokens have the ranks 1, 50 and 150 of 200.
    logits = torch.linspace(5, -5, 200).expand(200, 200)
    reading = Reader(table_model(logits)).read([0], [0, 49, 149], [0], [0])
    assert reading.ranks.tolist() == [1, 50, 150]
    logprobs = logits[0].log_softmax(-1)[[0, 49, 149]]
    made = measure(reading, [0], Scoring())
    assert made["rsr"] == pytest.approx((1 + 50 + 100) / -float(logprobs.sum()), rel=1e-4)

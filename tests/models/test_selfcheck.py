"""A model that decodes otherwise than it reads is refused when it is loaded, and no sound one is."""

import pytest
import torch
from conftest import SPECIALS, save_model
from pairs import CONFIGS, random_model
from transformers import BloomConfig, FalconConfig, GPTNeoConfig
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from rsd import GenerateConfig, TraceGenerator
from rsd.models.kv_cache import CachedModel
from rsd.models.loading import find
from rsd.models.selfcheck import check_decoding
from rsd.scoring.config import ScoreConfig
from rsd.scoring.scorer import load_scorer

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 20.0, 40.0],
    "original_max_position_embeddings": 64,
}
LONG = {"sliding_window": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_sound_models_pass_in_every_precision(kind, dtype):
    check_decoding(random_model(kind, layers=3).to(dtype), kind)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64},
    ],
)
def test_other_ropes_pass(rope):
    check_decoding(random_model("llama", rope_parameters=rope), "llama")


def by_the_longest_row(model):
    """How far apart places are depends on the batch's longest row."""
    rotary = model.model.rotary_emb
    turn = rotary.forward
    rotary.forward = lambda x, position_ids: turn(x, position_ids * (1 + int(position_ids.max()) // 64))


def by_the_cache(model):
    """The tokens' places are taken from the length of the cache."""

    def place(_, args, given):
        cache = given.get("cache", given.get("past_key_values"))
        if cache is not None:
            width, past = given["input_ids"].shape[1], cache.get_seq_length()
            given["position_ids"] = torch.arange(past - width, past)[None].expand(len(given["input_ids"]), -1)
        return args, given

    model.register_forward_pre_hook(place, with_kwargs=True)


def other_mask(model):
    """It cannot read the mask of rows that have lengths of their own."""

    def refuse(_, args, given):
        if given.get("attention_mask") is not None:
            _, _ = given["attention_mask"].shape
        return args, given

    model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (by_the_longest_row, r"it is \d[\d.]* nats off what it says of each row alone .* skip_check=True$"),
        (by_the_cache, r"it is \d[\d.]* nats off what it says of each row alone .* skip_check=True$"),
        (other_mask, r"cannot be decoded in rows of unequal length \(ValueError: too many values"),
    ],
)
def test_what_reads_more_than_its_own_row_is_refused(harm, message, dtype):
    model = random_model("llama", layers=3).to(dtype)
    harm(model)
    with pytest.raises(ValueError, match=f"^teacher some/model: .*{message}"):
        check_decoding(model, "teacher some/model")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (BloomConfig, "bloom places tokens by ALiBi"),
        (lambda **size: FalconConfig(alibi=True, **size), "falcon places tokens by ALiBi"),
        (
            lambda **size: GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]),
            "gpt_neo measures its local windows from the batch's longest row",
        ),
    ],
)
def test_places_from_the_longest_row_are_refused_before_weights_are_read(kind, message, tmp_path):
    kind(max_position_embeddings=512).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^student .*: cannot be loaded: {message}.*: choose another model"):
        find("student", str(tmp_path), None, trust_remote_code=False)


def pair(tmp_path, **special):
    model = save_model(tmp_path / "model", SPECIALS, kind="phi3", width=272, seed=1)
    random_model("phi3", vocab=272, seed=1, **special).save_pretrained(model)
    return {"teacher": str(model), "student": str(model), "verify": "none"}


def test_longrope_keeps_to_the_context_of_its_short_factors(tmp_path):
    # A plain forward of 65 tokens has the long factors in all places: no cache can follow.
    model = random_model("phi3", **LONG)
    assert CachedModel(model, 1).context == 64
    check_decoding(model, "phi3")
    model.config.save_pretrained(tmp_path)
    ids = torch.randint(24, (1, 65), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, beyond = (model(ids[:, :n]).logits[0, :64].log_softmax(-1) for n in (64, 65))
    assert (one - beyond).abs().mean() > 0.5


def test_a_longrope_pair_says_what_it_leaves_unused(tmp_path):
    generator = TraceGenerator(GenerateConfig(**pair(tmp_path, **LONG), seed=3))
    made = generator.run([{"prompt": "ab"}, {"prompt": "a longer one"}, {"prompt": "a"}])
    assert {t.finish_reason for t in made} <= {"length", "stop", "loop"}
    assert all(len(t.prompt_ids) + len(t.token_ids) <= 64 for t in made)
    assert "length" in {t.finish_reason for t in made}
    notices = [n for n in generator.notices if "LongRoPE" in n]
    assert [n[:65] for n in notices] == [
        f"notice: of the {role}'s context of 512 positions the first 64 are "[:65] for role in ("teacher", "student")
    ]
    for trace in made:
        (alone,) = generator.run([{"id": trace.id, "prompt": trace.prompt}])
        assert alone.token_ids.tolist() == trace.token_ids.tolist()


def test_the_check_runs_when_a_pair_or_a_scorer_is_loaded_unless_skipped(tmp_path, monkeypatch):
    names = pair(tmp_path)

    def crooked(self, x, position_ids):
        return turn(self, x, position_ids * (1 + int(position_ids.max()) // 64))

    turn = Phi3RotaryEmbedding.forward
    monkeypatch.setattr(Phi3RotaryEmbedding, "forward", crooked)
    with pytest.raises(ValueError, match=r"^student .*model: .* nats off"):
        TraceGenerator(GenerateConfig(**names)).load()
    with pytest.raises(ValueError, match=r"^student .*model: .* nats off"):
        load_scorer(ScoreConfig(student=names["student"]))
    TraceGenerator(GenerateConfig(**names, skip_check=True)).load()
    load_scorer(ScoreConfig(student=names["student"], skip_check=True))


@pytest.mark.parametrize("kind", ["flash_attention_2", "flex_attention", "paged|sdpa", "kernels-community/flash-attn3"])
def test_attention_that_reads_no_mask_is_refused(kind):
    with pytest.raises(ValueError, match="attn_implementation must be sdpa or eager"):
        GenerateConfig(attn_implementation=kind)
    model = random_model()
    model.config._attn_implementation_internal = kind  # as a configuration of its own may ask
    with pytest.raises(ValueError, match="reads no masks: choose sdpa or eager"):
        CachedModel(model, 1)

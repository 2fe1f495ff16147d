"""What a saved model's files say of it: the ids that end a text, and kinds that no cache here can serve."""

import pytest
from conftest import read, write
from jobs import FLAGS, pair, run
from pairs import decode, random_model, twin_vocabulary
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, RwkvConfig

from rsd.models.loading import find


def test_each_of_several_eos_ids_ends_a_trace(tiny, tmp_path):
    # As Gemma and Llama 3 list them in their generation configs.
    student = find("student", tiny("gemma2")["student"], None, trust_remote_code=False)
    ends = [student.tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_end|>")]
    assert student.generation.eos_token_id == ends[::-1] and student.eos == set(ends)
    assert student.config.eos_token_id not in ends and student.tokenizer.eos_token_id == ends[1]
    source, out = write(tmp_path / "in.jsonl", [{"prompt": "go on"}]), tmp_path / "out.jsonl"
    run(
        source,
        "-o",
        out,
        *pair(tiny, "gemma2"),
        *FLAGS,
        "--max-new-tokens",
        200,
        "--num-generations",
        10,
        "--verify",
        "none",
    )
    stopped = [t["token_ids"] for t in read(tmp_path / "out.tokens.jsonl") if set(t["token_ids"]) & set(ends)]
    assert {ids[-1] for ids in stopped} == set(ends)
    assert not any(set(ids[:-1]) & set(ends) for ids in stopped)


# Some have layer_types that say so, of others the class does; "hybrid" and the like are layers of both.
RECURRENT = {
    "mamba": {},
    "mamba2": {},
    "falcon_mamba": {},
    "rwkv": {},
    "xlstm": {},
    "recurrent_gemma": {},
    "jamba": {},
    "bamba": {},
    "zamba": {},
    "zamba2": {},
    "falcon_h1": {},
    "granitemoehybrid": {},
    "nemotron_h": {},
    "qwen3_next": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_models_are_refused_by_name_before_they_are_read(kind, tmp_path):
    CONFIG_MAPPING[kind](**RECURRENT[kind]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^teacher .*: cannot be loaded: {kind} has .* layers, whose state"):
        find("teacher", str(tmp_path), None, trust_remote_code=False)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("t5", "t5 is an encoder-decoder"),
        ("bart", "bart is an encoder-decoder"),
        ("mpt", "mpt names no context length"),
        ("llama4", "llama4_text has chunked_attention layers"),
    ],
)
def test_other_kinds_are_refused_by_name(kind, message, tmp_path):
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^student .*: cannot be loaded: {message}"):
        find("student", str(tmp_path), None, trust_remote_code=False)


def test_a_recurrent_model_of_unknown_code_is_refused_when_it_is_loaded():
    config = RwkvConfig(vocab_size=24, hidden_size=8, num_hidden_layers=2, context_length=64)
    with pytest.raises(ValueError, match="rwkv has recurrent layers"):
        decode(random_model(), AutoModelForCausalLM.from_config(config), [[1]], vocabulary=twin_vocabulary(24))

"""Small real models for the tests: random ones, and ones that look their logits up in a table."""

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import (
    AfmoeConfig,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MiMoV2FlashConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.proposals import Proposals
from rsd.decoding.sampling import row_key
from rsd.decoding.sequence import Finished, Request
from rsd.pair.vocabulary import Vocabulary

CONFIGS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "phi3": Phi3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "gpt_oss": GptOssConfig,
    "olmo2": Olmo2Config,
    "smollm3": SmolLM3Config,
    "deepseek_v2": DeepseekV2Config,
    "deepseek_v3": DeepseekV3Config,
    "mimo_v2_flash": MiMoV2FlashConfig,
    "afmoe": AfmoeConfig,
}
WINDOW = 8  # of layers that have one; shorter than the traces
# The heads of queries and keys have 12 numbers, those of values 6; no query group shares them.
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
CAPS = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}
SPECIAL = {
    "qwen3": {"tie_word_embeddings": False},
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {"sliding_window": WINDOW, "pad_token_id": None, "tie_word_embeddings": True},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, **CAPS},
    "gemma3": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1], "pad_token_id": None},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    # Layers with a window have other numbers of heads, and values have heads of another size.
    "mimo_v2_flash": {
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "v_head_dim": 6,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "afmoe": {"sliding_window": WINDOW, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0)
USUAL = Acceptance(threshold=0.02)


def random_model(kind: str = "qwen3", *, vocab: int = 24, layers: int = 2, seed: int = 0, **special) -> PreTrainedModel:
    """A random model whose distributions are far from flat; `special` are values of its configuration."""
    torch.manual_seed(seed)
    config = CONFIGS[kind](
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "max_position_embeddings": 512,
            "initializer_range": 0.4,
            "eos_token_id": None,
            "bos_token_id": None,
        }
        | SPECIAL[kind]
        | special
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def blank_model(width: int, *, hidden: int) -> PreTrainedModel:
    """A Qwen3 whose layers add nothing; its embedding and head are all zero."""
    config = Qwen3Config(
        vocab_size=width,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=8,
        max_position_embeddings=512,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.model.norm.weight.fill_(1.0)
    return model


def table_model(table: torch.Tensor) -> PreTrainedModel:
    """A Qwen3 whose next-token logits are table[last token], whatever came before.

    Its layers add nothing, its embedding is one-hot, and the head holds the table.
    """
    size, width = table.shape
    model = blank_model(width, hidden=width)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        # The norm scales a one-hot vector to sqrt(width).
        model.lm_head.weight[:, :size] = table.T / width**0.5
    return model


def twin_vocabulary(width: int) -> Vocabulary:
    """Both models share all ids."""
    return Vocabulary(shared=torch.ones(width), own=torch.zeros(width))


def spelled_vocabulary(width: int, spellings: dict[int, list[int]]) -> Vocabulary:
    """Ids in `spellings` are the student's alone, and the teacher spells them so."""
    shared = torch.ones(width)
    shared[list(spellings)] = 0
    return Vocabulary(shared, torch.zeros(width), student_to_teacher={i: tuple(p) for i, p in spellings.items()})


def proposed(logits: torch.Tensor, vocabulary: Vocabulary | torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """q for the teacher's logits; of a vocabulary, or of one that is this `shared`."""
    if isinstance(vocabulary, torch.Tensor):
        vocabulary = Vocabulary(vocabulary, torch.zeros_like(vocabulary))
    made = Proposals(vocabulary, sampling, torch.device("cpu"))
    found = made.mass(made.pool(logits))
    masses = found.masses.float()
    if found.ids is not None:
        masses = torch.zeros(*masses.shape[:-1], vocabulary.width).scatter_add_(-1, found.ids, masses)
    return masses / masses.sum(-1, keepdim=True).clamp_min(1e-30)


def requests(prompts: list[list[int]], *, max_new_tokens: int = 24, vocabulary: Vocabulary, seed: int = 0):
    return [
        Request(
            student_prompt=p,
            teacher_prompt=vocabulary.for_teacher(p),
            key=row_key(seed, str(i), 0),
            max_new_tokens=max_new_tokens,
            tag=i,
        )
        for i, p in enumerate(prompts)
    ]


def decode(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    prompts: list[list[int]],
    *,
    vocabulary: Vocabulary | None = None,
    sampling: Sampling = PLAIN,
    acceptance: Acceptance = USUAL,
    rows: int = 4,
    block: int | None = 1,
    eos: tuple[int, ...] = (),
    max_new_tokens: int = 24,
    seed: int = 0,
    compile: bool = False,
    top_logprobs: int = 0,
) -> dict[int, Finished]:
    """Traces by the index of their prompt."""
    if vocabulary is None:
        vocabulary = twin_vocabulary(student.config.vocab_size)
    engine = Engine(
        teacher,
        student,
        vocabulary,
        sampling=sampling,
        acceptance=acceptance,
        eos=eos,
        rows=rows,
        block=block,
        compile=compile,
        top_logprobs=top_logprobs,
    )
    todo = requests(prompts, max_new_tokens=max_new_tokens, vocabulary=vocabulary, seed=seed)
    return {f.request.tag: f for f in engine.run(todo)}


def fits(tokens, probs):
    """Whether a sample can come from a distribution (chi-square), and holds nothing impossible."""
    seen, possible = np.bincount(tokens, minlength=len(probs)), probs > 0
    expected = len(tokens) * probs[possible] / probs[possible].sum()
    if seen[~possible].sum():
        return False
    seen, rare = seen[possible], expected < 3  # too few for the test: taken together
    seen, expected = (np.array([*x[~rare], x[rare].sum()]) for x in (seen, expected))
    likely = expected > 0
    return likely.sum() == 1 or chisquare(seen[likely], expected[likely]).pvalue > 0.005


def full_logits(model, prompt, tokens):
    """Logits where `tokens` are predicted after `prompt`, by one plain forward without a cache."""
    with torch.inference_mode():
        return model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()


def full_logprobs(model, prompt, tokens):
    logprobs = full_logits(model, prompt, tokens).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()

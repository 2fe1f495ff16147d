"""Real tokenizers, a real pretrained model and real problems, as `bench/fetch.py` brings them.

Tests that need one carry `pytest.mark.real`, and skip by its name where it could not be fetched.
"""

from functools import lru_cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

PARTS = Path(__file__).parent.parent / "bench" / "parts"
TOKENIZERS = ("qwen3", "llama3", "llama2", "gemma3", "deepseek_v3", "gptoss", "smollm2")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def part(name: str) -> Path:
    """A fetched file or folder."""
    if not (PARTS / name).exists():
        pytest.skip(f"{name} is not in bench/parts: run python bench/fetch.py")
    return PARTS / name


@lru_cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    options = {"gguf_file": GGUF} if name == "smollm2" else {}
    return AutoTokenizer.from_pretrained(part(name), **options)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as a GGUF file."""
    return part("smollm2") / GGUF

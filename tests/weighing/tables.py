"""Pairs that look their logits up by the last token, with a token a letter, so that weights can be had by hand."""

from pathlib import Path

import numpy as np
import torch
from conftest import SPECIALS, save_tokenizer
from pairs import table_model
from transformers import AutoTokenizer, GenerationConfig

SURE = 30.0  # a logit that leaves the others nothing
ADDED = [*SPECIALS, "<think>", "</think>"]


class Table:
    """A model's logits by the last letter; `follows` are pairs of a letter and what follows it in any case."""

    def __init__(self, folder: Path, follows: dict[str, str], *, seed: int = 0) -> None:
        self.tokenizer = save_tokenizer(folder, ADDED)
        width = len(self.tokenizer)
        self.logits = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
        for letter, following in follows.items():
            self.logits[self.id(letter), self.id(following)] = SURE
        model = table_model(self.logits)
        eos = self.tokenizer.eos_token_id
        model.generation_config = GenerationConfig(eos_token_id=[eos])
        model.save_pretrained(folder)
        self.folder = str(folder)
        self.logprobs = self.logits.double().log_softmax(-1).numpy()

    def id(self, letter: str) -> int:
        (token,) = self.tokenizer.encode(letter, add_special_tokens=False)
        return token

    def said(self, text: str, *, end: bool = False) -> np.ndarray:
        """The log-probs of a text's letters, the first after a line break, and of an EOS."""
        ids = [self.id("\n"), *map(self.id, text), *[self.tokenizer.eos_token_id] * end]
        return self.logprobs[ids[:-1], ids[1:]]


def tokenizer(folder: str):
    return AutoTokenizer.from_pretrained(folder)

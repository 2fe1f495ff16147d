"""Pairs on disk: small random models with byte-level tokenizers, in the shape of the paper's pair."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from pairs import random_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

# The models here are too small for two threads to help: beside other work these wait for each other, ten times as long.
torch.set_num_threads(1)
# A suite that a script runs in the background ignores interrupts, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Beside other work anything may take a second; what is slow is measured in bench/.
settings.register_profile("rsd", deadline=None)
settings.load_profile("rsd")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tokenizer(folder: Path, added: list[str], *, base: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: 256 bytes (or `base`), then `added` in this order."""
    tokens = base or sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(added)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def save_model(folder: Path, added: list[str], *, kind: str = "qwen3", width: int, seed: int, **tokenizer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tok = save_tokenizer(folder, added, **tokenizer)
    model = random_model(kind, vocab=width, seed=seed)
    model.generation_config = GenerationConfig(eos_token_id=[tok.eos_token_id, tok.pad_token_id])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[..., dict[str, str]]:
    """`tiny(kind)`: directories of a random teacher and student of one architecture."""
    root = tmp_path_factory.mktemp("pairs")
    made: dict[str, dict[str, str]] = {}

    def pair(kind: str = "qwen3") -> dict[str, str]:
        if kind not in made:
            teacher = save_model(root / kind / "teacher", SPECIALS, kind=kind, width=288, seed=1)
            student = save_model(
                root / kind / "student", [*SPECIALS, "<think>", "</think>"], kind=kind, width=272, seed=2
            )
            made[kind] = {"teacher": str(teacher), "student": str(student)}
        return made[kind]

    return pair


def rsd(*args: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess[str]:
    """The command, as a user would run it."""
    return subprocess.run(
        [sys.executable, "-m", "rsd", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment(),
        **kwargs,
    )


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path

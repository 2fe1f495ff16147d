"""Finding and loading a pair of models and tokenizers; the bundled pair; what identifies a model."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import rsd
from rsd.config import BUNDLED_STUDENT, BUNDLED_TEACHER, GenerateConfig, Loading, Sampling
from rsd.packed import pack

# What a generation config may hold that RSD has no place for, with the values that mean "off".
PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True, eq=False)
class Source:
    """Where one model comes from, read but for its weights.

    name: as the user gave it. path: the directory, or the Hub id. revision: the commit of a Hub
        model, None for a directory.
    """

    role: str
    name: str
    path: str
    revision: str | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig

    @property
    def width(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def context(self) -> int:
        return int(self.config.get_text_config().max_position_embeddings)

    @property
    def ends(self) -> list[int]:
        """All ids that end a text, the usual one first: the generation config's, the config's or the tokenizer's."""
        for holder in (self.generation, self.config.get_text_config(), self.tokenizer):
            ids = holder.eos_token_id
            if ids is not None:
                several = list(ids) if isinstance(ids, list | tuple) else [ids]
                return sorted(several, key=lambda i: i != self.tokenizer.eos_token_id)
        raise ValueError(f"the {self.role} {self.name} names no EOS token: add eos_token_id to its generation config")

    @property
    def eos(self) -> set[int]:
        return set(self.ends)

    def prompt_ids(self, messages: list[dict[str, str]], template_kwargs: Mapping[str, Any]) -> list[int]:
        """The prompt as this model reads it before it answers, by its chat template.

        Raises:
            ValueError: the tokenizer has no chat template for these messages, or no tokens for them.
        """
        if self.tokenizer.chat_template is not None:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
            )
        elif [m["role"] for m in messages] == ["user"]:
            ids = self.tokenizer.encode(messages[0]["content"])
        else:
            raise ValueError(f"the {self.role}'s tokenizer has no chat template: only a plain prompt can be read")
        if not ids:
            raise ValueError(f"the prompt has no tokens for the {self.role}")
        return list(ids)

    def training_ids(
        self, messages: list[dict[str, str]], answer: str, template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Prompt and answer as a trainer makes them of text: by the chat template, else one after the other."""
        if self.tokenizer.chat_template is None:
            ids = self.prompt_ids(messages, template_kwargs) + self.tokenizer.encode(answer, add_special_tokens=False)
            return [*ids, self.tokenizer.eos_token_id]
        conversation = [*messages, {"role": "assistant", "content": answer}]
        return list(
            self.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False, **template_kwargs)
        )

    def fingerprint(self) -> str:
        """What identifies the model: the Hub commit, or a hash of a directory's files (of large ones a sample)."""
        if not os.path.isdir(self.path):
            return f"{self.name}@{self.revision}"
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(Path(self.path).iterdir()):
            if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model"):
                size = file.stat().st_size
                digest.update(f"{file.name} {size}\n".encode())
                with open(file, "rb") as f:
                    for i in range(16):
                        f.seek(size * i // 16)
                        digest.update(f.read(65536))
        return digest.hexdigest()


def bundled(name: str) -> Path:
    """A bundled file or folder: beside this module in a wheel, in data/ in a checkout."""
    package = Path(rsd.__file__).parent
    inside = package / "bundled"
    return (inside if inside.is_dir() else package.parent / "data") / name


def find(role: str, name: str, revision: str | None, *, trust_remote_code: bool) -> Source:
    """Read configuration and tokenizer of a local directory, a Hub id, or a bundled model.

    Raises:
        ValueError: there is no such model, or it cannot be read.
    """
    inside = {BUNDLED_TEACHER: "teacher", BUNDLED_STUDENT: "student"}.get(name)
    path = str(bundled(inside)) if inside else name
    if not os.path.isdir(path) and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise ValueError(f"--{role} {name}: no such directory (and a Hub id has the form owner/name)")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"--{role} {name}: cannot be loaded: {_first_line(e)}") from e
    try:
        generation = GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    commit = getattr(config, "_commit_hash", None)
    return Source(role, name, path, commit or revision, config, tokenizer, generation)


def load(source: Source, config: Loading, *, packed: bool = True) -> PreTrainedModel:
    """Load the weights, in fp32 on a CPU and bf16 on a GPU unless asked otherwise; for inference alone.

    Args:
        packed: on a CPU, the linear layers in oneDNN's layout (`packed`), which torch.compile cannot read.

    Raises:
        ValueError: the weights cannot be loaded, or are not safetensors and `allow_pickle` is off.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            config=source.config,
            dtype=getattr(torch, dtype_of(config)),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=None if config.allow_pickle else True,
            device_map=device_of(config, source.role),
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        raise ValueError(f"--{source.role} {source.name}: cannot be loaded: {_first_line(e)}") from e
    if packed:
        pack(model)
    return model.eval()


def device_of(config: Loading, role: str) -> str:
    return config.device_of(role) or ("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(config: Loading) -> str:
    """One for both models, since it shapes the traces."""
    on_cpu = "cpu" in (device_of(config, "teacher"), device_of(config, "student"))
    return config.dtype or ("float32" if on_cpu else "bfloat16")


def sampling_of(config: GenerateConfig, student: Source) -> tuple[Sampling, list[str]]:
    """The sampling values in force, and lines that say where they come from and what is ignored."""
    given = student.generation.to_diff_dict()
    defaults = {k: given[k] for k in ("temperature", "top_p", "top_k") if given.get(k) is not None}
    values = config.sampling(defaults)
    said = []
    for name in ("temperature", "top_p", "top_k"):
        source = "asked" if getattr(config, name) is not None else "student" if name in defaults else "default"
        said.append(f"{name.replace('_', '-')} {getattr(values, name)} ({source})")
    lines = ["sampling: " + ", ".join(said)]
    ignored = [k for k, off in PENALTIES.items() if given.get(k) not in (None, off)]
    if ignored:
        lines.append(f"notice: ignored from the student's generation config: {', '.join(ignored)}")
    return values, lines


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

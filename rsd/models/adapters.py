"""PEFT adapters: BASE+ADAPTER names a model whose adapter is merged into its weights as it is loaded."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rsd.settings import called

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = ["*.json", "*.jinja", "*.txt", "*.model", "adapter_model.*"]  # of a Hub repository: adapter and tokenizer


@dataclass(frozen=True)
class Adapter:
    """Where an adapter comes from.

    name: as the user gave it. path: its directory, which of a Hub id is the download. revision: the
        commit of a Hub id, None for a directory. width: the ids that the base's embedding has with it.
    """

    name: str
    path: str
    revision: str | None
    width: int

    @property
    def has_tokenizer(self) -> bool:
        return (Path(self.path) / "tokenizer_config.json").is_file()


def split(name: str) -> tuple[str, str | None]:
    """BASE and ADAPTER of BASE+ADAPTER. What exists by this very name is a model, as is a name without a plus."""
    parts = [(name[:i], name[i + 1 :]) for i, c in enumerate(name) if c == "+"]
    if os.path.exists(name) or not parts:
        return name, None
    return max(parts, key=lambda both: sum(map(os.path.exists, both)))  # a directory may have a plus in its name, too


def find_adapter(name: str, base: PreTrainedConfig, *, trust_remote_code: bool) -> Adapter:
    """An adapter's directory; that of a Hub id is downloaded.

    Args:
        base: the configuration of its base.

    Raises:
        ValueError: there is none, it is of a kind that cannot be merged, or peft is not installed.
        OSError: the Hub does not have it.
    """
    peft = _peft()
    path, revision = name, None
    if not os.path.isdir(name):
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ValueError(f"{name or 'ADAPTER'}: no such directory (and a Hub id has the form owner/name)")
        path = snapshot_download(name, allow_patterns=FILES)
        revision = Path(path).name
    if not (Path(path) / CONFIG).is_file():
        raise ValueError(f"{name} is no PEFT adapter: it has no {CONFIG}")
    kind = peft.PeftConfig.from_pretrained(path)
    if kind.is_prompt_learning or kind.is_adaption_prompt:
        raise ValueError(f"{name} is a {kind.peft_type.value} adapter, which cannot be merged: choose one such as LoRA")
    return Adapter(name, path, revision, _width(path, base, trust_remote_code))


def _width(path: str, base: PreTrainedConfig, trust_remote_code: bool) -> int:
    """The ids of the base's embedding, which an adapter's training may have resized and saved.

    Raises:
        ValueError: embedding and head differ.
    """
    width = int(base.get_text_config().vocab_size)
    file = Path(path) / WEIGHTS
    if not file.is_file():
        return width
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(base, trust_remote_code=trust_remote_code)
    wanted = [model.get_input_embeddings()]
    if not base.get_text_config().tie_word_embeddings:
        wanted.append(model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is one for one in wanted)]
    rows = set()
    with safe_open(file, "pt") as f:
        keys = set(f.keys())
        for name in names:
            saved = {f"base_model.model.{name}.{end}" for end in ("weight", "base_layer.weight")} & keys
            rows.add(f.get_slice(saved.pop()).get_shape()[0] if saved else width)
    if len(rows) > 1:
        raise ValueError(f"the adapter in {path} resizes one of embedding and head: {sorted(rows)} ids")
    return rows.pop()


def merge(model: PreTrainedModel, adapter: Adapter, *, allow_pickle: bool) -> PreTrainedModel:
    """The model with the adapter in its weights: a model like any other.

    Raises:
        ValueError: the adapter is another model's, or not in safetensors and `allow_pickle` is off.
        RuntimeError: its shapes are not the model's.
    """
    peft = _peft()
    if not allow_pickle and not (Path(adapter.path) / WEIGHTS).is_file():
        raise ValueError(f"{adapter.name} has no {WEIGHTS}: {called('allow_pickle', True)} loads others")
    if adapter.width != model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(adapter.width, mean_resizing=False)  # the adapter has the rows
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, which are seen to, and of what will be deprecated
        adapted = peft.PeftModel.from_pretrained(model, adapter.path, torch_device="cpu")
        # Tensors without a place are passed over in silence; to load them again tells which they are.
        result = adapted.load_adapter(adapter.path, "default", torch_device="cpu")
        if astray := [*result.unexpected_keys, *result.missing_keys]:
            raise ValueError(f"{adapter.name} is an adapter of another model: see its {astray[0]}")
        around = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
        if head.weight is embedding.weight and any(
            isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer) for layer in around
        ):
            # Merged into a weight that both share, what is meant for one would change the other as well.
            head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _peft() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it notes what it lacks
    try:
        import peft
    except ImportError as e:
        raise ValueError("an adapter needs peft: pip install 'rsd[peft]'") from e
    return peft

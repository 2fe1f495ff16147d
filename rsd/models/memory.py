"""How many rows fit: what a pair's weights, caches and working tensors take, against what is free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from rsd.config import Loading
from rsd.models.loading import dtype_of, place_of, reading
from rsd.models.row_pools import capacity
from rsd.models.source import Source
from rsd.placing import MAPS
from rsd.settings import called

MOST_ROWS = {"cpu": 32}  # more rows than that no longer pay on a CPU
MOST_ROWS_ELSEWHERE = 128
PROMPT = 512  # tokens assumed for a prompt, beside the longest trace
KEEP_FREE = 0.1  # of the free memory, for what is not counted
WIDE = 2  # tensors of float32 as wide as the vocabulary that a round holds for every row and draft, at the most
QUANTISED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}  # bytes of a weight; 4bit has a scale for every 64
DRAFTS = 8  # and drafts of a round with many rows
ALL_GPUS = "all GPUs"


@dataclass(frozen=True)
class Need:
    """Bytes that one model takes: once, and for every row of `tokens` tokens. place: its device, or its device map."""

    place: str
    weights: int
    row: int


@dataclass(frozen=True)
class Estimate:
    rows: int
    text: str


def need(
    config: PreTrainedConfig,
    *,
    dtype: str,
    place: str,
    tokens: int,
    trust_remote_code: bool = False,
    load_in: str | None = None,
    parts: int = 1,
) -> Need:
    """What a model will take, from its configuration alone. parts: processes that hold it together; what one takes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    size = getattr(torch, dtype).itemsize
    c = config.get_text_config()
    heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    weights = sum(p.numel() for p in model.parameters()) * size
    if load_in:  # the linear layers but for the head, which stays as it is
        linear = [m for m in model.modules() if type(m) is nn.Linear and m is not model.get_output_embeddings()]
        weights -= int(sum(m.weight.numel() for m in linear) * (size - QUANTISED[load_in]))
    if place == "cpu" and parts == 1 and c.tie_word_embeddings:
        weights += c.vocab_size * c.hidden_size * size  # the head is packed, the embedding is not
    cache = 2 * c.num_hidden_layers * heads * head * size * capacity(tokens)
    return Need(place, weights // parts, cache // parts + WIDE * DRAFTS * c.vocab_size * 4)


def need_of(source: Source, config: Loading, tokens: int, *, parts: int = 1) -> Need:
    """What a model will take as `config` loads it. parts: as of `need`.

    Raises:
        ValueError: no model can be built of its configuration.
    """
    if not torch.cuda.is_available():
        parts = 1  # they share one memory
    with reading(f"{called(source.role)} {source.name}"):
        return need(
            source.config,
            dtype=dtype_of(config),
            place=place_of(config, source.role),
            tokens=tokens,
            trust_remote_code=config.trust_remote_code,
            load_in=source.load_in,
            parts=parts,
        )


def estimate(*models: Need, tokens: int, rows: int | None, one: bool = False) -> Estimate:
    """How many rows of `tokens` tokens fit into the free memory, unless `rows` is given.

    Args:
        one: the models are one, loaded once, with two caches.

    Models on one device share it, and with one that is spread over the GPUs all of these. A row takes no more of a
    cache than its trace so far needs, so this is what the longest traces need.
    """
    if one:
        models = (models[0], replace(models[1], weights=0))
    needs = _together(models)
    most, free_said = [], []
    for device in dict.fromkeys(n.place for n in needs):
        on = [n for n in needs if n.place == device]
        free = free_bytes(device)
        left = free * (1 - KEEP_FREE) - sum(n.weights for n in on)
        most.append(min(int(left // sum(n.row for n in on)), MOST_ROWS.get(device, MOST_ROWS_ELSEWHERE)))
        free_said.append(f"{_gb(free)} free on {device}")
    fits = rows if rows is not None else max(1, min(most))
    weights, row = (_gb(sum(sizes)) for sizes in ([n.weights for n in models], [n.row for n in models]))
    once = " (one model in both roles, loaded once)" if one else ""
    text = (
        f"memory: weights {weights}{once}, and at the most {row} for each row of {tokens} tokens in "
        f"{'both caches' if len(models) > 1 else 'the cache'}: {fits} rows at once ({', '.join(free_said)})"
    )
    if min(most) < 1:
        text += "; this may not fit"
    return Estimate(fits, text)


def _together(models: Sequence[Need]) -> list[Need]:
    """The same with places that have nothing in common: `cuda` and the number of that GPU are one."""
    if torch.cuda.is_available():
        one = f"cuda:{torch.cuda.current_device()}"
        models = [replace(n, place=one) if n.place == "cuda" else n for n in models]
    if all(n.place not in MAPS for n in models):
        return list(models)
    if not torch.cuda.is_available():
        return [replace(n, place="cpu") if n.place in MAPS else n for n in models]
    return [n if n.place == "cpu" else replace(n, place=ALL_GPUS) for n in models]


def free_bytes(device: str) -> int:
    """Free memory of a device, or of `ALL_GPUS`; of the machine's memory no more than a container is allowed.

    Raises:
        ValueError: there is no such GPU.
    """
    if device.startswith("cuda") and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device}: torch sees {torch.cuda.device_count()} GPUs here; choose another, or cpu")
    if device.startswith("cuda") or device == ALL_GPUS:
        several = range(torch.cuda.device_count()) if device == ALL_GPUS else [torch.device(device)]
        return sum(int(torch.cuda.mem_get_info(one)[0]) for one in several)
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, int(allowed) - int(used.read_text()))
    return max(free, 0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"

"""Finding and loading models and tokenizers."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.distributed import DistributedConfig

from rsd.acceptance import Sampling
from rsd.config import GenerateConfig, Loading
from rsd.models import gguf, kv_cache
from rsd.models.adapters import CONFIG, find_adapter, merge, split
from rsd.models.bundled import folder_of
from rsd.models.packed import pack
from rsd.models.source import Source
from rsd.placing import MAPS
from rsd.settings import called
from rsd.terminal import say

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

# The largest values of sizes that a configuration may name.
SIZES = {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_hidden_layers": 1 << 12}
# What a generation config may hold of what is read here, if anything.
GENERATION: dict[str, tuple[type | str, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": (int,),
    "eos_token_id": (int, "ids"),
    "suppress_tokens": ("ids",),
}


def find(role: str, name: str, revision: str | None, *, trust_remote_code: bool, load_in: str | None = None) -> Source:
    """Read configuration and tokenizer of a directory, a GGUF file, a Hub id, a bundled model, or BASE+ADAPTER.

    Args:
        revision: the base's. load_in: 4bit or 8bit, to quantise the weights when they are loaded.

    Raises:
        ValueError: there is no such model, it cannot be read, or it is of a kind that cannot be decoded with;
            or what reads its adapter or quantises its weights is not installed.
    """
    base, adapter_name = split(name)
    path = folder_of(base)
    if not (os.path.isdir(path) or gguf.is_gguf(path)) and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise ValueError(f"{called(role)} {name}: no such directory (and a Hub id has the form owner/name)")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    adapter = None
    with reading(f"{called(role)} {name}"):
        if (Path(path) / CONFIG).is_file():  # transformers would load it, unmerged, where peft is installed
            raise ValueError(f"{base} holds a PEFT adapter: name it after its base, as BASE+{base}")
        config = gguf.read(AutoConfig, path) if gguf.is_gguf(path) else AutoConfig.from_pretrained(path, **options)
        # The class of a model with code of its own is known when it is loaded: then the cache checks it.
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), PreTrainedModel)
        kv_cache.check(config, kind)
        if load_in:
            _check_quantising(path, config)
        if adapter_name is not None:
            if load_in or getattr(config, "quantization_config", None):
                raise ValueError("an adapter cannot be merged into quantised weights: merge and save it first")
            adapter = find_adapter(adapter_name, config, trust_remote_code=trust_remote_code)
        if adapter and adapter.has_tokenizer:
            tokenizer = AutoTokenizer.from_pretrained(adapter.path, trust_remote_code=trust_remote_code)
        elif gguf.is_gguf(path):
            tokenizer = gguf.tokenizer(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
        generation = None if gguf.is_gguf(path) else generation_config(path, revision)
        if generation is None:
            generation = GenerationConfig.from_model_config(config)
        commit = getattr(config, "_commit_hash", None)
        source = Source(role, name, path, commit or revision, config, tokenizer, generation, adapter, load_in)
        _check_values(source)
        tokenizer.encode("a b")
        source.ends, source.fingerprint()
    return source


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever is raised while a model's files are read becomes a ValueError of one line.

    They may hold anything, and there is nothing that cannot be raised then: tokenizers' panics are not even Exceptions.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:
        raise ValueError(f"{name}: cannot be loaded: {_first_line(e)}") from e


def generation_config(path: str, revision: str | None) -> GenerationConfig | None:
    """The generation config; None if there is none, but not if it cannot be read.

    Raises:
        ValueError: it is no JSON object, or values in it are of a wrong type.
    """
    file = "generation_config.json"
    try:
        made = GenerationConfig.from_pretrained(path, revision=revision or "main")
    except OSError as e:
        if (Path(path) / file).exists() or isinstance(e.__context__, ValueError):
            raise ValueError(f"{file} cannot be read: {_first_line(e.__context__ or e)}") from e
        return None
    except (AttributeError, TypeError) as e:
        raise ValueError(f"{file} is not an object of settings: {_first_line(e)}") from e
    for name, kinds in GENERATION.items():
        value = getattr(made, name)
        several = type(value) is list and all(type(v) is int for v in value)
        if value is not None and type(value) not in kinds and not (several and "ids" in kinds):
            raise ValueError(f"{file}: {name} cannot be {value!r}")
    return made


def _check_values(source: Source) -> None:
    """Raises ValueError for a size that no model has: what is made of it would take all memory, or all time."""
    config = source.config.get_text_config()
    for name, most in SIZES.items():
        value = getattr(config, name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ValueError(f"its configuration's {name} is {value!r}: a whole number from 1 to {most} is expected")
    if source.context < 1:
        raise ValueError(f"its configuration leaves a context of {source.context} positions")


def _check_quantising(path: str, config: PreTrainedConfig) -> None:
    """Raises ValueError where weights are quantised already, or bitsandbytes is not installed."""
    if gguf.is_gguf(path) or getattr(config, "quantization_config", None):
        raise ValueError("its weights are quantised already: load them as they are")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it notes what it lacks, and every cast of every layer
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as e:
        raise ValueError("4bit and 8bit need bitsandbytes: pip install 'rsd[quantize]'") from e


def load(source: Source, config: Loading, *, packed: bool = True, parts: int = 1) -> PreTrainedModel:
    """Load the weights, in fp32 on a CPU and bf16 on a GPU unless asked otherwise; for inference alone.

    Quantised layers compute in that type, and what is not quantised (embedding, head, norms) is loaded in it.

    Args:
        packed: on a CPU, the linear layers in oneDNN's layout (`packed`), which torch.compile cannot read.
        parts: processes, this one and others, that load a part of every layer each (`tensor_parallel`).

    Raises:
        ValueError: the weights cannot be loaded, or are not safetensors and `allow_pickle` is off; or they are not the
            configuration's: the model has tensors that are not there, and would be random, or there are others.
    """
    quantised: dict[str, Any] = {}
    if source.load_in:
        quantised["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{source.load_in}": True})
    with reading(f"{called(source.role)} {source.name}"):
        options: dict[str, Any] = {
            "config": source.config,
            "dtype": getattr(torch, dtype_of(config)),
            "attn_implementation": config.attn_implementation,
        }
        if parts > 1:
            options["distributed_config"] = DistributedConfig(tp_size=parts)
        else:
            options["device_map"] = place_of(config, source.role)
        if gguf.is_gguf(source.path):
            model = gguf.load(source.path, **options)
        else:
            _check_files(source.path)
            made: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below, with names
                revision=source.revision,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=None if config.allow_pickle else True,
                **options,
                **quantised,
            )
            model, info = made
            _check_tensors(info, passed_over=config.skip_check)
        model.eval()
        if moved := moved_parts(model):
            if source.adapter:
                raise ValueError("the GPUs have no room to merge an adapter: merge and save it first")
            say(
                f"notice: {moved} parts of the {source.role} do not fit the GPUs and are fetched in every pass, many "
                "times slower: take more GPUs, or fewer bits (load-in)"
            )
        if source.adapter:
            model = merge(model, source.adapter, allow_pickle=config.allow_pickle)
        if source.load_in:
            _try_out(model, source.load_in)
    if packed and parts == 1:
        pack(model)
    return model.eval()


def _check_files(path: str) -> None:
    """Raises ValueError for a file of weights that is cut off or is none, as a broken download leaves it."""
    for file in sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else ():
        try:
            with safe_open(file, "pt"):  # reads its header, and whether it is as long as that says
                pass
        except Exception as e:  # whatever a file may raise that holds anything
            raise ValueError(f"{file.name} is damaged ({_first_line(e)}): fetch it again") from e


def _check_tensors(info: Mapping[str, Any], *, passed_over: bool) -> None:
    """Whether weights are those of the model: what transformers lacks of them it makes up at random.

    It knows which may lack (a head that is the embedding) and which may be too many (layers for drafting, say), and
    does not name these. Others that are too many may be layers that the configuration is silent about.

    Args:
        passed_over: those that are too many are left out.

    Raises:
        ValueError: some are missing, of another shape, or too many.
    """
    for name, what in (("missing", "have no"), ("mismatched", "have another shape of"), ("unexpected", "also hold")):
        keys = sorted(k if isinstance(k, str) else k[0] for k in info[f"{name}_keys"])
        if keys and not (name == "unexpected" and passed_over):
            named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            way_out = f"; {called('skip_check', True)} leaves these out" if name == "unexpected" else ""
            raise ValueError(f"the weights {what} {named}: are they this configuration's?{way_out}")


@torch.inference_mode()
def _try_out(model: PreTrainedModel, load_in: str) -> None:
    """Which shapes bitsandbytes cannot do on a device, it says only when it computes (4bit on some CPUs)."""
    try:
        model(torch.zeros(1, 1, dtype=torch.long, device=kv_cache.first_device(model)))
    except RuntimeError as e:
        raise ValueError(f"bitsandbytes cannot compute with its {load_in} weights here ({_first_line(e)})") from e


def one_model(teacher: Source, student: Source, config: GenerateConfig) -> bool:
    """Whether both roles have the same weights on the same device, so that these are loaded once."""

    def weights(source: Source) -> tuple[Any, ...]:
        place = os.path.realpath(source.path) if os.path.exists(source.path) else source.path
        adapter = source.adapter and (os.path.realpath(source.adapter.path), source.adapter.revision)
        return place, source.revision, adapter, source.load_in, place_of(config, source.role)

    return config.tensor_parallel == 1 and weights(teacher) == weights(student)


def place_of(config: Loading, role: str) -> str:
    """A model's device, or its device map.

    Raises:
        ValueError: torch has no such device here.
    """
    asked = config.place_of(role)
    if asked and asked not in MAPS:
        _check_device(asked)
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _check_device(name: str) -> None:
    try:
        kind = torch.device(name).type
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError):  # each backend has its own
        kind = "meta"
    if kind == "meta":  # which holds no numbers
        count = torch.cuda.device_count()
        raise ValueError(f"device {name}: torch sees no such device here, and {count} GPUs; choose another, or cpu")


def moved_parts(model: PreTrainedModel) -> int:
    """How many parts of a model that has a device map are not on the device that computes with them."""
    places = [str(place) for place in getattr(model, "hf_device_map", {}).values()]
    return sum(place == "disk" or (place == "cpu" and not {"cpu", "disk"}.issuperset(places)) for place in places)


def dtype_of(config: Loading) -> str:
    """One for both models, since it shapes the traces."""
    no_gpu = {"cpu"} if torch.cuda.is_available() else {"cpu", *MAPS}
    on_cpu = not no_gpu.isdisjoint((place_of(config, "teacher"), place_of(config, "student")))
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
    """The first line, and where that only announces what follows, the next one, too."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]

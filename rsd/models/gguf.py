"""GGUF files: configuration, tokenizer and (mostly quantised) weights of one model in one file."""

import json
import os
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast


def is_gguf(path: str) -> bool:
    return path.endswith(".gguf") and not os.path.isdir(path)


def read(auto: Any, file: str, **options: Any) -> Any:
    """What a class of transformers, such as AutoConfig, makes of a GGUF file.

    Raises:
        ValueError: there is no such file, it is broken or of a kind that transformers cannot read, or gguf is
            not installed.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as e:
        raise ValueError("a GGUF file needs gguf: pip install 'rsd[gguf]'") from e
    if not os.path.isfile(file):
        raise ValueError("no such file")
    # The file's own folder may hold other models, and a tokenizer there would come before the one in the file.
    # The conversion shows its progress whatever transformers is told.
    with tempfile.TemporaryDirectory() as empty, redirect_stderr(StringIO()):
        try:
            return auto.from_pretrained(empty, gguf_file=str(Path(file).absolute()), **options)
        except Exception as e:  # bytes that are not what they should be can raise anything
            raise ValueError(f"not a GGUF file that can be read: {e or type(e).__name__}") from e


def tokenizer(file: str) -> PreTrainedTokenizerFast:
    """The tokenizer in the file, raises as `read` does.

    An embedding wider than its tokenizer has placeholders there, tokens [PAD151669] and so on, which nothing
    spells: they are taken out, since no other tokenizer of the same base has them.
    """
    made: Any = read(AutoTokenizer, file)
    padding = [token for token, i in made.get_vocab().items() if token == f"[PAD{i}]"]
    if padding:
        state = json.loads(made.backend_tokenizer.to_str())
        for token in padding:
            state["model"]["vocab"].pop(token, None)
        made._tokenizer = Tokenizer.from_str(json.dumps(state))
    return cast(PreTrainedTokenizerFast, made)


def load(file: str, **options: Any) -> PreTrainedModel:
    """The model, its weights plain tensors of the `dtype` that `options` name; raises as `read` does."""
    try:
        from transformers import GgufConfig
    except ImportError as e:
        raise ValueError("a GGUF file needs a newer transformers: pip install -U 'rsd[gguf]'") from e
    # Layers that stay packed would bring kernels and an attention of their own where these are installed.
    plain = GgufConfig(dequantize=True)
    options |= {"quantization_config": plain, "output_loading_info": True}
    model, info = read(AutoModelForCausalLM, file, **options)
    if absent := sorted(info["missing_keys"]):  # they would be random
        raise ValueError(f"the file has no {absent[0]}, or transformers cannot find it there")
    return cast(PreTrainedModel, model)

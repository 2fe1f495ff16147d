"""The tokenizer of the student that a job's manifest names, as far as it is on this machine; nothing is fetched.

A file may name anything. So none of its code runs, and torch is only loaded for a GGUF file.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from rsd.models.bundled import folder_of

FILE = "tokenizer.json"


def noted_tokenizer(student: Mapping[str, Any]) -> Tokenizer:
    """student: as a manifest has it: name, path, revision and, if it has one, its adapter.

    Raises:
        ValueError: it is not here, or cannot be read.
    """
    named = str(student.get("name"))
    for model in (student.get("adapter"), student):
        for place in _places(model) if isinstance(model, Mapping) else ():
            try:
                if place.suffix != ".gguf":
                    return Tokenizer.from_file(str(place))
                from rsd.models.gguf import tokenizer

                return tokenizer(str(place)).backend_tokenizer
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as e:  # panics of tokenizers are not even Exceptions
                why = (str(e).splitlines() or [type(e).__name__])[0]
                raise ValueError(f"the tokenizer of the student {named} cannot be read: {why}") from e
    raise ValueError(f"the tokenizer of the student {named} is not here")


def _places(model: Mapping[str, Any]) -> Iterator[Path]:
    """Where the tokenizer of a model may be: files that are there."""
    for name in (model.get("path"), folder_of(str(model.get("name")))):
        if not isinstance(name, str) or "\0" in name:
            continue
        for place in (Path(name) / FILE, Path(name)):
            if place.is_file() and (place.name == FILE or place.suffix == ".gguf"):
                yield place
        if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not os.path.exists(name):
            revision = model.get("revision")
            found = try_to_load_from_cache(name, FILE, revision=revision if isinstance(revision, str) else None)
            if isinstance(found, str):
                yield Path(found)

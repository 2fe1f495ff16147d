"""What a trainer makes of a text: whether the student's tokenizer and chat template give the sampled ids again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsd.dataset.formats import WITH_TEMPLATE, Ids, Row, answer
from rsd.traces.lines import Key, key_of

if TYPE_CHECKING:
    from rsd.models.source import Source


def kwargs_of(manifest: Row, format: str) -> dict[str, Any]:
    """What a job gave to the chat template, and a trainer gives to it, where the format has a place for that."""
    kwargs = manifest.get("identity", {}).get("chat_template_kwargs")
    return kwargs if isinstance(kwargs, dict) and format in WITH_TEMPLATE else {}


def student_of(manifest: Row) -> "Source":
    """The student that a job's traces are for.

    Raises:
        ValueError: there is no manifest, or the student cannot be read.
    """
    if not manifest:
        raise ValueError("there is no manifest here")
    from rsd.models.loading import find

    try:
        model = manifest["student"]
        places = [model, *([model["adapter"]] if "adapter" in model else [])]
        path = "+".join(p["path"] if Path(p["path"]).exists() else p["name"] for p in places)
        return find("student", path, model["revision"], trust_remote_code=False)
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise ValueError(f"the student cannot be read: {e}") from e


def sampled(tokens: Ids) -> list[int]:
    """All that the student read and wrote of a trace."""
    ids: list[int] = np.concatenate(tokens).tolist()
    return ids


def respelled(
    rows: Sequence[Row], tokens: Mapping[Key, Ids], manifest: Row, format: str
) -> tuple[int | None, list[str]]:
    """How many rows a trainer that applies the student's chat template reads as other ids than were sampled.

    The template is given what the format's rows say. What it puts after the EOS, such as a line break, does not
    count; where the loss begins does, if the trainer finds that by the prompt.
    """
    unchecked = "whether these texts give the sampled ids again is not checked: "
    if not all(key_of(row) in tokens for row in rows):
        return None, [f"{unchecked}some rows have no tokens here"]
    try:
        student = student_of(manifest)
    except ValueError as e:
        return None, [f"{unchecked}{e}"]
    kwargs = kwargs_of(manifest, format)
    count = 0
    for row in rows:
        t = tokens[key_of(row)]
        want = sampled(t)
        try:
            ids = student.training_ids(row["prompt"], answer(row), kwargs)
            elsewhere = (
                format == "prompt-completion" and student.prompt_ids(row["prompt"], kwargs) != t.prompt_ids.tolist()
            )
        except Exception:  # a template may refuse what another one made
            ids, elsewhere = [], True
        after = str(student.tokenizer.decode(ids[len(want) :]))
        count += elsewhere or ids[: len(want)] != want or bool(after.strip())
    return count, []

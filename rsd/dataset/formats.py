"""The formats that trainers read, made of a row of ours and its tokens."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rsd.traces.trace import PROVENANCE

SHAREGPT = {"user": "human", "assistant": "gpt"}
# Those whose trainer, TRL, gives to the chat template what the column `chat_template_kwargs` holds.
WITH_TEMPLATE = ("prompt-completion", "messages")

Row = Mapping[str, Any]


class Ids(NamedTuple):
    """A trace's line in the sidecar: the prompt, what was written before the trace, and the trace."""

    prompt_ids: np.ndarray
    prefix_ids: np.ndarray
    token_ids: np.ndarray


def answer(row: Row) -> str:
    """The text of a row's completion."""
    return str(row["completion"][0]["content"])


def formatted(row: Row, format: str, tokens: Ids | None, template_kwargs: Row) -> dict[str, Any]:
    """A row of ours in the shape of a format; "token-ids" needs its tokens.

    template_kwargs: what the job gave to the chat template, for the formats that can say so.
    """
    shaped = _token_ids(tokens) if format == "token-ids" and tokens else SHAPES[format](row)
    how = {"chat_template_kwargs": dict(template_kwargs)} if template_kwargs and format in WITH_TEMPLATE else {}
    return {**shaped, **how, **{c: row.get(c) for c in PROVENANCE}}


def _prompt_completion(row: Row) -> dict[str, Any]:
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _messages(row: Row) -> dict[str, Any]:
    return {"messages": [*row["prompt"], *row["completion"]]}


def _sharegpt(row: Row) -> dict[str, Any]:
    turns = [*row["prompt"], *row["completion"]]
    return {"conversations": [{"from": SHAREGPT.get(t["role"], t["role"]), "value": t["content"]} for t in turns]}


def _alpaca(row: Row) -> dict[str, Any]:
    """The last turn is the instruction; pairs of turns before it are the history."""
    *before, last = row["prompt"]
    system = "\n".join(t["content"] for t in before if t["role"] == "system")
    turns = [t["content"] for t in before if t["role"] != "system"]
    history = [list(pair) for pair in zip(turns[::2], turns[1::2], strict=False)]
    made = {"instruction": last["content"], "input": "", "output": answer(row), "system": system, "history": history}
    return made


SHAPES: dict[str, Callable[[Row], dict[str, Any]]] = {
    "prompt-completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}


def _token_ids(t: Ids) -> dict[str, Any]:
    """What both TRL (`input_ids`, `completion_mask`) and a plain trainer (`input_ids`, `labels`) read."""
    completion = np.concatenate([t.prefix_ids, t.token_ids])
    return {
        "input_ids": [*t.prompt_ids.tolist(), *completion.tolist()],
        "completion_mask": [0] * len(t.prompt_ids) + [1] * len(completion),
        "labels": [-100] * len(t.prompt_ids) + completion.tolist(),
    }


def prefix(row: Row, length: int, tokens: Ids) -> dict[str, Any]:
    """The first tokens of a trace; never its last one, which may be an end."""
    shaped = _token_ids(tokens._replace(token_ids=tokens.token_ids[:-1][:length]))
    return {**shaped, **{c: row.get(c) for c in PROVENANCE}, "is_prefix": True}

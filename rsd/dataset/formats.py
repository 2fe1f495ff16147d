"""The formats that trainers read, made of a row of ours and its tokens."""

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from rsd.traces.columns import is_number
from rsd.traces.rows import Messages
from rsd.traces.trace import PROVENANCE

SHAREGPT = {"user": "human", "assistant": "gpt"}
# Those whose trainer, TRL, gives to the chat template what the column `chat_template_kwargs` holds.
WITH_TEMPLATE = ("prompt-completion", "messages")
IDS = ("token-ids", "distillkit")  # those of which nothing is to be tokenized

Row = Mapping[str, Any]


class Ids(NamedTuple):
    """A trace's line in the sidecar: the prompt, what was written before the trace, and the trace."""

    prompt_ids: np.ndarray
    prefix_ids: np.ndarray
    token_ids: np.ndarray


def answer(row: Row) -> str:
    """The text of a row's completion."""
    return str(row["completion"][0]["content"])


def privileged_context(row: Row, teacher: Messages) -> str:
    """What the teacher read and the student did not, one turn a line: as TRL's self-distillation trainers read it."""
    shared = len([*takewhile(lambda turns: turns[0] == turns[1], zip(row["prompt"], teacher, strict=False))])
    return "\n".join(turn["content"] for turn in teacher[shared:])


def formatted(
    row: Row, format: str, tokens: Ids | None, template_kwargs: Row, weights: list[float] | None = None
) -> dict[str, Any]:
    """A row of ours in the shape of a format; "token-ids" needs its tokens, and may have weights of them.

    Of a format with soft targets this is what the row says of its trace; `soft_formats` has its shape.
    template_kwargs: what the job gave to the chat template, for the formats that can say so.
    """
    if format == "token-ids" and tokens:
        shaped = _token_ids(tokens, weights)
    else:
        shaped = SHAPES[format](row) if format in SHAPES else {}
    how = {"chat_template_kwargs": dict(template_kwargs)} if template_kwargs else {}
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


def weights_of(row: Row, tokens: Ids) -> list[float] | None:
    """What `rsd weigh` says of each token of a completion; None where that is not said, or is said of other tokens."""
    weights, length = row.get("token_weights"), len(tokens.prefix_ids) + len(tokens.token_ids)
    if not isinstance(weights, list) or len(weights) != length or not all(map(_is_weight, weights)):
        return None
    told = row.get("token_ids")
    return weights if told in (None, [*tokens.prefix_ids.tolist(), *tokens.token_ids.tolist()]) else None


def _is_weight(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _token_ids(t: Ids, weights: list[float] | None) -> dict[str, Any]:
    """What both TRL (`input_ids`, `completion_mask`) and a plain trainer (`input_ids`, `labels`) read.

    weights: of the tokens of the completion, or of more than are left of it.
    """
    completion = np.concatenate([t.prefix_ids, t.token_ids])
    shaped: dict[str, Any] = {
        "input_ids": [*t.prompt_ids.tolist(), *completion.tolist()],
        "completion_mask": [0] * len(t.prompt_ids) + [1] * len(completion),
        "labels": [-100] * len(t.prompt_ids) + completion.tolist(),
    }
    if weights is not None:
        shaped["loss_weights"] = [0.0] * len(t.prompt_ids) + [float(w) for w in weights[: len(completion)]]
    return shaped


def prefix(row: Row, length: int, tokens: Ids, weights: list[float] | None = None) -> dict[str, Any]:
    """The first tokens of a trace; never its last one, which may be an end."""
    shaped = _token_ids(tokens._replace(token_ids=tokens.token_ids[:-1][:length]), weights)
    return {**shaped, **{c: row.get(c) for c in PROVENANCE}, "is_prefix": True}

"""What is kept of a token: one record, from the round that commits it to the page that shows it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# token_ids: the student's. teacher_logprobs, student_logprobs: natural log of both models' softmax over the full
#     width at temperature 1, before any mask; NaN where the teacher has no such token, or it is not known.
# from_teacher: the label drawn from its posterior given the token, 1 or 0; -1 where it is not known.
# accepted: a = q(A), the chance that one proposal of the teacher stands. proposals: its likeliest proposal, as the
#     student's id; -1 where it has none that the student knows, or it is not known. (Of a token that it spells, only
#     where this could stand; see `rsd.decoding.proposals`.)
# left_out: the share of the teacher's sampling distribution that is no token of the student's.
TOKEN = np.dtype(
    [
        ("token_ids", np.int32),
        ("teacher_logprobs", np.float32),
        ("student_logprobs", np.float32),
        ("from_teacher", np.int8),
        ("accepted", np.float64),
        ("proposals", np.int32),
        ("left_out", np.float64),
    ]
)
MODELS = ("teacher", "student")
# How a sidecar's line calls the columns that it holds, what stands there for "not known", and whether these are ids.
SIDECAR = {
    "token_ids": ("token_ids", None),
    "teacher_logprobs": ("teacher_logprobs", np.nan),
    "student_logprobs": ("student_logprobs", np.nan),
    "from_teacher": ("from_teacher", -1),
    "teacher_proposals": ("proposals", -1),
}
IDS = ("token_ids", "proposals")


class TokenColumns:
    """The columns of `tokens`, a structured array [T] of `TOKEN`, in the widest types: int64, float64 and bool."""

    tokens: np.ndarray

    @property
    def token_ids(self) -> np.ndarray:
        return self.tokens["token_ids"].astype(np.int64)

    @property
    def teacher_logprobs(self) -> np.ndarray:
        return self.tokens["teacher_logprobs"].astype(np.float64)

    @property
    def student_logprobs(self) -> np.ndarray:
        return self.tokens["student_logprobs"].astype(np.float64)

    @property
    def from_teacher(self) -> np.ndarray:
        return self.tokens["from_teacher"] > 0

    @property
    def accepted(self) -> np.ndarray:
        return self.tokens["accepted"]

    @property
    def proposals(self) -> np.ndarray:
        return self.tokens["proposals"].astype(np.int64)

    @property
    def left_out(self) -> np.ndarray:
        return self.tokens["left_out"]


def top_columns() -> list[str]:
    """The columns of both models' likeliest tokens in a record that has them."""
    return [f"{model}_top_{of}" for model in MODELS for of in ("ids", "logprobs")]


def record(top: int, thresholds: int = 0) -> np.dtype:
    """The record of a token with the `top` likeliest tokens of each model in its place (see `soft.SoftTargets`), and
    with `accepted_at`, what `accepted` would be at so many other thresholds."""
    kinds = {"ids": np.int32, "logprobs": np.float32}
    wide: list[tuple[Any, ...]] = [(name, kinds[name.rpartition("_")[2]], (top,)) for name in top_columns() if top]
    wide += [("accepted_at", np.float64, (thresholds,))] if thresholds else []
    return np.dtype([*TOKEN.descr, *wide]) if wide else TOKEN


def no_tokens() -> np.ndarray:
    return np.empty(0, dtype=TOKEN)


def unknown(ids: Any) -> np.ndarray:
    """Records of tokens of which the ids [T] alone are known."""
    made = np.empty(len(ids), dtype=TOKEN)
    made["token_ids"] = ids
    made["from_teacher"] = made["proposals"] = -1
    made["teacher_logprobs"] = made["student_logprobs"] = made["accepted"] = made["left_out"] = np.nan
    return made


def sidecar_columns(tokens: np.ndarray) -> dict[str, list[Any]]:
    """The columns of a sidecar's line, one entry a token."""
    made: dict[str, list[Any]] = {}
    for column, (name, none) in SIDECAR.items():
        values = tokens[name].tolist()
        if name in IDS:
            made[column] = values if none is None else [i if i >= 0 else None for i in values]
        elif name == "from_teacher":
            made[column] = values
        else:  # JSON has neither NaN (no such token) nor -inf (a token that a model rules out)
            made[column] = [round(v, 6) if math.isfinite(v) else None for v in values]
    return made


def of_sidecar(line: Mapping[str, Any]) -> np.ndarray:
    """The records [T] of a sidecar's line.

    Raises:
        ValueError, TypeError, LookupError or OverflowError: the line is not ours.
    """
    made = unknown(np.zeros(len(line["token_ids"])))
    for column, (name, none) in SIDECAR.items():
        if not (values := line.get(column)):
            continue
        if len(values) != len(made):
            raise ValueError(f"{column} has not one entry a token")
        if name in IDS and not all(type(i) is int and i >= 0 for i in values if i is not None or none is None):
            raise ValueError(f"{column} is no list of ids")
        made[name] = [none if v is None else v for v in values]
    return made

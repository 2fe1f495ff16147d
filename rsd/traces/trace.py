"""One finished trace: its row for training, and its arrays for the sidecar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rsd.traces.rows import Messages, Row, digest

if TYPE_CHECKING:  # these import torch, which readers of traces can do without
    from rsd.decoding.engine import Finished
    from rsd.pair.prompts import Prompt

COLUMNS = (
    "prompt",
    "completion",
    "id",
    "generation",
    "finish_reason",
    "is_correct",
    "verify_error",
    "ended_by_eos",
    "one_think_close",
    "num_tokens",
    "acceptance_rate",
    "fallback_rate",
    "error",
)
# What a row says of its trace; every exported row does, too, whatever its format.
PROVENANCE = ("id", "generation", "is_correct", "num_tokens", "acceptance_rate", "fallback_rate")


def _nothing() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A trace, or the error that stands in its place.

    prompt: the chat messages. text: the decoded completion without its final EOS, special tokens
        kept. prompt_ids: the student's. prefix_ids: the part of the completion that was written and not
        sampled (`completion_prefix`); no array covers it. thinking_opened: the prompt ends in `<think>`.
        teacher_messages: what the teacher read in the prompt's place.
    The arrays have one entry a token, the final EOS included: token_ids, natural-log probabilities of
        both models at temperature 1 over the full width (NaN where the teacher has no such token),
        from_teacher (bool, the label drawn from its posterior), accepted (the chance that one proposal
        stands), proposals (the id that the teacher likes best of those that the student knows, else -1), and left_out
    (the share of the teacher's distribution that is no token of the student's).
    is_correct: None where it is not known, with verify_error if it could not be found out.
    columns: the input row's other columns, kept. scores: what `rsd generate --score` adds.
    """

    id: str | int
    generation: int
    prompt: list[dict[str, str]]
    text: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    prefix_ids: list[int] = field(default_factory=list)
    thinking_opened: bool = False
    teacher_messages: Messages | None = None
    token_ids: np.ndarray = field(default_factory=_nothing)
    teacher_logprobs: np.ndarray = field(default_factory=_nothing)
    student_logprobs: np.ndarray = field(default_factory=_nothing)
    from_teacher: np.ndarray = field(default_factory=_nothing)
    accepted: np.ndarray = field(default_factory=_nothing)
    proposals: np.ndarray = field(default_factory=_nothing)
    left_out: np.ndarray = field(default_factory=_nothing)
    finish_reason: str = "error"
    is_correct: bool | None = None
    verify_error: str | None = None
    error: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, row: Row, generation: int, prompt: Prompt, finished: Finished, *, decode: Callable[[list[int]], str]
    ) -> Trace:
        """What the engine made of a row."""
        ids = finished.token_ids
        shown = ids[:-1] if finished.finish_reason == "stop" else ids
        return cls(
            id=row.id,
            generation=generation,
            prompt=row.messages,
            text=decode(prompt.prefix + shown.tolist()),
            prompt_ids=prompt.student,
            prefix_ids=prompt.prefix,
            token_ids=ids,
            teacher_logprobs=finished.teacher_logprobs,
            student_logprobs=finished.student_logprobs,
            from_teacher=finished.from_teacher,
            accepted=finished.accepted,
            proposals=finished.proposals,
            left_out=finished.left_out,
            finish_reason=finished.finish_reason,
            thinking_opened=prompt.opened,
            error=finished.error,
            teacher_messages=row.teacher,
            columns=row.columns,
        )

    @property
    def key(self) -> tuple[str, int]:
        return str(self.id), self.generation

    def row(self) -> dict[str, Any]:
        """The row in TRL's conversational prompt-completion format."""
        tokens = len(self.token_ids)
        own = {
            "prompt": self.prompt,
            "completion": [{"role": "assistant", "content": self.text}],
            "id": self.id,
            "generation": self.generation,
            "finish_reason": self.finish_reason,
            "is_correct": self.is_correct,
            "verify_error": self.verify_error,
            "ended_by_eos": self.finish_reason == "stop",
            "one_think_close": one_think_close(self.text, opened=self.thinking_opened) if tokens else None,
            "num_tokens": tokens,
            "acceptance_rate": round(float(self.accepted.mean()), 6) if tokens else None,
            "fallback_rate": round(1 - float(self.from_teacher.mean()), 6) if tokens else None,
            "error": self.error,
            **self.scores,
        }
        return own | {k if k not in own else f"input_{k}": v for k, v in self.columns.items()}

    def tokens(self) -> dict[str, Any]:
        """The sidecar's line: arrays of equal length, one entry a token."""
        return {
            "id": self.id,
            "generation": self.generation,
            "prompt_ids": self.prompt_ids,
            **({"prefix_ids": self.prefix_ids} if self.prefix_ids else {}),
            **({"teacher_prompt": digest(self.teacher_messages)} if self.teacher_messages else {}),
            "token_ids": self.token_ids.tolist(),
            "teacher_logprobs": _logprobs(self.teacher_logprobs),
            "student_logprobs": _logprobs(self.student_logprobs),
            "from_teacher": self.from_teacher.astype(int).tolist(),
            "teacher_proposals": [i if i >= 0 else None for i in self.proposals.astype(int).tolist()],
        }


def _logprobs(values: np.ndarray) -> list[float | None]:
    # JSON has neither NaN (no such token) nor -inf (a token that a model rules out).
    return [round(v, 6) if math.isfinite(v) else None for v in values.tolist()]


def one_think_close(text: str, *, opened: bool = False) -> bool | None:
    """Whether the thinking section is closed exactly once; None if the text has none."""
    count = text.count("</think>")
    if not count and not opened and "<think>" not in text:
        return None
    return count == 1

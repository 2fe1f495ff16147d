"""One finished trace: its row for training, and its arrays for the sidecar."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rsd.traces.html import block, escaped, token_spans
from rsd.traces.pieces import pieces, token_starts
from rsd.traces.rows import Messages, digest
from rsd.traces.soft import SoftTargets, soft_targets
from rsd.traces.tokens import TokenColumns, no_tokens, sidecar_columns

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
# How a trace may end: by its EOS, at its length, in a loop; or nothing became of it.
FINISH_REASONS = ("stop", "length", "loop", "error")
# What a row says of its trace; every exported row does, too, whatever its format.
PROVENANCE = ("id", "generation", "is_correct", "num_tokens", "acceptance_rate", "fallback_rate")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace(TokenColumns):
    """A trace, or the error that stands in its place.

    prompt: the chat messages. text: the decoded completion without its final EOS, special tokens
        kept. prompt_ids: the student's. prefix_ids: the part of the completion that was written and not
        sampled (`completion_prefix`); no array covers it. thinking_opened: the prompt ends in `<think>`.
        teacher_messages: what the teacher read in the prompt's place.
    tokens: records [T] of `tokens.record`, the final EOS included; their columns are attributes, too: token_ids,
        teacher_logprobs, student_logprobs, from_teacher, accepted, proposals and left_out.
    is_correct: None where it is not known, with verify_error if it could not be found out.
    columns: the input row's other columns, kept. scores: what `rsd generate --score` adds.
    decode: the text of the student's ids, for a notebook to show single tokens; it does not travel with a trace.
    """

    id: str | int
    generation: int
    prompt: list[dict[str, str]]
    text: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    prefix_ids: list[int] = field(default_factory=list)
    thinking_opened: bool = False
    teacher_messages: Messages | None = None
    tokens: np.ndarray = field(default_factory=no_tokens)
    finish_reason: str = "error"
    is_correct: bool | None = None
    verify_error: str | None = None
    error: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "decode"}

    @property
    def key(self) -> tuple[str, int]:
        return str(self.id), self.generation

    def row(self) -> dict[str, Any]:
        """The row in TRL's conversational prompt-completion format."""
        tokens = len(self.tokens)
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

    def sidecar(self) -> dict[str, Any]:
        """The sidecar's line: arrays of equal length, one entry a token."""
        return {
            "id": self.id,
            "generation": self.generation,
            "prompt_ids": self.prompt_ids,
            **({"prefix_ids": self.prefix_ids} if self.prefix_ids else {}),
            **(
                {"teacher_prompt": digest(self.teacher_messages), "teacher_messages": self.teacher_messages}
                if self.teacher_messages
                else {}
            ),
            **sidecar_columns(self.tokens),
        }

    @property
    def soft_targets(self) -> SoftTargets | None:
        """What both models found likeliest in each place, where `top_logprobs` asked for it."""
        return soft_targets([*self.prompt_ids, *self.prefix_ids], self.tokens)

    def _repr_html_(self) -> str:
        """The trace in a notebook: coloured tokens, where it was made in this process."""
        known = {True: "right", False: "wrong", None: "not verified"}[self.is_correct]
        about = f"<b>{escaped(str(self.id))}</b> {escaped(self.error or '') or f'{len(self.tokens)} tokens, {known}'}"
        if self.decode is None or self.error is not None:
            return block(token_spans([self.text], [math.nan]), about)
        tokens = self.tokens[:-1] if self.finish_reason == "stop" else self.tokens
        ids = [*self.prefix_ids, *tokens["token_ids"].tolist()]
        first, likeliest = len(self.prefix_ids), tokens["proposals"]
        differing = np.flatnonzero((likeliest >= 0) & (likeliest != tokens["token_ids"])).tolist()
        spans = token_spans(
            pieces(self.text, token_starts(ids, self.decode)),
            [math.nan] * first + tokens["student_logprobs"].tolist(),
            own=(first + np.flatnonzero(tokens["from_teacher"] == 0)).tolist(),
            instead_of={first + i: self.decode([int(likeliest[i])]) for i in differing},
        )
        return block(spans, about)


def one_think_close(text: str, *, opened: bool = False) -> bool | None:
    """Whether the thinking section is closed exactly once; None if the text has none."""
    count = text.count("</think>")
    if not count and not opened and "<think>" not in text:
        return None
    return count == 1

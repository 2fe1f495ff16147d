"""What is exported, and how."""

from dataclasses import dataclass
from typing import Literal

from rsd.config import TOKENS
from rsd.settings import MAKE, called, check, check_share, setting


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Everything that shapes an export. keep: see `filters.keep`.

    Which problems are set apart for testing depends on the seed and their prompts alone, so that all traces of a
    prompt are on one side. Prefixes, for prefix tuning, are one of each unsolved problem, without an end, labelled
    `is_prefix`.

    Raises:
        ValueError: a value is out of its range.
    """

    format: Literal[
        "prompt-completion", "messages", "sharegpt", "alpaca", "token-ids", "axolotl-kd", "axolotl-kd-v1", "distillkit"
    ] = setting("prompt-completion", MAKE, help="Shape")
    keep: Literal["all", "correct", "shortest-correct", "best-ln"] = setting("correct", MAKE, help="Which traces")
    max_fallback_rate: float = setting(1.0, MAKE, help="Leave out traces with more of the student's own tokens")
    test_share: float = setting(0.0, MAKE, help="Share of problems that are set apart for testing")
    seed: int = setting(0, MAKE, help="Which problems these are")
    prefix_tokens: int = setting(
        0, MAKE, help="Add so many tokens of one trace of each unsolved problem; 0: none", whole=(0, TOKENS)
    )
    with_teacher_prompt: bool = setting(False, MAKE, help="Add what the teacher alone read, as privileged_context")

    def __post_init__(self) -> None:
        check(self)
        check_share("max_fallback_rate", self.max_fallback_rate)
        if not 0 <= self.test_share < 1:
            raise ValueError(f"{called('test_share')} must be at least 0 and below 1, not {self.test_share}")
        if self.prefix_tokens and self.format != "token-ids":
            raise ValueError(
                f"{called('prefix_tokens')} needs {called('format', 'token-ids')}: a trainer ends a text with an EOS, "
                "and a prefix has no end"
            )
        if self.with_teacher_prompt and self.format == "distillkit":
            raise ValueError(f"distillkit takes numbers alone: leave {called('with_teacher_prompt', True)} out")

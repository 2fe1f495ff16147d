"""What a pair is examined by."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from rsd.config import TIMES, GenerateConfig, Pairing
from rsd.reading import Prompting
from rsd.settings import MAKE, as_in, called, setting

TOP = 20  # likeliest tokens of both models that are looked at in every place


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Prompting, Pairing):
    """Everything that shapes what `rsd doctor` finds: the pair, the problems, and how traces of these are made.

    Raises:
        ValueError: a value is out of its range, or of no use with another one.
    """

    teacher: str | Sequence[str] = as_in(GenerateConfig, "teacher")
    teacher_model: str | None = as_in(GenerateConfig, "teacher_model")
    teacher_tokenizer: str | None = as_in(GenerateConfig, "teacher_tokenizer")
    teacher_api: Literal["auto", "completions", "sglang"] = as_in(GenerateConfig, "teacher_api")
    limit: int = setting(32, MAKE, help="Problems, evenly spread over PROBLEMS", whole=(1, TIMES))
    threshold: float = as_in(
        GenerateConfig, "threshold", help="Of the traces by RSD; what others would do is worked out"
    )
    threshold_on: Literal["raw", "sampled"] = as_in(GenerateConfig, "threshold_on")
    trials: float = as_in(GenerateConfig, "trials")
    accept_top_k: int = as_in(GenerateConfig, "accept_top_k")
    temperature: float | None = as_in(GenerateConfig, "temperature")
    top_p: float | None = as_in(GenerateConfig, "top_p")
    top_k: int | None = as_in(GenerateConfig, "top_k")
    max_new_tokens: int = as_in(
        GenerateConfig, "max_new_tokens", default=256, unset=None, help="Tokens of a trace; a longer one is cut"
    )
    seed: int = as_in(GenerateConfig, "seed")
    verify: str = as_in(GenerateConfig, "verify")
    answer_column: str | None = as_in(GenerateConfig, "answer_column")
    teacher_prompt: Literal["student", "own"] | None = as_in(GenerateConfig, "teacher_prompt")
    teacher_prompt_column: str | None = as_in(GenerateConfig, "teacher_prompt_column")
    teacher_template: str | None = as_in(GenerateConfig, "teacher_template")
    completion_prefix: str = as_in(GenerateConfig, "completion_prefix")
    suppress: Sequence[str | int] = as_in(GenerateConfig, "suppress")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoding()
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"{called('threshold')} must be above 0 and below 1, not {self.threshold}: the raw teacher (0) and the "
                "student alone (1) are looked at, too"
            )

    def decoding(self, **other: Any) -> GenerateConfig:
        """The job that makes RSD's traces; with other values, another one."""
        known = {f.name for f in fields(GenerateConfig)}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}
        return GenerateConfig(**values | {"top_logprobs": TOP} | other)

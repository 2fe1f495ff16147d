"""What a run is asked to do: one frozen, validated dataclass, and the values that models decide."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal

BUNDLED_TEACHER = "bundled-teacher"
BUNDLED_STUDENT = "bundled-student"
BUNDLED_LLAMA = "bundled-llama"  # a teacher with another tokenizer

# None of these changes what a trace is, only when, where and how many are made: a job may be resumed with
# other values of them. The prompts themselves are compared, and so are the models' files.
FREE_SETTINGS = (
    "batch_size",
    "block_size",
    "device",
    "teacher_device",
    "student_device",
    "attn_implementation",
    "skip_check",
    "compile",
    "num_generations",
    "until_correct",
    "want",
    "max_fallback_rate",
    "prompt_column",
    "trust_remote_code",
    "allow_pickle",
)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling values in force, for teacher and student alike.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 20

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be 0 (greedy) or positive, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top-k must be 0 (off) or positive, not {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """When a proposal of the teacher stands (RSD, arXiv 2509.22230, section 3).

    threshold: a proposal needs at least this student probability; 0 accepts every proposal (the raw
        teacher), 1 none (the student alone, by definition).
    threshold_on: the probability that is compared: "raw" is the student's softmax at temperature 1,
        "sampled" the student's distribution after temperature, top-k and top-p. Greedy always reads raw.
    trials: draws of the teacher before the student falls back on its own token; `math.inf` is allowed.
    top_k: the proposal must also be among this many likeliest tokens of the student; 0 is off.
    """

    threshold: float = 0.01
    threshold_on: Literal["raw", "sampled"] = "raw"
    trials: float = 5
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a probability: choose one in [0, 1], not {self.threshold}")
        if self.threshold_on not in ("raw", "sampled"):
            raise ValueError(f"threshold-on must be 'raw' or 'sampled', not {self.threshold_on!r}")
        if not (self.trials == math.inf or (self.trials >= 1 and self.trials == int(self.trials))):
            raise ValueError(f"trials must be a whole number of at least 1, or inf, not {self.trials}")
        if self.top_k < 0:
            raise ValueError(f"accept-top-k must be 0 (off) or positive, not {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How weights are loaded: `None` for dtype bf16, or fp32 where a model runs on a CPU; `None` for
    device a GPU where there is one. With `skip_check`, models are not tried out (`selfcheck`) once they are loaded.

    Raises:
        ValueError: an unknown dtype, or a kind of attention that cannot serve rows of unequal length.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    skip_check: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, not {self.dtype!r}")
        if self.attn_implementation not in (None, "sdpa", "eager"):
            raise ValueError(f"attn-implementation must be sdpa or eager, not {self.attn_implementation!r}")

    def device_of(self, role: str) -> str | None:
        """The device that was asked for."""
        return self.device


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a trace is scored by (Local Naturalness, arXiv 2510.03988).

    steps: what a step is, see `rsd.scoring.steps`.
    window: how much of the trace before a step is in its context, beside the prompt: a number of steps
        ("4", as in the paper's first version) or a share of the steps before it, rounded up ("20%",
        its second version; the rounding is ours).
    weighting: whether every step weighs the same, or every token.
    threshold: below this student probability a token counts as improbable.

    Raises:
        ValueError: a value is out of its range.
    """

    steps: Literal["sentence", "line", "paragraph"] = "sentence"
    window: str = "4"
    weighting: Literal["step", "token"] = "step"
    threshold: float = 0.01

    def __post_init__(self) -> None:
        if self.steps not in ("sentence", "line", "paragraph"):
            raise ValueError(f"steps must be sentence, line or paragraph, not {self.steps!r}")
        if self.weighting not in ("step", "token"):
            raise ValueError(f"weighting must be step or token, not {self.weighting!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a probability: choose one in [0, 1], not {self.threshold}")
        percent = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", self.window)
        if not (re.fullmatch(r"[0-9]{1,9}", self.window) or (percent and 0 < float(percent[1]) <= 100)):
            raise ValueError(f"window must be a number of steps such as 4, or a share such as 20%, not {self.window!r}")

    def first(self, step: int) -> int:
        """The step that the window of step number `step` (from 0) begins with."""
        if self.window.endswith("%"):
            return step - math.ceil(Fraction(self.window[:-1]) * step / 100)
        return max(0, step - int(self.window))


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Scoring, Loading):
    """Everything that a scorer is asked to do: the student, what it scores by, and where a row's trace is.

    response_column, thinking_column: for rows in no known format, the columns of the answer and of the
        thinking that precedes it; prompt_column is the prompt's. See `responses.responses`.
    """

    student: str = BUNDLED_STUDENT
    student_revision: str | None = None
    prompt_column: str | None = None
    response_column: str | None = None
    thinking_column: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Scoring.__post_init__(self)
        Loading.__post_init__(self)

    def scoring(self) -> Scoring:
        return Scoring(**{f.name: getattr(self, f.name) for f in fields(Scoring)})

    def layout(self) -> dict[str, Any]:
        """What was asked of where prompt and trace are and how they are put; a score depends on it, too."""
        names = ("prompt_column", "response_column", "thinking_column", "system_prompt", "chat_template_kwargs")
        return {name: value for name in names if (value := getattr(self, name))}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Loading):
    """Everything that shapes a run of `rsd generate`.

    `None` for temperature, top_p and top_k means the student's generation config, and where that
    is silent 0.7, 0.95 and 20; `None` for batch_size as many rows as the free memory holds; `None`
    for block_size what is measured to be fastest; `None` for teacher_prompt the student's, or with different
    tokenizers the teacher's own; `None` for max_new_tokens 2048, or what the context
    leaves; `None` for teacher_device and student_device `device`. With `score`, traces carry the
    scores of `Scoring()` under the student.

    teacher_model, teacher_tokenizer: where `teacher` is the address of a server, the model's name there, and
        the directory or Hub id of its tokenizer (by default the same name).
    verify, answer_column: how answers are judged, and against which column; see `verify.Verifier`.
    until_correct: stop sampling a problem once `want` of its traces are right (`keep.is_right`), at
        most num_generations; a trace with more than max_fallback_rate of its tokens from the student
        does not count.
    loop_check: end a trace that repeats itself for ever; see `loops`.
    completion_prefix: what every completion begins with, written for both models.
    suppress: tokens that no trace holds, by id or by text.
    teacher_prompt_column, teacher_template: what the teacher reads in the prompt's place, from a column of
        its own, or a Jinja template of the row's columns and `prompt`, the last user's turn. The
        student never reads it, and no row holds it.

    teacher, student: a directory, a GGUF file, a Hub id, a bundled model, or BASE+ADAPTER, with a PEFT adapter; the
        revisions are the bases'.
    teacher_load_in, student_load_in: quantise the weights with bitsandbytes as they are loaded.

    Raises:
        ValueError: a value is out of its range; the message says which values are allowed.
    """

    teacher: str = BUNDLED_TEACHER
    student: str = BUNDLED_STUDENT
    teacher_revision: str | None = None
    student_revision: str | None = None
    teacher_model: str | None = None
    teacher_tokenizer: str | None = None
    threshold: float = 0.01
    threshold_on: Literal["raw", "sampled"] = "raw"
    trials: float = 5
    accept_top_k: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    num_generations: int = 1
    seed: int = 0
    score: bool = False
    verify: str = "auto"
    answer_column: str | None = None
    until_correct: bool = False
    want: int = 1
    max_fallback_rate: float = 1.0
    loop_check: bool = True
    teacher_prompt: Literal["student", "own"] | None = None
    teacher_prompt_column: str | None = None
    teacher_template: str | None = None
    completion_prefix: str = ""
    suppress: Sequence[str | int] = ()
    prompt_column: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    teacher_load_in: Literal["4bit", "8bit"] | None = None
    student_load_in: Literal["4bit", "8bit"] | None = None
    batch_size: int | None = None
    block_size: int | None = None
    teacher_device: str | None = None
    student_device: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.acceptance()
        self.sampling({})
        for name in ("max_new_tokens", "num_generations", "want", "batch_size", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name.replace('_', '-')} must be at least 1, not {value}")
        for role, load_in in (("teacher", self.teacher_load_in), ("student", self.student_load_in)):
            if load_in not in (None, "4bit", "8bit"):
                raise ValueError(f"{role}-load-in must be 4bit or 8bit, not {load_in!r}")
        if self.teacher_prompt not in (None, "student", "own"):
            raise ValueError(f"teacher-prompt must be 'student' or 'own', not {self.teacher_prompt!r}")
        if self.served and self.teacher_model is None:
            raise ValueError("a teacher behind a server needs its name there: give teacher-model")
        if not self.served and (self.teacher_model or self.teacher_tokenizer):
            raise ValueError("teacher-model and teacher-tokenizer are for a teacher behind a server (http://host/v1)")
        if self.served and (self.teacher_revision or self.teacher_load_in or self.teacher_device):
            raise ValueError("a teacher behind a server is loaded there: leave its revision, device and load-in out")
        if self.teacher_prompt_column and self.teacher_template:
            raise ValueError("teacher-prompt-column and teacher-template both make the teacher's prompt: give one")
        if not re.fullmatch(r"auto|boxed|math|none|[^\W\d][\w.]*:[^\W\d][\w.]*", self.verify):
            raise ValueError(f"verify must be auto, boxed, math, none or your own module:callable, not {self.verify!r}")
        if self.until_correct and self.verify == "none":
            raise ValueError("until-correct needs verdicts: choose another verify than none")
        if self.want > self.num_generations:
            raise ValueError(f"want {self.want} is more than num-generations {self.num_generations}: raise the latter")
        if not 0 <= self.max_fallback_rate <= 1:
            raise ValueError(f"max-fallback-rate is a share: choose one in [0, 1], not {self.max_fallback_rate}")

    @property
    def served(self) -> bool:
        """The teacher is behind a server."""
        return self.teacher.startswith(("http://", "https://"))

    def device_of(self, role: str) -> str | None:
        return (self.teacher_device if role == "teacher" else self.student_device) or self.device

    def acceptance(self) -> Acceptance:
        return Acceptance(
            threshold=self.threshold,
            threshold_on=self.threshold_on,
            trials=self.trials,
            top_k=self.accept_top_k,
        )

    def sampling(self, defaults: Mapping[str, Any]) -> Sampling:
        """The sampling values in force, given those of the student's generation config."""
        values = {}
        for f in fields(Sampling):
            asked = getattr(self, f.name)
            value = asked if asked is not None else defaults.get(f.name, f.default)
            values[f.name] = value
        return Sampling(**values)


# The setting of the authors' generator (papers: 2509.22230 and its code).
PAPER = {
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 20,
    "threshold": 0.01,
    "trials": 5,
    "accept_top_k": 20,
    "max_new_tokens": 7168,
    "max_fallback_rate": 0.5,
}

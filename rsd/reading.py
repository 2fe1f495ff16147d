"""What the commands are told of rows: where a prompt and a trace are, what judges a trace, and what scores it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rsd.settings import COLUMNS, FILES, FREE, MAKE, SAME, SCORES, called, check, check_share, setting, shown


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Where a row's prompt is."""

    prompt_column: str | None = setting(
        None,
        COLUMNS,
        help="Where the prompt is",
        unset="prompt, question, problem or messages",
        resume=FREE,
        kind="column",
    )
    split: str | None = setting(
        None, FILES, help="Which split of an input that is a data set", unset="train", resume=FREE
    )


@dataclass(frozen=True, kw_only=True)
class Prompting(Finding):
    """How a row's prompt is found and rendered."""

    system_prompt: str | None = setting(
        None, COLUMNS, help="Put before prompts that have no system message", resume=SAME
    )
    chat_template_kwargs: Mapping[str, Any] = setting(
        dict, COLUMNS, help="For chat templates, such as '{\"enable_thinking\": true}'", resume=SAME, kind="json"
    )


HOW = r"auto|boxed|math|none|[^\W\d][\w.]*:[^\W\d][\w.]*"  # a value of verify


@dataclass(frozen=True, kw_only=True)
class Columns(Finding):
    """Where the trace of a row is that exists: see `responses.responses`."""

    response_column: str | None = setting(
        None,
        COLUMNS,
        help="Where the trace is",
        unset="completion, messages or conversations",
        resume=SAME,
        kind="column",
    )
    thinking_column: str | None = setting(
        None, COLUMNS, help="Where the thinking is, if it is not in the trace", resume=SAME, kind="column"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Reading(Columns, Prompting):
    """Where the trace of a row is, how its prompt is rendered, and what judges it.

    verify: see `answers.verifier.Verifier`; "auto" judges rows that have an answer and no verdict yet.

    Raises:
        ValueError: verify is none of the judges.
    """

    answer_column: str | None = setting(
        None, COLUMNS, help="Where the right answer is", unset="answer, final_answer or solution", kind="column"
    )
    verify: str = setting(
        "auto", MAKE, help="How answers are judged: auto, boxed, math, none, or your module:callable", kind="how"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_how(self.verify)


def check_how(verify: str) -> None:
    """Raises ValueError where verify is none of the judges."""
    if not re.fullmatch(HOW, verify):
        wanted = "auto, boxed, math, none or your own module:callable"
        raise ValueError(f"{called('verify')} must be {wanted}, not {shown(verify)}")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What a trace is scored by (Local Naturalness, arXiv 2510.03988).

    steps: see `rsd.scoring.steps`. window: a number of steps ("4", as in the paper's first version) or a share of the
    steps before it, rounded up ("20%", its second version; the rounding is ours).

    Raises:
        ValueError: a value is out of its range.
    """

    steps: Literal["sentence", "line", "paragraph"] = setting("sentence", SCORES, help="What a step is")
    window: str = setting(
        "4", SCORES, help="Steps that a step is read after: 4, or a share of those before it: 20%", kind="window"
    )
    weighting: Literal["step", "token"] = setting("step", SCORES, help="What weighs the same in Local Naturalness")
    threshold: float = setting(0.01, SCORES, help="Student probability below which a token is improbable")

    def __post_init__(self) -> None:
        check(self)
        check_share("threshold", self.threshold)
        percent = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", self.window)
        if not (re.fullmatch(r"[0-9]{1,9}", self.window) or (percent and 0 < float(percent[1]) <= 100)):
            wanted = "a number of steps such as 4, or a share such as 20%"
            raise ValueError(f"{called('window')} must be {wanted}, not {shown(self.window)}")

    def first(self, step: int) -> int:
        """The step that the window of step number `step` (from 0) begins with."""
        if self.window.endswith("%"):
            return step - math.ceil(Fraction(self.window[:-1]) * step / 100)
        return max(0, step - int(self.window))

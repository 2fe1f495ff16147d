"""What traces are weighed by."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from rsd.acceptance import Sampling
from rsd.config import TIMES, TOKENS, USUAL, GenerateConfig, Pairing
from rsd.reading import Reading
from rsd.settings import MAKE, SAMPLING, SCORES, called, setting, shown

MOST = 1e6  # of the temperature; beyond it all weights are a half


@dataclass(frozen=True, kw_only=True)
class WeighConfig(Reading, Pairing):
    """Everything that shapes weights (see `weights`): the pair, what a step is, and how a move's validity is found.

    Raises:
        ValueError: a value is out of its range, or of no use with another one.
    """

    validity: Literal["likelihood", "rollout", "token"] = setting("likelihood", MAKE, help="What a move's worth is")
    weight_temperature: float = setting(1.0, MAKE, help="Of the weights: the lower, the nearer to 0 and 1 they are")
    proposals: bool = setting(False, MAKE, help="Weigh the teacher's own next step, not the one in the trace")
    rollouts: int = setting(4, MAKE, help="Continuations of a move, for --validity rollout", whole=(1, TIMES))
    rollout_by: Literal["student", "teacher"] = setting("student", MAKE, help="Who continues")
    steps: Literal["sentence", "line", "paragraph"] = setting("sentence", SCORES, help="What a step is")
    temperature: float | None = setting(
        None, SAMPLING, help="Of rollouts; 0 is greedy", unset=USUAL.format(Sampling.temperature)
    )
    top_p: float | None = setting(
        None, SAMPLING, help="Sample from the likeliest tokens that have this mass", unset=USUAL.format(Sampling.top_p)
    )
    top_k: int | None = setting(
        None,
        SAMPLING,
        help="Sample from so many likeliest tokens; 0 is off",
        unset=USUAL.format(Sampling.top_k),
        whole=(0, TOKENS),
    )
    max_new_tokens: int | None = setting(
        None,
        SAMPLING,
        help="Tokens of a rollout; a longer one is wrong",
        unset="2048, or what the context leaves",
        whole=(1, TOKENS),
    )
    seed: int = setting(0, SAMPLING, help="Another one makes other rollouts")

    def __post_init__(self) -> None:
        Reading.__post_init__(self)
        Pairing.__post_init__(self)
        if not 1 / MOST <= self.weight_temperature <= MOST:
            name = called("weight_temperature")
            raise ValueError(f"{name} must be from {1 / MOST:g} to {MOST:g}, not {shown(self.weight_temperature)}")
        if self.served:
            name = called("teacher")
            raise ValueError(f"{name} behind a server tells too few log-probs to weigh by: name a model that is loaded")
        if self.validity == "token" and self.proposals:
            told, one = called("validity", "token"), called("proposals", True)
            raise ValueError(f"{told} reads the trace, and decodes nothing: leave {one} out")
        if self.validity == "rollout" and self.verify == "none":
            raise ValueError(
                f"{called('validity', 'rollout')} needs verdicts: choose another {called('verify')} than none"
            )
        self.decoding(threshold=1)

    @property
    def asks_teacher(self) -> bool:
        """Whether anything depends on the teacher: of a student's rollouts from a trace nothing does."""
        return self.validity != "rollout" or self.proposals or self.rollout_by == "teacher"

    def decoding(self, *, threshold: float, greedy: bool = True) -> GenerateConfig:
        """How the engine decodes: with threshold 1 as the student alone would, with 0 as the teacher. Where the teacher
        has no say, the student stands in for it, and is loaded once."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Pairing)}
        if not self.asks_teacher:
            for name in ("{}", "{}_revision", "{}_load_in", "{}_device", "{}_device_map"):
                values[name.format("teacher")] = values[name.format("student")]
        sampling = {} if greedy else {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        return GenerateConfig(
            **values,
            **({"temperature": 0.0} | sampling),
            threshold=threshold,
            max_new_tokens=self.max_new_tokens,
            chat_template_kwargs=self.chat_template_kwargs,
            seed=self.seed,
        )

    def how(self) -> dict[str, Any]:
        """The settings that weights depend on, beside the models and the rows."""
        names = ["validity", "weight_temperature", "steps"]
        names += ["proposals"] if self.validity != "token" else []
        if self.validity == "rollout":
            names += ["rollouts", "rollout_by", "temperature", "top_p", "top_k", "max_new_tokens", "seed"]
            names += ["verify", "answer_column"]
        made = {name: getattr(self, name) for name in names}
        layout = ("prompt_column", "response_column", "thinking_column", "system_prompt", "chat_template_kwargs")
        return made | {name: value for name in layout if (value := getattr(self, name))}

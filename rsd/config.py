"""What a run is asked to do: one frozen, validated dataclass, and the values that models decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from rsd.acceptance import Acceptance, Sampling
from rsd.placing import PairPlacing, Placing, TeacherPlacing, check_address, is_address
from rsd.reading import Prompting, Reading, Scoring, check_how
from rsd.settings import (
    ACCEPTANCE,
    COLUMNS,
    FREE,
    LOADING,
    MAKE,
    MODELS,
    SAME,
    SAMPLING,
    SPEED,
    called,
    check,
    check_share,
    setting,
)

# The most of a kind that anybody asks for: more is a slip, and would take all memory or all time before it is noticed.
TOKENS, TOGETHER, TIMES = 1 << 24, 1 << 16, 10**9
ONE_VOCABULARY = "the same tokens"  # as manifests say of a pair whose vocabularies are one
BUNDLED_TEACHER = "bundled-teacher"
BUNDLED_STUDENT = "bundled-student"
BUNDLED_LLAMA = "bundled-llama"  # a teacher with another tokenizer


@dataclass(frozen=True, kw_only=True)
class Loading(Placing):
    """How weights are loaded.

    Raises:
        ValueError: an unknown dtype, or a kind of attention that cannot serve rows of unequal length.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None, LOADING, help="Type of the weights", unset="bfloat16; on a CPU float32", resume=SAME
    )
    attn_implementation: Literal["sdpa", "eager"] | None = setting(
        None, SPEED, help="How attention is computed", unset="as the model says", resume=FREE
    )
    trust_remote_code: bool = setting(False, LOADING, help="Run code that a model repository holds", resume=FREE)
    allow_pickle: bool = setting(
        False, LOADING, help="Load weights that are not safetensors, and may hold code", resume=FREE
    )
    skip_check: bool = setting(False, LOADING, help="Do not try out how a model decodes once it is loaded", resume=FREE)

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()


MODEL = "Directory, Hub id, GGUF file or BASE+ADAPTER"
REVISION = "Branch, tag or commit on the Hub"


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Scoring, Reading, Loading):
    """What a scorer is asked to do: the student, what it scores by, where a trace is, and its judge."""

    student: str = setting(BUNDLED_STUDENT, MODELS, help=MODEL, kind="model")
    student_revision: str | None = setting(None, MODELS, help=REVISION)

    def __post_init__(self) -> None:
        Scoring.__post_init__(self)
        Reading.__post_init__(self)
        Loading.__post_init__(self)

    def scoring(self) -> Scoring:
        return Scoring(**{f.name: getattr(self, f.name) for f in fields(Scoring)})

    def layout(self) -> dict[str, Any]:
        """What was asked of where prompt and trace are and how they are put; a score depends on it, too."""
        names = ("prompt_column", "response_column", "thinking_column", "system_prompt", "chat_template_kwargs")
        return {name: value for name in names if (value := getattr(self, name))}


MOST_TOP = 256
TOP_LOGPROBS = "So many likeliest tokens of both models in each place, in a file beside"
NEARLY_ALL = 256  # tokens of either model that are looked at where no filter is to leave any out
LOAD_IN = "Quantise its weights as they are loaded"


@dataclass(frozen=True, kw_only=True)
class Pairing(PairPlacing, Loading):
    """Which two models, where they are, how they are loaded, and how many rows they decode together."""

    teacher: str | Sequence[str] = setting(BUNDLED_TEACHER, MODELS, help=MODEL, resume=SAME, kind="model")
    student: str = setting(BUNDLED_STUDENT, MODELS, help=MODEL, resume=SAME, kind="model")
    teacher_revision: str | None = setting(None, MODELS, help=REVISION, resume=SAME)
    student_revision: str | None = setting(None, MODELS, help=REVISION, resume=SAME)
    batch_size: int | None = setting(
        None,
        SPEED,
        help="Rows decoded together; changes no trace",
        unset="auto: as memory allows",
        resume=FREE,
        kind="rows",
        whole=(1, TOGETHER),
    )
    block_size: int | None = setting(
        None,
        SPEED,
        help="Tokens drafted a round; changes no trace",
        unset="what is fastest",
        resume=FREE,
        whole=(1, TOGETHER),
    )
    teacher_load_in: Literal["4bit", "8bit"] | None = setting(None, LOADING, help=LOAD_IN, resume=SAME)
    student_load_in: Literal["4bit", "8bit"] | None = setting(None, LOADING, help=LOAD_IN, resume=SAME)

    def __post_init__(self) -> None:
        super().__post_init__()
        unnamed = self.teacher == "" and not self.alone
        if not self.teachers or unnamed:
            raise ValueError(f"{called('teacher')}: a model, or servers of one, is needed")
        models = [one for one in self.teachers if not is_address(one)]
        if len(self.teachers) > 1 and models:
            raise ValueError(f"{called('teacher')}: several are for servers of one model, {models[0]} is no address")
        if len(self.teachers) > len({url.rstrip("/") for url in self.teachers}):
            raise ValueError(f"{called('teacher')}: a server is named twice")

    @property
    def alone(self) -> bool:
        """Whether the student may be its own teacher where none is named: else that is a variable that is not set."""
        return False

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teacher's servers, or else the one model: the student itself, where none is named."""
        return (self.teacher or self.student,) if isinstance(self.teacher, str) else tuple(self.teacher)

    @property
    def served(self) -> bool:
        """The teacher is behind a server, or several."""
        return is_address(self.teachers[0])


USUAL = "the student's, else {}"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Prompting, TeacherPlacing, Pairing):
    """Everything that shapes a run of `rsd generate`.

    With `score`, traces carry the scores of `Scoring()` under the student. Where `teacher` is the address of a server,
    or a list of such, each of the same model, teacher_model is the model's name there, teacher_api the kind of server.
    verify: see `answers.verifier.Verifier`. until_correct: see `filters.is_right`. loop_check: see `decoding.loops`.

    Raises:
        ValueError: a value is out of its range; the message says which values are allowed.
    """

    teacher: str | Sequence[str] = setting(
        BUNDLED_TEACHER,
        MODELS,
        help=f"{MODEL}, or servers' URLs",
        resume=SAME,
        kind="model",
    )
    teacher_model: str | None = setting(None, MODELS, help="Its name on a server that is the --teacher", resume=SAME)
    teacher_tokenizer: str | None = setting(
        None,
        MODELS,
        help="Directory or Hub id of that model's tokenizer",
        unset="--teacher-model",
        resume=SAME,
        kind="model",
    )
    teacher_api: Literal["auto", "completions", "sglang"] = setting(
        "auto", MODELS, help="Kind of server that is the --teacher", resume=FREE
    )
    threshold: float = setting(
        Acceptance.threshold,
        ACCEPTANCE,
        help="Student probability that a proposal needs; 0: the raw teacher",
        resume=SAME,
    )
    threshold_on: Literal["raw", "sampled"] = setting(
        Acceptance.threshold_on, ACCEPTANCE, help="The softmax at temperature 1, or what is sampled from", resume=SAME
    )
    trials: float = setting(
        Acceptance.trials,
        ACCEPTANCE,
        help="Draws of the teacher before the student's own token is taken",
        resume=SAME,
        kind="trials",
        whole=(1, TIMES),
    )
    accept_top_k: int = setting(
        Acceptance.top_k,
        ACCEPTANCE,
        help="A proposal must be in the student's top k, too; 0 is off",
        resume=SAME,
        whole=(0, TOKENS),
    )
    temperature: float | None = setting(
        None, SAMPLING, help="Of both models; 0 is greedy", unset=USUAL.format(Sampling.temperature), resume=SAME
    )
    top_p: float | None = setting(
        None,
        SAMPLING,
        help="Sample from the likeliest tokens that have this mass",
        unset=USUAL.format(Sampling.top_p),
        resume=SAME,
    )
    top_k: int | None = setting(
        None,
        SAMPLING,
        help="Sample from so many likeliest tokens; 0 is off",
        unset=USUAL.format(Sampling.top_k),
        resume=SAME,
        whole=(0, TOKENS),
    )
    max_new_tokens: int | None = setting(
        None,
        SAMPLING,
        help="Tokens of a trace at the most",
        unset="2048, or what the context leaves",
        resume=SAME,
        whole=(1, TOKENS),
    )
    num_generations: int = setting(1, MAKE, help="Traces of a prompt", resume=FREE, whole=(1, TIMES))
    seed: int = setting(0, SAMPLING, help="Another one makes other traces", resume=SAME)
    verify: str = setting(
        "auto",
        MAKE,
        help="How answers are judged: auto, boxed, math, none, or your module:callable",
        resume=SAME,
        kind="how",
    )
    answer_column: str | None = setting(
        None,
        COLUMNS,
        help="Where the right answer is",
        unset="answer, final_answer or solution",
        resume=SAME,
        kind="column",
    )
    until_correct: bool = setting(
        False, MAKE, help="Sample a problem until --want of its traces are right", resume=FREE
    )
    want: int = setting(1, MAKE, help="Correct traces of a problem, for --until-correct", resume=FREE, whole=(1, TIMES))
    max_fallback_rate: float = setting(
        1.0, MAKE, help="A trace with more of the student's own tokens counts as unfit", resume=FREE
    )
    loop_check: bool = setting(True, SAMPLING, help="End traces that repeat themselves for ever", resume=SAME)
    teacher_prompt: Literal["student", "own"] | None = setting(
        None,
        COLUMNS,
        help="Whose chat template makes what the teacher reads",
        unset="own if tokenizers differ",
        resume=SAME,
    )
    teacher_prompt_column: str | None = setting(
        None, COLUMNS, help="A prompt for the teacher alone, which no trace's row holds", resume=SAME, kind="column"
    )
    teacher_template: str | None = setting(
        None,
        COLUMNS,
        help="What the teacher reads for a prompt: '{{ prompt }} Hint: {{ hint }}'",
        resume=SAME,
        kind="text",
    )
    completion_prefix: str = setting(
        "", COLUMNS, help="What every completion begins with, such as '<think>'", resume=SAME
    )
    suppress: Sequence[str | int] = setting(
        (), SAMPLING, help="A token that no trace holds (several times: several)", resume=SAME, kind="tokens"
    )
    compile: bool = setting(False, SPEED, help="torch.compile both models: slower to start, then faster", resume=FREE)
    score: bool = setting(False, MAKE, help="Add the scores of `rsd score` to every trace", resume=SAME)
    top_logprobs: int = setting(0, MAKE, help=TOP_LOGPROBS, unset="none", resume=SAME, whole=(0, MOST_TOP))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.acceptance()
        self.sampling({})
        if self.served and self.teacher_api == "completions" and self.teacher_model is None:
            raise ValueError(f"a teacher behind a server needs its name there: give {called('teacher_model')}")
        for url in self.teachers if self.served else ():
            check_address(url)
        if not self.served and (self.teacher_model or self.teacher_tokenizer):
            both = f"{called('teacher_model')} and {called('teacher_tokenizer')}"
            raise ValueError(f"{both} are for a teacher behind a server (http://host/v1)")
        placed = self.teacher_device or self.teacher_device_map or self.tensor_parallel > 1
        if self.served and (self.teacher_revision or self.teacher_load_in or placed):
            names = ("teacher_revision", "teacher_device", "teacher_device_map", "teacher_load_in", "tensor_parallel")
            out = ", ".join(map(called, names))
            raise ValueError(f"a {called('teacher')} behind a server is loaded there: leave {out} out")
        if self.tensor_parallel > 1 and self.teacher_load_in:
            either = f"{called('teacher_load_in')} or {called('tensor_parallel')}"
            raise ValueError(f"quantised weights cannot be divided: leave {either} out")
        if self.compile and not self.on_one_device():
            others = f"{called('device_map')} and {called('tensor_parallel')}"
            raise ValueError(f"{called('compile')} is for models on one device: leave it out, or {others}")
        if self.teacher_prompt_column and self.teacher_template:
            both = f"{called('teacher_prompt_column')} and {called('teacher_template')}"
            raise ValueError(f"{both} both make the teacher's prompt: give one")
        check_how(self.verify)
        if self.until_correct and self.verify == "none":
            raise ValueError(f"{called('until_correct')} needs verdicts: choose another {called('verify')} than none")
        if self.want > self.num_generations:
            most = f"{called('num_generations')} {self.num_generations}"
            raise ValueError(f"{called('want')} {self.want} is more than {most}: raise the latter")
        check_share("max_fallback_rate", self.max_fallback_rate)

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
            values[f.name] = asked if asked is not None else defaults.get(f.name, f.default)
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

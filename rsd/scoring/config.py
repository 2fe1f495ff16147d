"""What `rsd score` is asked to do."""

from dataclasses import dataclass, fields

from rsd.config import (
    BUNDLED_TEACHER,
    MODEL,
    MOST_TOP,
    NEARLY_ALL,
    REVISION,
    TOP_LOGPROBS,
    GenerateConfig,
    Loading,
    StudentConfig,
)
from rsd.placing import is_address
from rsd.reading import Prompting
from rsd.settings import MAKE, MODELS, called, setting


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(StudentConfig):
    """Everything that `rsd score` is asked to do.

    Raises:
        ValueError: a value is out of its range, or the teacher is behind a server.
    """

    teacher: str = setting(BUNDLED_TEACHER, MODELS, help=f"{MODEL}, for --top-logprobs", kind="model")
    teacher_revision: str | None = setting(None, MODELS, help=REVISION)
    top_logprobs: int = setting(0, MAKE, help=TOP_LOGPROBS, unset="none", whole=(0, MOST_TOP))

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_address(self.teacher):
            raise ValueError(
                f"{called('teacher')} must be loaded here to read traces; rsd generate asks one on a server"
            )

    def rereading(self) -> GenerateConfig:
        """How a pair reads traces that are there: nothing is filtered, so nothing is left out of soft targets."""
        shared = {f.name: getattr(self, f.name) for f in (*fields(Prompting), *fields(Loading))}
        names = ("teacher", "teacher_revision", "student", "student_revision", "top_logprobs")
        return GenerateConfig(
            **shared | {name: getattr(self, name) for name in names},
            threshold=0,
            temperature=1.0,
            top_p=1.0,
            top_k=NEARLY_ALL,
            loop_check=False,
        )

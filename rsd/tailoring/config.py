"""What `rsd tailor` is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rsd.config import GenerateConfig
from rsd.reading import Columns, Reading
from rsd.settings import as_in, called

# Ours. That it is somebody else's keeps a model from going on with it; whether it is right is not known here.
TEMPLATE = """{{ prompt }}

Here is how somebody else solved this:

{{ reference }}

Solve it yourself now, step by step and in your own words, and come to the same answer."""


# What is kept to train on; see `keeping.chosen`.
KEEP = ("correct", "shortest-correct", "best-ln", "natural-and-correct", "all")


@dataclass(frozen=True, kw_only=True)
class TailorConfig(Columns, GenerateConfig):
    """Everything that shapes a run of `rsd tailor`: as of `GenerateConfig`, but that the teacher reads the raw response
    of each row, too (`teacher_template`, as `{{ reference }}`), and is the student itself where none is named.

    Raises:
        ValueError: a value is out of its range, or of no use with another one.
    """

    teacher: str | Sequence[str] = as_in(
        GenerateConfig,
        "teacher",
        default="",
        help="Who proposes: directory or Hub id, or servers' URLs",
        unset="the student's own weights",
    )
    teacher_template: str | None = as_in(
        GenerateConfig,
        "teacher_template",
        default=TEMPLATE,
        help="What the teacher reads: '{{ prompt }} {{ reference }}'",
        unset="see --dry-run",
    )
    score: bool = as_in(
        GenerateConfig, "score", default=True, help="Score every trace, and its raw response, under the student"
    )

    def __post_init__(self) -> None:
        if self.teacher_prompt_column:
            name, made = called("teacher_prompt_column"), called("teacher_template")
            raise ValueError(f"the teacher's prompt is made of the raw response, by {made}: leave {name} out")
        GenerateConfig.__post_init__(self)
        if not self.teacher_template:
            raise ValueError(f"{called('teacher_template')}: a text is needed: without one use rsd generate")
        if not self.teacher and (self.teacher_revision or self.teacher_load_in or self.teacher_model):
            names = ", ".join(map(called, ("teacher_revision", "teacher_load_in", "teacher_model")))
            raise ValueError(f"{names} are for a {called('teacher')}: name one, or leave them out")

    @property
    def alone(self) -> bool:
        return True

    def reading(self) -> Reading:
        """Where the raw responses are, and what judges them."""
        return Reading(**{f.name: getattr(self, f.name) for f in fields(Reading)})

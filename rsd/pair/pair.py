"""A teacher and a student that meet, and what follows from that before any weights are read."""

from collections.abc import Sequence
from dataclasses import dataclass

from rsd.acceptance import Sampling
from rsd.config import GenerateConfig
from rsd.models.loading import sampling_of
from rsd.models.source import Source
from rsd.pair.meeting import meet
from rsd.pair.prompts import Prompt, notices, render
from rsd.pair.vocabulary import Vocabulary, token_ids
from rsd.settings import called
from rsd.traces.rows import Row

DEFAULT_NEW_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """What a job knows of its models.

    sampling: the values in force. max_new_tokens: of a trace, if its prompt leaves so much room. suppressed: ids of
    the student that no trace holds. notices: what a user should be told.
    """

    teacher: Source
    student: Source
    vocabulary: Vocabulary
    sampling: Sampling
    max_new_tokens: int
    suppressed: frozenset[int]
    notices: Sequence[str]

    @property
    def context(self) -> int:
        """How many positions both models have."""
        return min(self.teacher.context, self.student.context)

    def render(self, row: Row, config: GenerateConfig) -> Prompt:
        """The prompt's ids as the student and as the teacher read them.

        Raises:
            ValueError: the prompt cannot be rendered or does not fit into a context.
        """
        return render(row, config, teacher=self.teacher, student=self.student, vocabulary=self.vocabulary)

    def decode(self, ids: list[int]) -> str:
        """The text of the student's ids, special tokens kept."""
        return str(self.student.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def pair_up(teacher: Source, student: Source, config: GenerateConfig) -> Pair:
    """Have two models meet.

    Raises:
        ValueError: they do not fit together, or not to what is asked for.
    """
    vocabulary = meet(
        teacher.tokenizer,
        student.tokenizer,
        teacher_width=teacher.width,
        student_width=student.width,
        teacher_eos=teacher.ends,
        student_eos=student.ends[0],
    )
    context = min(teacher.context, student.context)
    if config.max_new_tokens is not None and config.max_new_tokens >= context:
        raise ValueError(
            f"{called('max_new_tokens')} {config.max_new_tokens} leaves no room for a prompt in a context of {context} "
            f"positions: choose less than {context}"
        )
    sampling, lines = sampling_of(config, student)
    lines = [f"vocabularies: {vocabulary.describe()}", *lines]
    lines += notices(config, teacher=teacher, student=student, vocabulary=vocabulary)
    for source in (teacher, student):
        whole = source.config.get_text_config().max_position_embeddings
        if source.context < whole:
            lines.append(
                f"notice: of the {source.role}'s context of {whole} positions the first {source.context} are "
                "used: a longer row has other LongRoPE factors from its beginning"
            )
    suppressed = token_ids([*config.suppress, *(student.generation.suppress_tokens or ())], student.tokenizer)
    if suppressed:
        vocabulary = vocabulary.without(suppressed)
        lines.append(f"suppressed: {len(suppressed)} tokens, which no trace will hold")
    if student.eos <= suppressed:
        raise ValueError(f"{called('suppress')} holds every token that ends a trace: leave one of them out")
    return Pair(
        teacher=teacher,
        student=student,
        vocabulary=vocabulary,
        sampling=sampling,
        max_new_tokens=config.max_new_tokens or DEFAULT_NEW_TOKENS,
        suppressed=frozenset(suppressed),
        notices=lines,
    )

"""What each model reads before a trace: the student's prompt, the teacher's own one, and a completion's beginning."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from rsd.config import GenerateConfig
from rsd.models.source import DATE, TODAY, Source
from rsd.pair.vocabulary import DIFFERENT, Vocabulary
from rsd.settings import called
from rsd.traces.rows import Row, Rows, found, read_prompt
from rsd.traces.spool import Spool

MAY_BE_MISSING = ("defined", "undefined", "default", "d")  # what templates ask of such a name


class Prompt(NamedTuple):
    """A prompt as ids.

    student: what the student reads, without the completion's beginning. prefix: that, as the student's ids;
    a part of the trace that nobody sampled. teacher: all that the teacher reads.
    opened: the prompt itself ends in `<think>`.
    """

    student: list[int]
    prefix: list[int]
    teacher: list[int]
    opened: bool


def privileged(rows: Rows, config: GenerateConfig) -> Rows:
    """Rows with a prompt of the teacher's own, where `config` asks for one.

    It comes from a column, which is kept no longer, and stands for all of the prompt but a system message; or
    from a template, and stands for the last turn. A row for which there is none becomes an error.

    Raises:
        ValueError: no row has the column, or one that the template names; or the template cannot be read, or fails for
            every row.
    """
    column, template = config.teacher_prompt_column, config.teacher_template
    if column is not None:
        if missing := _missing({column}, rows):
            raise ValueError(f"no column {column} for {called('teacher_prompt_column')}: {missing[column]}")
        return Rows(rows.ids, lambda i: _from_column(rows[i], column))
    if template is None:
        return rows
    made = TeacherTemplate(template)
    for name, said in _missing(made.names, rows).items():
        raise ValueError(f"{called('teacher_template')}: no column {name}: {said}")
    tried, first, made_any = 0, "", False

    def all_filled() -> Iterator[Row]:
        nonlocal tried, first, made_any
        for row in rows:
            new = made.fill(row)
            made_any = made_any or new.teacher is not None
            if row.error is None and new.error is not None:
                tried, first = tried + 1, first or new.error
            yield new

    filled = Spool(all_filled())  # each is rendered once: a template may take seconds
    if tried and not made_any:  # then it is not the rows that are wrong
        raise ValueError(f"{first}, in every row that was tried ({tried})")
    return Rows(rows.ids, filled.__getitem__)


class TeacherTemplate:
    """What the teacher reads in the place of a row's last turn.

    names: the columns that it needs.

    Raises:
        ValueError: it cannot be read.
    """

    def __init__(self, template: str) -> None:
        import jinja2
        from jinja2 import meta, nodes

        from rsd.models.limits import Bounded

        bounded = Bounded(undefined=jinja2.StrictUndefined)
        try:
            self._made, parsed = bounded.from_string(template), bounded.parse(template)
            asked = [n.node for n in parsed.find_all((nodes.Test, nodes.Filter)) if n.name in MAY_BE_MISSING]
            names = meta.find_undeclared_variables(parsed) - {"id", "prompt", *bounded.globals}
        except (jinja2.TemplateError, RecursionError) as e:
            raise ValueError(f"{called('teacher_template')}: {e}") from e
        self.names = names - {node.name for node in asked if isinstance(node, nodes.Name)}

    def fill(self, row: Row) -> Row:
        """A row with the teacher's prompt, or what is wrong with it."""
        from rsd.models.limits import in_time

        if row.error is not None:
            return row
        *before, last = row.messages
        try:
            with in_time():
                text = self._made.render({**row.columns, **row.asked, "id": row.id, "prompt": last["content"]})
        except Exception as e:  # a row must not be able to end a job
            return replace(row, error=f"the teacher's template: {e}".splitlines()[0])
        return replace(row, teacher=[*before, {**last, "content": text}])


def _missing(names: Collection[str], rows: Rows) -> dict[str, str]:
    """By name those of the columns that no sound row has, and what there is instead."""
    missing, columns = set(names), dict[str, None]()
    for row in rows if missing else ():
        if row.error is None:
            columns |= dict.fromkeys([*row.asked, *row.columns])
            missing -= columns.keys()
        if not missing:
            break
    return {name: found(columns, name) for name in sorted(missing)} if columns else {}


def _from_column(row: Row, column: str) -> Row:
    value = row.columns.get(column)
    row = replace(row, columns={k: v for k, v in row.columns.items() if k != column})
    if row.error is not None:
        return row
    messages, error = read_prompt(value, column)
    if error is not None:
        return replace(row, error=error)
    if row.messages[0]["role"] == "system" and messages[0]["role"] != "system":
        messages = [row.messages[0], *messages]
    return replace(row, teacher=messages)


def own_prompt(config: GenerateConfig, vocabulary: Vocabulary) -> bool:
    """Whether the teacher reads the prompt by its own chat template: by default if its tokenizer is another one."""
    if config.teacher_prompt is None:
        return vocabulary.case == DIFFERENT
    return config.teacher_prompt == "own"


def notices(config: GenerateConfig, *, teacher: Source, student: Source, vocabulary: Vocabulary) -> list[str]:
    """What is done about the chat templates that the models read prompts by, where they would differ otherwise."""
    own = own_prompt(config, vocabulary)
    lines = []
    dated = [s.role for s in ([student, teacher] if own else [student]) if s.dated]
    if dated and TODAY not in config.chat_template_kwargs:
        lines.append(
            f"notice: the chat template of the {' and the '.join(dated)} prints the date: it reads {DATE} on any day; "
            f'{TODAY} in {called("chat_template_kwargs")}, such as "2026-01-31", sets another'
        )
    asked = [{"role": "user", "content": "1 + 1?"}]
    try:
        ours, theirs = (s.thought(s.prompt_ids(asked, config.chat_template_kwargs)) for s in (student, teacher))
    except ValueError:  # rows that it refuses, too, say so
        return lines
    if own and _opened(ours) != _opened(theirs):
        said = "alone opens <think>: so does the teacher's prompt now"
        if not _opened(ours):
            said = "does not open <think> as the teacher's does: this is taken off the teacher's prompt"
        lines.append(f"notice: the student's chat template {said}, since it reads the student's trace")
    return lines


def _opened(thought: str) -> bool:
    return thought.rstrip().endswith("<think>")


def render(row: Row, config: GenerateConfig, *, teacher: Source, student: Source, vocabulary: Vocabulary) -> Prompt:
    """A row's prompt as both models read it.

    Raises:
        ValueError: it cannot be rendered, does not fit into a context, or begins the completion by itself.
    """
    kwargs = config.chat_template_kwargs
    ids = student.prompt_ids(row.messages, kwargs)
    ends = str(student.tokenizer.decode(ids[-32:], skip_special_tokens=False)).rstrip()
    thought = student.thought(ids)
    prefix: list[int] = []
    if config.completion_prefix:
        if ends.endswith(config.completion_prefix.strip()):
            raise ValueError(
                f"the chat template's prompt ends with {config.completion_prefix.strip()} already: "
                f"leave {called('completion_prefix')} out"
            )
        prefix = student.tokenizer.encode(config.completion_prefix, add_special_tokens=False)
    if own_prompt(config, vocabulary):
        messages = row.teacher or row.messages
        theirs = teacher.prompt_ids(messages, kwargs)
        if _opened(teacher.thought(theirs)) != _opened(thought):  # both read one trace: it goes on from one of them
            theirs = teacher.prompt_ids(messages, kwargs, thought=thought)
    else:
        theirs = vocabulary.for_teacher(ids if row.teacher is None else student.prompt_ids(row.teacher, kwargs))
    theirs = [*theirs, *vocabulary.for_teacher(prefix)]
    for source, length in ((student, len(ids) + len(prefix)), (teacher, len(theirs))):
        if length >= source.context:
            raise ValueError(
                f"the prompt has {length} tokens and the {source.role}'s context {source.context}: "
                "there is no room for a trace"
            )
    return Prompt(ids, prefix, theirs, _opened(thought))

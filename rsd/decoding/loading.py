"""A pair from its names to an engine: what is found first, the memory that it needs, the weights."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedModel

from rsd.config import GenerateConfig
from rsd.decoding.engine import Engine
from rsd.decoding.groups import Decoder, Groups
from rsd.decoding.listed import mode_of
from rsd.decoding.teacher import LocalTeacher, Teacher
from rsd.models import tensor_parallel
from rsd.models.loading import find, load, one_model
from rsd.models.memory import PROMPT, Estimate, estimate, need_of
from rsd.models.selfcheck import check_decoding
from rsd.models.source import Source
from rsd.models.tensor_parallel import Group, Led, together
from rsd.pair.pair import Pair, pair_up
from rsd.settings import called

# Of rows, if the teacher is behind a server. With a student that costs nothing two are as good as one, and three worse
# (bench/groups.py); what a student costs is hidden behind the server by the second.
GROUPS = 2


class Models(NamedTuple):
    """A pair's weights; one model in both roles is there once."""

    teacher: PreTrainedModel | Teacher
    student: PreTrainedModel


def find_pair(c: GenerateConfig) -> Pair:
    """The pair, without its weights.

    Raises:
        ValueError: a model is not found, or the two do not fit together.
    """
    code = c.trust_remote_code
    revision, load_in = c.teacher_revision, c.teacher_load_in
    if not c.teacher:  # the student itself
        revision, load_in = c.student_revision, c.student_load_in
    if c.served:
        from rsd.serving.probe import find_served  # needs httpx

        teacher = find_served(
            c.teachers, c.teacher_model, c.teacher_tokenizer, api=c.teacher_api, trust_remote_code=code
        )
    else:
        teacher = find("teacher", c.teachers[0], revision, trust_remote_code=code, load_in=load_in)
    if c.tensor_parallel > 1:
        tensor_parallel.check(teacher, c.tensor_parallel)
    if (c.student, c.student_revision, c.student_load_in) == (c.teachers[0], revision, load_in):
        student = replace(teacher, role="student")
    else:
        student = find("student", c.student, c.student_revision, trust_remote_code=code, load_in=c.student_load_in)
    return pair_up(teacher, student, c)


def memory_of(pair: Pair, config: GenerateConfig) -> Estimate:
    """What the pair will take, and the rows that are decoded together; reads no weights."""
    tokens = min(pair.context, pair.max_new_tokens + PROMPT)
    needs = [need_of(pair.student, config, tokens)]
    if not config.served:
        needs.insert(0, need_of(pair.teacher, config, tokens, parts=config.tensor_parallel))
    one = one_model(pair.teacher, pair.student, config)
    return estimate(*needs, tokens=tokens, rows=config.batch_size, one=one)


def load_pair(pair: Pair, config: GenerateConfig, *, rows: int, group: Group | None = None) -> Models:
    """The weights.

    Args:
        rows: that will be decoded together. group: of the processes that hold the teacher together, which this one
            leads.

    Raises:
        ValueError: a model cannot be loaded or decoded.
    """
    if group is None and config.tensor_parallel > 1:
        name = called("tensor_parallel")
        raise ValueError(f"{name} is for a launch: torchrun --nproc-per-node N -m rsd generate ...")
    if config.compile and not shutil.which(os.environ.get("CXX", "g++")):
        raise ValueError(f"{called('compile')} needs a C++ compiler: install g++, name one in CXX, or leave it out")
    packed = not config.compile
    student = load_model(pair.student, config, packed=packed)
    if one_model(pair.teacher, pair.student, config):
        return Models(student, student)
    if group is not None:
        group.tell("load")
        return Models(LocalTeacher(Led(load_part(pair, config), rows, group, pooled=True)), student)
    if not config.served:
        return Models(load_model(pair.teacher, config, packed=packed), student)
    from rsd.decoding.served_teacher import ServedTeacher
    from rsd.serving.client import Client
    from rsd.serving.completions import Completions
    from rsd.serving.sglang import Sglang
    from rsd.serving.told import Api

    of = pair.teacher
    client = Client(of.servers)
    if of.api == "sglang":
        api: Api = Sglang(client, width=of.width)
    else:
        api = Completions(client, of.name, width=of.width, by_ids=of.by_ids)
    mode = served_mode(pair, config)
    teacher = ServedTeacher(client, api, sampling=pair.sampling, mode=mode, width=of.width, context=of.context)
    return Models(teacher, student)


def served_mode(pair: Pair, config: GenerateConfig) -> str:
    """How a served teacher's q is found out: one of the three of `listed`."""
    return mode_of(pair.sampling, config.acceptance(), by_ids=pair.teacher.by_ids)


def load_part(pair: Pair, config: GenerateConfig) -> PreTrainedModel:
    """This process's part of the teacher."""
    with together():
        return load_model(pair.teacher, config, parts=config.tensor_parallel)


def load_model(source: Source, config: GenerateConfig, *, packed: bool = True, parts: int = 1) -> PreTrainedModel:
    """One model, and a look at how it decodes."""
    model = load(source, config, packed=packed, parts=parts)
    if not config.skip_check:
        check_decoding(model, f"{called(source.role)} {source.name}")
    return model


def engine_of(
    pair: Pair, models: Models, config: GenerateConfig, *, rows: int, thresholds: Sequence[float] = ()
) -> Decoder:
    """An engine with these weights, which others may share; several in turn, if they wait for a server.

    thresholds: as of `Engine`.
    """

    def one(teacher: PreTrainedModel | Teacher, rows: int) -> Engine:
        return Engine(
            teacher,
            models.student,
            pair.vocabulary,
            sampling=pair.sampling,
            acceptance=config.acceptance(),
            eos=pair.student.eos | pair.vocabulary.of_teacher(pair.teacher.eos),
            rows=rows,
            block=config.block_size,
            loop_check=config.loop_check,
            compile=config.compile,
            top_logprobs=config.top_logprobs,
            thresholds=thresholds,
        )

    if not config.served or rows == 1:
        return one(models.teacher, rows)
    from rsd.decoding.served_teacher import ServedTeacher

    if not isinstance(models.teacher, ServedTeacher):
        raise TypeError("a served teacher's model is not here")
    teacher, count = models.teacher, min(GROUPS, rows)
    return Groups([one(teacher.another(), (rows + i) // count) for i in range(count)])

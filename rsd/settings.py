"""One place for each setting: its dataclass field carries the default, the help text and where it stands in --help, the
choices (its type), and whether a job may be resumed with another value of it."""

import difflib
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from rsd.strictjson import loads

C = TypeVar("C")

# What a resumed job is to a setting. SAME: it shapes the traces or their rows, so that another value is another job.
# FREE: it only says when, where and how many are made.
SAME, FREE = "same", "free"


class Group(StrEnum):
    """The sections of a command's --help, in their order."""

    MODELS = "Models"
    LOADING = "Loading models"
    COLUMNS = "Columns and prompts"
    ACCEPTANCE = "Acceptance"
    SAMPLING = "Sampling"
    MAKE = "What to make"
    SCORES = "Scores"
    FILES = "Files"
    SPEED = "Devices and speed"
    PROCESSES = "Several processes"
    SAID = "What is printed"


MODELS, LOADING, COLUMNS, ACCEPTANCE, SAMPLING, MAKE, SCORES, FILES, SPEED, PROCESSES, SAID = Group


@dataclass(frozen=True)
class About:
    """What is known of a setting beside its name, type and default.

    help: one line, without a stop. group: its section of a --help. resume: `SAME` or `FREE`, of a job's settings.
    unset: in words, what it is if it is not given. kind: how the command line reads it, where its type does not say so.
    whole: the least and the largest whole number that it may be (infinity, too, if its type is float).
    """

    help: str
    group: Group
    resume: str | None
    unset: str | None
    kind: str | None
    whole: tuple[int, int] | None


def setting(
    default: Any,
    group: Group,
    *,
    help: str,
    resume: str | None = None,
    unset: str | None = None,
    kind: str | None = None,
    whole: tuple[int, int] | None = None,
) -> Any:
    """A field of a configuration. default: a value, or a callable that makes one. The rest: as of `About`."""
    metadata = {"about": About(help, group, resume, unset, kind, whole)}
    if isinstance(default, Callable):  # type: ignore[arg-type]
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def as_in(config: type, name: str, **other: Any) -> Any:
    """A field that is as another configuration has it, but for `other` values: a `default`, or what `About` has."""
    there = next(f for f in fields(config) if f.name == name)
    known = there.metadata["about"]
    default = there.default if there.default_factory is MISSING else there.default_factory
    return setting(other.pop("default", default), **{**vars(known), **other})


def about(setting: "Field[Any]") -> About:
    made: About = setting.metadata["about"]
    return made


def settings(config: type) -> "list[Field[Any]]":
    """A configuration's settings: those of the classes that it is made of, then its own."""
    by_name = {f.name: f for f in fields(config) if "about" in f.metadata}
    order = [
        name for kind in reversed(config.__mro__) for name in vars(kind).get("__annotations__", {}) if name in by_name
    ]
    return [by_name[name] for name in dict.fromkeys(order)]


def default_of(setting: "Field[Any]") -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


class Kind(NamedTuple):
    """A setting's type without None, what it may be if that is one of a few, and whether it may be None."""

    type: Any
    choices: tuple[Any, ...]
    optional: bool


@cache
def kinds(config: type) -> dict[str, Kind]:
    """By setting."""
    found = {}
    for name, hint in get_type_hints(config).items():
        optional = get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)
        kind = next(h for h in get_args(hint) if h is not NoneType) if optional else hint
        found[name] = Kind(kind, get_args(kind) if get_origin(kind) is Literal else (), optional)
    return found


def check(config: Any) -> None:
    """Whether every setting is of its type, one of a few if it has choices, and within its bounds if it is whole.

    Numbers of other libraries become Python's, whole ones ints, paths texts.

    Raises:
        ValueError: see above; the message names the setting.
    """
    of: type = type(config)
    known = {f.name: about(f) for f in fields(of) if "about" in f.metadata}
    for name, kind in kinds(of).items():
        given = getattr(config, name)
        if given is None and kind.optional:
            continue
        value = _plain(given, kind.type)
        whole = known[name].whole if name in known else None
        if whole is not None:
            check_whole(name, value, *whole, infinite=kind.type is float)
        if kind.choices:
            check_choice(name, value, kind.choices)
        if not kind.choices and not _is(value, kind.type):
            raise ValueError(f"{called(name)}: {_words(kind.type)} is needed, not {shown(value)}")
        if value is not given:
            object.__setattr__(config, name, value)


def _plain(value: Any, kind: Any) -> Any:
    """A value as a setting of this type holds it, if it can be one."""
    if isinstance(value, os.PathLike) and (kind is str or str in get_args(kind)):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, int):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, int | float):
        return float(value)
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(k, str) for k in value) and _is_json(dict(value))
    if get_origin(kind) is Sequence:
        (item,) = get_args(kind)
        return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(_is(v, item) for v in value)
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, one) for one in get_args(kind))
    if kind is float:
        return isinstance(value, float) or (_is(value, int) and abs(value) < 10**300)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_json(value: Any) -> bool:
    try:
        loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is Sequence:
        return "a list of " + " or ".join(PLURAL[one] for one in get_args(get_args(kind)[0]) or get_args(kind))
    return WORDS[get_origin(kind) or kind]


WORDS = {
    str: "a text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Mapping: "a mapping that JSON can hold, such as {'enable_thinking': True},",
}
PLURAL = {str: "texts", int: "whole numbers"}


def shown(value: Any) -> str:
    """A value in a message: in one line, and short."""
    return " ".join(reprlib.repr(value).split())


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Whether a setting that is one of a few is one of these.

    Raises:
        ValueError: it is not.
    """
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{called(name)} must be {', '.join(choices[:-1])} or {choices[-1]}, not {shown(value)}")


def check_whole(name: str, value: Any, least: int, most: int, *, infinite: bool = False) -> None:
    """Whether a setting that is a whole number is within these bounds.

    Raises:
        ValueError: it is not.
    """
    if infinite and value == math.inf:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most and value == int(value)):
        or_more = ", or inf" if infinite else ""
        wanted = f"must be a whole number from {least} to {most}{or_more}"
        raise ValueError(f"{called(name)} {wanted}, not {shown(value)}")


def check_share(name: str, value: float) -> None:
    """Whether a setting that is a probability or a share is one.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{called(name)} must be from 0 to 1, not {value}")


def amended(of: type[C], config: C | None, values: Mapping[str, Any]) -> C:
    """A configuration with these values, which amend `config` if there is one.

    Raises:
        ValueError: there is no such setting, or no such value of one.
    """
    names = [f.name for f in fields(of)]  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in names]:
        close = difflib.get_close_matches(unknown[0], names, 1)
        raise ValueError(f"no setting {unknown[0]}" + (f": {close[0]}?" if close else f" in {of.__name__}"))
    if config is None:
        return of(**values)
    if not isinstance(config, of):
        raise ValueError(f"config: a {of.__name__} is needed, not {shown(config)}")
    return replace(config, **values)  # type: ignore[type-var]


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return name.replace("_", "-")


_flags: list[bool] = []


@contextmanager
def as_flags() -> Iterator[None]:
    """Meanwhile messages call a setting by its flag: the command line is what was used."""
    _flags.append(True)
    try:
        yield
    finally:
        _flags.pop()


def called(name: str, value: str | bool | None = None) -> str:
    """What a message calls a setting, or a setting of this value: `verify="none"` is `--verify none` in a command."""
    if _flags:
        dashed = "-o" if name == "output" else f"--{flag(name)}"
        return dashed if value is None or value is True else f"{dashed} {value}"
    return name if value is None else f"{name}={value}" if isinstance(value, bool) else f'{name}="{value}"'


def free(config: Any) -> dict[str, Any]:
    """The settings that a resumed job may have other values of."""
    return {f.name: getattr(config, f.name) for f in settings(type(config)) if about(f).resume == FREE}

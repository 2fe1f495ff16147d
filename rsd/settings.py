"""One place for each setting: its dataclass field carries the default, the help text and where it stands in --help, the
choices (its type), and whether a job may be resumed with another value of it."""

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

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
    """Whether every setting that is one of a few is one of these, and every whole number within its bounds.

    Raises:
        ValueError: see above.
    """
    of: type = type(config)
    bounds = {f.name: about(f).whole for f in settings(of)}
    for name, kind in kinds(of).items():
        value = getattr(config, name)
        if (whole := bounds.get(name)) and not (value is None and kind.optional):
            _check_whole(name, value, *whole, infinite=kind.type is float)
        if kind.choices and value not in kind.choices and not (value is None and kind.optional):
            words = ", ".join(kind.choices[:-1]) + f" or {kind.choices[-1]}"
            raise ValueError(f"{flag(name)} must be {words}, not {value!r}")


def _check_whole(name: str, value: Any, least: int, most: int, *, infinite: bool) -> None:
    if infinite and value == math.inf:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and least <= value <= most and value == int(value)):
        or_more = ", or inf" if infinite else ""
        raise ValueError(f"{flag(name)} must be a whole number from {least} to {most}{or_more}, not {value!r}")


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return name.replace("_", "-")


def free(config: Any) -> dict[str, Any]:
    """The settings that a resumed job may have other values of."""
    return {f.name: getattr(config, f.name) for f in settings(type(config)) if about(f).resume == FREE}

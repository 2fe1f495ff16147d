"""What the commands share: kinds of values, flags, errors in one line."""

import difflib
import errno
import functools
import json
import math
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, replace
from typing import Any, NoReturn, get_args

import click

from rsd.cli.help import COLUMN, LIST, option
from rsd.config import PAPER
from rsd.events import current, logging
from rsd.settings import Group, about, default_of, flag, kinds, settings
from rsd.strictjson import loads
from rsd.terminal import echo, hush, marked, say, shortened
from rsd.traces.shards import Shard, launched, parse

Command = Callable[..., None]
SHARD = "Only this share of the rows, 1/N to N/N [RANK and WORLD_SIZE, if set]."
LARGEST = 1 << 24  # bytes of a template or a configuration
WRITER = 10.0  # seconds in which a pipe must be written to


class Rows(click.ParamType):
    """A number of rows, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        try:
            return None if value == "auto" else int(str(value))  # of a --config, it may be 1.5
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


class Trials(click.ParamType):
    """A number of trials: 1, 5, ... or inf."""

    name = "N|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return math.inf if value in ("inf", math.inf) else int(str(value))
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor inf", param, ctx)


class JsonObject(click.ParamType):
    """A JSON object, such as {"enable_thinking": true}."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = loads(value if isinstance(value, str) else json.dumps(value))  # of a --config, it is one already
        except (ValueError, TypeError, RecursionError) as e:
            self.fail(f"not JSON: {e}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('not a JSON object such as {"enable_thinking": true}', param, ctx)
        return parsed


class TextOrFile(click.ParamType):
    """A text, or the text of @FILE."""

    name = "TEXT|@FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.startswith("@"):
            return str(value)
        try:
            return _text_of(value[1:])
        except ValueError as e:
            self.fail(str(e), param, ctx)


class Token(click.ParamType):
    """A token's id, or its text."""

    name = "TEXT|ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        # Python reads no number of thousands of digits; no tokenizer has such an id.
        number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20
        return int(value) if number else value


class Free(click.ParamType):
    """A text that is called by what it says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


KINDS = {
    "rows": Rows(),
    "trials": Trials(),
    "json": JsonObject(),
    "text": TextOrFile(),
    "tokens": Token(),
    "how": Free("HOW"),
    "model": Free("MODEL"),
    "column": Free("COLUMN"),
    "device": Free("DEVICE"),
    "window": Free("N|N%"),
}


VALUES = {int: "N", float: "NUMBER", str: "TEXT"}  # what a flag of one of these types is given


def flags(config: type) -> Callable[[Command], Command]:
    """A flag for every setting of a configuration, each by its own name; those not given are None."""

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def run(*args: Any, config_file: str | None, print_config: bool, quiet: bool, **values: Any) -> None:
            if quiet:
                hush()
            if print_config:
                echo(_in_force(config, values))
            else:
                command(*args, **values)

        made: Command = run
        said: dict[str, Any] = {"group": Group.SAID, "is_flag": True}
        made = option("--quiet", help="No notices and no progress.", **said)(made)
        made = option("--print-config", help="Print all flags in force, for --config, and end.", **said)(made)
        made = option(
            "--config",
            "config_file",
            group=Group.FILES,
            metavar="FILE",
            is_eager=True,
            callback=_defaults_of,
            help="YAML with values of flags; those that are given win.",
        )(made)
        for one in reversed(settings(config)):
            made = _flag(config, one)(made)
        return made

    return add


def _flag(config: type, one: "Field[Any]") -> Callable[[Command], Command]:
    known, kind, name = about(one), kinds(config)[one.name], flag(one.name)
    usual = default_of(one)
    unset = known.unset or ("on" if usual is True else f"{usual:g}" if isinstance(usual, float) else str(usual or ""))
    unset = "0" if usual == 0 and type(usual) is int else unset
    default = f" [{unset}]." if unset else "."
    if kind.type is bool:
        named = f"--{name}/--no-{name}" if usual is True else f"--{name}"
        return option(named, group=known.group, is_flag=True, default=None, help=known.help + default)
    several = known.kind == "tokens" or Sequence[str] in get_args(kind.type)
    shown = KINDS[known.kind] if known.kind else click.Choice(kind.choices) if kind.choices else kind.type
    value, among = shown.name if known.kind else VALUES.get(kind.type, ""), ""
    if kind.choices:
        value = "|".join(kind.choices)
        if len(f"--{name} {value}") > COLUMN:
            value, among = "NAME", f": {', '.join(kind.choices[:-1])} or {kind.choices[-1]}"
            among = among if len(among) <= LIST else ", one of those above"
    return option(
        f"--{name}",
        group=known.group,
        type=shown,
        metavar=value,
        multiple=several,
        callback=_several if several else None,
        help=known.help + among + default,
    )


def _several(_: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """What was given: nothing, one (where a setting may be one) or several."""
    one = isinstance(param.type, Free) and len(values) == 1
    return values[0] if one else values or None


def _defaults_of(ctx: click.Context, param: click.Parameter, file: str | None) -> str | None:
    """Take what a YAML file holds for flags that are not given."""
    if file is None:
        return None
    import yaml

    try:
        made = yaml.safe_load(_text_of(file))
    except yaml.YAMLError as e:
        raise click.BadParameter(f"{file}: not YAML: {' '.join(str(e).split())}") from e
    except (ValueError, RecursionError) as e:  # dates that are none, numbers that are too long ...
        raise click.BadParameter(f"{e}") from e
    if not isinstance(made, dict):
        raise click.BadParameter(f"{file}: not a mapping of flags to values")
    params = {p.name: p for p in ctx.command.params if p.name and p.name not in ("config_file", "print_config")}
    found = {"source" if key == "input" else str(key).replace("-", "_"): value for key, value in made.items()}
    if unknown := [flag(key) for key in found if key not in params]:
        close = difflib.get_close_matches(unknown[0], map(flag, params), 1)
        raise click.BadParameter(f"{file}: no flag {unknown[0]}" + (f": {close[0]}?" if close else ""))
    for name, value in found.items():
        if value is not None and not _fits(params[name], value):
            raise click.BadParameter(f"{file}: {flag(name)} cannot be {value!r}")
    for name, value in found.items():
        if value is not None and getattr(params[name], "multiple", False) and not isinstance(value, list):
            found[name] = [value]
    ctx.default_map = {**(ctx.default_map or {}), **{k: v for k, v in found.items() if v is not None}}
    return file


def _fits(param: click.Parameter, value: Any) -> bool:
    """Whether a YAML value is of a kind that a flag can be."""
    if getattr(param, "is_flag", False):
        return isinstance(value, bool)
    if isinstance(param.type, JsonObject):
        return isinstance(value, dict | str)
    if isinstance(value, float) and isinstance(param.type, click.types.IntParamType):  # which would cut it
        return value.is_integer()
    several = value if isinstance(value, list) and (getattr(param, "multiple", False) or param.nargs != 1) else [value]
    return all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in several)


def _text_of(name: str) -> str:
    """The text of a small file, or of a pipe.

    Raises:
        ValueError: it cannot be read, is not UTF-8, or has no end: a device, a pipe that nobody writes to, or more than
            `LARGEST` bytes.
    """
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe is opened, whoever writes to it
            kind = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
                raise ValueError(f"{name} is no file: a text is read from one")
            if stat.S_ISFIFO(kind) and not select.select([file], [], [], WRITER)[0]:
                raise ValueError(f"{name} is a pipe that no process has written to for {WRITER:g} s")
            os.set_blocking(file.fileno(), True)
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"{name}: more than {LARGEST >> 20} MB is no text that is read here")
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{name}: not a UTF-8 text file") from e
    except OSError as e:
        raise ValueError(f"{name}: {e.strerror}") from e


def _in_force(config: type, given_here: Mapping[str, Any]) -> str:
    """All flags in force as YAML, for a --config."""
    import yaml

    values = {f.name: default_of(f) for f in sorted(settings(config), key=lambda f: [*Group].index(about(f).group))}
    if given_here.get("preset") == "paper":
        values |= PAPER
    values |= {k: list(v) if isinstance(v, tuple) else v for k, v in given_here.items() if v is not None}
    for name in ("preset", "overwrite", "dry_run", "as_json"):
        values.pop(name, None)
    shown = {"input" if k == "source" else flag(k): v for k, v in values.items() if v not in (None, (), "", {}, [])}
    return str(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)).rstrip()


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {k: v for k, v in values.items() if v is not None}


@contextmanager
def one_line_errors(output: str = "", *, again: str = "") -> Iterator[None]:
    """What a user can get wrong ends in one line and exit code 2; `again` is said when the user stops the run."""
    and_again = f", then {again}" if again else ""
    try:
        yield
    except ValueError as e:
        fail(str(e))
    except BrokenPipeError:  # the reader of our output went away: click ends quietly
        raise
    except ConnectionError as e:  # a server that is gone for good: what was made is there
        fail(f"{e}{again and '; '}{again}", code=1)
    except MemoryError:
        fail(f"out of memory{again and '; '}{again}", code=1)
    except OSError as e:
        room = f"; make room{and_again}" if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        fail(f"{e.filename or output}: {e.strerror or e}{room}")
    except KeyboardInterrupt:
        _told("stopped", 130)
        say(f"stopped{again and '; '}{again}")
        sys.exit(130)


def quiet() -> None:
    """Only our own progress bar and messages; transformers' warnings would bury them."""
    # It reads these when it is imported, which takes seconds and may not come to that.
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if "transformers" in sys.modules:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


def _told(message: str, code: int) -> None:
    if (events := current()) is not None:
        events.emit("error", message=message, code=code)


def fail(message: str, *, code: int = 2) -> NoReturn:
    message = shortened(" ".join(message.split()))
    _told(message, code)
    if not logging():
        echo(marked(f"rsd: {message}"), err=True)
    sys.exit(code)


def share_of(shard: str | None, *, together: int = 1) -> Shard | None:
    """This process's share of the rows: as it is asked for, or as its launcher says. together: as of `launched`.

    Raises:
        ValueError: there is no such share, or both say one.
    """
    by_launcher = launched(together)
    if shard is not None and by_launcher is not None:
        raise ValueError("--shard and a launcher (RANK and WORLD_SIZE are set) both share out the rows: leave one out")
    if os.environ.get("ACCELERATE_USE_CPU") and os.environ.get("MASTER_PORT") and by_launcher is None and together == 1:
        say("notice: accelerate launch started one process: with --multi_gpu it starts --num_processes, on a CPU too")
    if by_launcher is not None and not by_launcher.main:
        hush()
    return by_launcher if shard is None else parse(shard)


def on_own_device(config: Any) -> Any:
    """The same, on the GPU that is this process's of a launch."""
    rank, world = os.environ.get("LOCAL_RANK", ""), os.environ.get("WORLD_SIZE", "")
    if world in ("", "1") or config.device or config.device_map or not rank.isdecimal():
        return config
    import torch

    count = torch.cuda.device_count()
    return replace(config, device=f"cuda:{int(rank) % count}") if count else config

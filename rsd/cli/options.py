"""What the commands share: kinds of values, flags, errors in one line."""

import errno
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from rsd.strictjson import loads
from rsd.terminal import echo, say

Command = Callable[..., None]


class Rows(click.ParamType):
    """A number of rows, or auto."""

    name = "integer|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        try:
            return None if value == "auto" else int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor auto", param, ctx)


class Trials(click.ParamType):
    """A number of trials: 1, 5, ... or inf."""

    name = "integer|inf"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return math.inf if value == "inf" else int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor inf", param, ctx)


class JsonObject(click.ParamType):
    """A JSON object, such as {"enable_thinking": true}."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        try:
            parsed = loads(value)
        except ValueError as e:
            self.fail(f"not JSON: {e}", param, ctx)
        if not isinstance(parsed, dict):
            self.fail('not a JSON object such as {"enable_thinking": true}', param, ctx)
        return parsed


class TextOrFile(click.ParamType):
    """A text, or the text of @FILE."""

    name = "text|@file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.startswith("@"):
            return str(value)
        try:
            return Path(value[1:]).read_text(encoding="utf-8")
        except OSError as e:
            self.fail(f"{value[1:]}: {e.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{value[1:]}: not a UTF-8 text file", param, ctx)


class Token(click.ParamType):
    """A token's id, or its text."""

    name = "token|id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


MODEL_FLAGS = [
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[float32 on a CPU]"),
    click.option("--device", help="cpu, cuda, cuda:1, auto ... [cuda where there is one]"),
    click.option("--attn-implementation", help="sdpa or eager [the model's default]."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that a model repository holds."),
    click.option("--allow-pickle", is_flag=True, default=None, help="Load weights that are not safetensors."),
    click.option("--skip-check", is_flag=True, default=None, help="Do not try out how a model decodes once loaded."),
]
PROMPT_FLAGS = [
    click.option("--prompt-column", help="[prompt, question, problem or messages]"),
    click.option("--system-prompt", help="Put before prompts that have none."),
    click.option("--chat-template-kwargs", type=JsonObject(), help="Such as '{\"enable_thinking\": true}'."),
]
SCORE_FLAGS = [
    click.option("--student", help="Directory, GGUF file, Hub id or BASE+ADAPTER [the bundled student]."),
    click.option("--student-revision", help="Branch, tag or commit on the Hub."),
    click.option("--steps", type=click.Choice(["sentence", "line", "paragraph"]), help="What a step is [sentence]."),
    click.option("--window", help="Steps before a step that are in its context, as 4, or a share of them, as 20% [4]."),
    click.option("--weighting", type=click.Choice(["step", "token"]), help="What weighs the same [step]."),
    click.option("--threshold", type=float, help="Student probability below which a token is improbable [0.01]."),
    *PROMPT_FLAGS,
    click.option("--response-column", help="[completion, messages or conversations]"),
    click.option("--thinking-column", help="A column with the thinking before the response, such as s1K's."),
    *MODEL_FLAGS,
]


def flags(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """These flags, each by its own name; those not given are None."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


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
        say(f"stopped{again and '; '}{again}")
        sys.exit(130)


def quiet() -> None:
    """Only our own progress bar and messages; transformers' warnings would bury them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def fail(message: str, *, code: int = 2) -> NoReturn:
    echo(f"rsd: {' '.join(message.split())}", err=True)
    sys.exit(code)

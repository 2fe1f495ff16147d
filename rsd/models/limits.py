"""What a template may take: it is a program, and a model's is an untrusted one.

Time and size are bounded, of the user's templates and of chat templates. A single call into C ends before it is
interrupted, and what a template keeps in lists adds up until its time is over: these bounds hold what can be written by
mistake or for mischief in a line, and are no quota of memory.
"""

import ctypes
import re
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils.chat_template_utils import _compile_jinja_template

SECONDS = 10.0  # for one prompt
CHARACTERS = 1 << 26  # of what a template makes of one row
DIGITS = 4096  # bits of a number
SIZED = (str, list, tuple)


class TooLong(Exception):
    """Raised in a thread whose time is up."""

    def __str__(self) -> str:
        return f"it took longer than {SECONDS:g} s"


@contextmanager
def in_time() -> Iterator[None]:
    """Raise `TooLong` in this thread after `SECONDS`.

    It is raised between two byte codes: a single call into C, such as a very long multiplication, ends first.
    """
    thread, over, lock, ended = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Lock(), False

    def stop() -> None:
        if over.acquire(timeout=SECONDS):
            return
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooLong))

    over.acquire()
    start_new_thread(stop, ())  # a Thread waits until it runs, longer than most prompts take
    try:
        yield
    finally:
        with lock:
            ended = True
        over.release()


class _Bounds:
    """Jinja's sandbox, where no expression that it sees makes anything huge."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    concat = staticmethod(lambda pieces: joined(pieces))

    def _parse(self, *args: Any) -> nodes.Template:
        # `a ~ b` is no operator that can be intercepted: `a|string + b|string` is the same.
        return Concatenations().visit(super()._parse(*args))  # type: ignore[misc]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(left, int) != isinstance(right, int):
            sized, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(sized, SIZED):
                check(weight(sized) * times)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > DIGITS:
                raise ValueError(f"it makes a number of more than {DIGITS} bits")
        elif operator == "+" and isinstance(left, SIZED) and isinstance(right, SIZED):
            check(weight(left) + weight(right))
        elif operator == "%" and isinstance(left, str):
            check_format(left)
        return super().call_binop(context, operator, left, right)  # type: ignore[misc]

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(function, "__wrapped__", function)  # the sandbox has a `format` of its own
        if isinstance(text := getattr(method, "__self__", None), str):
            check_call(method.__name__, text, *args, *kwargs.values())
        return super().call(context, function, *args, **kwargs)  # type: ignore[misc]


class Bounded(_Bounds, SandboxedEnvironment):
    """For templates of the user's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = bounded(self.filters)


class _BoundedChat(_Bounds, ImmutableSandboxedEnvironment):
    """For a model's chat template: what transformers compiles it in, with its globals, filters and extensions."""


@lru_cache(16)
def chat_template(text: str) -> Template:
    """A model's chat template, to be rendered as transformers does, but held to the bounds."""
    environment = _compile_jinja_template("").environment  # never `text`: what is constant is computed as it compiles
    if not isinstance(environment, _BoundedChat):
        environment.__class__ = _BoundedChat
        environment.filters = bounded(environment.filters)
    return environment.from_string(text)


class Concatenations(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        made: nodes.Expr | None = None
        for part in node.nodes:
            text = nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno)
            made = text if made is None else nodes.Add(made, text, lineno=node.lineno)
        return made or node


def bounded(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Jinja's filters; those that may make of little a lot look at what it is first."""

    def looked_at(name: str) -> Callable[..., Any]:
        original = filters[name]

        @wraps(original)
        def filter(*args: Any, **kwargs: Any) -> Any:
            own = args[1:] if hasattr(original, "jinja_pass_arg") else args
            text, *others = (list(v) if name == "join" and i == 0 else v for i, v in enumerate(own))
            if name == "join":
                separator = str(others[0] if others else kwargs.get("d", ""))
                check(sum(len(str(item)) + len(separator) for item in text))
                args = (*args[: len(args) - len(own)], text, *others)
            elif name == "format":
                check_format(str(text))
            else:
                check_call(name, str(text) if name != "tojson" else "", *others, *kwargs.values())
            return original(*args, **kwargs)

        return filter

    names = ("center", "format", "indent", "join", "replace", "tojson", "wordwrap")
    return {**filters, **{name: looked_at(name) for name in names}}


def weight(value: str | list[Any] | tuple[Any, ...]) -> int:
    """A value's size, by the size of a character."""
    return len(value) * (1 if isinstance(value, str) else 16)


def check(size: int) -> None:
    if size > CHARACTERS:
        raise ValueError(f"it makes more than {CHARACTERS} characters")


def check_call(name: str, text: str, *args: Any) -> None:
    """Whether a string's method, or the filter of this name, may be called with these arguments."""
    texts = [a for a in args if isinstance(a, str)]
    widths = [a for a in args if isinstance(a, int)]
    if name == "replace" and len(texts) > 1:
        check(len(text) + text.count(texts[0]) * len(texts[1]))
    elif name == "join":
        check(sum(len(str(item)) + len(text) for a in args if isinstance(a, list | tuple) for item in a))
    elif name in ("format", "format_map"):
        check_format(text)
    elif name in ("indent", "wordwrap", "expandtabs"):
        wide = max([*widths, *map(len, texts), 1])
        check(len(text) + (text.count("\n") + text.count("\t") + 1) * wide)
    else:
        check(len(text) + max(widths, default=0))


def check_format(text: str) -> None:
    """Whether widths in a format are small, and none comes from the values."""
    if re.search(r"[0-9]{5}", text) or re.search(r"%[-+ #0]*(\*|[0-9]*\.\*)|\{[^{}]*\{", text):
        raise ValueError("it formats values wider than 9999 characters")


def joined(pieces: Iterable[str]) -> str:
    """The pieces of a template's text. Raises ValueError where there are more than `CHARACTERS`."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        check(size)
        kept.append(piece)
    return "".join(kept)

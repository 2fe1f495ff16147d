"""What a template may take: it is a program, and a model's is an untrusted one.

The time bounds both kinds. The sizes bound the teacher's template alone: transformers compiles the chat templates,
where one expression can still ask for all memory, as can a filter or method with a width in either.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

SECONDS = 10.0  # for one prompt
CHARACTERS = 1 << 26  # of what a template makes of one row
DIGITS = 4096  # of a power


class TooLong(Exception):
    """Raised in a thread whose time is up."""

    def __str__(self) -> str:
        return f"it took longer than {SECONDS:g} s"


@contextmanager
def in_time() -> Iterator[None]:
    """Raise `TooLong` in this thread after `SECONDS`.

    It is raised between two byte codes: a single call into C, such as a very long multiplication, ends first.
    """
    thread, lock, ended = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TooLong))

    timer = threading.Timer(SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()


class Bounded(SandboxedEnvironment):
    """Jinja's sandbox, whose `*` and `**` make nothing huge."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized, times = (left, right) if isinstance(right, int) else (right, left)
        if operator == "*" and isinstance(sized, str | list | tuple) and isinstance(times, int):
            if len(sized) * times > CHARACTERS:
                raise ValueError(f"a product of more than {CHARACTERS} characters")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
            if left.bit_length() * right > DIGITS:
                raise ValueError(f"a power of more than {DIGITS} bits")
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > DIGITS:
            raise ValueError(f"a product of more than {DIGITS} bits")
        return super().call_binop(context, operator, left, right)


def joined(pieces: Iterator[str]) -> str:
    """The pieces of a template's text. Raises ValueError where there are more than `CHARACTERS`."""
    kept, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > CHARACTERS:
            raise ValueError(f"it makes more than {CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)

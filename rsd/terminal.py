"""The one place through which everything printed goes.

Names, tokens, prompts and answers of servers stand in what is printed, and none of them may steer the terminal. While a
command runs (`guarded`), both standard streams are `Screen`s, so that click's own messages, progress bars, warnings,
logs and tracebacks are held to that as well; and no job is lost for want of somewhere to print to.

Colours are beside the text (`Painted`), never in it: a `Screen` on a terminal puts them in when all that stands in the
text is harmless already, and nothing that stands there can be taken for one.
"""

import errno
import io
import os
import sys
import traceback
import unicodedata
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from types import TracebackType
from typing import TextIO

import click

JOINERS = "\u200c\u200d"  # of letters and of emoji: nothing that is printed is hidden or moved by them
LONGEST = 500  # characters of a message
INSTEAD = "\ufffd"
HEADING, GOOD, BAD, NOTE = "1", "32", "31", "33"  # bold, green, red, yellow
MARKS = {"rsd:": BAD, "Error:": BAD, "notice:": NOTE, "warning:": NOTE}  # that lines of ours begin with


class Painted(str):
    """Text of which parts have a colour where a terminal shows any. What is made of it, but for sums, is plain text.

    spans: start, end and colour of each part, in their order.
    """

    spans: tuple[tuple[int, int, str], ...] = ()

    def __add__(self, other: str) -> "Painted":
        return joined([self, other])


def paint(text: str, colour: str) -> Painted:
    """All of a text in one colour."""
    made = Painted(text)
    made.spans = ((0, len(text), colour),)
    return made


def joined(parts: Iterable[str], between: str = "") -> Painted:
    """The parts in one, with their colours."""
    several, spans, at = list(parts), [], 0
    for part in several:
        if isinstance(part, Painted):
            spans += [(start + at, end + at, colour) for start, end, colour in part.spans]
        at += len(part) + len(between)
    made = Painted(between.join(several))
    made.spans = tuple(spans)
    return made


def part(text: Painted, start: int, end: int) -> Painted:
    """The characters from `start` to `end`, with their colours."""
    made = Painted(text[start:end])
    first = bisect_right(text.spans, start, key=lambda span: span[1])
    inside = takewhile(lambda span: span[0] < end, islice(text.spans, first, None))
    made.spans = tuple((max(a, start) - start, min(b, end) - start, colour) for a, b, colour in inside)
    return made


def marked(line: str) -> str:
    """A line of ours with its mark, such as `notice:`, in colour."""
    mark, _, rest = line.partition(" ")
    return joined([paint(mark, MARKS[mark]), " ", rest]) if mark in MARKS else line


def harmless(text: str, *, kept: str = "\n\t") -> str:
    """Text in which nothing steers a terminal: no escapes, no marks that turn the writing round."""

    def shown(c: str) -> bool:
        return c.isprintable() or c in kept or c in JOINERS or unicodedata.category(c) == "Zs"

    made = "".join(c if shown(c) else INSTEAD for c in text)
    if not isinstance(text, Painted):
        return made
    painted = Painted(made)
    painted.spans = text.spans
    return painted


def one_line(text: object) -> str:
    """A name that may stand in a line: it cannot begin another one."""
    return harmless(text if isinstance(text, str) else str(text), kept="")


def shortened(text: str) -> str:
    """A message that may hold a value of any length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def in_lines(lines: Iterable[object]) -> str:
    """These lines and no more, whatever stands in them."""
    return joined(map(one_line, lines), "\n")


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text that may hold what stood in a file. nl: and end its line."""
    click.echo(harmless(text), err=err, nl=nl, color=True)  # a `Screen` decides


def say(line: str) -> None:
    """A line for the user beside what a command prints."""
    if not _hushed:
        _instead[-1](one_line(line)) if _instead else echo(marked(one_line(line)), err=True)


_hushed: list[bool] = []
_instead: list[Callable[[str], object]] = []


@contextmanager
def say_by(way: Callable[[str], object] | None) -> Iterator[None]:
    """What is said meanwhile goes another way, if there is one; so do warnings."""
    if way is None:
        yield
        return
    _instead.append(way)
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    try:
        yield
    finally:
        warnings.showwarning = shown
        _instead.remove(way)


def hush() -> None:
    """Say nothing from now on, and show no bars: another process of the job does, or nobody wants to know."""
    _hushed.append(True)


def hushed() -> bool:
    return bool(_hushed)


def coloured(stream: TextIO) -> bool:
    """Whether a stream shows colours: a terminal, unless NO_COLOR or FORCE_COLOR (CLICOLOR_FORCE) says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


class Screen(io.TextIOBase):
    """A standard stream for harmless text. What it cannot write it forgets: `failed` is the first reason.

    Characters that its encoding lacks are escaped.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.colours = stream, coloured(stream)
        self.failed: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("a stream of text")
        # A progress bar goes back to the beginning of its line.
        plain, parts, at = harmless(text, kept="\n\t\r"), [], 0
        for start, end, colour in text.spans if isinstance(text, Painted) and self.colours else ():
            parts += [self._spelled(plain[at:start]), f"\x1b[{colour}m", self._spelled(plain[start:end]), "\x1b[0m"]
            at = end
        written = "".join([*parts, self._spelled(plain[at:])])
        self._try(lambda: self.stream.write(written))
        return len(text)

    def _spelled(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, what: object) -> None:
        if self.failed is None:
            try:
                what()  # type: ignore[operator]
            except OSError as e:
                self.failed = e
            except ValueError:
                self.failed = OSError(errno.EBADF, "it is closed")

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True


@contextmanager
def guarded() -> Iterator[None]:
    """Standard streams that are `Screen`s.

    Raises:
        SystemExit: with 1, where all went well but standard output could not take what was printed.
    """
    streams, hook = (sys.stdout, sys.stderr), sys.excepthook
    screens = [None if stream is None else Screen(stream) for stream in streams]  # None: it is closed
    sys.stdout, sys.stderr = screens
    out = screens[0]

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if streams[1] is not None:  # print would take standard output in its place
            print(harmless("".join(traceback.format_exception(kind, error, trace))), file=streams[1], end="")

    sys.excepthook = shown
    hushed_before = len(_hushed)
    ended: BaseException | None = None
    try:
        yield
    except BaseException as e:
        ended = e
        raise
    finally:
        for screen in screens:
            if screen is not None:
                screen.flush()
        failed = out.failed if out is not None else None
        if failed is not None and failed.errno != errno.EPIPE:
            say(f"rsd: standard output: {failed.strerror or failed}")
        sys.stdout, sys.stderr = streams
        del _hushed[hushed_before:]
        if not isinstance(ended, Exception):
            sys.excepthook = hook
        for screen in screens:
            if screen is not None and screen.failed is not None:
                _give_up(screen.stream)
        if failed is not None and (ended is None or (isinstance(ended, SystemExit) and not ended.code)):
            raise SystemExit(1)


def _give_up(stream: TextIO) -> None:
    """What a stream could not write is thrown away, or the interpreter would try once more as it ends, and complain."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()

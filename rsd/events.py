"""What a run says of itself to programs: JSON objects, one a line, on standard error and in a file.

Every line has `time` and `event`: `start` with all settings, `notice`, `progress` every few seconds, and in the end
`end` or `error`. On standard error they stand in place of what people read there; the file has all but the notices. A
page that shows the running job (`rsd.live`) is told, too.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rsd.strictjson import finite
from rsd.terminal import echo, say, say_by

EVERY = 5.0  # seconds from one line of progress to the next
SOON = 1.0  # the same, for who watches


class Events:
    """Where events go. also: what every line says besides. watcher: who else is told, line by line, and more often."""

    def __init__(self, *, log: bool, file: str | None) -> None:
        self.log, self.file = log, file
        self.also: dict[str, Any] = {}
        self.path: Path | None = None
        self.watcher: Callable[[str], object] | None = None

    def tell(self, event: str, **values: Any) -> str:
        """The line of an event, of which who watches is told."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps(finite({"time": now, "event": event, **self.also, **values}), default=str)
        if self.watcher is not None:
            self.watcher(line)
        return line

    def emit(self, event: str, **values: Any) -> None:
        """One line more. A file that cannot take it gets no other, and no work is lost."""
        line = self.tell(event, **values)
        if self.log:
            echo(line, err=True)
        if self.path is not None and event != "notice":
            path = self.path
            try:
                with open(path, "ab", buffering=0) as file:  # at once, so that several may append
                    file.write(line.encode() + b"\n")
            except OSError as e:
                self.path = None
                say(f"notice: {path}: {e.strerror or e}: no more events are written there")

    def open(self, path: Path) -> None:
        """Append what follows to a file. Raises OSError if it cannot be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # torn by a crash
                    file.write(b"\n")
        self.path = path


_current: list[Events] = []


@contextmanager
def reporting(*, log: bool, file: str | None) -> Iterator[Events]:
    """Events of what happens meanwhile. log: on standard error. file: in this one, once it is opened."""
    events = Events(log=log, file=file)
    _current.append(events)
    try:
        with say_by((lambda line: events.emit("notice", message=line)) if log else None):
            yield events
    except Exception as e:
        events.emit("error", message=f"{type(e).__name__}: {e}", code=1)
        raise
    finally:
        _current.remove(events)


def current() -> Events | None:
    """Where events go now, if anybody wants them."""
    return _current[-1] if _current and (_current[-1].log or _current[-1].path or _current[-1].watcher) else None


def logging() -> bool:
    """Whether events stand in place of what people read on standard error."""
    return bool(_current) and _current[-1].log


@contextmanager
def ticking(record: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """A `progress` event every few seconds, even while nothing is finished, and one in the end."""
    events = current()
    if events is None:
        yield
        return
    stop = threading.Event()

    def tick(every: float, told: Callable[..., object]) -> None:
        while not stop.wait(every):
            told("progress", **record())

    paces: list[tuple[float, Callable[..., object]]] = [(EVERY, events.emit)]
    if events.watcher is not None:
        events.tell("progress", **record())
        paces.append((SOON, events.tell))
    threads = [threading.Thread(target=tick, args=pace, daemon=True) for pace in paces]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        events.emit("progress", **record())

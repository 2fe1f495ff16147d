"""How far something is, on standard error: a bar on a terminal; in a log a whole line now and then."""

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from rsd.events import logging
from rsd.terminal import hushed, say

# Seconds from one line to the next in a log, until something has gone on for so many.
PAUSES = ((60.0, 10.0), (3600.0, 30.0), (math.inf, 300.0))


class Bar:
    """`with Bar(...) as bar`, and `bar.at(done)` as often as something is done.

    In a log a line is said even while nothing is, so that one sees that it goes on, and one in the end.

    Args:
        total, done: traces in all, and that are there already.
        rates: what else is to be said now, as "216 tok/s".
        what: of several things, which this is.
    """

    def __init__(
        self, total: int, done: int = 0, *, rates: Callable[[], str] = str, what: str = "", shown: bool = True
    ) -> None:
        self.total, self.done, self.first = total, done, done
        self.rates, self.what = rates, what
        self.started = time.monotonic()
        shown = shown and not hushed() and not logging()
        self._bar: Any = None
        self._ended, self._said, self._thread = threading.Event(), False, None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="trace", desc=what or None, dynamic_ncols=True)
        elif shown:
            self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> "Bar":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            if self.done > self.first or self._said:
                say(self.line(ended=True))
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def at(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many if that is another number now."""
        self.done, self.total = done, self.total if total is None else total
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self.rates(), refresh=False)
            self._bar.update(done - self._bar.n)

    def line(self, *, ended: bool = False) -> str:
        """All that is known now."""
        made, seconds = self.done - self.first, self.seconds
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        parts = [f"{self.done}/{self.total} traces{share}"]
        if made:
            parts.append(f"{made / seconds:.3g} traces/s")
        if rates := self.rates():
            parts.append(rates)
        if ended:
            parts.append(f"in {tqdm.format_interval(seconds)}")
        elif made:
            parts.append(f"{tqdm.format_interval((self.total - self.done) * seconds / made)} left")
        return (f"{self.what}: " if self.what else "") + ", ".join(parts)

    def _tell(self) -> None:
        while not self._ended.wait(next(pause for until, pause in PAUSES if self.seconds < until)):
            self._said = True
            say(self.line())

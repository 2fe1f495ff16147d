"""The bar of a job: its own traces or, where several processes share it, those of all."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rsd.decoding.block_size import BlockController
from rsd.terminal import hushed
from rsd.traces.shards import Lines
from rsd.traces.trace import Trace

LOOK = 1.0  # seconds after which the other processes' files are looked at again


class Progress:
    """Counts what this process makes, and shows it. `with Progress(...) as progress:` closes the bar.

    Args:
        total, found: traces of the job, and those that are there already.
        of_all: the files of rows of all processes that share the job, if several do.
        shown: whether this process prints.
    """

    def __init__(self, total: int, found: int, *, of_all: Sequence[Path] = (), shown: bool = True) -> None:
        every = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file needs fewer lines
        self.count = self.tokens = 0
        self.accepted = self.left_out = 0.0
        self.total, self.found = total, found
        self.lines = Lines(of_all) if of_all and shown else None
        self._looked = self.started = time.monotonic()
        hidden = not shown or hushed()
        self.bar: Any = tqdm(
            total=total, initial=found, unit="trace", dynamic_ncols=True, mininterval=every, disable=hidden
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.look(now=True)
        self.bar.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def add(self, trace: Trace, *, at_most: int, blocks: BlockController) -> None:
        """One trace more; at_most: how many more this process may make."""
        self.count += 1
        self.tokens += len(trace.tokens)
        self.accepted += float(trace.accepted.sum())
        self.left_out += float(trace.left_out.sum())
        shown = [
            f"{self.tokens / self.seconds:.0f} tok/s",
            f"acceptance {self.accepted / max(self.tokens, 1):.1%}",
        ]
        if blocks.row_rounds:
            shown.append(f"{blocks.tokens_per_round:.1f} tokens a round")
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        if self.lines is not None:
            self.look()
        else:
            done = self.found + self.count
            self.bar.total = max(done, min(self.total, done + at_most))
            self.bar.update()

    def look(self, *, now: bool = False) -> None:
        """Count what all processes have made, now and then."""
        if self.lines is not None and (now or time.monotonic() - self._looked > LOOK):
            self._looked = time.monotonic()
            self.bar.update(self.lines.count() - self.bar.n)

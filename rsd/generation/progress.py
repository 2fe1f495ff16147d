"""How far a job is: its own traces or, where several processes share it, those of all."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsd.bar import Bar
from rsd.decoding.block_size import BlockController
from rsd.events import ticking
from rsd.traces.shards import Lines
from rsd.traces.trace import Trace

LOOK = 1.0  # seconds after which the other processes' files are looked at again


class Progress:
    """Counts what this process makes, and shows it. `with Progress(...) as progress:` closes the bar.

    Args:
        total, found: traces of the job, and those that are there already. at_most: that this process may make.
        blocks: what the rounds have made, where this process makes any.
        of_all: the files of rows of all processes that share the job, if several do.
        shown: whether this process prints.
    """

    def __init__(
        self,
        total: int,
        found: int,
        *,
        at_most: int = 0,
        blocks: BlockController | None = None,
        of_all: Sequence[Path] = (),
        shown: bool = True,
    ) -> None:
        self.count = self.tokens = 0
        self.errors = self.correct = self.wrong = self.own = 0  # own: tokens of the student's own
        self.accepted = self.left_out = 0.0
        self.total, self.found, self.done, self.at_most, self.blocks = total, found, found, at_most, blocks
        self.whole = not of_all or shown  # whether it knows of all traces of the job
        self.lines = Lines(of_all) if of_all and shown else None
        self._looked = self.started = time.monotonic()
        self.bar = Bar(total, found, rates=self.rates, shown=shown)
        self._told = ticking(self.record)

    def __enter__(self) -> "Progress":
        self._told.__enter__()
        self.bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.look(now=True)
        self._told.__exit__(None, None, None)
        self.bar.__exit__()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def record(self) -> dict[str, Any]:
        """How far it is, as JSON values. `done` and `total` are of the whole job, all else of this process."""
        whole = {"done": self.done, "total": self.total} if self.whole else {}
        if self.blocks is None:  # it waits for other processes: what it made itself it has told
            return whole
        decoded, seconds, tokens = self.blocks.tokens, self.seconds, max(self.tokens, 1)
        rate = self.count / seconds if seconds else 0.0
        return whole | {
            "new": self.count,
            "to_go": self.at_most,
            "errors": self.errors,
            "correct": self.correct,
            "wrong": self.wrong,
            "tokens": self.tokens,
            "decoded_tokens": decoded,  # those of traces that are not finished, too
            "seconds": round(seconds, 3),
            "seconds_left": round(self.at_most / rate, 1) if rate else None,
            "tokens_per_second": round(decoded / seconds, 1) if seconds else None,
            "tokens_per_round": round(self.blocks.tokens_per_round, 3) if decoded else None,
            "acceptance_rate": round(self.accepted / tokens, 5) if self.tokens else None,
            "fallback_rate": round(self.own / tokens, 5) if self.tokens else None,
            "left_out": round(self.left_out / tokens, 5) if self.tokens else None,
        }

    def rates(self) -> str:
        """How fast and how well it goes, in words: of this process."""
        if self.blocks is None or not self.blocks.row_rounds:
            return ""
        shown = [f"{self.blocks.tokens / self.seconds:.0f} tok/s"]
        if self.tokens:
            shown.append(f"acceptance {self.accepted / self.tokens:.1%}")
        return ", ".join([*shown, f"{self.blocks.tokens_per_round:.1f} tokens a round"])

    def add(self, trace: Trace, *, at_most: int, blocks: BlockController) -> None:
        """One trace more; at_most: how many more this process may make."""
        self.count += 1
        self.tokens += len(trace.tokens)
        self.accepted += float(trace.accepted.sum())
        self.left_out += float(trace.left_out.sum())
        self.own += int((~trace.from_teacher).sum())
        self.errors += trace.error is not None
        self.correct += trace.is_correct is True
        self.wrong += trace.is_correct is False
        self.at_most, self.blocks = at_most, blocks
        if self.lines is not None:
            self.look()
        else:
            self.done = self.found + self.count
            self.total = max(self.done, min(self.total, self.done + at_most))
            self.bar.at(self.done, self.total)

    def look(self, *, now: bool = False) -> None:
        """Count what all processes have made, now and then."""
        if self.lines is not None and (now or time.monotonic() - self._looked > LOOK):
            self._looked = time.monotonic()
            self.done = self.lines.count()
            self.bar.at(self.done)

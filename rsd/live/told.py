"""What a job has said of itself, in the lines of its events (`rsd.events`)."""

import json
import time
from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

SPAN = 30.0  # seconds over which a rate is taken
KEPT, APART = 120, 0.5  # counts of tokens, of which there is one a second; seconds between them at the least


class Told:
    """phase: starting, making; and in the end finished, stopped, or gone, when the job ended without a word."""

    def __init__(self) -> None:
        self.phase, self.message = "starting", ""
        self.latest: Mapping[str, Any] = {}
        self.seconds: float | None = None  # that it took
        self.began: tuple[float, int] | None = None  # when, and with how many traces
        self.average: float | None = None  # tokens a second of a whole run
        self.tokens: deque[tuple[float, int]] = deque(maxlen=KEPT)  # when, and how many there were

    def hear(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            what = event["event"]
        except (ValueError, LookupError, TypeError):  # torn: the pipe was full
            return
        now = time.monotonic()
        if what == "progress":
            self.phase, self.latest = "making", event
            self.seconds = event.get("seconds")
            if self.began is None and "done" in event:
                self.began = now, event["done"]
            if not self.several:
                self.average = event["tokens_per_second"]
                self.count(event["decoded_tokens"])
        elif what == "end":
            self.phase, self.seconds = "finished", event.get("seconds", self.seconds)
            if event.get("new_tokens") and self.seconds:
                self.average = event["new_tokens"] / self.seconds
        elif what == "error":
            self.phase, self.message = "stopped", str(event.get("message", ""))

    def ended(self) -> None:
        """The job is no more."""
        if self.phase in ("starting", "making"):
            self.phase = "gone"

    def count(self, tokens: int) -> None:
        """So many tokens there are now."""
        now = time.monotonic()
        if not self.tokens or now - self.tokens[-1][0] > APART:
            self.tokens.append((now, tokens))

    @property
    def several(self) -> bool:
        """Whether other processes make traces of the job, too, so that it does not know of all tokens itself."""
        return "shard" in self.latest or "decoded_tokens" not in self.latest

    def rate(self) -> float | None:
        """Tokens a second: of the last moments or, when it has ended, of all its time."""
        if self.phase != "making" or len(self.tokens) < 2:
            return self.average
        now, tokens = self.tokens[-1]
        then, before = next(one for one in self.tokens if now - one[0] <= SPAN)
        return max(tokens - before, 0) / (now - then) if now > then else self.average

    def rates(self) -> list[int]:
        """Tokens a second from each count to the next."""
        return [round(max(b - a, 0) / (then - at)) for (at, a), (then, b) in pairwise(self.tokens)]

    def left(self) -> float | None:
        """Seconds until all traces are made, if it goes on as it did."""
        done, total = self.latest.get("done"), self.latest.get("total")
        if self.began is None or done is None or total is None or done <= self.began[1]:
            return None
        return (total - done) * (time.monotonic() - self.began[0]) / (done - self.began[1])

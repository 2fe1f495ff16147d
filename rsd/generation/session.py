"""What the manifest says of every run that added to a job: when, by what command, and how many rows were together."""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any


class Session:
    """A run, from now on; called, what there is to say of it.

    command: its command line, if it has one. rows: how many rows were decoded together, at the most so far.
    """

    def __init__(self, command: str | None, rows: Callable[[], int]) -> None:
        self.command, self.rows = command, rows
        self.started, self._clock = datetime.now(UTC), time.monotonic()

    def __call__(self) -> dict[str, Any]:
        """Its end is now: that of a run that is killed is noted every few seconds, too."""
        started, ended = (t.isoformat(timespec="seconds") for t in (self.started, datetime.now(UTC)))
        return {
            "command": self.command,
            "started": started,
            "ended": ended,
            "seconds": round(time.monotonic() - self._clock, 1),
            "batch_size": self.rows(),
        }


def sessions_of(manifests: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """The sessions of several manifests, in the order in which they began."""
    found = [one for made in manifests for one in (made or {}).get("sessions") or ()]
    return sorted(found, key=lambda one: str(one.get("started")))

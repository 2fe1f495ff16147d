"""What a server answers to one request, or that it does not."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from rsd.serving.key import said

try:
    import httpx
except ImportError as e:
    raise ValueError("a teacher behind a server needs httpx: pip install 'rsd[served]'") from e

AFTER = 120.0  # seconds that a server may ask us to stay away, at the most

# A server that is not there, breaks off, or takes too long; and answers that are none. Both may pass.
FAULTS = (httpx.TransportError, TimeoutError)
UNREADABLE = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, RecursionError)


def fault(e: BaseException) -> str:
    what = said(e)
    return f"{type(e).__name__}{f': {what}' if what else ''}"


@dataclass(frozen=True)
class Answer:
    """A server's answer to one request, whole."""

    status: int
    reason: str
    body: bytes
    retry_after: str | None

    @property
    def passing(self) -> bool:
        """Asked later, the server may answer another thing."""
        return self.status >= 500 or self.status in (408, 425, 429)

    @property
    def after(self) -> float | None:
        """Seconds until it wants to be asked again, if it says so: a number, or a date."""
        with suppress(TypeError, ValueError, OverflowError):
            given = self.retry_after or ""
            number = given.strip().isdecimal()
            seconds = float(given) if number else (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
            return min(max(seconds, 0.0), AFTER)
        return None

    def json(self) -> Any:
        return json.loads(self.body)

    def refusal(self) -> str:
        """What the server says where it does not answer, in one line."""
        try:
            error = self.json()["error"]
            why = str(error["message"] if isinstance(error, dict) else error)
        except UNREADABLE:
            why = self.reason
        return f"{self.status} {said(why)}"

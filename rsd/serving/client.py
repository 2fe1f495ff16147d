"""Asking a server, patiently and within bounds: nothing that it answers, or fails to, costs more than time."""

import asyncio
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rsd.terminal import one_line

try:
    import httpx
except ImportError as e:
    raise ValueError("a teacher behind a server needs httpx: pip install 'rsd[served]'") from e

KEY = "RSD_TEACHER_API_KEY"  # the environment variable that holds the server's key, if it wants one
TOGETHER = 64  # requests under way
TIMEOUT = httpx.Timeout(300, connect=10)  # seconds; a server that is stopped may never answer what it had begun
WHOLE = 600.0  # seconds in which an answer must be there to its end, however it drips
ANSWER = 1 << 20  # bytes of the largest answer, beside what was asked for
PATIENCE = 900  # seconds after which a request that fails again and again ends the job
DELAYS = 0.25, 20.0  # seconds before the next try: at first, and at the most

log = logging.getLogger("rsd")

T = TypeVar("T")


class Client:
    """The server of one teacher.

    Args:
        url: up to and with /v1.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in a thread that has a loop of its own: the caller's may be running one already."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="rsd teacher").start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupt, say
            future.cancel()
            raise

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], *, room: int = 0) -> T | str:
        """What `read` makes of the server's answer; or why the server refuses this.

        Args:
            room: bytes that the answer may have beyond `ANSWER`.

        Raises:
            ConnectionError: the server has not answered for `PATIENCE` seconds, or does not let us in.
        """
        if self._client is None:
            # Servers close connections that are idle for some seconds; ours must be the first to.
            limits = httpx.Limits(max_connections=TOGETHER, keepalive_expiry=2)
            self._client = httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers())
            self._slots = asyncio.Semaphore(TOGETHER)
        began, delay, tries = time.monotonic(), DELAYS[0], 0
        while True:
            after = None
            try:
                async with self._slots:  # type: ignore[union-attr]
                    answer = await fetch(self._client, f"{self.url}{path}", body, room=room)
                if answer.status == 200:
                    return read(answer.json())
                why = answer.refusal()
                if answer.status in (400, 413, 422):
                    return why
                if not answer.passing:
                    raise ConnectionError(f"the teacher at {self.url} refuses: {why}")
                after = answer.retry_after
            except FAULTS as e:
                why = fault(e)
            except UNREADABLE as e:
                why = f"an answer that cannot be read ({fault(e)})"
            if time.monotonic() - began > PATIENCE:
                raise ConnectionError(f"the teacher at {self.url} has not answered for {PATIENCE} s: {why}")
            tries += 1
            if tries == 3:
                log.warning("the teacher does not answer, trying again for %d s: %s", PATIENCE, why)
            pause = float(after) if after and after.isdecimal() else delay * (0.5 + random.random())
            await asyncio.sleep(min(pause, DELAYS[1]))
            delay = min(2 * delay, DELAYS[1])


async def together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it at once; where one fails the others end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def headers() -> dict[str, str]:
    """Who we are, if the server wants to know; and that what is small anyway need not be compressed."""
    key = os.environ.get(KEY, "").strip()
    return {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})


# A server that is not there, breaks off, or takes too long; and answers that are none. Both may pass.
FAULTS = (httpx.TransportError, TimeoutError)
UNREADABLE = (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError, RecursionError)


def fault(e: BaseException) -> str:
    said = one_line(" ".join(str(e).split()))[:300]
    return f"{type(e).__name__}{f': {said}' if said else ''}"


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

    def json(self) -> Any:
        return json.loads(self.body)

    def refusal(self) -> str:
        """What the server says where it does not answer, in one line."""
        try:
            answer = self.json()
            error = answer.get("error", answer)  # of some of SGLang's, the message stands beside
            said = str(error["message"] if isinstance(error, dict) else error)
        except UNREADABLE:
            said = self.reason
        key = os.environ.get(KEY, "").strip()
        said = said.replace(key, "***") if key else said
        return f"{self.status} {one_line(' '.join(said.split()))[:300]}"


async def fetch(client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None = None, *, room: int = 0) -> Answer:
    """The answer to a request; a POST if it has a body.

    Raises:
        httpx.TransportError, TimeoutError: there is none, or it is not whole in `WHOLE` seconds.
        ValueError: it is larger than an answer to this can be, or compressed: then it might be.
    """
    most = ANSWER + room
    async with asyncio.timeout(WHOLE), client.stream("POST" if body else "GET", url, json=body) as response:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ValueError("it is compressed, which was not asked for")
        parts, size = [], 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > most:
                raise ValueError(f"it is larger than {most} bytes")
            parts.append(part)
        after = response.headers.get("retry-after")
        return Answer(response.status_code, response.reason_phrase, b"".join(parts), after)

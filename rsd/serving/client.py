"""Asking a teacher's servers, patiently and within bounds: nothing that they answer costs more than time."""

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from rsd.serving.answer import FAULTS, UNREADABLE, Answer, fault, httpx
from rsd.serving.key import headers, said
from rsd.serving.replicas import Homes, Server, unlike
from rsd.serving.told import TRIES, Fewer, Told

TOGETHER = 64  # requests under way, of each server
TIMEOUT = httpx.Timeout(300, connect=10)  # seconds; a server that is stopped may never answer what it had begun
WHOLE = 600.0  # seconds in which an answer must be there to its end, however it drips
ANSWER = 1 << 20  # bytes of the largest answer, beside what was asked for
PATIENCE = 900  # seconds after which a request that fails again and again ends the job
DELAYS = 0.25, 20.0  # seconds before the next try: at first, and at the most
CHECKED = 60.0  # seconds after which a server is asked again whether it is the model that it was

log = logging.getLogger("rsd")

T = TypeVar("T")


class Known(NamedTuple):
    """A question whose answer is known, by which a server is recognised. read, room: as of `Client.ask`."""

    path: str
    body: Mapping[str, Any]
    read: Callable[[Any], list[Told]]
    room: int
    told: list[Told]


class Failed(Exception):
    """A server did not answer. after: seconds until it wants to be asked again. lost: it may be another one by then."""

    def __init__(self, why: str, *, after: float | None = None, lost: bool = False) -> None:
        super().__init__(why)
        self.after, self.lost = after, lost


class Client:
    """The servers of one teacher: replicas, of which those that are there share the work.

    One that fails is left out, and tried again in the background by what is known (with pauses that grow); one that is
    another model than it was, or does not let us in, is left out for good. known: is set by who asks, once the first
    answer is there.

    Args:
        urls: of each server, up to and with /v1. The first one that is there is what the others are held against.
    """

    def __init__(self, urls: str | Sequence[str]) -> None:
        self.servers = [Server(url) for url in ([urls] if isinstance(urls, str) else urls)]
        self.known: Known | None = None
        self._homes = Homes()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: dict[Server, httpx.AsyncClient] = {}
        self._slots: dict[Server, asyncio.Semaphore] = {}
        self._first = asyncio.Lock()
        self._begun = False
        self._news = asyncio.Event()  # of a server that is back, or is not

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in a thread that has a loop of its own: the caller's may be running one already."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="rsd teacher").start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def homes(self, rows: Sequence[Sequence[Sequence[int]]]) -> list[Server]:
        """The server that each row is best asked of: one that has read it before, if that has not too much to do.

        Args:
            rows: the contexts of each, the shortest one first.
        """
        if len(self.servers) == 1:
            return self.servers * len(rows)
        there = {at: s.load for at, s in enumerate(self.servers) if not s.gone and not (s.back and s.failed)}
        there = there or {at: s.load for at, s in enumerate(self.servers)}
        work = [6 * sum(map(len, row)) for row in rows]  # bytes, about
        return [self.servers[at] for at in self._homes.share([row[0] for row in rows], work, there)]

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
        *,
        room: int = 0,
        home: Server | None = None,
    ) -> T | str:
        """What `read` makes of a server's answer; or why the server refuses this.

        Args:
            room: bytes that the answer may have beyond `ANSWER`. home: the server that is best asked.

        Raises:
            ConnectionError: no server has answered for `PATIENCE` seconds, or none lets us in. Where `read` raises one,
                that server will not do.
        """
        if not self._begun and len(self.servers) > 1:
            async with self._first:  # by whose answer the others are recognised
                if not self._begun:
                    return await self._patiently(path, body, read, room, home)
        return await self._patiently(path, body, read, room, home)

    async def _patiently(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], room: int, home: Server | None
    ) -> T | str:
        content = _json(body)
        since, delay, tries, why = None, DELAYS[0], 0, ""
        while True:
            began = time.monotonic()
            server = self._chosen(home)
            if since is not None and began - since > PATIENCE:
                where = ", ".join(s.url for s in self.servers if not s.gone)
                raise ConnectionError(f"the teacher at {where} has not answered for {PATIENCE} s: {why}")
            if server is None:  # all that are left are out, or being recognised
                since, why = since or began, max(self.servers, key=lambda s: s.failed).why
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), since + PATIENCE - began)
                continue
            try:
                made = await self._try(server, path, content, read, room, tries)
            except Failed as e:
                self._leave_out(server, e)
                since, why = since or began, str(e)
                tries += 1
                if tries > 1 or self._chosen(None) is None:
                    await asyncio.sleep(_jittered(delay))
                    delay = min(2 * delay, DELAYS[1])
            except ConnectionError as e:
                self._give_up(server, e)
            else:
                if not self._begun:
                    self._begun, server.sure = True, time.monotonic()
                return made

    def _chosen(self, home: Server | None) -> Server | None:
        """The row's own server, or else the one that has least to do; None if there is something to wait for.

        Raises:
            ConnectionError: there is nothing.
        """
        if all(s.gone for s in self.servers):
            why = str(self.servers[-1].gone)
            for server in self.servers:  # a job that is begun again in this process asks them again
                server.gone, server.sure, server.short = None, None, 0
            raise ConnectionError(why)
        for server in self.servers:
            fresh = server.sure is not None and time.monotonic() - server.sure < CHECKED
            if self.known and self._begun and not (fresh or server.back or server.gone):
                server.back = asyncio.ensure_future(self._bring_back(server, 0.0))
        there = [s for s in self.servers if not s.gone and s.back is None]
        if not self._begun:
            return there[0] if there else None
        if home in there or (home is not None and home.back and not home.failed):  # which is being recognised
            return home if home in there else None
        return min(there, key=lambda s: s.load, default=None)

    async def _try(
        self, server: Server, path: str, content: bytes, read: Callable[[Any], T], room: int, tries: int = 0
    ) -> T | str:
        """One request.

        Raises:
            Failed: it came to nothing, and another may not. ConnectionError: this server will not do.
        """
        if server not in self._clients:
            self._clients[server], self._slots[server] = opened(server.url), asyncio.Semaphore(TOGETHER)
        work = len(content) + room // 1024
        server.load += work
        try:
            async with self._slots[server]:
                began = time.monotonic()
                whole = server.limit(work, tries, WHOLE)
                answer = await fetch(self._clients[server], f"{server.url}{path}", content, room=room, whole=whole)
                seconds = time.monotonic() - began
            if answer.status == 200:
                value = answer.json()
                made = read(value)
                self._check_name(server, value)
                server.answered(seconds, work)
                return made
            why = answer.refusal()
            if answer.status in (400, 413, 422):
                return why
            if not answer.passing:
                raise ConnectionError(f"the teacher at {server.url} refuses: {why}")
            raise Failed(why, after=answer.after)
        except FAULTS as e:
            raise Failed(fault(e), lost=not isinstance(e, httpx.TimeoutException | TimeoutError)) from e
        except UNREADABLE as e:
            raise Failed(f"an answer that cannot be read ({fault(e)})") from e
        finally:
            server.load -= work

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _check_name(self, server: Server, answer: Any) -> None:
        named = answer.get("model") if isinstance(answer, dict) else None
        if server.named is not None and named != server.named:
            both = f"{said(server.named)} before, {said(named)} now"
            raise ConnectionError(f"the teacher at {server.url} is another model than it was ({both})")
        server.named = named

    def _leave_out(self, server: Server, failed: Failed) -> None:
        server.failed, server.why = server.failed + 1, str(failed)
        if failed.lost:
            server.pace = None
        if server.failed == 3:
            log.warning(
                "the teacher's server %s does not answer, trying again for %d s: %s", server.url, PATIENCE, failed
            )
        if server.back is None:
            pause = _jittered(DELAYS[0]) if failed.after is None else failed.after
            server.back = asyncio.ensure_future(self._bring_back(server, pause))
        self._tell()

    def _give_up(self, server: Server, why: ConnectionError) -> None:
        if not server.gone and any(not s.gone for s in self.servers if s is not server):
            log.warning("the teacher's server %s is left out from now on: %s", server.url, why)
        server.gone = server.gone or str(why)

    async def _bring_back(self, server: Server, pause: float) -> None:
        """Wait until a server answers a known question as before; it is asked nothing else meanwhile."""
        began, delay = time.monotonic(), DELAYS[0]
        try:
            while True:
                await asyncio.sleep(pause)
                # Without a question, and after so long a time, the next request finds out.
                if self.known is None or time.monotonic() - began > PATIENCE:
                    return
                failed = server.failed
                try:
                    await self._recognise(server, self.known)
                except Failed as e:
                    self._leave_out(server, e)
                    delay = min(2 * delay, DELAYS[1])
                    pause = _jittered(delay) if e.after is None else e.after
                else:
                    if failed > 2:
                        log.warning("the teacher's server %s answers again", server.url)
                    return
        except ConnectionError as e:
            self._give_up(server, e)
        finally:
            server.back = None
            self._tell()

    async def _recognise(self, server: Server, known: Known) -> None:
        try:
            told = await self._try(server, known.path, _json(known.body), known.read, known.room)
        except Fewer as e:  # it may have been asked by ids meanwhile
            server.short += 1
            if server.short > TRIES:
                raise
            raise Failed(str(e)) from e
        server.short = 0
        why = f"it refuses what was answered: {told}" if isinstance(told, str) else unlike(told, known.told)
        if why:
            raise ConnectionError(f"the teacher at {server.url} is another model than before: {why}")
        server.sure = time.monotonic()


async def together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All of it at once; where one fails the others end."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def opened(url: str) -> httpx.AsyncClient:
    """What connects to this server, and to no other: no redirect is followed. A proxy of the environment is used for
    https alone, which hides key and prompts from it.

    Raises:
        ValueError: the key can be none, or the environment names no such proxy or certificates.
    """
    # Servers close connections that are idle for some seconds; ours must be the first to.
    limits = httpx.Limits(max_connections=TOGETHER, keepalive_expiry=2)
    secure = url.lower().startswith("https:")
    try:
        return httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers(), trust_env=secure)
    except (ImportError, OSError, httpx.InvalidURL) as e:
        raise ValueError(f"{url}: the environment's proxy or certificates (SSL_CERT_FILE): {said(e)}") from e


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _jittered(delay: float) -> float:
    return delay * (0.5 + random.random())


async def fetch(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, Any] | bytes | None = None,
    *,
    room: int = 0,
    whole: float | None = None,
) -> Answer:
    """The answer to a request; a POST if it has a body.

    Raises:
        httpx.TransportError, TimeoutError: there is none, or it is not whole in `whole` seconds (`WHOLE`).
        ValueError: it is larger than an answer to this can be, or compressed: then it might be.
    """
    most = ANSWER + room
    content = _json(body) if isinstance(body, Mapping) else body
    request: dict[str, Any] = {"content": content, "headers": {"Content-Type": "application/json"}} if content else {}
    asked = client.stream("POST" if content else "GET", url, **request)
    async with asyncio.timeout(WHOLE if whole is None else whole), asked as response:
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

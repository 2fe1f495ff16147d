"""A teacher behind a server: any OpenAI-compatible completions endpoint that takes token ids and returns the
ids of top log-probs (vLLM). The student stays here.

A row's drafts are read in one request that carries their contexts as prompts, each to be continued by one token:
what counts is the log-probs beside it, and the server's prefix cache makes each context cost little more than its last
tokens. (The log-probs of a *prompt* would need one context alone, but servers compute the whole prompt anew for them.)
Rows share requests, since a request costs a server several times what a context does; several are under way together.

The server tells the 20 likeliest tokens. So q is these, renormalised, as in the paper (arXiv 2509.22230), and
the log-prob of a token that is not among them is not known.
"""

import asyncio
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsd.decoding.teacher import LOGITS, TOP, Node, TeacherOutput, TokenTree, table
from rsd.settings import called
from rsd.terminal import one_line

try:
    import httpx
except ImportError as e:
    raise ValueError("a teacher behind a server needs httpx: pip install 'rsd[served]'") from e

KEY = "RSD_TEACHER_API_KEY"  # the environment variable that holds the server's key, if it wants one
TOGETHER = 64  # requests under way
CONTEXTS = 64  # contexts of a request, if those of one row are not more
TIMEOUT = httpx.Timeout(300, connect=10)  # seconds; a server that is stopped may never answer what it had begun
WHOLE = 600.0  # seconds in which an answer must be there to its end, however it drips
ANSWER, CONTEXT = 1 << 20, 1 << 16  # bytes of the largest answer: of any, and more for each context
PATIENCE = 900  # seconds after which a request that fails again and again ends the job
DELAYS = 0.25, 20.0  # seconds before the next try: at first, and at the most
LIKELY = -3.0  # log-prob that an id of the padding behind a vocabulary never has
LEAST = -9000.0  # servers send -9999 for minus infinity

# Of a row, how many contexts were asked about, and the ids and log-probs after each; or why there are none.
Answers = tuple[int, list[tuple[list[int], list[float]]] | str]

log = logging.getLogger("rsd")


class ServedTeacher:
    """A `teacher.Teacher` whose model is on a server. It holds nothing of a row: every context is sent whole.

    Args:
        url: up to and with /v1. model: its name there. width: of the teacher's vocabulary. context: the longest
            prompt that it takes.

    Raises:
        ConnectionError (when judging): the server has not answered for `PATIENCE` seconds, or does not let us in.
    """

    def __init__(self, url: str, model: str, *, width: int, context: int) -> None:
        self.url, self.model, self.width, self.context = url.rstrip("/"), model, width, context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None

    def prefill(self, prompts: list[list[int]]) -> None:
        return None

    def copy_row(self, prefilled: None, at: int, row: int, *, length: int) -> None:
        pass

    def move_row(self, row: int, to: int) -> None:
        pass

    def drop_row(self, row: int) -> None:
        pass

    def keep(self, row: int, tree: TokenTree, ids: list[int], start: int) -> None:
        pass

    def drop(self, rows: int) -> None:
        pass

    def total(self, logits: Tensor, top: Tensor) -> Tensor:
        """They are log-probs already; -inf where the server did not tell."""
        return logits.new_zeros(logits.shape[:-1])

    def logits(self, trees: Sequence[TokenTree]) -> Iterator[TeacherOutput]:
        said = self._answers(trees, [[*tree.nodes, *tree.beside] for tree in trees])
        beside = [len(tree.beside) for tree in trees]
        rows = max(1, LOGITS // (4 * self.width * max(count for count, _ in said)))
        for first in range(0, len(trees), rows):
            mine = range(first, min(first + rows, len(trees)))
            yield self._output(mine, said[first : first + rows], beside[first : first + rows])

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput:
        return self._output(rows, self._answers(trees, nodes), [0] * len(rows))

    def _answers(self, trees: Sequence[TokenTree], nodes: Sequence[list[Node]]) -> list[Answers]:
        """What the server says of the rows' nodes, or of a row why it says nothing."""
        # Drafts beyond the teacher's context are not committed, whatever it says of them.
        prompts = [[tree.ids(p)[-self.context :] for p in mine] for tree, mine in zip(trees, nodes, strict=True)]
        answers = self._wait(self._all(prompts))
        return [(len(mine), answer) for mine, answer in zip(prompts, answers, strict=True)]

    def _output(self, rows: Sequence[int], said: Sequence[Answers], beside: Sequence[int]) -> TeacherOutput:
        """beside: how many of a row's answers, the last ones, are not of its drafts."""
        logprobs = np.full((sum(count for count, _ in said), self.width), -np.inf, dtype=np.float32)
        at, besides, errors, n = [], [], {}, 0
        for row, (count, answer), others in zip(rows, said, beside, strict=True):
            at.append(range(n, n + count - others))
            besides.append(range(n + count - others, n + count))
            if isinstance(answer, str):
                errors[row] = answer
                logprobs[n : n + count] = np.nan
            else:
                for j, (ids, values) in enumerate(answer):
                    logprobs[n + j, ids] = values
            n += count
        return TeacherOutput(torch.from_numpy(logprobs), table(at), table(besides), rows[0], errors)

    def _wait(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
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

    async def _all(self, prompts: list[list[list[int]]]) -> list[Any]:
        if self._client is None:
            # Servers close connections that are idle for some seconds; ours must be the first to.
            limits = httpx.Limits(max_connections=TOGETHER, keepalive_expiry=2)
            self._client = httpx.AsyncClient(timeout=TIMEOUT, limits=limits, headers=headers())
            self._slots = asyncio.Semaphore(TOGETHER)
        shared: list[list[list[list[int]]]] = []  # rows of each request
        for mine in prompts:
            if not shared or sum(map(len, shared[-1])) + len(mine) > CONTEXTS:
                shared.append([])
            shared[-1].append(mine)
        tasks = [asyncio.ensure_future(self._rows(rows)) for rows in shared]
        try:
            return [answer for answers in await asyncio.gather(*tasks) for answer in answers]
        finally:
            for task in tasks:
                task.cancel()

    async def _rows(self, rows: list[list[list[int]]]) -> list[list[tuple[list[int], list[float]]] | str]:
        """What the server says of each row; of one that it refuses, why."""
        said = await self._ask([prompt for row in rows for prompt in row])
        if not isinstance(said, str):
            answers = iter(said)
            return [[next(answers) for _ in row] for row in rows]
        if len(rows) == 1:
            return [said]
        return [(await self._rows([row]))[0] for row in rows]  # one of them is to blame

    async def _ask(self, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]] | str:
        """The top log-probs after each prompt; or why the server refuses these prompts."""
        body = {
            "model": self.model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": TOP,
            "return_tokens_as_token_ids": True,
        }
        began, delay, tries = time.monotonic(), DELAYS[0], 0
        while True:
            after = None
            try:
                async with self._slots:  # type: ignore[union-attr]
                    answer = await fetch(self._client, f"{self.url}/completions", body)  # type: ignore[arg-type]
                if answer.status == 200:
                    return top_logprobs(answer.json(), len(prompts), self.width)
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
            error = self.json()["error"]
            said = str(error["message"] if isinstance(error, dict) else error)
        except UNREADABLE:
            said = self.reason
        key = os.environ.get(KEY, "").strip()
        said = said.replace(key, "***") if key else said
        return f"{self.status} {one_line(' '.join(said.split()))[:300]}"


async def fetch(client: httpx.AsyncClient, url: str, body: Mapping[str, Any] | None = None) -> Answer:
    """The answer to a request; a POST if it has a body.

    Raises:
        httpx.TransportError, TimeoutError: there is none, or it is not whole in `WHOLE` seconds.
        ValueError: it is larger than an answer to this can be, or compressed: then it might be.
    """
    most = ANSWER + CONTEXT * len(body["prompt"]) if body else ANSWER
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


def top_logprobs(answer: Any, count: int, width: int) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probs after each of `count` prompts, from a completions answer.

    Raises:
        KeyError, TypeError, ...: it is no such answer. ConnectionError: it names tokens by their text, or tells fewer
            than the teacher is to propose from, or tokens that a teacher of this width does not have.
    """
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} choices for {count} prompts")
    read = []
    for choice in choices:
        top = choice["logprobs"]["top_logprobs"][0]
        if not all(token.startswith("token_id:") for token in top):
            raise ConnectionError(
                "the teacher's server names tokens by their text, of which several may be equal: choose one that "
                "knows return_tokens_as_token_ids, such as vLLM"
            )
        if len(top) < min(TOP, width):
            raise ConnectionError(
                f"the teacher's server tells {len(top)} of the {TOP} likeliest tokens, and of these the teacher is to "
                f"propose: let it tell more (vLLM: --max-logprobs {TOP})"
            )
        told = {int(token[9:]): float(value) for token, value in top.items()}
        if any(math.isnan(value) or value > 1e-3 for value in told.values()):
            raise ValueError("log-probs that are none")
        known = {i: value for i, value in told.items() if value > LEAST}
        if any(value > LIKELY and not 0 <= i < width for i, value in known.items()):
            raise ConnectionError(
                f"the teacher's server says tokens beyond the {width} of its tokenizer here: name the served model's "
                f"own with {called('teacher_tokenizer')}"
            )
        pairs = [(i, value) for i, value in known.items() if 0 <= i < width]
        read.append(([i for i, _ in pairs], [value for _, value in pairs]))
    return read

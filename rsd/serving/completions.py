"""A server of OpenAI-compatible completions that takes token ids and returns the ids of top log-probs: vLLM.

The drafts of a row are read in one request that carries their contexts as prompts, each to be continued by one token:
what counts is the log-probs beside it, and the server's prefix cache makes each context cost little more than its last
tokens. Rows share requests, since a request costs a server several times what a context does; several are under way
together.

vLLM's first sampler tells nothing of likeliest tokens to a request that it computes beside one by ids: so the two kinds
take turns here, and where another process asks, a list that is too short is asked for again.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rsd.acceptance import Sampling
from rsd.serving import client as serving
from rsd.serving.client import Client, Known, together
from rsd.serving.replicas import Server
from rsd.serving.sharing import shared
from rsd.serving.told import KNOWN, LEAST, TOP, TRIES, Asked, Chain, Fewer, Told, told_of_width

CONTEXTS = 64  # contexts of a request, if those of one row are not more
CONTEXT = 1 << 16  # bytes that an answer may have for each context, and each token that is said there
# What the generation config of a served model would add unasked.
PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
IDS = 128  # that a request may name


class Completions:
    """A `told.Api`.

    Args:
        model: its name there. width: of the teacher's vocabulary. by_ids: see there; the probe finds it out.
    """

    def __init__(self, client: Client, model: str, *, width: int, by_ids: str | None = None) -> None:
        self.client, self.model, self.width, self.by_ids = client, model, width, by_ids
        self._turn, self._kind, self._under_way = asyncio.Condition(), "", 0

    async def likeliest(self, rows: Sequence[Sequence[Chain]]) -> list[list[list[Told]] | str]:
        said = await self._shared([[c for chain in row for c in chain.contexts()] for row in rows], 1)
        made: list[list[list[Told]] | str] = []
        for row, answers in zip(rows, said, strict=True):
            if isinstance(answers, str):
                made.append(answers)
            else:
                told = iter(answers)
                made.append([[next(told)[1][0] for _ in chain.ends] for chain in row])
        return made

    async def go_on(self, contexts: Sequence[list[int]], count: int) -> list[tuple[list[int], list[Told]] | str]:
        said = await self._shared([[context] for context in contexts], count)
        return [answer if isinstance(answer, str) else answer[0] for answer in said]

    async def _shared(self, rows: Sequence[list[list[int]]], tokens: int) -> list[Any]:
        """What is said in `tokens` places after each context of each row."""
        homes = self.client.homes(rows)
        return await shared(rows, homes, lambda prompts, home: self._ask(prompts, tokens, home), most=CONTEXTS)

    async def _ask(
        self, prompts: list[list[int]], tokens: int, home: Server
    ) -> list[tuple[list[int], list[Told]]] | str:
        """What is said after each prompt, and the top log-probs there; or why the server refuses these prompts."""
        tries = 0

        def read(answer: Any) -> list[tuple[list[int], list[Told]]] | Fewer:
            try:
                return top_logprobs(answer, len(prompts), self.width)
            except Fewer as e:
                if tries == TRIES:
                    raise
                return e

        body, room = body_of(self.model, prompts, tokens), CONTEXT * len(prompts) * tokens
        while True:
            async with self._turn_of("lists"):
                said = await self.client.ask("/completions", body, read, room=room, home=home)
            if not isinstance(said, Fewer):
                break
            tries += 1
            await asyncio.sleep(min(serving.DELAYS[0] * 2**tries, serving.DELAYS[1]) * random.random())
        if self.client.known is None and not isinstance(said, str):
            self.client.known = self._known(prompts[:KNOWN], [told[0] for _, told in said[:KNOWN]])
        return said

    def _known(self, prompts: list[list[int]], told: list[Told]) -> Known:
        def read(answer: Any) -> list[Told]:
            return [told[0] for _, told in top_logprobs(answer, len(prompts), self.width)]

        return Known("/completions", body_of(self.model, prompts, 1), read, CONTEXT * len(prompts), told)

    @asynccontextmanager
    async def _turn_of(self, kind: str) -> AsyncIterator[None]:
        """Requests of one kind at a time."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._kind == kind or not self._under_way)
            self._kind, self._under_way = kind, self._under_way + 1
        try:
            yield
        finally:
            async with self._turn:
                self._under_way -= 1
                self._turn.notify_all()

    async def of_ids(self, asked: Sequence[Asked], sampling: Sampling) -> list[dict[int, float] | str]:
        made: list[dict[int, float] | str] = [{} for _ in asked]
        homes = self.client.homes([[one.context] for one in asked])
        requests = []
        for home in dict.fromkeys(homes):
            here = [i for i, other in enumerate(homes) if other is home]
            requests += [([here[i] for i in at], ids, home) for at, ids in packed([asked[i] for i in here])]
        said = await together(
            [self._of_ids([asked[i].context for i in at], ids, sampling, home) for at, ids, home in requests]
        )
        for (at, ids, _), answers in zip(requests, said, strict=True):
            for i, answer in zip(at, answers, strict=True):
                mine = made[i]
                if isinstance(answer, str) or isinstance(mine, str):
                    made[i] = answer if isinstance(answer, str) else mine
                else:
                    mine |= {one: answer[one] for one in ids if one in asked[i].ids}
        return made

    async def _of_ids(
        self, prompts: list[list[int]], ids: Sequence[int], sampling: Sampling, home: Server
    ) -> Sequence[dict[int, float] | str]:
        body = body_of(self.model, prompts, 1, ids, sampling)
        async with self._turn_of("ids"):
            said = await self.client.ask(
                "/completions",
                body,
                lambda answer: by_ids(answer, len(prompts), ids),
                room=CONTEXT * len(prompts),
                home=home,
            )
        if not isinstance(said, str):
            return said
        if len(prompts) == 1:
            return [said]
        return [(await self._of_ids([prompt], ids, sampling, home))[0] for prompt in prompts]  # one of them is to blame


def body_of(
    model: str,
    prompts: Sequence[list[int]],
    tokens: int,
    ids: Sequence[int] = (),
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """A request for the likeliest tokens; or for some by their ids, after what `sampling` makes of the distribution."""
    body = {"model": model, "prompt": prompts, "max_tokens": tokens, "return_tokens_as_token_ids": True} | PLAIN
    if sampling is None:
        return body | {"temperature": 0, "logprobs": TOP}
    how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return body | how | {"logprobs": len(ids), "logprob_token_ids": list(ids)}


def packed(asked: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
    """Requests: which contexts they are about, and the ids that all of these ask for, `IDS` at the most."""
    open_: list[tuple[list[int], dict[int, None]]] = []
    for i, one in enumerate(asked):
        ids = list(one.ids)
        for first in range(0, len(ids), IDS):
            mine = ids[first : first + IDS]
            for at, union in open_:
                if len(at) < CONTEXTS and len(union) + sum(t not in union for t in mine) <= IDS:
                    break
            else:
                at, union = [], {}
                open_.append((at, union))
            at.append(i)
            union.update(dict.fromkeys(mine))
    return [(at, list(union)) for at, union in open_]


def by_ids(answer: Any, count: int, ids: Sequence[int]) -> list[dict[int, float]]:
    """The log-probs of these ids after each of `count` prompts, from a completions answer.

    Raises:
        KeyError, TypeError, ...: it is no such answer, or tells nothing of one of them.
    """
    made = []
    for choice in choices_of(answer, count):
        (top,) = choice["logprobs"]["top_logprobs"]
        told = {one: float(top[f"token_id:{one}"]) for one in ids}
        if any(math.isnan(value) or value > 1e-3 for value in told.values()):
            raise ValueError("log-probs that are none")
        made.append({one: value if value > LEAST else -math.inf for one, value in told.items()})
    return made


def top_logprobs(answer: Any, count: int, width: int) -> list[tuple[list[int], list[Told]]]:
    """What was said after each of `count` prompts, and ids and log-probs there, from a completions answer.

    Raises:
        KeyError, TypeError, ...: it is no such answer. ConnectionError: it names tokens by their text, or tells fewer
            than the teacher is to propose from, or tokens that a teacher of this width does not have.
    """
    made = []
    for choice in choices_of(answer, count):
        said, tops = (choice["logprobs"][name] for name in ("tokens", "top_logprobs"))
        if not tops or len(said) != len(tops):
            raise ValueError("no log-probs of what it says")
        made.append(([_id(token) for token in said], [_told(top, width) for top in tops]))
    return made


def choices_of(answer: Any, count: int) -> list[Any]:
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} choices for {count} prompts")
    return choices


def _id(token: str) -> int:
    if not token.startswith("token_id:"):
        raise ConnectionError(
            "the teacher's server names tokens by their text, of which several may be equal: choose one that "
            "knows return_tokens_as_token_ids, such as vLLM"
        )
    return int(token[9:])


def _told(top: dict[str, Any], width: int) -> Told:
    told = {_id(token): float(value) for token, value in top.items()}
    if len(told) < min(TOP, width):
        raise Fewer(
            f"the teacher's server tells {len(told)} of the {TOP} likeliest tokens, and of these the teacher is to "
            f"propose: let it tell more (vLLM: --max-logprobs {TOP})"
        )
    if (odd := next(((i, v) for i, v in told.items() if math.isnan(v) or v > 1e-3), None)) is not None:
        raise ValueError(f"a log-prob of token {odd[0]} that is none: {odd[1]:g}")
    known = {i: value for i, value in told.items() if value > LEAST}
    return told_of_width(known, width)

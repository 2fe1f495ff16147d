"""SGLang's own `/generate`: it answers by token id, at temperature 1, and reads its prefix cache up to where log-probs
are asked for. So one prompt judges a whole chain: the context and all drafts behind it, of which the server computes
no more than these drafts.

`logprob_start_len` s asks for the log-probs of the tokens from place s on, but the first answer is null (nothing is
read before it that would tell): the answer j > 0 is what is likely after the first s + j ids. What is likely after all
of them stands beside the token that is generated. (Read in the source of 0.5.23, and tried with it.)
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rsd.acceptance import Sampling
from rsd.serving.client import Client, Known
from rsd.serving.replicas import Server
from rsd.serving.sharing import shared
from rsd.serving.told import KNOWN, LEAST, TOP, Asked, Chain, Told, told_of_width

CHAINS = 64  # chains of a request, if those of one row are not more
RESERVED = 6  # tokens of its context that a prompt cannot have
ROOM = 64  # bytes that an answer may have for each log-prob
# What SGLang does by itself, but a server may have been started with other values (--preferred-sampling-params).
PLAIN = {
    "temperature": 0,
    "n": 1,
    "min_new_tokens": 0,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
}

T = TypeVar("T")


class Sglang:
    """A `told.Api`.

    Args:
        client: of addresses without /v1. width: of the teacher's vocabulary.
    """

    by_ids: str | None = "raw"

    def __init__(self, client: Client, *, width: int) -> None:
        self.client, self.width = client, width

    async def likeliest(self, rows: Sequence[Sequence[Chain]]) -> list[list[list[Told]] | str]:
        async def ask(chains: list[Chain], home: Server) -> list[list[Told]] | str:
            places = sum(chain.ends[-1] - chain.ends[0] + 1 for chain in chains)
            said = await self._ask(chains, partial(judged, width=self.width), TOP * places, home, top=self._top)
            if not isinstance(said, str):
                self._remember(chains, [told[0] for told in said])
            return said

        return await self._shared([list(row) for row in rows], ask)

    async def go_on(self, contexts: Sequence[list[int]], count: int) -> list[tuple[list[int], list[Told]] | str]:
        async def ask(chains: list[Chain], home: Server) -> list[tuple[list[int], list[Told]]] | str:
            room, read = TOP * count * len(chains), partial(continued, width=self.width)
            said = await self._ask(chains, read, room, home, top=self._top, tokens=count)
            if not isinstance(said, str):
                self._remember(chains, [told[0] for _, told in said])
            return said

        said = await self._shared([[Chain(ids, [len(ids)])] for ids in contexts], ask)
        return [answer if isinstance(answer, str) else answer[0] for answer in said]

    async def of_ids(self, asked: Sequence[Asked], sampling: Sampling) -> list[dict[int, float] | str]:
        """At temperature 1, whatever `sampling` is."""
        wanted = [one for one in asked if one.ids]

        async def ask(some: list[Asked], home: Server) -> list[Told] | str:
            chains = [Chain(one.context, [len(one.context)]) for one in some]
            ids = [list(one.ids) for one in some]
            return await self._ask(chains, of_given, sum(1 + len(one) for one in ids), home, top=1, ids=ids)

        homes = self.client.homes([[one.context] for one in wanted])
        said = iter(await shared([[one] for one in wanted], homes, ask, most=CHAINS))
        made: list[dict[int, float] | str] = []
        for one in asked:
            answer = next(said) if one.ids else []
            told = answer if isinstance(answer, str) else {i: v for t in answer for i, v in zip(*t, strict=True)}
            made.append(told)
        return made

    @property
    def _top(self) -> int:
        return min(TOP, self.width)

    async def _shared(self, rows: Sequence[list[Chain]], ask: Callable[[list[Chain], Server], Any]) -> list[Any]:
        homes = self.client.homes([[chain.ids[: chain.ends[0]] for chain in row] for row in rows])
        return await shared(rows, homes, ask, most=CHAINS)

    async def _ask(
        self, chains: list[Chain], each: Callable[[Any, Chain], T], logprobs: int, home: Server, **asked: Any
    ) -> list[T] | str:
        return await self.client.ask(
            "/generate",
            body(chains, **asked),
            lambda answer: told_of(answer, chains, each),
            room=room_of(chains, logprobs),
            home=home,
        )

    def _remember(self, chains: Sequence[Chain], told: list[Told]) -> None:
        """What is likely after the first contexts, by which a server is recognised."""
        if self.client.known is not None:
            return
        contexts = [Chain(chain.ids[: chain.ends[0]], [chain.ends[0]]) for chain in chains[:KNOWN]]

        def read(answer: Any) -> list[Told]:
            return [one[0] for one in told_of(answer, contexts, partial(judged, width=self.width))]

        room = room_of(contexts, TOP * KNOWN)
        self.client.known = Known("/generate", body(contexts, top=self._top), read, room, told[:KNOWN])


def room_of(chains: Sequence[Chain], logprobs: int) -> int:
    """Bytes of an answer with so many log-probs, beside those of the chains' own tokens."""
    return ROOM * (logprobs + sum(1 + len(chain.ids) - chain.ends[0] for chain in chains))


def body(
    chains: Sequence[Chain], *, top: int = 0, tokens: int = 1, ids: Sequence[list[int]] | None = None
) -> dict[str, Any]:
    """A request about chains.

    Args:
        top: likeliest tokens that are to be told in every place: more than the model has ends an SGLang. tokens: that
            are to be said behind each chain. ids: of which the log-probs behind each chain are to be told.
    """
    asked = {
        "input_ids": [chain.ids[: chain.ends[-1]] for chain in chains],
        "sampling_params": PLAIN | {"max_new_tokens": tokens},
        "return_logprob": True,
        "logprob_start_len": [chain.ends[0] - 1 for chain in chains],
        "top_logprobs_num": top,
    }
    return asked | ({"token_ids_logprob": list(ids)} if ids else {})


def told_of(answer: Any, chains: Sequence[Chain], each: Callable[[Any, Chain], T]) -> list[T]:
    """What `each` makes of the `meta_info` of every chain's answer.

    Raises:
        KeyError, TypeError, ...: it is no such answer, or one that broke off. ConnectionError: the server reads less
            than it was sent, or `each` says that it will not do.
    """
    if not isinstance(answer, list) or len(answer) != len(chains):
        raise ValueError(f"not an answer for each of {len(chains)} prompts")
    made = []
    for one, chain in zip(answer, chains, strict=True):
        meta = one["meta_info"]
        end = meta["finish_reason"]
        if end["type"] == "abort":  # for want of memory, say; with a status of 200
            raise ValueError(f"it was aborted: {end.get('message')}")
        if meta["prompt_tokens"] != chain.ends[-1]:
            read = f"{meta['prompt_tokens']} tokens of {chain.ends[-1]}"
            raise ConnectionError(f"the teacher's server reads {read}: start it without allow-auto-truncate")
        made.append(each(meta, chain))
    return made


def judged(meta: Any, chain: Chain, *, width: int) -> list[Told]:
    """What is likely after each context of a chain."""
    first, before, after = chain.ends[0], meta["input_top_logprobs"], meta["output_top_logprobs"]
    if len(before) != chain.ends[-1] - first + 1:
        raise ValueError(f"{len(before)} lists of log-probs for {chain.ends[-1] - first + 1} tokens")
    places = [*before[1:], after[0]]
    return [_told(places[end - first], width) for end in chain.ends]


def continued(meta: Any, chain: Chain, *, width: int) -> tuple[list[int], list[Told]]:
    """What is said behind a chain, and what is likely in each place of that."""
    said, tops = meta["output_token_logprobs"], meta["output_top_logprobs"]
    if not said or len(said) != len(tops):
        raise ValueError("no log-probs of what it says")
    return [_id(one[1]) for one in said], [_told(top, width) for top in tops]


def of_given(meta: Any, chain: Chain) -> Told:
    """The log-probs of the ids that were named, behind a chain."""
    pairs = [(_id(i), _value(value)) for value, i, *_ in meta["output_token_ids_logprobs"][0]]
    if meta["output_top_logprobs"][0][0][0] is None:
        raise ValueError("log-probs that are none")
    return Told([i for i, _ in pairs], [value for _, value in pairs])


def prompt_ids(answer: Any) -> list[int]:
    """The ids of a prompt that was a text, all of whose log-probs were asked for."""
    return [_id(one[1]) for one in answer["meta_info"]["input_token_logprobs"]]


def alike(one: Told, other: Told) -> bool:
    """Whether these may be what a model tells of one place, at temperature 1: it computes with few digits, in another
    way each time."""
    known = dict(zip(one.ids, one.logprobs, strict=True))
    top = sorted(zip(other.logprobs, other.ids, strict=True), reverse=True)[:3]
    near = all(abs(known.get(i, -math.inf) - value) < 0.5 for value, i in top if value > -5)
    return near and all(sum(map(math.exp, told.logprobs)) < 1.01 for told in (one, other))


def _id(i: Any) -> int:
    if type(i) is not int:
        raise TypeError("ids that are none")
    return i


def _value(value: Any) -> float:
    """A log-prob; its JSON has null for minus infinity, and for what is no number."""
    value = -math.inf if value is None else float(value)
    if math.isnan(value) or value > 1e-3:
        raise ValueError("log-probs that are none")
    return value if value > LEAST else -math.inf


def _told(top: Any, width: int) -> Told:
    pairs = {_id(i): _value(value) for value, i, *_ in top}
    if len(pairs) < min(TOP, width):
        raise ValueError(f"{len(pairs)} of the {TOP} likeliest tokens")
    known = {i: value for i, value in pairs.items() if value > -math.inf}
    if not known:
        raise ValueError("log-probs that are none")
    return told_of_width(known, width)

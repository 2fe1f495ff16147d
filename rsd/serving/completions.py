"""A server of OpenAI-compatible completions that takes token ids and returns the ids of top log-probs: vLLM.

The drafts of a row are read in one request that carries their contexts as prompts, each to be continued by one token:
what counts is the log-probs beside it, and the server's prefix cache makes each context cost little more than its last
tokens. Rows share requests, since a request costs a server several times what a context does; several are under way
together.
"""

import math
from collections.abc import Sequence
from typing import Any

from rsd.serving.client import Client
from rsd.serving.sharing import shared
from rsd.serving.told import TOP, Chain, Told
from rsd.settings import called

CONTEXTS = 64  # contexts of a request, if those of one row are not more
CONTEXT = 1 << 16  # bytes that an answer may have for each context, and each token that is said there
LIKELY = -3.0  # log-prob that an id of the padding behind a vocabulary never has
LEAST = -9000.0  # servers send -9999 for minus infinity


class Completions:
    """A `told.Api`.

    Args:
        model: its name there. width: of the teacher's vocabulary.
    """

    def __init__(self, client: Client, model: str, *, width: int) -> None:
        self.client, self.model, self.width = client, model, width

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
        return await shared(rows, lambda prompts: self._ask(prompts, tokens), most=CONTEXTS)

    async def _ask(self, prompts: list[list[int]], tokens: int) -> list[tuple[list[int], list[Told]]] | str:
        """What is said after each prompt, and the top log-probs there; or why the server refuses these prompts."""
        body = self.body(prompts, tokens)
        room = CONTEXT * len(prompts) * tokens
        return await self.client.ask(
            "/completions", body, lambda answer: top_logprobs(answer, len(prompts), self.width), room=room
        )

    def body(self, prompts: Sequence[list[int]], tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompts,
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": TOP,
            "return_tokens_as_token_ids": True,
        }


def top_logprobs(answer: Any, count: int, width: int) -> list[tuple[list[int], list[Told]]]:
    """What was said after each of `count` prompts, and ids and log-probs there, from a completions answer.

    Raises:
        KeyError, TypeError, ...: it is no such answer. ConnectionError: it names tokens by their text, or tells fewer
            than the teacher is to propose from, or tokens that a teacher of this width does not have.
    """
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} choices for {count} prompts")
    made = []
    for choice in choices:
        said, tops = (choice["logprobs"][name] for name in ("tokens", "top_logprobs"))
        if not tops or len(said) != len(tops):
            raise ValueError("no log-probs of what it says")
        made.append(([_id(token) for token in said], [_told(top, width) for top in tops]))
    return made


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
        raise ConnectionError(
            f"the teacher's server tells {len(told)} of the {TOP} likeliest tokens, and of these the teacher is to "
            f"propose: let it tell more (vLLM: --max-logprobs {TOP})"
        )
    if any(math.isnan(value) or value > 1e-3 for value in told.values()):
        raise ValueError("log-probs that are none")
    known = {i: value for i, value in told.items() if value > LEAST}
    if any(value > LIKELY and not 0 <= i < width for i, value in known.items()):
        raise ConnectionError(
            f"the teacher's server says tokens beyond the {width} of its tokenizer here: name the served model's "
            f"own with {called('teacher_tokenizer')}"
        )
    pairs = [(i, value) for i, value in known.items() if 0 <= i < width]
    return Told([i for i, _ in pairs], [value for _, value in pairs])

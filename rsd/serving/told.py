"""What is asked of a teacher's server, whichever kind it is, and what it tells."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from rsd.acceptance import Sampling
from rsd.settings import called

TOP = 20  # likeliest tokens that are asked for: what vLLM tells at the most, unless it is told otherwise
KNOWN = 4  # contexts by which a server is recognised
LIKELY = -3.0  # log-prob that an id of the padding behind a vocabulary never has
TRIES = 8  # for a list of likeliest tokens that is too short
LEAST = -9000.0  # servers send -9999 for minus infinity


class Told(NamedTuple):
    """What a server tells of the token after one context: ids of its tokens, and their log-probs."""

    ids: list[int]
    logprobs: list[float]


class Fewer(ConnectionError):
    """Fewer likeliest tokens than the teacher is to propose from."""


def told_of_width(logprobs: Mapping[int, float], width: int) -> Told:
    """What a server told, without the padding behind a vocabulary of this width.

    Raises:
        ConnectionError: it tells tokens that no teacher of this width has.
    """
    if any(value > LIKELY and not 0 <= i < width for i, value in logprobs.items()):
        raise ConnectionError(
            f"the teacher's server says tokens beyond the {width} of its tokenizer here: name the served model's "
            f"own with {called('teacher_tokenizer')}"
        )
    known = {i: value for i, value in logprobs.items() if 0 <= i < width}
    return Told(list(known), list(known.values()))


class Chain(NamedTuple):
    """Contexts that are beginnings of one text: `ids[:end]` for each of `ends`, which rise."""

    ids: list[int]
    ends: list[int]

    def contexts(self) -> list[list[int]]:
        return [self.ids[:end] for end in self.ends]


class Asked(NamedTuple):
    """A context, and the ids of tokens that may follow there."""

    context: list[int]
    ids: Collection[int]


class Api(Protocol):
    """One kind of server, by which the teacher's ids become log-probs; all of them at temperature 1, before any filter.

    A row that the server refuses is answered by why, in one line; it is another matter if it does not answer.

    likeliest: the `TOP` likeliest tokens after each context, chain by chain, of each row. go_on: as many tokens as it
    says after each context, each the likeliest one, and the `TOP` likeliest in every place; fewer at an end. of_ids: of
    contexts and ids, the log-probs of these after the context (-inf of what a filter leaves out), where `by_ids` says
    what is told: "processed" are those after temperature, top-k and top-p, "raw" those at temperature 1; None: nothing.

    Raises:
        ConnectionError: no server has answered for `client.PATIENCE` seconds, or none lets us in.
    """

    by_ids: str | None

    async def likeliest(self, rows: Sequence[Sequence[Chain]]) -> list[list[list[Told]] | str]: ...

    async def go_on(self, contexts: Sequence[list[int]], count: int) -> list[tuple[list[int], list[Told]] | str]: ...

    async def of_ids(self, asked: Sequence[Asked], sampling: Sampling) -> list[dict[int, float] | str]: ...

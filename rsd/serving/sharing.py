"""Rows share requests, since a request costs a server several times what one more context in it does."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rsd.serving.client import together

S = TypeVar("S")  # what is asked about: a context, or a chain of them
T = TypeVar("T")


async def shared(
    rows: Sequence[list[S]], ask: Callable[[list[S]], Awaitable[list[T] | str]], *, most: int
) -> list[list[T] | str]:
    """What is answered to all that each row asks; of a row that is refused, why.

    Args:
        ask: one request: answers in the order of what is asked, or why it is refused. most: that is asked in one
            request, if one row does not ask more.
    """
    requests: list[list[list[S]]] = []  # rows of each
    for mine in rows:
        if not requests or sum(map(len, requests[-1])) + len(mine) > most:
            requests.append([])
        requests[-1].append(mine)
    made = await together([_asked(some, ask) for some in requests])
    return [answer for answers in made for answer in answers]


async def _asked(rows: list[list[S]], ask: Callable[[list[S]], Awaitable[list[T] | str]]) -> list[list[T] | str]:
    said = await ask([one for row in rows for one in row])
    if not isinstance(said, str):
        answers = iter(said)
        return [[next(answers) for _ in row] for row in rows]
    if len(rows) == 1:
        return [said]
    return [(await _asked([row], ask))[0] for row in rows]  # one of them is to blame

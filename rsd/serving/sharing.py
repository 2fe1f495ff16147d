"""Rows share requests, since a request costs a server several times what one more context in it does."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rsd.serving.client import together
from rsd.serving.replicas import Server

S = TypeVar("S")  # what is asked about: a context, or a chain of them
T = TypeVar("T")


async def shared(
    rows: Sequence[list[S]],
    homes: Sequence[Server],
    ask: Callable[[list[S], Server], Awaitable[list[T] | str]],
    *,
    most: int,
) -> list[list[T] | str]:
    """What is answered to all that each row asks; of a row that is refused, why.

    Args:
        homes: the server that each row is best asked of. ask: one request: answers in the order of what is asked, or
            why it is refused. most: that is asked in one request, if one row does not ask more.
    """
    requests: list[list[int]] = []  # rows of each, all of one home
    servers = {home: n for n, home in enumerate(dict.fromkeys(homes))}
    for at in sorted(range(len(rows)), key=lambda row: servers[homes[row]]):
        last = requests[-1] if requests and homes[requests[-1][0]] is homes[at] else None
        if last is None or sum(len(rows[other]) for other in last) + len(rows[at]) > most:
            requests.append(last := [])
        last.append(at)
    said = await together([_asked([rows[at] for at in some], homes[some[0]], ask) for some in requests])
    by_row = {at: a for some, answers in zip(requests, said, strict=True) for at, a in zip(some, answers, strict=True)}
    return [by_row[at] for at in range(len(rows))]


async def _asked(
    rows: list[list[S]], home: Server, ask: Callable[[list[S], Server], Awaitable[list[T] | str]]
) -> list[list[T] | str]:
    said = await ask([one for row in rows for one in row], home)
    if not isinstance(said, str):
        answers = iter(said)
        return [[next(answers) for _ in row] for row in rows]
    if len(rows) == 1:
        return [said]
    return [(await _asked([row], home, ask))[0] for row in rows]  # one of them is to blame

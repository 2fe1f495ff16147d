"""The servers of one teacher: what is known of each, and which of them a row's context is sent to."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from rsd.serving.told import Told

BLOCK = 16  # ids of a block, as servers' prefix caches have them
REMEMBERED = 1 << 16  # blocks
SLACK = 1.25  # times its share that a server is given before a row leaves it
UNLIKE = 0.25  # mean difference of log-probs that another model has, and a bf16 run of the same one has not
FLOOR = 30.0  # seconds in which no request is given up
MULTIPLE = 10.0  # times what was expected, after which it is


class Server:
    """One replica.

    load: bytes of work under way. failed: times in a row, why for the last time. gone: why it is not asked any more.
    back: what tries it again, while it is left out. sure: when it was last known to be the model that it was. named:
    what it calls that. short: times in a row that it told too few tokens when recognised. pace: seconds a byte of work,
    the slowest of its last answers; None if that is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.load, self.failed, self.why, self.short = 0, 0, "", 0
        self.gone: str | None = None
        self.back: asyncio.Task[None] | None = None
        self.sure: float | None = None
        self.named: Any = None
        self.pace: float | None = None

    def answered(self, seconds: float, work: int) -> None:
        self.failed = 0
        self.pace = max(0.95 * (self.pace or 0.0), seconds / work)

    def limit(self, work: int, tries: int, most: float) -> float:
        """Seconds after which an answer does not come any more; longer each time that it did not.

        A server that has said nothing yet has all the time: it may be compiling what others have compiled already.
        """
        if self.pace is None:
            return most
        return min(most, max(FLOOR, MULTIPLE * self.pace * work) * 2 ** min(tries, 8))


class Homes:
    """Which servers have read the beginnings of which texts: a row is best asked of one that has read most of it.

    The texts alone say that, block by block as in the servers' own caches: a long system prompt that all rows have is
    on every server soon, and what decides is what comes after it.
    """

    def __init__(self) -> None:
        self._readers: OrderedDict[int, int] = OrderedDict()  # bits of servers, by the hash of a text up to a block

    def share(self, texts: Sequence[Sequence[int]], work: Sequence[int], loads: Mapping[int, int]) -> list[int]:
        """A server for each text, of those that `loads` names with what they do already; work: what each text adds."""
        load = dict(loads)
        most = SLACK * (sum(load.values()) + sum(work)) / len(load) + max(work, default=0)
        homes: dict[int, int] = {}
        hashes = [_blocks(text) for text in texts]
        for anywhere in (False, True):  # those that have a home first
            for i, blocks in enumerate(hashes):
                if i in homes:
                    continue
                here = load if anywhere else [at for at in load if self._deepest(blocks, load) >> at & 1]
                at = min(here, key=load.__getitem__, default=None)
                if at is not None and (anywhere or load[at] + work[i] <= most):
                    homes[i] = at
                    load[at] += work[i]
        for i, blocks in enumerate(hashes):
            for block in blocks:
                self._readers[block] = self._readers.pop(block, 0) | 1 << homes[i]
        while len(self._readers) > REMEMBERED:
            self._readers.popitem(last=False)
        return [homes[i] for i in range(len(texts))]

    def _deepest(self, blocks: Sequence[int], among: Mapping[int, int]) -> int:
        mask = sum(1 << at for at in among)
        return next((readers for block in reversed(blocks) if (readers := self._readers.get(block, 0) & mask)), 0)


def _blocks(text: Sequence[int]) -> list[int]:
    made, before = [], 0
    for end in range(BLOCK, len(text) + 1, BLOCK):
        made.append(before := hash((before, *text[end - BLOCK : end])))
    return made


def unlike(told: Sequence[Told], known: Sequence[Told]) -> str | None:
    """Why two answers about the same contexts are not of one model; None if they may be.

    Servers of one model differ by rounding: in bf16 by some hundredths on the mean of their likeliest tokens'
    log-probs. Another model, or another state of its training, differs by tenths to whole numbers.
    """
    differences, both, most = 0.0, 0, 0
    for mine, theirs in zip(told, known, strict=True):
        other = dict(zip(theirs.ids, theirs.logprobs, strict=True))
        shared = [(value, other[i]) for i, value in zip(mine.ids, mine.logprobs, strict=True) if i in other]
        differences += sum(abs(a - b) for a, b in shared)
        both += len(shared)
        most += min(len(mine.ids), len(other))
    if 2 * both < most:
        return f"of the {most} tokens likeliest in a known context it names {both}"
    if both and differences / both > UNLIKE:
        return f"log-probs of a known context differ by {differences / both:.2f} on the mean"
    return None

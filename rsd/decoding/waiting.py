"""The rows of a run that nobody decodes yet; several engines may take theirs from here (`groups`)."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple

from rsd.decoding.sequence import Request, T, TraceSoFar
from rsd.models.kv_cache import CachedModel


class Ready(NamedTuple):
    """A row that is read, all but its last id: it is row `at` of what both models prefilled, or the beginning of that.

    shared: how many ids of the teacher's context are in there.
    """

    row: TraceSoFar
    prefilled: tuple[CachedModel, Any]
    at: int
    shared: int


class Waiting(Generic[T]):
    """The rows that wait: those that were put back first, then what the requests still give.

    ready: those of them that are read, which come before the others. live: how many are decoded now, whoever does.
    """

    def __init__(self, requests: Iterable[Request[T]]) -> None:
        self.requests = iter(requests)
        self.rows: deque[TraceSoFar] = deque()
        self.ready: deque[Ready] = deque()
        self.live = 0

    def peek(self, i: int) -> TraceSoFar | None:
        while len(self.rows) <= i:
            request = next(self.requests, None)
            if request is None:
                return None
            self.rows.append(TraceSoFar(request))
        return self.rows[i]

    def pop(self) -> TraceSoFar | None:
        return self.rows.popleft() if self.peek(0) is not None else None

    def known(self, most: int) -> int:
        """How many rows there are to decode, of `most` that there is room for."""
        self.peek(most - 1)
        return min(len(self.rows), most)

    def put_back(self, interrupted: Sequence[TraceSoFar]) -> None:
        """Rows wait again, and what is ready is to be read again: its memory is needed."""
        self.live -= len(interrupted)
        self.rows.extendleft(reversed([*interrupted, *(r.row for r in self.ready)]))
        self.ready.clear()

"""Values on disk until they are needed: a sequence whose memory is eight bytes a value."""

import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")

SMALL = 1 << 24  # bytes that are kept in memory


class Spool(Sequence[T], Generic[T]):
    """Values in a nameless temporary file, which is gone with them, however the process ends.

    The few values of a small job never leave the memory. Only what this process wrote is read, so pickles are safe.
    """

    def __init__(self, values: Iterable[T]) -> None:
        self._file = tempfile.SpooledTemporaryFile(SMALL)  # noqa: SIM115 (it closes with its owner)
        self._ends = array("Q", [0])
        for value in values:
            try:
                self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            except OSError as e:
                raise OSError(e.errno, f"{e.strerror} (TMPDIR names another folder)", tempfile.gettempdir()) from e
            self._ends.append(self._file.tell())

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        begin, end = self._ends[range(len(self))[at]], self._ends[range(1, len(self) + 1)[at]]
        self._file.seek(begin)
        value: T = pickle.loads(self._file.read(end - begin))
        return value


class OnDemand(Sequence[T], Generic[T]):
    """Values in order, each made when it is asked for: what is in memory are their ids.

    ids: by place. made: makes the value of a place.
    """

    def __init__(self, ids: Sequence[str | int], made: Callable[[int], T]) -> None:
        self.ids, self._made = ids, made

    def only(self, chosen: Callable[[str | int], bool]) -> "OnDemand[T]":
        """Those whose ids are chosen."""
        return self.at(i for i, name in enumerate(self.ids) if chosen(name))

    def at(self, places: Iterable[int]) -> "OnDemand[T]":
        """Those at these places."""
        some = array("Q", places)
        return OnDemand([self.ids[i] for i in some], lambda i: self[some[i]])

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        places = range(len(self.ids))[at]
        return self._made(places) if isinstance(places, int) else [self._made(i) for i in places]

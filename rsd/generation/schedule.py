"""Which traces are wanted next: all generations of every row, or each row's until enough of them are right."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from rsd.traces.rows import Row


class Schedule:
    """The generations of rows, in order.

    Args:
        generations: of each row, at the most.
        want: stop a row after so many right ones; None makes all.
        done: by (id, generation) those that exist already, and whether they are right.

    With `want`, the traces made of a row are the shortest run of its generations 0, 1, ... that holds `want`
    right ones. No other is ever begun, however many rows are decoded together: a row has only as many under way
    as it still needs.
    """

    def __init__(
        self, rows: Iterable[Row], *, generations: int, want: int | None, done: Mapping[tuple[str, int], bool]
    ) -> None:
        self.generations, self.done, self.want = generations, done, want
        self._queue: deque[tuple[Row, int]] = deque()
        self._next: Counter[str] = Counter()  # the generation that is looked at next
        self._right: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self.at_most = 0  # traces that may still be made
        for row in rows:
            self._begin(row)
            self.at_most += self._under_way[str(row.id)] + self._left(row)

    def _begin(self, row: Row) -> None:
        """Begin as many generations of a row as it still needs."""
        key = str(row.id)
        while self._next[key] < self.generations and (
            self.want is None or self._right[key] + self._under_way[key] < self.want
        ):
            generation = self._next[key]
            self._next[key] += 1
            right = self.done.get((key, generation))
            if right is None:
                self._queue.append((row, generation))
                self._under_way[key] += 1
            else:
                self._right[key] += right

    def _left(self, row: Row) -> int:
        """How many more generations of a row may be begun, if those under way turn out wrong."""
        key = str(row.id)
        if self.want is not None and self._right[key] >= self.want:
            return 0
        return sum((key, g) not in self.done for g in range(self._next[key], self.generations))

    def tell(self, row: Row, *, right: bool) -> None:
        """A trace of this row is finished."""
        key = str(row.id)
        before = self._under_way[key] + self._left(row)
        self._under_way[key] -= 1
        self._right[key] += right
        self._begin(row)
        self.at_most += self._under_way[key] + self._left(row) - before

    def pop(self) -> tuple[Row, int] | None:
        """The next one to begin; None if none is wanted now."""
        return self._queue.popleft() if self._queue else None

"""Which traces are wanted next: all generations of every row, or each row's until enough of them are right."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rsd.traces.rows import Row, Rows


@dataclass(eq=False)
class _Begun:
    """A row some of whose generations are under way, or may be begun.

    at: its place. key: its id, as a text. missing: how many generations from the next one on do not exist yet. next:
    the one that is looked at next. right: how many before it are right. again: whether the row waits for its turn.
    """

    at: int
    key: str
    missing: int
    next: int = 0
    right: int = 0
    under_way: int = 0
    again: bool = False
    most: int | None = None


class Schedule:
    """The generations of rows, in order; each is planned when it is asked for, so that their number costs nothing.

    Args:
        generations: of each row, at the most.
        want: stop a row after so many right ones; None makes all.
        done: by (id, generation) those that exist already, and whether they are right.
        judged: whether a row's traces can be found right or wrong; of one that cannot, `want` are made.

    With `want`, the traces made of a row are the shortest run of its generations 0, 1, ... that holds `want`
    right ones. No other is ever begun, however many rows are decoded together: a row has only as many under way
    as it still needs. What a row needs beyond its first turn comes after the first turns of all rows.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        generations: int,
        want: int | None,
        done: Mapping[tuple[str, int], bool],
        judged: Callable[[Row], bool] = lambda _: True,
    ) -> None:
        self.rows, self.generations, self.done, self.want, self.judged = rows, generations, done, want, judged
        self._row: tuple[int, Row] | None = None  # the last one: its generations come one after the other
        self._there = Counter(key for key, generation in done if 0 <= generation < generations)
        self.at_most = sum(self._left(self._begin(at)) for at in range(len(rows)))  # traces that may still be made
        self._places = iter(range(len(rows)))
        self._turn: _Begun | None = None
        self._begun: dict[str, _Begun] = {}
        self._again: deque[_Begun] = deque()

    def _begin(self, at: int) -> _Begun:
        key = str(self.rows.ids[at])
        begun = _Begun(at, key, missing=self.generations - self._there[key])
        self._pass_existing(begun)
        return begun

    def _pass_existing(self, begun: _Begun) -> None:
        """Look at the generations that exist, up to the next one that would have to be made."""
        while self._open(begun) and (right := self.done.get((begun.key, begun.next))) is not None:
            begun.next += 1
            begun.right += right

    def _open(self, begun: _Begun) -> bool:
        """Whether another generation of a row is wanted, as far as is known now."""
        enough = self.want is not None and begun.right + begun.under_way >= self.want
        return not enough and begun.next < self._most(begun)

    def _left(self, begun: _Begun) -> int:
        """How many more traces of a row there may be, if those under way turn out wrong."""
        enough = self.want is not None and begun.right >= self.want
        return begun.under_way + (0 if enough or begun.next >= self._most(begun) else begun.missing)

    def _most(self, begun: _Begun) -> int:
        """How many generations a row may have. That its traces cannot be judged matters when `want` are there."""
        if self.want is None or begun.next < self.want:
            return self.generations
        if begun.most is None:
            begun.most = self.generations if self.judged(self._row_at(begun.at)) else self.want
        return begun.most

    def _row_at(self, at: int) -> Row:
        if self._row is None or self._row[0] != at:
            self._row = at, self.rows[at]
        return self._row[1]

    def pop(self) -> tuple[Row, int] | None:
        """The next one to begin; None if none is wanted now."""
        while (begun := self._turn) is not None or (begun := self._another()) is not None:
            self._turn = begun
            if self._open(begun):
                before, generation = self._left(begun), begun.next
                self._begun[begun.key] = begun
                begun.next, begun.missing, begun.under_way = generation + 1, begun.missing - 1, begun.under_way + 1
                self._pass_existing(begun)
                self.at_most += self._left(begun) - before
                return self._row_at(begun.at), generation
            self._turn = None
        return None

    def _another(self) -> _Begun | None:
        """The row whose turn is next."""
        if (at := next(self._places, None)) is not None:
            return self._begin(at)
        if self._again:
            begun = self._again.popleft()
            begun.again = False
            return begun
        return None

    def tell(self, row: Row, *, right: bool) -> None:
        """A trace of this row is finished."""
        begun = self._begun[str(row.id)]
        before = self._left(begun)
        begun.under_way -= 1
        begun.right += right
        self._pass_existing(begun)
        self.at_most += self._left(begun) - before
        if self._open(begun):
            if begun is not self._turn and not begun.again:
                begun.again = True
                self._again.append(begun)
        elif not begun.under_way:
            del self._begun[begun.key]

"""A cache for rows of unlike lengths: those of about one length lie together, in a `RowCache` of their own.

In one buffer all rows take the memory of the longest, and attention reads as much of each. Here a row that outgrows its
pool moves on to the next larger one, once in so many tokens as it has by then, and what a pool has no rows for is given
back. The rows of a pool fill its first places without a gap, so that a pass over all of them reads it as it lies.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rsd.models.row_cache import GROW, Part, RowCache

STEPS = 2  # pools for each doubling of the length
SPARE = 2  # a pool that is full grows by one in so many rows


class RowPools:
    """Pools of at most `rows` rows together. It has the methods of a `RowCache` that are no forward's."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.pools: dict[int, RowCache] = {}  # by their slots
        self.members: dict[int, list[int]] = {}  # which rows they hold, by place
        self.slots = np.zeros(rows, dtype=np.int64)  # of each row's pool; 0 where it is in none
        self.place = np.zeros(rows, dtype=np.int64)
        self._laid: tuple[Sequence[int], np.ndarray, list[Part]] | None = None  # where the rows of the last pass lie

    def parts(self, rows: Sequence[int], reach: np.ndarray) -> list[Part]:
        """Have `reach` [R] slots for the rows of a pass: where they lie, pool by pool."""
        if self._laid is None or self._laid[0] != rows or (self._laid[1] < reach).any():
            those = np.array(rows)
            if (short := self.slots[those] < reach).any():
                self._move_up(those[short], reach[short])
            slots, place = self.slots[those], self.place[those]
            order = np.lexsort((place, slots))
            together = np.split(order, np.flatnonzero(np.diff(slots[order])) + 1)
            self._laid = (
                rows if isinstance(rows, range) else [*rows],
                slots,
                [Part.at(self.pools[int(slots[of[0]])], of, place[of]) for of in together],
            )
        return [part._replace(reach=int(reach[part.of].max())) for part in self._laid[2]]

    def _move_up(self, rows: np.ndarray, reach: np.ndarray) -> None:
        wanted = np.array([capacity(n) for n in reach.tolist()])
        # From the last place on: a row that is to go as well would only be moved to fill a gap.
        order = np.lexsort((-self.place[rows],))
        for slots in sorted(set(wanted.tolist())):
            some = [row for row, n in zip(rows[order].tolist(), wanted[order].tolist(), strict=True) if n == slots]
            self._have_room(slots, len(some))
            for row in some:
                before = self.pools.get(int(self.slots[row]), RowCache(0))
                place = len(self.members[slots])
                self.pools[slots].copy_row(before, int(self.place[row]), place, length=before.slots)
                self._leave(row)
                self._enter(row, slots)
        self._give_back()

    def _have_room(self, slots: int, more: int) -> None:
        pool = self.pools.setdefault(slots, RowCache(0, slots))
        needed = len(self.members.setdefault(slots, [])) + more
        if needed > pool.rows:
            pool.resize(min(self.rows, max(needed, pool.rows + pool.rows // SPARE)), slots)

    def _enter(self, row: int, slots: int) -> None:
        self.slots[row], self.place[row] = slots, len(self.members[slots])
        self.members[slots].append(row)
        self._laid = None

    def _leave(self, row: int) -> None:
        """The last row of the pool takes the place."""
        slots, place = int(self.slots[row]), int(self.place[row])
        self._laid = None
        if slots == 0:
            return
        members, pool = self.members[slots], self.pools[slots]
        last = members.pop()
        if last != row:
            pool.copy_row(pool, len(members), place, length=slots)
            members[place], self.place[last] = last, place
        self.slots[row] = 0

    def _give_back(self) -> None:
        for slots, members in list(self.members.items()):
            if not members:
                del self.pools[slots], self.members[slots]
            elif self.pools[slots].rows > 2 * len(members):
                self.pools[slots].resize(len(members), slots)

    def copy_row(self, source: RowCache, row: int, to: int, *, length: int) -> None:
        """Row `to` becomes what row `row` of `source` has read, `length` slots."""
        slots = capacity(length + 1)
        if self.slots[to] != slots:
            self._leave(to)
            self._have_room(slots, 1)
            self._enter(to, slots)
        self.pools[slots].copy_row(source, row, int(self.place[to]), length=length)
        self._give_back()

    def move_row(self, row: int, to: int) -> None:
        """Row `to` becomes row `row`, which is needed no more."""
        self._leave(to)
        slots, place = int(self.slots[row]), int(self.place[row])
        self.slots[to], self.place[to], self.slots[row] = slots, place, 0
        if slots:
            self.members[slots][place] = to
        self._give_back()

    def drop_row(self, row: int) -> None:
        """A row is needed no more."""
        self._leave(row)
        self._give_back()

    def held(self) -> Counter[str]:
        """Bytes, by the device that they are on."""
        made: Counter[str] = Counter()
        for pool in self.pools.values():
            made += pool.held()
        return made


def capacity(length: int) -> int:
    """Slots of the pool for rows of so many: 1, 2, 3, 4, 6, 8, 12 .. times `GROW`, with `STEPS` of 2."""
    needed = -(-length // GROW)
    step = max(1, (1 << (needed - 1).bit_length()) // (2 * STEPS))
    return -(-needed // step) * step * GROW

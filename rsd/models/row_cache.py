"""Keys and values whose rows have lengths of their own, all in one buffer.

No cache of transformers lets the rows of a batch differ in length. Here the slot index *is* the
logical position: keys and values are written at [row, position], and a query sees the slots up to
its own position. So rolling back is a no-op: what was written above a row's length is masked, and
overwritten before a query can see it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

GROW = 256  # slots: the buffers grow in such steps, so that short traces cost little memory


class Part(NamedTuple):
    """Rows of a pass that lie in one cache.

    of: int64 [N], which rows of the pass; in_turn: all of them, one after the other. places: int64 [N], where they lie;
    first: the first place, where they are neighbours. reach: how many slots they read.
    """

    cache: "RowCache"
    of: np.ndarray
    in_turn: bool
    places: np.ndarray
    first: int | None
    reach: int = 0

    @classmethod
    def at(cls, cache: "RowCache", of: np.ndarray, places: np.ndarray) -> "Part":
        neighbours = np.arange(len(of))
        first = int(places[0]) if (places - places[0] == neighbours).all() else None
        return cls(cache, of, bool((of == neighbours).all()), places, first)


class RowCache:
    """Keys and values of all layers, [rows, heads, slots, head size] each.

    It has the two methods of a transformers cache that attention layers call. Before a forward,
    `write_at` says where the new columns go and how much of the buffers the queries may read.
    """

    is_initialized = True  # models that read images ask for it, to mask these in a prompt's first pass

    def __init__(self, rows: int, slots: int = 0) -> None:
        self.rows, self.slots = rows, slots
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._index: dict[tuple[int, torch.device], Tensor] = {}
        self._positions = torch.empty(0, dtype=torch.long)
        self._reach = (0, 0)
        self._rows: Tensor | None = None
        self._first = 0
        self._real: Tensor | None = None

    def parts(self, rows: Sequence[int], reach: np.ndarray) -> list[Part]:
        """Have `reach` [R] slots for the rows of a pass."""
        longest = int(reach.max())
        self.reserve(longest)
        # Nothing is kept of it here: buffers in a cycle of references would outlive what replaces them.
        return [Part.at(self, np.arange(len(rows)), np.array(rows))._replace(reach=longest)]

    def write_at(
        self, slots: Tensor, length: int, rows: Tensor | None = None, first: int = 0, real: Tensor | None = None
    ) -> None:
        """Direct the next forward: columns to `slots` [R, W], queries read slots below `length`.

        Args:
            rows: int64 [R], whose columns these are; those from `first` on if not given.
            real: int64 [N], the forward has these of the R * W columns alone, in a batch of one.
        """
        self._first, self._real = first, real
        self._reach = (slots.shape[0], length)
        self._positions = slots
        self._rows = rows
        self._index = {}

    def reserve(self, length: int) -> None:
        """Have at least so many slots."""
        if length > self.slots:
            self.resize(self.rows, -(-length // GROW) * GROW)

    def resize(self, rows: int, slots: int) -> None:
        """Have room for so many rows, of which the first keep what they have read."""
        kept = min(rows, self.rows)
        self.rows, self.slots = rows, slots
        for layer, old in self.layers.items():  # one at a time: both sizes exist of one layer only
            self.layers[layer] = new = self._empty(*old)
            for larger, smaller in zip(new, old, strict=True):
                larger[:kept, :, : smaller.shape[2]] = smaller[:kept]

    def _empty(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers for the heads and sizes of [_, heads, _, size] examples."""
        return (
            keys.new_zeros(self.rows, keys.shape[1], self.slots, keys.shape[3]),
            values.new_zeros(self.rows, values.shape[1], self.slots, values.shape[3]),
        )

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [R, heads, W, size] and return all that the queries may read, [R, heads, length, size]."""
        if layer not in self.layers:
            self.layers[layer] = self._empty(keys, values)
        rows, length = self._reach
        # The flat slots [R * heads * W] are the same in every layer with so many heads, on each of several devices.
        kind = keys.shape[1], keys.device
        if kind not in self._index:
            self._index[kind] = self._slots(*kind)
        index = self._index[kind]
        # A block of unlike rows may repeat a row's last column; equal writes to one slot do no harm.
        k, v = self.layers[layer]
        k.view(-1, k.shape[3]).index_copy_(0, index, keys.reshape(-1, k.shape[3]))
        v.view(-1, v.shape[3]).index_copy_(0, index, values.reshape(-1, v.shape[3]))
        if self._rows is not None:
            some = self._rows.to(keys.device)
            return k.narrow(2, 0, length)[some], v.narrow(2, 0, length)[some]
        if rows < self.rows:
            k, v = k.narrow(0, self._first, rows), v.narrow(0, self._first, rows)
        return k.narrow(2, 0, length), v.narrow(2, 0, length)

    def _slots(self, heads: int, device: torch.device) -> Tensor:
        """Where the columns of this forward go in a buffer of [rows * heads * slots, size]."""
        head = torch.arange(heads, device=device)
        first, end = self._first, self._first + self._reach[0]
        row = torch.arange(first, end, device=device) if self._rows is None else self._rows.to(device)
        slots = self._positions.to(device)
        if self._real is None:
            row_heads = (row[:, None] * heads + head)[..., None] * self.slots
            return (row_heads + slots[:, None, :]).flatten()
        real = self._real.to(device)
        row = row.repeat_interleave(slots.shape[1])[real]
        return ((row * heads + head[:, None]) * self.slots + slots.flatten()[real]).flatten()

    def held(self) -> Counter[str]:
        """Bytes, by the device that they are on."""
        made: Counter[str] = Counter()
        for keys, values in self.layers.values():
            made[str(keys.device)] += keys.nbytes + values.nbytes
        return made

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._reach[1]

    def copy_row(self, source: "RowCache", row: int, to: int, *, length: int) -> None:
        """Copy `length` slots of row `row` of `source` (it may be this cache) to row `to`, and clear what is beyond.

        A row that ended with NaN would otherwise leak it through masked attention, where 0 * NaN is NaN.
        """
        self.reserve(length)
        for layer, theirs in source.layers.items():
            if layer not in self.layers:
                self.layers[layer] = self._empty(*theirs)
            for mine, other in zip(self.layers[layer], theirs, strict=True):
                mine[to, :, :length] = other[row, :, :length]
                mine[to, :, length:] = 0
        for layer in self.layers.keys() - source.layers.keys():  # it has read nothing: a prompt of one token
            for mine in self.layers[layer]:
                mine[to] = 0

    def move_row(self, row: int, to: int) -> None:
        """Row `to` becomes row `row`, which is needed no more."""
        self.copy_row(self, row, to, length=self.slots)

    def drop_row(self, row: int) -> None:
        """A row is needed no more: its slots wait for another one."""

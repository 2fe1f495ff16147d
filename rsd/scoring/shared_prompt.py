"""Keys and values of traces that are read once: of a pass over whole ones, and of what branches off their prompts."""

from typing import Any

import torch
from torch import Tensor


class Trunk:
    """Rows that are read from their first id on, all at the same slots, each slot the position in its row.

    It has the two methods of a transformers cache that attention layers call. Before a forward, `write_at` says where
    the new columns go.
    """

    is_initialized = True  # models that read images ask for it, to mask these in a prompt's first pass

    def __init__(self, rows: int, slots: int) -> None:
        self.rows, self.slots = rows, slots
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._start = self._length = 0

    def write_at(self, slots: Tensor, length: int, *_: Any) -> None:
        """Direct the next forward: columns to the last of the first `length` slots."""
        self._start, self._length = length - slots.shape[1], length

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [R, heads, W, size] and return all that the queries may read, [R, heads, length, size]."""
        if layer not in self.layers:
            of = [x.new_empty(self.rows, x.shape[1], self.slots, x.shape[3]) for x in (keys, values)]
            self.layers[layer] = of[0], of[1]
        k, v = (x[:, :, : self._length] for x in self.layers[layer])
        k[:, :, self._start :], v[:, :, self._start :] = keys, values
        return k, v

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


class Branches:
    """Rows that go on from prompts of a trunk, and are not kept."""

    is_initialized = True

    def __init__(self, trunk: Trunk, rows: list[int]) -> None:
        """rows: of the trunk, which row each goes on from."""
        self.trunk = trunk
        self._rows = None if trunk.rows == 1 else torch.tensor(rows)
        self._slots = torch.empty(0, dtype=torch.long)
        self._length = 0

    def write_at(self, slots: Tensor, length: int, *_: Any) -> None:
        """Direct the next forward: columns to `slots`, [R, W] or [1, W] where all go on from the same slot."""
        self._slots, self._length = slots, length

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the queries may read: a prompt's slots, and the new columns [R, heads, W, size] from its end on.

        What is between a row's end and the longest row's is none of the row's own, and masked.
        """
        made = []
        for new, old in zip((keys, values), self.trunk.layers[layer], strict=True):
            shared = old[:, :, : self._length - new.shape[2]]
            rows = new.shape[0]
            shared = shared.expand(rows, -1, -1, -1) if self._rows is None else shared[self._rows.to(old.device)]
            both = torch.cat([shared, new], 2)
            if len(self._slots) > 1:  # prompts end in slots of their own
                row = torch.arange(rows, device=both.device)[:, None]
                both.transpose(1, 2)[row, self._slots.to(both.device)] = new.transpose(1, 2)
            made.append(both)
        return made[0], made[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

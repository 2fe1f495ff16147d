"""How many rows are decoded together: half of them after a lack of memory, twice as many again after a while."""

from collections import Counter
from collections.abc import Sequence

import torch

from rsd.models.kv_cache import CachedModel
from rsd.models.memory import free_bytes

PATIENCE = 4  # traces that are finished for each row before more rows are tried
# What torch says where it raises no OutOfMemoryError: on a CPU its allocator's name; on a GPU the driver's or a
# library's own words. cuBLAS cannot make its handle without memory either.
SAID = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


class Room:
    """The rows of an engine, at most as many as were asked for.

    More rows than fit cost what all rows have to be read again, twice: where memory runs out soon after the rows
    were doubled, the next try has to wait twice as long.
    """

    def __init__(self, rows: int) -> None:
        self.asked = self.rows = rows
        self.patience = PATIENCE
        self.finished = 0  # traces, since the rows were changed or could not be
        self.tried = False  # the rows were doubled, and it is not known yet whether they fit

    def shrink(self) -> None:
        if self.tried:
            self.patience *= 2
        self.rows, self.finished, self.tried = max(1, self.rows // 2), 0, False

    def finish(self, traces: int) -> None:
        self.finished += traces
        if self.tried and self.finished >= self.patience * self.rows:
            self.patience, self.tried = PATIENCE, False

    @property
    def may_grow(self) -> bool:
        return self.rows < self.asked and self.finished >= self.patience * self.rows

    def grow(self) -> None:
        self.rows, self.finished, self.tried = min(self.asked, 2 * self.rows), 0, True

    def wait(self) -> None:
        """There is no memory for more rows yet."""
        self.finished = 0


def twice_fit(models: Sequence[CachedModel]) -> bool:
    """Whether as much memory is free as the models' caches hold now."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    held: Counter[str] = Counter()
    for model in models:
        held.update(model.cache.held())
    return all(free_bytes(device) >= size for device, size in held.items())


def out_of_memory(error: BaseException | None) -> bool:
    """Whether this was raised for lack of memory, or while that was handled, as when a capture is broken off."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in SAID)):
            return True
        error = error.__cause__ or error.__context__
    return False

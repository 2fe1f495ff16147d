"""The student's draft step at fixed addresses, which a GPU replays as one captured graph.

A small model's step is hundreds of kernels of a few microseconds each, and launching them one by one
costs several times what they take. A CUDA graph launches them at once, but only with the same shapes and
addresses: so there is one for each power of two of rows, and all are captured again when the cache grows.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rsd.models.kv_cache import CachedModel
from rsd.models.room import out_of_memory
from rsd.models.row_cache import RowCache

# token [R], position [R, 1], slots that are read [R], uniform [R] -> what a step leaves, the drafted token [R] first.
Step = Callable[[Tensor, Tensor, np.ndarray, Tensor], tuple[Tensor, ...]]


class DraftLoop:
    """Repeats a draft step for the tokens of a block.

    Args:
        capture: as a CUDA graph; without it the same steps run one by one, on any device.
    """

    def __init__(self, step: Step, student: CachedModel, *, capture: bool) -> None:
        self.step, self.student, self.capture = step, student, capture
        self.fixed: dict[int, _Fixed] = {}
        self.cache, self.slots = student.in_one_buffer(), 0

    def drop(self) -> None:
        """Forget the graphs, which hold on to the cache that they were captured with."""
        self.fixed.clear()
        self.cache = RowCache(0)

    def __call__(self, token: Tensor, at: Tensor, uniforms: Tensor, reach: np.ndarray) -> list[tuple[Tensor, ...]]:
        """The steps of a block: tokens [R] at positions [R, 1], which see `reach` [R] slots, with uniforms [R, K]."""
        rows, block = uniforms.shape
        cache = self.student.in_one_buffer()
        cache.reserve(int(reach.max()) + block - 1)
        if self.cache is not cache or self.slots != cache.slots:
            self.fixed.clear()
            self.cache, self.slots = cache, cache.slots
        size = min(1 << (rows - 1).bit_length(), cache.rows)
        if size not in self.fixed:
            self.fixed[size] = _Fixed(self.step, size, cache.slots, token.device)
        fixed = self.fixed[size]
        # Rows beyond the live ones draft from position 0 of free slots, which are written anew when taken.
        for mine, theirs in ((fixed.token, token), (fixed.at, at)):
            mine.zero_()
            mine[:rows] = theirs
        if self.capture and fixed.graph is None:
            try:
                fixed.record()
            except RuntimeError as e:
                if out_of_memory(e):
                    raise
                self.capture = False
                warnings.warn(f"the student's steps cannot be captured and run one by one: {e}", stacklevel=2)
        steps = []
        for j in range(block):
            fixed.uniform[:rows] = uniforms[:, j]
            fixed.advance()
            steps.append(tuple(x[:rows].clone() for x in fixed.out))
        return steps


class _Fixed:
    """One step for one number of rows, and the tensors that it reads and leaves."""

    def __init__(self, step: Step, rows: int, slots: int, device: torch.device) -> None:
        self.step, self.reach = step, np.full(rows, slots)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.at = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.uniform = torch.zeros(rows, dtype=torch.float64, device=device)
        self.out: tuple[Tensor, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        self.out = self.step(self.token, self.at, self.reach, self.uniform)
        self.token.copy_(self.out[0])
        self.at.add_(1)

    def advance(self) -> None:
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def record(self) -> None:
        """Capture the step. It is run some times before, as capturing asks for; what that writes into the
        cache lies at or above each row's length, and is written again.

        Raises:
            RuntimeError: it cannot be captured, mostly since it waits for the GPU in its midst (a router that looks
                at what it chose). That is found out before: a capture that is broken off leaves torch's random
                numbers and its memory behind as if it still went on.
        """
        token, at = self.token.clone(), self.at.clone()
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.device(token.device):
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            try:
                side.wait_stream(here)
                with torch.cuda.stream(side):
                    for last in (False, False, True):
                        torch.cuda.set_sync_debug_mode("error" if last else mode)
                        self.token.copy_(token)
                        self.at.copy_(at)
                        self._step()
                torch.cuda.set_sync_debug_mode(mode)  # the capture itself waits before it begins
                graph = torch.cuda.CUDAGraph()
                # What other threads of the process do on a GPU meanwhile is none of its business.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
                torch.cuda.set_stream(here)  # one that fails leaves its own stream the current one
                here.wait_stream(side)
                self.token.copy_(token)
                self.at.copy_(at)
        self.graph = graph

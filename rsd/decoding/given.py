"""Traces that are there already: the models read them as they would have drafted and judged them."""

from collections.abc import Sequence

import numpy as np
import torch

from rsd.decoding.draft import Drafts, Outcome, Pass, Step, Student
from rsd.decoding.sampling import Verdict


class Given:
    """The next tokens of R rows' traces, in the place of what `drafting.Drafting` drafts in a round.

    Args:
        state: of `sequence.STATE`. given: each row's trace. most: columns of a row.
    """

    def __init__(self, student: Student, state: np.ndarray, given: Sequence[Sequence[int]], *, most: int) -> None:
        told = [list(trace[done : done + most]) for trace, done in zip(given, state["done"].tolist(), strict=True)]
        self.counts = np.array([len(row) for row in told])
        width, device = int(self.counts.max()), student.model.device
        columns = np.minimum(np.arange(width), self.counts[:, None] - 1)
        tokens = np.array([[*row, *[0] * (width - len(row))] for row in told])
        before = np.concatenate([state["pending"][:, None], tokens[:, :-1]], 1)
        ids = np.take_along_axis(before, columns, 1)
        read = torch.from_numpy(np.stack([ids, state["length"][:, None] + columns])).to(device)
        counts = self.counts.tolist()
        logits = student.model(read[0], read[1], state["length"] + self.counts, counts=counts)
        row, column = (np.arange(width) < self.counts[:, None]).nonzero()
        step = Step(*student.drafted(logits, torch.zeros(len(row), dtype=torch.float64, device=device)))
        self.noise = torch.zeros(len(told), width, 4, dtype=torch.float64, device=device)
        self.drafts = Drafts(student, [Pass(step, row, column)], told, given=torch.from_numpy(tokens).to(device))

    def learn(self, came: Outcome) -> None:
        """Nothing was drafted."""


def as_given(drafts: Drafts) -> Verdict:
    """All of them stand, whoever said them."""
    tokens = drafts.given if drafts.given is not None else drafts.tokens
    counts = torch.tensor([len(row) for row in drafts.told], device=tokens.device)
    return Verdict(tokens, counts, torch.full_like(tokens, -1), torch.ones(tokens.shape, device=tokens.device))

"""Where a served teacher tells its distribution of some tokens alone: of which, and what is made of that.

r depends on q by q(x) of the tokens in A, of which there are 1/threshold at the most, and on what q has for tokens of
the student's in all: that is 1 without those that the student lacks, which are few.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rsd.decoding.candidates import Candidates
from rsd.decoding.draft import Drafts
from rsd.decoding.listed import MANY
from rsd.decoding.pieces import Units
from rsd.decoding.teacher import Exact


class Matter:
    """The teacher's ids on which a round depends.

    Args:
        table: int64 [V], the student's (first) token for any of the teacher's, or -1; its last one is beyond all that
            are known. width: of the teacher's vocabulary.
    """

    def __init__(self, table: Tensor, units: Units, *, width: int) -> None:
        self.table, self.units, self.width = table, units, width

    def __call__(self, drafts: Drafts, row: int, draft: int | None, *, before: Sequence[int]) -> set[int] | None:
        """Those on which it depends what becomes of a draft: of A, of the draft, of what begins a spelling, and of what
        the student lacks; within a spelling (draft None) the pieces, and what begins with a last one. None where they
        are too many.

        before: the student's last tokens before the drafts.
        """
        if draft is None:
            return self._pieces if len(self._pieces) <= MANY else None
        told = drafts.told[row]
        ids = {*self._lacked, *self.units.by_head}
        for token in {*drafts.stand(row, draft), told[draft]}:
            if len(ids) > MANY:
                return None
            ids.update(self._of(token))
        for end in self.units.open([*before, *told[:draft]]):
            ids |= {end[0], *(self.units.merged[end[0]] if len(end) == 1 else ())}
        return ids if len(ids) <= MANY else None

    def _of(self, token: int) -> list[int]:
        """The teacher's tokens that are this one of the student's, or begin with it."""
        ours, theirs = self._sorted
        first, last = np.searchsorted(ours, [token, token + 1])
        return theirs[first:last].tolist()

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The student's tokens of the table, ascending, and the teacher's for which they stand."""
        known = self.table[:-1].numpy(force=True)[: self.width]
        table = np.concatenate([known, np.full(self.width - len(known), -1)])
        order = table.argsort(kind="stable")
        return table[order], order

    @cached_property
    def _pieces(self) -> set[int]:
        merged = self.units.merged.values()
        return {piece for unit in self.units.units for piece in unit} | {t for longer in merged for t in longer}

    @cached_property
    def _lacked(self) -> list[int]:
        return self._of(-1)


def with_exact(pool: Candidates, exact: Exact, places: np.ndarray) -> tuple[Candidates, Tensor | None]:
    """A pool [N, C] with what is known better (`TeacherOutput.exact`); and the mass [N] that tokens have beside those
    which the pool has then, None if there is no such place.

    places: int64 [N], of which logits the pool is.
    """
    if not exact:
        return pool, None
    ids, masses = None if pool.ids is None else pool.ids.clone(), pool.masses.clone()
    rest = masses.new_zeros(len(masses))
    for n in np.isin(places, list(exact)).nonzero()[0].tolist():
        known, probs = (torch.from_numpy(x).to(masses.device) for x in exact[int(places[n])])
        masses[n], rest[n] = 0, (1 - probs.sum()).clamp_min(0)
        if ids is None:
            masses[n, known] = probs.to(masses.dtype)
        else:  # no more than top-k keeps, but for what may be too many of a list
            best = probs.topk(min(len(probs), ids.shape[-1])).indices.sort().values
            ids[n], ids[n, : len(best)] = known[best[-1]], known[best]
            masses[n, : len(best)] = probs[best].to(masses.dtype)
    return Candidates(ids, masses), rest

"""q: what the teacher proposes, in the student's tokens.

The teacher's sampling distribution is restricted to the tokens that the student has. A token that the student
alone has, such as `</think>`, the teacher *spells*, t1 .. tm: so it proposes that with the probability of the
whole spelling, and t1 itself with what is left of it,

    q'(s)  = q(t1) q(t2|t1) .. q(tm|..)          q'(t1) = q(t1) - q'(s)

where q(tm|..) counts the tokens that begin with tm and go on, too: real teachers end `</think>` with `>` and two line
breaks in one token, and are in the midst of these afterwards (`midst`). Once t1 stands as a token of its own, the
teacher is one that does not go on to t2 .. tm: those texts are taken out of what follows. This is exactly the
distribution of the teacher's text, read in units (the longest spelling first); the idea is this project's. Where t1
has no mass to speak of, or neither s nor t1 could stand, nothing needs to be looked up.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rsd.config import Sampling
from rsd.decoding.candidates import Candidates, bounded, likeliest, placed, union
from rsd.decoding.partial_tokens import At, Filter, Midst, Several
from rsd.decoding.pieces import Stands, Units
from rsd.decoding.sampling import warp
from rsd.decoding.teacher import Contexts, Judged, Teacher
from rsd.pair.vocabulary import Vocabulary

SURE = 2.0**-40  # masses below it are what rounding leaves of a difference


class Proposals:
    """The teacher's proposals for one pair. few: whether they are few candidates."""

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.few = bounded(sampling, vocabulary.width)
        sampled = vocabulary.own.numpy() == 0
        shared = vocabulary.shared.numpy() > 0
        self.shared = vocabulary.shared.to(device)
        self.theirs = None if vocabulary.theirs is None else vocabulary.theirs.to(device)
        said = {t: s for t, s in vocabulary.several.items() if sampled[list(s)].all()}
        self.several = Several(said)
        also = [(t, s) for t, s in vocabulary.also if sampled[s]] + [(t, s[0]) for t, s in said.items()]
        # The student's token for one of the teacher's, -1 where it has none, and beyond all that are known.
        ours = shared.nonzero()[0]
        theirs = ours if vocabulary.theirs is None else vocabulary.theirs.numpy()[ours]
        table = np.full(max([*theirs.tolist(), *(t for t, _ in also)], default=0) + 2, -1)
        table[theirs] = ours
        ordinary = dict(zip(theirs.tolist(), ours.tolist(), strict=True))
        if also:
            table[[t for t, _ in also]] = [s for _, s in also]
        self.table = torch.from_numpy(table).to(device)
        self.also = torch.tensor(also, dtype=torch.long, device=device).T if also else None

        self.units = Units(vocabulary, ordinary, self.table, self.pool)

    def pool(self, logits: Tensor) -> Candidates:
        """The teacher's sampling distribution over its own tokens, of logits [..., V_teacher]."""
        if self.few:
            return Candidates(*likeliest(logits, self.sampling))
        return Candidates(None, warp(logits, self.sampling))

    def masses(self, pool: Candidates) -> Candidates:
        """What of it falls on tokens of the student: of several, on the first one. The rest is left out."""
        if pool.ids is not None:
            ids = self.table[pool.ids.clamp_max(len(self.table) - 1)]
            return Candidates(ids.clamp_min(0), pool.masses * (ids >= 0))
        width = self.shared.shape[-1]
        if self.theirs is not None:
            masses = pool.masses[..., self.theirs]
        else:
            missing = width - pool.masses.shape[-1]
            masses = torch.nn.functional.pad(pool.masses, (0, missing)) if missing > 0 else pool.masses[..., :width]
        masses = masses * self.shared
        if self.also is not None:
            masses = masses.index_add(-1, self.also[1], pool.masses[..., self.also[0]])
        return Candidates(None, masses)

    def read(
        self,
        logits: Tensor,
        p: tuple[Tensor, Tensor] | None,
        stands: Stands,
        *,
        teacher: Teacher,
        contexts: Sequence[Contexts],
        judged: Judged,
        before: Sequence[Sequence[int]],
        midst: Sequence[Midst],
        drafts: Sequence[Sequence[int]],
    ) -> "tuple[Proposed, Filter | None]":
        """The teacher's proposals before each of some rows' drafts.

        Args:
            logits: [R, K, V_teacher]. p: ids and probabilities of what the student may say there,
                [R, K, C] each, if these are few.
            before: the student's last tokens of each row, before its drafts; midst: where the teacher is there.
        """
        pool = self.pool(logits)
        masses = self.masses(pool)
        spelled = self.units.spell(pool, stands, teacher, contexts, judged, before, drafts)
        where, changed = None, {}
        if spelled or self.several.spelled or any(m.rests for m in midst):
            where = Filter(self.several, masses, pool, spelled, midst)
            changed = where.mix(drafts)
        mine, whole = masses.masses, None
        more: list[tuple[int, int, int, float]] = []
        if changed:
            scale, said = np.ones((2, *logits.shape[:2], 1))
            for (i, j), (factor, added, total) in changed.items():
                scale[i, j], said[i, j] = factor, total
                more += [(i, j, token, mass) for token, mass in added.items()]
            mine = mine * torch.from_numpy(scale).to(mine)
            whole = torch.from_numpy(said).to(mine)
        every = at_p = None
        if masses.ids is None or p is None:
            if more:
                *at, values = (torch.tensor(x, device=logits.device) for x in zip(*more, strict=True))
                mine = mine.index_put(tuple(at), values.to(mine.dtype), accumulate=True)
        else:
            parts = [p[0], masses.ids]
            if more:
                extra, values = _columns(more, logits.shape[:2])
                parts.append(extra.to(logits.device))
                mine = torch.cat([mine, values.to(mine)], -1)
            every, place = union(*parts)
            mine = placed(mine, place[..., -mine.shape[-1] :], every.shape[-1])
            at_p = placed(p[1], place[..., : p[1].shape[-1]], every.shape[-1])
        if more:
            mine = mine * (mine > SURE)
        held = mine.sum(-1, keepdim=True)
        q = mine / held.clamp_min(torch.finfo(held.dtype).tiny)
        share = held if whole is None else torch.where(whole > 0, held / whole, 1.0)
        left_out = (1 - share[..., 0]).clamp(0, 1)
        top = pool.masses.argmax(-1, keepdim=True)
        top = (top if pool.ids is None else pool.ids.gather(-1, top))[..., 0]
        return Proposed(every, q, at_p, left_out, top), where


class Proposed:
    """What the teacher proposes and the student may say before each of R rows' K drafts.

    ids: the candidates [R, K, C], None for all tokens; q, p: the two distributions over them, p None if these are
    all. left_out [R, K]: the share of what the teacher may say that is no token of the student's. top [R, K]: its
    likeliest token, of its own.
    """

    def __init__(self, ids: Tensor | None, q: Tensor, p: Tensor | None, left_out: Tensor, top: Tensor) -> None:
        self.ids, self.q, self.p, self.left_out, self.top = ids, q, p, left_out, top

    def place(self, tokens: Tensor) -> Tensor:
        """Where tokens [R, K], candidates all of them, are among these."""
        return tokens if self.ids is None else (self.ids == tokens[..., None]).int().argmax(-1)

    def token(self, places: Tensor) -> Tensor:
        return places if self.ids is None else self.ids.gather(-1, places[..., None])[..., 0]


def _columns(more: Sequence[tuple[int, int, int, float]], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Tokens and masses (row, j, token, mass) as [R, K, E] each, with as many columns as needed."""
    count: dict[At, int] = {}
    at = []
    for i, j, *_ in more:
        at.append((i, j, count.get((i, j), 0)))
        count[i, j] = at[-1][2] + 1
    wide = max(count.values(), default=0)
    ids, masses = np.zeros((*shape, wide), dtype=np.int64), np.zeros((*shape, wide))
    for place, (_, _, token, mass) in zip(at, more, strict=True):
        ids[place], masses[place] = token, mass
    return torch.from_numpy(ids), torch.from_numpy(masses)

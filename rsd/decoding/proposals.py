"""q: what the teacher proposes, in the student's tokens.

The teacher's sampling distribution is restricted to the tokens that the student has. A token that the student
alone has, such as `</think>`, the teacher *spells*, t1 .. tm: so it proposes that with the probability of the
whole spelling, and t1 itself with what is left of it,

    q'(s)  = q(t1) q(t2|t1) .. q(tm|..)          q'(t1) = q(t1) - q'(s)

where q(tm|..) counts the tokens that begin with tm and go on, too: real teachers end `</think>` with `>` and two line
breaks in one token, and are in the midst of these afterwards (`partial_tokens`). Once t1 stands as a token of its own,
the teacher is one that does not go on to t2 .. tm: those texts are taken out of what follows. This is exactly the
distribution of the teacher's text, read in units (the longest spelling first); the idea is this project's. Where t1
has no mass to speak of, or neither s nor t1 could stand, nothing needs to be looked up.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from rsd.acceptance import Sampling
from rsd.decoding.candidates import Candidates, bounded, largest, likeliest, placed, union, wide
from rsd.decoding.draft import Drafts
from rsd.decoding.exact import with_exact
from rsd.decoding.partial_tokens import AT_BOUNDARY, At, Correction, Partial, PartialFilter, SplitTokens
from rsd.decoding.pieces import Accepts, Units
from rsd.decoding.sampling import warp
from rsd.decoding.teacher import Exact, Teacher, TeacherOutput, TokenTree
from rsd.pair.vocabulary import Vocabulary

WIDER = 64  # and twice as many tokens of the teacher's as are asked for: some are one of the student's, or none
SURE = 2.0**-40  # masses below it are what rounding leaves of a difference


class Proposed:
    """What the teacher proposes before each of R rows' K drafts.

    ids: the candidates [R, K, C], None for all tokens; q, p: the teacher's and the student's distribution over them, p
    None if these are all. coverage [R, K]: the share of what the teacher may say that is tokens of the student's.
    sound [R, K]: finite where the teacher's logits are. Where a row has fewer drafts than K, what stands is of others.
    soft: where they are asked for, the tokens that it finds likeliest before any filter, and their log-probs, [R, K, k]
    each. rows: whose drafts these are. errors: rows that the teacher cannot read, and why.
    """

    def __init__(
        self,
        ids: Tensor | None,
        q: Tensor,
        p: Tensor | None,
        coverage: Tensor,
        *,
        logits: Tensor,
        total: Tensor,
        top: Tensor,
        index: Tensor,
        to_teacher: "ToTeacher",
        output: TeacherOutput,
        soft: tuple[Tensor, ...] = (),
    ) -> None:
        """logits: [N, V_teacher]. total: their log-sum-exp. top: the index of the largest one. index: int64 [R, K],
        which of the N stand where."""
        self.ids, self.q, self.p, self.coverage = ids, q, p, coverage
        self._logits, self._total, self._index, self._to_teacher = logits, total, index, to_teacher
        self.sound = (logits.gather(-1, top[:, None])[:, 0] - total)[index]
        self.rows = slice(output.first, output.first + len(index))
        self.errors: Mapping[int, str] = output.errors
        self.soft = soft

    def place(self, tokens: Tensor) -> Tensor:
        """Where tokens [R, K], candidates all of them, are among these."""
        return tokens if self.ids is None else (self.ids == tokens[..., None]).int().argmax(-1)

    def place_if_any(self, tokens: Tensor) -> Tensor:
        """The same of any tokens, -1 of those that are no candidates."""
        places = self.place(tokens)
        return torch.where(self.token(places) == tokens, places, -1)

    def token(self, places: Tensor) -> Tensor:
        return places if self.ids is None else self.ids.gather(-1, places[..., None])[..., 0]

    @property
    def likeliest(self) -> Tensor:
        """The proposal of the largest probability, int64 [R, K]; -1 where there is none."""
        best = self.q.max(-1)
        return torch.where(best.values > 0, self.token(best.indices), -1)

    def logprobs(self, tokens: Tensor) -> Tensor:
        """The teacher's log-probs of the student's tokens [R, K], NaN where it has no such token."""
        ids, known = self._to_teacher(tokens)
        theirs = self._logits[self._index, ids.clamp_max(self._logits.shape[-1] - 1)] - self._total[self._index]
        return torch.where(known, theirs, torch.nan)


class ToTeacher:
    """The teacher's ids of the student's tokens, and which of these it has."""

    def __init__(self, vocabulary: Vocabulary, device: torch.device) -> None:
        self.shared = vocabulary.shared.to(device) > 0
        self.theirs = None if vocabulary.theirs is None else vocabulary.theirs.to(device)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tokens if self.theirs is None else self.theirs[tokens], self.shared[tokens]


class Proposals:
    """The teacher's distribution over the student's tokens, for one pair. few: whether it has few candidates.

    top: how many of its likeliest tokens are found out, too.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, device: torch.device, *, top: int = 0) -> None:
        self.sampling, self.top = sampling, top
        self.few = bounded(sampling, vocabulary.width)
        self.to_teacher = ToTeacher(vocabulary, device)
        self.shared, self.theirs = vocabulary.shared.to(device), self.to_teacher.theirs
        sampled = vocabulary.own.numpy() == 0
        said = {t: s for t, s in vocabulary.teacher_to_student.items() if sampled[list(s)].all()}
        self.split = SplitTokens(said)
        also = [(t, s) for t, s in vocabulary.also if sampled[s]] + [(t, s[0]) for t, s in said.items()]
        # The student's token for one of the teacher's, -1 where it has none, and beyond all that are known.
        ours = (vocabulary.shared.numpy() > 0).nonzero()[0]
        theirs = ours if vocabulary.theirs is None else vocabulary.theirs.numpy()[ours]
        table = np.full(max([*theirs.tolist(), *(t for t, _ in also)], default=0) + 2, -1)
        table[theirs] = ours
        ordinary = dict(zip(theirs.tolist(), ours.tolist(), strict=True))
        if also:
            table[[t for t, _ in also]] = [s for _, s in also]
        self.table = torch.from_numpy(table).to(device)
        self.also = torch.tensor(also, dtype=torch.long, device=device).T if also else None
        self.units = Units(vocabulary, ordinary, self.table)

    def pool(self, logits: Tensor, exact: Exact = MappingProxyType({})) -> Candidates:
        """The teacher's sampling distribution over its own tokens, of logits [..., V_teacher]; what is known better."""
        made = (
            Candidates(*likeliest(logits, self.sampling)) if self.few else Candidates(None, warp(logits, self.sampling))
        )
        return with_exact(made, exact, np.arange(len(logits)))[0]

    def unfiltered(self, logits: Tensor, total: Tensor) -> Candidates:
        """Its likeliest tokens at temperature 1, of logits [N, V_teacher] and their log-sum-exp [N]."""
        values, ids = largest(logits, 2 * self.top + WIDER)
        return Candidates(ids, (values - total[:, None]).double().exp())

    def mass(self, pool: Candidates) -> Candidates:
        """What of it falls on tokens of the student: of several, on the first one. The rest is not covered."""
        if pool.ids is not None:
            ids = self.table[pool.ids.clamp_max(len(self.table) - 1)]
            return Candidates(ids.clamp_min(0), pool.masses * (ids >= 0))
        width = self.shared.shape[-1]
        if self.theirs is not None:
            mass = pool.masses[..., self.theirs]
        else:
            missing = width - pool.masses.shape[-1]
            mass = torch.nn.functional.pad(pool.masses, (0, missing)) if missing > 0 else pool.masses[..., :width]
        mass = mass * self.shared
        if self.also is not None:
            mass = mass.index_add(-1, self.also[1], pool.masses[..., self.also[0]])
        return Candidates(None, mass)

    def read(
        self,
        output: TeacherOutput,
        drafts: Drafts,
        *,
        teacher: Teacher,
        trees: Sequence[TokenTree],
        recent: Sequence[Sequence[int]],
        partials: Sequence[Partial],
    ) -> "tuple[Proposed, PartialFilter | None]":
        """The teacher's proposals before each of some rows' drafts, and where it is in its own tokens then.

        Args:
            output: what the teacher says of these rows' contexts, `trees`.
            recent: the student's last tokens of each row, before its drafts; partials: where the teacher is there.
        """
        rows, block = drafts.tokens.shape
        device, drafted = drafts.tokens.device, drafts.told
        logits, index = output.logits.to(device).float(), _index(output.at, block)
        whole = len(logits) == index.size and (index.ravel() == np.arange(index.size)).all()
        read = None
        if not whole and not self.few:  # all tokens are candidates: no more of them than needed
            read, whole = index.ravel(), True
            logits = logits[torch.from_numpy(read).to(device)]
        every = torch.arange(rows * block, device=device).view(rows, block)
        places = every if whole else torch.from_numpy(index).to(device)
        said = self.pool(logits)
        top = said.masses.argmax(-1, keepdim=True)
        top = (top if said.ids is None else said.ids.gather(-1, top))[:, 0]
        said, rest = with_exact(said, output.exact, np.arange(len(output.logits)) if read is None else read)

        def grid(x: Tensor) -> Tensor:
            return x.unflatten(0, (rows, block)) if whole else x[places]

        pool = Candidates(None if said.ids is None else grid(said.ids), grid(said.masses))
        mass = self.mass(pool)
        asked = teacher, trees, output, recent, drafted
        corrections = self.units.corrections(pool, drafts.accepts, *asked, pooled=self.pool)
        where, mixed = None, {}
        if corrections or self.split.teacher_to_student or any(partial.remainders for partial in partials):
            where = PartialFilter(self.split, mass, pool, corrections, [[partial] for partial in partials])
            mixed = where.follow(drafted).mix(drafted)
        scale, total, added = _mixed(mass, mixed)
        ids, q, p = _over(_scaled(mass, scale), added, drafts.candidates)
        covered = q.sum(-1, keepdim=True)
        if rest is not None:
            rest = grid(rest)[..., None]
            covered = covered + (rest if scale is None else rest * scale)
        q = q / covered.clamp_min(torch.finfo(covered.dtype).tiny)
        coverage = covered if total is None else torch.where(total > 0, covered / total, 1.0)
        sums = teacher.total(logits, top)
        soft: tuple[Tensor, ...] = ()
        if self.top:
            likely = self.unfiltered(logits, sums)
            unfiltered = Candidates(None if likely.ids is None else grid(likely.ids), grid(likely.masses))

            def after(logits: Tensor, exact: Exact) -> Candidates:  # that is after filters
                return self.unfiltered(logits, teacher.total(logits, logits.argmax(-1)))

            corrected = self.units.corrections(unfiltered, self._among_top(unfiltered), *asked, pooled=after)
            before = where.before if where else [[AT_BOUNDARY] * len(row) for row in drafted]
            soft = self._soft(unfiltered, corrected, before, drafted)
        proposed = Proposed(
            ids,
            q,
            p,
            coverage[..., 0],
            logits=logits,
            total=sums,
            top=top,
            index=places,
            to_teacher=self.to_teacher,
            output=output,
            soft=soft,
        )
        return proposed, where

    def _among_top(self, pool: Candidates) -> Accepts:
        """Whether a token, or what it takes its mass from, may be among the likeliest: its first piece is."""
        least, pieces = pool.masses[..., : self.top][..., -1].tolist(), self.units.pieces
        return lambda places: [pool.of(i, j, pieces[token][0]) >= least[i][j] for i, j, token in places]

    def _soft(
        self,
        pool: Candidates,
        corrections: Mapping[At, Correction],
        before: Sequence[Sequence[Partial]],
        drafted: Sequence[Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        """The student's tokens that the teacher finds likeliest, [R, K, top], -1 where it knows no more, and their
        log-probs, of its likeliest tokens before any filter.

        Where it is in its own tokens (`before`) is what the proposals found.
        """
        mass = self.mass(pool)
        mixed = {}
        if corrections or any(partial.remainders for row in before for partial in row):
            mixed = PartialFilter(self.split, mass, pool, corrections, before).mix(drafted)
        none = pool.masses.new_empty(*pool.masses.shape[:2], 0)
        scale, total, added = _mixed(mass, mixed)
        ids, masses, _ = _over(_scaled(mass, scale), added, (none.long(), none))
        if total is not None:
            masses = masses / total.clamp_min(torch.finfo(total.dtype).tiny)
        values, places = largest(masses, self.top)
        tokens = ids.gather(-1, places)  # type: ignore[union-attr]
        values, tokens = wide(values, self.top, 0), wide(tokens, self.top, 0)
        return torch.where(values > 0, tokens, -1), torch.where(values > 0, values.log(), torch.nan)


Added = Sequence[tuple[int, int, int, float]]  # row, position, token and mass


def _mixed(
    mass: Candidates, mixed: Mapping[At, tuple[float, Mapping[int, float], float]]
) -> tuple[Tensor | None, Tensor | None, Added]:
    """What `PartialFilter.mix` makes of masses [R, K, C]: by what they are multiplied, and the total, [R, K, 1] each,
    None for 1; and what is added."""
    if not mixed:
        return None, None, ()
    scale, total = np.ones((2, *mass.masses.shape[:2], 1))
    added = []
    for (i, j), (factor, more, whole) in mixed.items():
        scale[i, j], total[i, j] = factor, whole
        added += [(i, j, token, m) for token, m in more.items()]
    return torch.from_numpy(scale).to(mass.masses), torch.from_numpy(total).to(mass.masses), added


def _scaled(mass: Candidates, scale: Tensor | None) -> Candidates:
    return mass if scale is None else Candidates(mass.ids, mass.masses * scale)


def _over(
    mass: Candidates, added: Added, candidates: tuple[Tensor, Tensor] | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Masses with what is added, over the candidates of both models: their ids, the masses, and the student's p."""
    if mass.ids is None or candidates is None:
        masses = mass.masses
        if added:
            *at, values = (torch.tensor(x, device=masses.device) for x in zip(*added, strict=True))
            masses = masses.index_put(tuple(at), values.to(masses.dtype), accumulate=True)
        return None, _sure(masses, added), None
    ours, p = candidates
    parts, masses = [ours, mass.ids], mass.masses
    if added:
        extra, values = _columns(added, masses.shape[:2])
        parts.append(extra.to(masses.device))
        masses = torch.cat([masses, values.to(masses)], -1)
    every, place = union(*parts)
    masses = placed(masses, place[..., -masses.shape[-1] :], every.shape[-1])
    return every, _sure(masses, added), placed(p, place[..., : p.shape[-1]], every.shape[-1])


def _sure(masses: Tensor, added: Added) -> Tensor:
    return masses * (masses > SURE) if added else masses


def _columns(added: Added, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Tokens and masses as [R, K, E] each, with as many columns as needed."""
    count: dict[At, int] = {}
    at = []
    for i, j, *_ in added:
        at.append((i, j, count.get((i, j), 0)))
        count[i, j] = at[-1][2] + 1
    wide = max(count.values(), default=0)
    ids, masses = np.zeros((*shape, wide), dtype=np.int64), np.zeros((*shape, wide))
    for place, (_, _, token, mass) in zip(at, added, strict=True):
        ids[place], masses[place] = token, mass
    return torch.from_numpy(ids), torch.from_numpy(masses)


def _index(at: np.ndarray, block: int) -> np.ndarray:
    """Places [R, K] in logits; any of them where there is none, and K is `block`."""
    index = np.zeros((len(at), block), dtype=np.int64)
    index[:, : at.shape[1]] = np.maximum(at, 0)
    return index

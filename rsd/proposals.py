"""q: what the teacher proposes, in the student's tokens.

The teacher's sampling distribution is restricted to the tokens that the student has. A token that the student
alone has, such as `</think>`, the teacher *spells*, t1 .. tm: so it proposes that with the probability of the
whole spelling, and t1 itself with what is left of it,

    q'(s)  = q(t1) q(t2|t1) .. q(tm|..)          q'(t1) = q(t1) - q'(s)

and once t1 stands as a token of its own, the teacher is one that does not go on to t2 .. tm: those texts are
taken out of what follows. This is exactly the distribution of the teacher's text, read in units (the longest
spelling first); the idea is this project's. Where t1 has no mass to speak of, or neither s nor t1 could stand,
nothing needs to be looked up.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rsd.config import Sampling
from rsd.midst import Several
from rsd.sampling import warp
from rsd.teacher import Contexts, Judged, Place, Teacher
from rsd.vocabulary import Vocabulary

NEGLIGIBLE = 2.0**-26  # chances below it are lost when float32 adds them to 1
Pieces = tuple[int, ...]  # ids of the teacher's
At = tuple[int, int]  # a row and a position of its block


class Proposals:
    """The teacher's proposals for one pair.

    units: the student's tokens that the teacher spells in several pieces, by their spelling.
    """

    def __init__(self, vocabulary: Vocabulary, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.shared = vocabulary.shared.to(device)
        self.theirs = None if vocabulary.theirs is None else vocabulary.theirs.to(device)
        said = {t: s for t, s in vocabulary.several.items() if (vocabulary.own[list(s)] == 0).all()}
        self.several = Several(said)
        also = [(t, s) for t, s in vocabulary.also if vocabulary.own[s] == 0] + [(t, s[0]) for t, s in said.items()]
        self.also = torch.tensor(also, dtype=torch.long, device=device).T if also else None
        sampled = {s: pieces for s, pieces in vocabulary.spelled.items() if vocabulary.own[s] == 0}
        self.units: dict[Pieces, int] = {pieces: s for s, pieces in sampled.items() if len(pieces) > 1}
        self.longest = max(map(len, self.units), default=1)
        ordinary = {vocabulary.teacher_id(s): s for s in vocabulary.shared.nonzero()[:, 0].tolist()}
        self.alone: dict[int, int] = {t: ordinary[t] for u in self.units for t in u if t in ordinary}
        self.pieces: dict[int, Pieces] = {s: u for u, s in self.units.items()} | {
            s: (t,) for t, s in self.alone.items()
        }
        # Of every unit its token, its first piece, and what that is for the student (the token again if nothing).
        heads = [(s, u[0], self.alone.get(u[0], s)) for u, s in self.units.items()]
        self.heads = torch.tensor(heads, dtype=torch.long, device=device).view(-1, 3).T
        self.never_ours = torch.tensor([u[0] not in self.alone for u in self.units], device=device)

    def pool(self, logits: Tensor) -> Tensor:
        """The teacher's sampling distribution over its own tokens, [..., V_teacher]."""
        return warp(logits, self.sampling)

    def masses(self, pool: Tensor) -> Tensor:
        """What of it falls on tokens of the student, [..., V]: of several, on the first one. The rest is left out."""
        width = self.shared.shape[-1]
        if self.theirs is not None:
            masses = pool[..., self.theirs]
        else:
            missing = width - pool.shape[-1]
            masses = torch.nn.functional.pad(pool, (0, missing)) if missing > 0 else pool[..., :width]
        masses = masses * self.shared
        if self.also is not None:
            masses = masses.index_add(-1, self.also[1], pool[..., self.also[0]])
        return masses

    def look_ahead(self, contexts: Contexts, drafts: Sequence[int]) -> None:
        """Have the teacher judge the pieces within a draft's spelling, too."""
        for j, token in enumerate(drafts):
            pieces = self.pieces.get(token, ())
            if len(pieces) > 1:
                path = contexts.places[j + 1].path if j + 1 < len(drafts) else contexts.after.path
                contexts.look(j, [(pieces[:n], Place(path, contexts.places[j].end + n)) for n in range(1, len(pieces))])

    def spell(
        self,
        masses: Tensor,
        pool: Tensor,
        stands: Tensor,
        *,
        teacher: Teacher,
        contexts: Sequence[Contexts],
        judged: Judged,
        before: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
    ) -> Tensor | float:
        """Put the tokens that the teacher spells into its `masses` [R, K, V], in place.

        Args:
            pool: [R, K, V_teacher]. stands: [R, K, V].
            before: the student's last tokens of each row, before its drafts.

        Returns:
            The mass of what the teacher may say at all, [R, K, 1], or 1.
        """
        if not self.units:
            return 1.0
        units, banned = self._wanted(pool, stands, judged), self._banned(pool, judged, before, drafts)
        if not units and not banned:
            return 1.0
        after = self._after(
            teacher, contexts, judged, {at: [*units.get(at, ()), *banned.get(at, ())] for at in {*units, *banned}}
        )
        whole = torch.ones_like(masses[..., :1])
        for at in {*units, *banned}:
            here, never = units.get(at, []), banned.get(at, [])
            reach: dict[Pieces, float] = {}
            for pieces in (*here, *never):
                for n in range(1, len(pieces) + 1):
                    chances = pool[at] if n == 1 else after[at, pieces[: n - 1]]
                    reach[pieces[:n]] = reach.get(pieces[: n - 1], 1.0) * float(chances[pieces[n - 1]])
            for pieces, mass in unit_masses(reach, here, never).items():
                if len(pieces) > 1:
                    masses[at][self.units[pieces]] = mass
                elif pieces[0] in self.alone:
                    masses[at][self.alone[pieces[0]]] -= reach[pieces] - mass
            whole[at] = 1 - sum(reach[p] for p in _nearest(never))
        return whole

    def _wanted(self, pool: Tensor, stands: Tensor, judged: Judged) -> dict[At, list[Pieces]]:
        """The units whose mass matters: their first piece has some, and the token or this piece could stand."""
        token, first, ours = self.heads
        matters = (pool[..., first] > NEGLIGIBLE) & (
            (stands[..., token] > 0) | (stands[..., ours] > 0) | self.never_ours
        )
        units = list(self.units)
        wanted: dict[At, list[Pieces]] = {}
        for i, j, n in matters.nonzero().tolist():
            if judged.at[i, j] >= 0:
                wanted.setdefault((i, j), []).append(units[n])
        return wanted

    def _banned(
        self, pool: Tensor, judged: Judged, before: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
    ) -> dict[At, list[Pieces]]:
        """What the teacher does not go on with, having begun a spelling and said something else."""
        banned: dict[At, list[Pieces]] = {}
        for i, row in enumerate(drafts):
            for j in range(len(row)):
                if judged.at[i, j] >= 0 and (ends := self.open([*before[i], *row[:j]])):
                    heads = pool[i, j, [end[0] for end in ends]].tolist()
                    if likely := [end for end, head in zip(ends, heads, strict=True) if head > NEGLIGIBLE]:
                        banned[i, j] = likely
        return banned

    def open(self, tokens: Sequence[int]) -> list[Pieces]:
        """What would make a longer unit of the last of these tokens."""
        ends: list[Pieces] = []
        said: Pieces = ()
        for token in reversed(tokens):
            said = (*self.pieces.get(token, ()), *said)
            if token not in self.pieces or len(said) >= self.longest:
                break
            ends += [unit[len(said) :] for unit in self.units if len(said) < len(unit) and unit[: len(said)] == said]
        return ends

    def _after(
        self, teacher: Teacher, contexts: Sequence[Contexts], judged: Judged, wanted: Mapping[At, Sequence[Pieces]]
    ) -> dict[tuple[At, Pieces], Tensor]:
        """The teacher's distribution after the first pieces of spellings; it reads what it has not read yet."""
        found: dict[tuple[At, Pieces], Tensor] = {}
        asked: dict[int, list[tuple[At, Pieces]]] = {}
        for at, spellings in sorted(wanted.items()):
            for pieces in sorted({s[:n] for s in spellings for n in range(1, len(s))}):
                place = contexts[at[0]].looks.get((at[1], pieces))
                if place is not None and (n := judged.at[at[0], place]) >= 0:
                    found[at, pieces] = judged.logits[n]
                else:
                    asked.setdefault(at[0], []).append((at, pieces))
        if asked:
            places = [[contexts[i].places[at[1]]._replace(more=pieces) for at, pieces in asked[i]] for i in asked]
            more = teacher.judge_more(list(asked), [contexts[i] for i in asked], places)
            for keys, index in zip(asked.values(), more.at, strict=True):
                found |= {key: more.logits[n] for key, n in zip(keys, index, strict=False)}
        if not found:
            return {}
        pools = self.pool(torch.stack(list(found.values())).to(self.shared.device).float())
        return dict(zip(found, pools, strict=True))


def normalised(masses: Tensor) -> tuple[Tensor, Tensor]:
    """q [..., V], all zero where the teacher has no mass on the student's tokens; and that mass [..., 1]."""
    held = masses.sum(-1, keepdim=True)
    return masses / held.clamp_min(torch.finfo(held.dtype).tiny), held


def unit_masses(
    reach: Mapping[Pieces, float], units: Collection[Pieces], banned: Collection[Pieces]
) -> dict[Pieces, float]:
    """The chance that the teacher's next unit is this one: of each of `units`, and of every first piece alone.

    Args:
        reach: the chance that the teacher goes on with some pieces, of all beginnings of units and of `banned`.
        banned: what it is known not to go on with.

    Returns:
        Chances that, with those of all other tokens, sum to 1 less that of the banned ones.
    """
    paths = {*units, *banned}

    def mass(unit: Pieces) -> float:
        if any(unit[: len(b)] == b for b in banned):
            return 0.0
        longer = _nearest(p for p in paths if len(p) > len(unit) and p[: len(unit)] == unit)
        return max(reach[unit] - sum(reach[p] for p in longer), 0.0)

    return {unit: mass(unit) for unit in {*units, *(p[:1] for p in paths)}}


def _nearest(paths: Iterable[Pieces]) -> set[Pieces]:
    """Those that go on from no other one."""
    every = set(paths)
    return {p for p in every if not any(p[:n] in every for n in range(1, len(p)))}

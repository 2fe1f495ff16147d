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

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rsd.candidates import Candidates, bounded, likeliest, placed, union
from rsd.config import Sampling
from rsd.midst import NEGLIGIBLE, At, Filter, Midst, Several, Spelled
from rsd.sampling import warp
from rsd.teacher import Contexts, Judged, Place, Teacher
from rsd.vocabulary import Vocabulary

Pieces = tuple[int, ...]  # ids of the teacher's
# Of (row, draft, token of the student's), whether the token could stand there.
Stands = Callable[[Sequence[tuple[int, int, int]]], Sequence[bool]]
SURE = 2.0**-40  # masses below it are what rounding leaves of a difference


class Proposals:
    """The teacher's proposals for one pair.

    units: the student's tokens that the teacher spells in several pieces, by their spelling.
    """

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

        spelled = {s: pieces for s, pieces in vocabulary.spelled.items() if sampled[s]}
        self.units: dict[Pieces, int] = {pieces: s for s, pieces in spelled.items() if len(pieces) > 1}
        self.longest = max(map(len, self.units), default=1)
        self.alone: dict[int, int] = {t: ordinary[t] for u in self.units for t in u if t in ordinary}
        self.pieces: dict[int, Pieces] = {s: u for u, s in self.units.items()} | {
            s: (t,) for t, s in self.alone.items()
        }
        self.by_head: dict[int, list[Pieces]] = {}
        for unit in self.units:
            self.by_head.setdefault(unit[0], []).append(unit)
        # What begins with a last piece and goes on, and what is left of it.
        self.merged = {
            piece: {t: rest for t, rest in vocabulary.merged.get(piece, {}).items() if sampled[list(rest)].all()}
            for piece in {unit[-1] for unit in self.units}
        }
        self.heads = torch.tensor(list(self.by_head), dtype=torch.long, device=device)

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

    def look_ahead(self, contexts: Contexts, drafts: Sequence[int]) -> None:
        """Have the teacher judge the pieces within a draft's spelling, too."""
        for j, token in enumerate(drafts):
            pieces = self.pieces.get(token, ())
            if len(pieces) > 1:
                path = contexts.places[j + 1].path if j + 1 < len(drafts) else contexts.after.path
                contexts.look(j, [(pieces[:n], Place(path, contexts.places[j].end + n)) for n in range(1, len(pieces))])

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
        spelled = self._spell(pool, stands, teacher, contexts, judged, before, drafts)
        where, changed = None, {}
        if spelled or self.several.spelled or any(m.rests for m in midst):
            where = Filter(self.several, masses, pool, spelled, midst)
            changed = where.mix(drafts)
        shape = logits.shape[:2]
        whole = np.ones(shape)
        scale, more = np.ones(shape), []
        for (i, j), (factor, added, total) in changed.items():
            scale[i, j], whole[i, j] = factor, total
            more += [(i, j, token, mass) for token, mass in added.items()]
        device = logits.device
        mine = masses.masses
        if changed:
            mine = mine * torch.from_numpy(scale).to(device, mine.dtype)[..., None]
        every = at_p = None
        if masses.ids is None or p is None:
            if more:
                *at, values = (torch.tensor(x, device=device) for x in zip(*more, strict=True))
                mine = mine.index_put(tuple(at), values.to(mine.dtype), accumulate=True)
        else:
            extra, values = _columns(more, shape)
            every, place = union(p[0], masses.ids, extra.to(device))
            mine = torch.cat([mine, values.to(device)], -1)
            mine = placed(mine, place[..., -mine.shape[-1] :], every.shape[-1])
            at_p = placed(p[1], place[..., : p[1].shape[-1]], every.shape[-1])
        if more:
            mine = mine * (mine > SURE)
        held = mine.sum(-1, keepdim=True)
        q = mine / held.clamp_min(torch.finfo(held.dtype).tiny)
        said = torch.from_numpy(whole).to(device)
        left_out = torch.where(said > 0, 1 - held[..., 0] / said, 0.0).clamp(0, 1)
        top = pool.masses.argmax(-1, keepdim=True)
        top = (top if pool.ids is None else pool.ids.gather(-1, top))[..., 0]
        return Proposed(every, q, at_p, left_out, top), where

    def _spell(
        self,
        pool: Candidates,
        stands: Stands,
        teacher: Teacher,
        contexts: Sequence[Contexts],
        judged: Judged,
        before: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
    ) -> dict[At, Spelled]:
        """What comes to the masses of tokens that the teacher spells."""
        if not self.units:
            return {}
        units, banned = self._wanted(pool, stands, judged), self._banned(pool, judged, before, drafts)
        if not units and not banned:
            return {}
        after = self._after(
            teacher, contexts, judged, {at: [*units.get(at, ()), *banned.get(at, ())] for at in {*units, *banned}}
        )
        return {
            at: self._at(pool, at, units.get(at, []), banned.get(at, []), after) for at in sorted({*units, *banned})
        }

    def _at(
        self,
        pool: Candidates,
        at: At,
        units: Sequence[Pieces],
        banned: Sequence[Pieces],
        after: Mapping[tuple[At, Pieces], tuple[Candidates, int, int]],
    ) -> Spelled:
        reach: dict[Pieces, float] = {}
        ends: dict[Pieces, dict[int, float]] = {}  # in tokens that begin with the last piece
        for pieces in (*units, *banned):
            for n in range(1, len(pieces) + 1):
                chances, row, j = (pool, *at) if n == 1 else after[at, pieces[: n - 1]]
                so_far = reach.get(pieces[: n - 1], 1.0)
                reach[pieces[:n]] = so_far * chances.of(row, j, pieces[n - 1])
            longer = chances.among(row, j, self.merged[pieces[-1]])
            ends[pieces] = {t: so_far * chance for t, chance in longer.items()}
        total = {path: chance + sum(ends.get(path, {}).values()) for path, chance in reach.items()}
        more: dict[int, float] = {}
        said: dict[int, dict[tuple[int, ...], float]] = {}
        for pieces, mass in unit_masses(total, units, banned).items():
            if len(pieces) > 1:
                more[self.units[pieces]] = mass
                if mass > 0 and ends[pieces]:
                    rests = said.setdefault(self.units[pieces], {})
                    for t, chance in ends[pieces].items():
                        rest = self.merged[pieces[-1]][t]
                        rests[rest] = rests.get(rest, 0.0) + chance
            elif pieces[0] in self.alone:
                token = self.alone[pieces[0]]
                more[token] = more.get(token, 0.0) + mass - reach[pieces]
        never = frozenset(t for path in banned if len(path) == 1 for t in ends[path])
        for t, chance in pool.among(*at, never).items():  # such a token is one of the student's, or several
            if t < len(self.table) - 1 and (token := int(self.table[t])) >= 0:
                more[token] = more.get(token, 0.0) - chance
        return Spelled(more, said, never, 1 - sum(total[path] for path in _nearest(banned)))

    def _wanted(self, pool: Candidates, stands: Stands, judged: Judged) -> dict[At, list[Pieces]]:
        """The units whose mass matters: their first piece has some, and the token or this piece could stand; and
        those whose spelling goes on from one of these."""
        if pool.ids is None:
            likely = (pool.masses[..., self.heads] > NEGLIGIBLE).any(-1)
        else:
            likely = (torch.isin(pool.ids, self.heads) & (pool.masses > NEGLIGIBLE)).any(-1)
        asked: list[tuple[int, int, Pieces]] = []
        for i, j in likely.nonzero().tolist():
            if judged.at[i, j] >= 0:
                heads = pool.among(i, j, self.by_head)
                asked += [(i, j, u) for t, mass in heads.items() if mass > NEGLIGIBLE for u in self.by_head[t]]
        if not asked:
            return {}
        able = stands([(i, j, self.units[u]) for i, j, u in asked])
        # The first piece as a token of the student's, or the unit once more where it is none: then it is looked up.
        first = stands([(i, j, self.alone.get(u[0], self.units[u])) for i, j, u in asked])
        wanted: dict[At, list[Pieces]] = {}
        for (i, j, unit), one, other in zip(asked, able, first, strict=True):
            if one or other or unit[0] not in self.alone:
                wanted.setdefault((i, j), []).append(unit)
        for units in wanted.values():
            begun = set(units)
            for unit in {u for b in begun for u in self.by_head[b[0]]} - begun:
                if any(unit[:n] in begun for n in range(1, len(unit))):
                    units.append(unit)
        return wanted

    def _banned(
        self, pool: Candidates, judged: Judged, before: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
    ) -> dict[At, list[Pieces]]:
        """What the teacher does not go on with, having begun a spelling and said something else."""
        banned: dict[At, list[Pieces]] = {}
        for i, row in enumerate(drafts):
            for j in range(len(row)):
                if judged.at[i, j] >= 0 and (ends := self.open([*before[i], *row[:j]])):
                    for end in ends:
                        ways = {end[0]} if len(end) > 1 else {end[0], *self.merged[end[0]]}
                        if sum(pool.among(i, j, ways).values()) > NEGLIGIBLE:
                            banned.setdefault((i, j), []).append(end)
        return banned

    def open(self, tokens: Sequence[int]) -> list[Pieces]:
        """What would make a longer unit of the last of these tokens."""
        ends: list[Pieces] = []
        said: Pieces = ()
        for token in reversed(tokens):
            said = (*self.pieces.get(token, ()), *said)
            if token not in self.pieces or len(said) >= self.longest:
                break
            longer = self.by_head.get(said[0], ())
            ends += [unit[len(said) :] for unit in longer if len(said) < len(unit) and unit[: len(said)] == said]
        return ends

    def _after(
        self, teacher: Teacher, contexts: Sequence[Contexts], judged: Judged, wanted: Mapping[At, Sequence[Pieces]]
    ) -> dict[tuple[At, Pieces], tuple[Candidates, int, int]]:
        """Where the teacher's distribution after spellings' first pieces is; it reads what it has not read yet."""
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
            more = teacher.judge_more([judged.first + i for i in asked], [contexts[i] for i in asked], places)
            for keys, index in zip(asked.values(), more.at, strict=True):
                found |= {key: more.logits[n] for key, n in zip(keys, index, strict=False)}
        if not found:
            return {}
        pools = self.pool(torch.stack(list(found.values())).to(self.shared.device).float()[None])
        return {key: (pools, 0, n) for n, key in enumerate(found)}


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

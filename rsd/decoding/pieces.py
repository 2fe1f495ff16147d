"""What the teacher spells: tokens that the student alone has, such as `</think>`, of several pieces of the teacher's.

See `proposals` for the idea. Here it is found out which spellings matter where, the teacher is asked what it has not
read yet, and the chances of its next unit (a spelling as a whole, or one of its pieces alone) are computed.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rsd.decoding.candidates import Candidates
from rsd.decoding.partial_tokens import NEGLIGIBLE, At, Correction
from rsd.decoding.teacher import Exact, Node, Teacher, TeacherOutput, TokenTree
from rsd.pair.vocabulary import Vocabulary

Pieces = tuple[int, ...]  # ids of the teacher's
# Of (row, draft, token of the student's), whether the token could stand there.
Accepts = Callable[[Sequence[tuple[int, int, int]]], Sequence[bool]]
# Distributions after some pieces in a place: candidates, and the row and column in which they are there.
After = dict[tuple[At, Pieces], tuple[Candidates, int, int]]
# Distributions of logits [N, V_teacher] and `TeacherOutput.exact`.
Pooled = Callable[[Tensor, Exact], Candidates]
AHEAD = 8  # contexts up to which whole spellings are read at once


class Units:
    """The tokens that a teacher spells in several pieces.

    units: by their spelling.

    Args:
        ordinary: the student's tokens for those of the teacher's that both have.
        table: int64 [V_teacher], the student's (first) token for any of the teacher's, or -1.
    """

    def __init__(self, vocabulary: Vocabulary, ordinary: Mapping[int, int], table: Tensor) -> None:
        self.table = table.cpu().numpy()  # looked up token by token: on the host
        sampled = vocabulary.own.numpy() == 0
        spelled = {s: pieces for s, pieces in vocabulary.student_to_teacher.items() if sampled[s]}
        self.units: dict[Pieces, int] = {pieces: s for s, pieces in spelled.items() if len(pieces) > 1}
        self.longest = max(map(len, self.units), default=1)
        # Pieces that are tokens of the student's, too.
        self.alone: dict[int, int] = {t: ordinary[t] for u in self.units for t in u if t in ordinary}
        self.pieces: dict[int, Pieces] = {s: u for u, s in self.units.items()} | {
            s: (t,) for t, s in self.alone.items()
        }
        self.by_head: dict[int, list[Pieces]] = {}
        for unit in self.units:
            self.by_head.setdefault(unit[0], []).append(unit)
        # What begins with a last piece and goes on, and what is left of it.
        self.merged = {
            piece: {t: left for t, left in vocabulary.merged.get(piece, {}).items() if sampled[list(left)].all()}
            for piece in {unit[-1] for unit in self.units}
        }
        self.heads = torch.tensor(list(self.by_head), dtype=torch.long, device=table.device)
        self.leads = torch.zeros(max(self.by_head, default=0) + 2, dtype=torch.bool, device=table.device)
        self.leads[self.heads] = True

    def look_ahead(self, tree: TokenTree, drafts: Sequence[int]) -> None:
        """Have the teacher read the pieces within a draft's spelling, too."""
        for j, token in enumerate(drafts):
            pieces = self.pieces.get(token, ())
            if len(pieces) > 1:
                path = tree.nodes[j + 1].path if j + 1 < len(drafts) else tree.after.path
                tree.look(j, [(pieces[:n], Node(path, tree.nodes[j].end + n)) for n in range(1, len(pieces))])

    def corrections(
        self,
        pool: Candidates,
        accepts: Accepts,
        teacher: Teacher,
        trees: Sequence[TokenTree],
        output: TeacherOutput,
        before: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
        *,
        pooled: Pooled,
    ) -> dict[At, Correction]:
        """What comes to the proposal mass of tokens that the teacher spells, by place.

        pooled: what makes distributions such as `pool` of logits.
        """
        if not self.units:
            return {}
        units, banned = self._wanted(pool, accepts, drafts), self._banned(pool, before, drafts)
        if not units and not banned:
            return {}
        wanted = {at: [*units.get(at, ()), *banned.get(at, ())] for at in sorted({*units, *banned})}
        after = self._after(pool, teacher, trees, output, wanted, pooled)
        likely = {
            at: [path for path in paths if (at, path[:-1]) in after or len(path) == 1] for at, paths in wanted.items()
        }
        return {
            at: self._at(
                pool,
                at,
                [u for u in units.get(at, ()) if u in paths],
                [b for b in banned.get(at, ()) if b in paths],
                after,
            )
            for at, paths in likely.items()
        }

    def _at(
        self,
        pool: Candidates,
        at: At,
        units: Sequence[Pieces],
        banned: Sequence[Pieces],
        after: After,
    ) -> Correction:
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
                    remainders = said.setdefault(self.units[pieces], {})
                    for t, chance in ends[pieces].items():
                        remainder = self.merged[pieces[-1]][t]
                        remainders[remainder] = remainders.get(remainder, 0.0) + chance
            elif pieces[0] in self.alone:
                token = self.alone[pieces[0]]
                more[token] = more.get(token, 0.0) + mass - reach[pieces]
        never = frozenset(t for path in banned if len(path) == 1 for t in ends[path])
        for t, chance in pool.among(*at, never).items():  # such a token is one of the student's, or several
            if t < len(self.table) - 1 and (token := int(self.table[t])) >= 0:
                more[token] = more.get(token, 0.0) - chance
        return Correction(more, said, never, 1 - sum(total[path] for path in _nearest(banned)))

    def _wanted(self, pool: Candidates, accepts: Accepts, drafts: Sequence[Sequence[int]]) -> dict[At, list[Pieces]]:
        """The units whose mass matters: their first piece has some, and the token or this piece could stand; and
        those whose spelling goes on from one of these."""
        if pool.ids is None:
            likely = (pool.masses[..., self.heads] > NEGLIGIBLE).any(-1)
        else:
            known = pool.ids.clamp_max(len(self.leads) - 1)
            likely = (self.leads[known] & (pool.masses > NEGLIGIBLE)).any(-1)
        asked: list[tuple[int, int, Pieces]] = []
        for i, j in likely.nonzero().tolist():
            if j < len(drafts[i]):
                heads = pool.among(i, j, self.by_head)
                asked += [(i, j, u) for t, mass in heads.items() if mass > NEGLIGIBLE for u in self.by_head[t]]
        if not asked:
            return {}
        able = accepts([(i, j, self.units[u]) for i, j, u in asked])
        # The first piece as a token of the student's, or the unit once more where it is none: then it is looked up.
        first = accepts([(i, j, self.alone.get(u[0], self.units[u])) for i, j, u in asked])
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
        self, pool: Candidates, before: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]]
    ) -> dict[At, list[Pieces]]:
        """What the teacher does not go on with, having begun a spelling and said something else."""
        banned: dict[At, list[Pieces]] = {}
        for i, row in enumerate(drafts):
            for j in range(len(row)):
                for end in self.open([*before[i], *row[:j]]):
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
        self,
        pool: Candidates,
        teacher: Teacher,
        trees: Sequence[TokenTree],
        output: TeacherOutput,
        wanted: Mapping[At, Sequence[Pieces]],
        pooled: Pooled,
    ) -> After:
        """The teacher's distributions after the first pieces of spellings; it reads what it has not read yet.

        Where many spellings begin alike it reads piece by piece, and goes on with those that it may say alone.
        """
        after: After = {}
        alive = {at: list(paths) for at, paths in wanted.items()}
        while True:
            found: dict[tuple[At, Pieces], tuple[TeacherOutput, int]] = {}
            asked: dict[int, list[tuple[At, Pieces]]] = {}
            for at, paths in alive.items():
                ahead = {path[:n] for path in paths for n in range(1, len(path)) if (at, path[:n]) not in after}
                if len(ahead) > AHEAD:
                    ahead = {pieces for pieces in ahead if len(pieces) == min(map(len, ahead))}
                for pieces in sorted(ahead):
                    node = trees[at[0]].looks.get((at[1], pieces))
                    if node is not None and (n := output.beside[at[0], node]) >= 0:
                        found[at, pieces] = output, int(n)
                    else:
                        asked.setdefault(at[0], []).append((at, pieces))
            if asked:
                nodes = [[trees[i].nodes[at[1]]._replace(more=pieces) for at, pieces in asked[i]] for i in asked]
                rows = [output.first + i for i in asked]
                more = teacher.more_logits(rows, [trees[i] for i in asked], nodes)
                for keys, index in zip(asked.values(), more.at, strict=True):
                    found |= {key: (more, int(n)) for key, n in zip(keys, index, strict=False)}
            if not found:
                return after
            logits = torch.stack([said.logits[n] for said, n in found.values()]).to(self.heads.device).float()
            exact = {k: said.exact[n] for k, (said, n) in enumerate(found.values()) if n in said.exact}
            made = pooled(logits, exact)
            pools = Candidates(None if made.ids is None else made.ids[None], made.masses[None])
            after |= {key: (pools, 0, n) for n, key in enumerate(found)}
            alive = {
                at: [path for path in paths if _reach(pool, at, path[:-1], after) > NEGLIGIBLE]
                for at, paths in alive.items()
            }


def _reach(pool: Candidates, at: At, pieces: Pieces, after: After) -> float:
    """The chance that the teacher goes on with these pieces, as far as that is known."""
    reach = 1.0
    for n, piece in enumerate(pieces):
        if n and (at, pieces[:n]) not in after:
            break
        chances, row, j = after[at, pieces[:n]] if n else (pool, *at)
        reach *= chances.of(row, j, piece)
    return reach


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

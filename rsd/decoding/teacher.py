"""What is asked of a teacher in a round, and the teacher whose weights and cache are here."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rsd.models.kv_cache import CachedModel, TreeMask
from rsd.pair.vocabulary import ContextEdit, TeacherContext, Vocabulary

PIECE = 1 << 20  # logits that are summed up at once on a CPU
# Bytes of logits, in float32, that one pass may leave: rows beyond that are read in another one. A CPU has no use
# for passes so wide; on a GPU they are what makes a pass cheap.
LOGITS, LOGITS_ELSEWHERE = 3 << 25, 1 << 29


U = TypeVar("U")
Away = Generator[None, None, U]  # yields wherever a teacher is away with what it was asked, and returns what came of it


def here(asking: Away[U]) -> U:
    """What comes of it, waited for."""
    while True:
        try:
            next(asking)
        except StopIteration as e:
            return e.value


class Node(NamedTuple):
    """A context: the first `end` ids of a path, and some more."""

    path: int
    end: int
    more: tuple[int, ...] = ()


class TokenTree:
    """The contexts of a row's drafts, as the teacher reads them.

    paths: its ids; each path but the first begins as the one before it does, for `forks` ids.
    nodes: before each draft. after: behind the last one. beside: others that the teacher is asked for.
    looks: which of these it is, by a draft's position and the pieces that follow there.
    edits: what each draft changes. matter: of a draft's position, or of None for what is beside, the teacher's ids on
    whose probabilities there the round depends; None where these are too many, or nobody has said.
    """

    def __init__(self, vocabulary: Vocabulary, context: TeacherContext, drafts: Sequence[int]) -> None:
        work = TeacherContext(context.ids, context.fixed)
        self.paths, self.forks = [work.ids], [0]
        self.after = Node(0, len(work.ids))
        self.nodes: list[Node] = []
        self.beside: list[Node] = []
        self.looks: dict[tuple[int, tuple[int, ...]], int] = {}
        self.edits: list[ContextEdit] = []
        self.matter: Callable[[int | None], Collection[int] | None] = lambda draft: None
        for token in drafts:
            self.nodes.append(self.after)
            edit = vocabulary.edit(work, token)
            if edit.keep < len(work.ids):  # its last ids are others now
                work = TeacherContext(work.ids, work.fixed)
                self.paths.append(work.ids)
                self.forks.append(edit.keep)
            work.apply(edit)
            self.edits.append(edit)
            self.after = Node(len(self.paths) - 1, len(work.ids))

    def common(self, path: int, other: int) -> int:
        """How many ids two paths are known to begin with alike."""
        if path == other:
            return len(self.paths[path])
        low, high = sorted((path, other))
        return min(self.forks[low + 1 : high + 1])

    def look(self, draft: int, nodes: Sequence[tuple[tuple[int, ...], Node]]) -> None:
        """Ask for what follows some pieces in a draft's place."""
        for pieces, node in nodes:
            self.looks[draft, pieces] = len(self.beside)
            self.beside.append(node)

    def ids(self, node: Node) -> list[int]:
        return [*self.paths[node.path][: node.end], *node.more]


# Of some places: ids of its tokens, ascending, and their probabilities in its sampling distribution, float64.
Exact = Mapping[int, tuple[np.ndarray, np.ndarray]]


class TeacherOutput(NamedTuple):
    """What a teacher says of contexts.

    logits: float [N, V_teacher]. at: int64 [R, K], which of the N belongs to a row's node; -1 where there is none.
        beside: the same of the other nodes. first: the rows are those from this one on. errors: rows that it cannot
        read, whose logits are NaN, and why. exact: of those of the N whose logits do not say what its sampling
        distribution is; no token on which the round depends is missing there.
    """

    logits: Tensor
    at: np.ndarray
    beside: np.ndarray
    first: int = 0
    errors: Mapping[int, str] = {}
    exact: Exact = MappingProxyType({})


class Teacher(Protocol):
    """Reads contexts of the rows that are decoded together.

    context: how many ids it can read. width: of its vocabulary. counts: in how many places it knew its distribution,
    and how, if it does not always. talks: it may be asked to go on by itself. prefill: what it made of prompts, for
    copy_row, which puts one of them in a row's place; drop_row: nothing takes it. read: the logits of all rows, some
    neighbouring ones after the other, so that the logits of all need not exist at once; more_logits: once more of some
    of these rows, other nodes than the trees have. total: the log-sum-exp of logits, of which `top` is the index of one
    that is not -inf. go_on: the likeliest ids behind each row's context, one after the other, and in how many places it
    knows what is likely: its logits there need no asking any more. keep: what a row's context has become, which is
    like the paths up to `start` at least.

    read and go_on yield wherever the teacher is away, so that others may have their turn. Closed there, it comes back.
    """

    context: int
    width: int
    counts: dict[str, int]
    talks: bool

    def prefill(self, prompts: list[list[int]]) -> Any: ...

    def copy_row(self, prefilled: Any, at: int, row: int, *, length: int) -> None: ...

    def move_row(self, row: int, to: int) -> None: ...

    def drop_row(self, row: int) -> None: ...

    def read(self, trees: Sequence[TokenTree]) -> Away[Iterator[TeacherOutput]]: ...

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput: ...

    def total(self, logits: Tensor, top: Tensor) -> Tensor: ...

    def go_on(self, contexts: Sequence[list[int]], count: int) -> Away[list[tuple[list[int], int]]]: ...

    def keep(self, row: int, tree: TokenTree, ids: list[int], start: int) -> None: ...

    def drop(self, rows: int) -> None: ...


class LocalTeacher:
    """A model and its cache. A row's path lies in the cache's slots, one slot a position; contexts that are
    not on it branch off, in slots behind it (`kv_cache.TreeMask`).
    """

    talks = False  # what it reads costs it less than what it says

    def __init__(self, model: CachedModel) -> None:
        self.model = model
        self.context = model.context
        self.width = int(model.model.config.get_text_config().vocab_size)
        self.counts: dict[str, int] = {}
        self.held = [0] * model.rows  # how many ids of its context a row's slots hold
        self.fed = [(0, 0)] * model.rows  # the path that they hold since the last pass, and how many ids of it

    def prefill(self, prompts: list[list[int]]) -> CachedModel:
        return self.model.prefill(prompts)

    def copy_row(self, prefilled: CachedModel, at: int, row: int, *, length: int) -> None:
        self.model.copy_row(prefilled, at, row, length=length)
        self.held[row] = length

    def move_row(self, row: int, to: int) -> None:
        self.model.move_row(row, to)
        self.held[to] = self.held[row]

    def drop_row(self, row: int) -> None:
        self.model.drop_row(row)

    def drop(self, rows: int) -> None:
        self.model.drop(rows)

    def total(self, logits: Tensor, top: Tensor) -> Tensor:
        """The log-sum-exp [N] of logits [N, V_teacher]; `top` [N] is the index of a logit that is not -inf."""
        # On a CPU a few rows at a time: what fits into the processor's cache is quicker, and takes no memory.
        rows = max(1, PIECE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
        at = top[:, None]
        said = [x.log_softmax(-1).gather(-1, i) for x, i in zip(logits.split(rows), at.split(rows), strict=True)]
        return (logits.gather(-1, at) - (torch.cat(said) if len(said) > 1 else said[0]))[:, 0]

    def read(self, trees: Sequence[TokenTree]) -> Away[Iterator[TeacherOutput]]:
        yield from ()  # it is never away
        return self._logits(trees)

    def _logits(self, trees: Sequence[TokenTree]) -> Iterator[TeacherOutput]:
        columns, nodes, beside = [], [], []
        for row, tree in enumerate(trees):
            path, end, _ = tree.nodes[-1]
            made = _Columns(tree, path, min(self.held[row], tree.common(0, path)), end)
            # What is asked beside may be the path's next ids.
            made.reach(max((p.end for p in (*tree.nodes, *tree.beside) if p.path == path), default=end))
            nodes.append([made.column(p) for p in tree.nodes])
            beside.append([made.column(p) for p in tree.beside])
            columns.append(made)
            self.fed[row] = path, made.end
        for some in self._groups([made.width for made in columns]):
            mine = slice(some.start, some.stop)
            rows = some if len(some) < len(columns) else None
            yield self._read(columns[mine], nodes[mine], beside[mine], rows)._replace(first=some.start)

    def go_on(self, contexts: Sequence[list[int]], count: int) -> Away[list[tuple[list[int], int]]]:
        yield from ()
        return [([], 0) for _ in contexts]  # it says nothing by itself

    def _groups(self, widths: Sequence[int]) -> Iterator[range]:
        """Neighbouring rows that are read in one pass, as many as may leave their logits."""
        columns = (LOGITS if self.model.device.type == "cpu" else LOGITS_ELSEWHERE) // (4 * self.width)
        first, together = 0, 0
        for row, width in enumerate(widths):
            together += width
            if row > first and together > columns:
                yield range(first, row)
                first, together = row, width
        yield range(first, len(widths))

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput:
        fed = [self.fed[row] for row in rows]
        columns = [_Columns(tree, path, end, end) for tree, (path, end) in zip(trees, fed, strict=True)]
        index = [[made.column(p) for p in more] for made, more in zip(columns, nodes, strict=True)]
        return self._read(columns, index, [[] for _ in rows], rows)

    def _read(
        self,
        columns: "list[_Columns]",
        nodes: list[list[int]],
        beside: list[list[int]],
        rows: Sequence[int] | None,
    ) -> TeacherOutput:
        """One pass. nodes, beside: by row, after which of its columns they are."""
        widths = [made.width for made in columns]
        width = max(widths)
        ids = np.empty((len(columns), width), dtype=np.int64)
        at = np.array([[made.start, made.end - made.start] for made in columns])
        for i, made in enumerate(columns):
            made.write(ids[i])
        positions = at[:, :1] + np.minimum(np.arange(width), np.maximum(at[:, 1:] - 1, 0))
        mask = None
        if any(made.branches for made in columns):
            # Of every column its position and slot, and what it sees: slots below `before`, and from `since` on.
            laid = np.stack([positions, positions, positions + 1, positions])
            for i, made in enumerate(columns):
                made.lay(laid[:, i])
            positions = laid[0]
            slot, before, since = torch.from_numpy(laid[1:]).to(self.model.device)
            mask = TreeMask(slot, before, since)
            reach = laid[1].max(1) + 1
        else:
            reach = positions.max(1) + 1
        both = torch.from_numpy(np.stack([ids, positions])).to(self.model.device)
        counts = None if min(widths) == width else widths
        logits = self.model(both[0], both[1], reach, tree=mask, rows=rows, counts=counts)
        first = np.cumsum([0, *widths[:-1]])[:, None]
        at, besides = (np.where(index >= 0, index + first, -1) for index in (table(nodes), table(beside)))
        return TeacherOutput(logits if counts else logits.flatten(0, 1), at, besides)

    def keep(self, row: int, tree: TokenTree, ids: list[int], start: int) -> None:
        path, end = self.fed[row]
        held, end = tree.paths[path], min(end, len(ids) - 1)
        n = min(start, end)
        while n < end and held[n] == ids[n]:
            n += 1
        self.held[row] = n


def table(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of numbers, int64 [R, P], filled up with -1."""
    most = max(map(len, rows))
    return np.array([[*row, *[-1] * (most - len(row))] for row in rows], dtype=np.int64).reshape(len(rows), most)


class _Columns:
    """The columns of one row in a pass: ids `start` to `end` of its path, then branches."""

    def __init__(self, tree: TokenTree, path: int, start: int, end: int) -> None:
        self.tree, self.path, self.start, self.end = tree, path, start, end
        self.branches: list[tuple[int, list[int]]] = []  # where it leaves the path, its ids

    @property
    def width(self) -> int:
        return self.end - self.start + sum(len(ids) for _, ids in self.branches)

    def reach(self, end: int) -> None:
        self.end = max(self.end, end)

    def on_path(self, node: Node) -> int:
        """The column after which a node is, -1 if it is not on this path."""
        on = not node.more and self.start < node.end <= min(self.tree.common(node.path, self.path), self.end)
        return node.end - 1 - self.start if on else -1

    def column(self, node: Node) -> int:
        """The same; what is not on the path branches off."""
        if (column := self.on_path(node)) >= 0:
            return column
        leaves = min(node.end, self.tree.common(node.path, self.path), self.end)
        ids = [*self.tree.paths[node.path][leaves : node.end], *node.more]
        if self.branches:
            last, before = self.branches[-1]
            if last == leaves and ids[: len(before)] == before:
                self.branches.pop()  # it is the beginning of this one
        self.branches.append((leaves, ids))
        return self.width - 1

    def write(self, ids: np.ndarray) -> None:
        n = self.end - self.start
        ids[:n] = self.tree.paths[self.path][self.start : self.end]
        for _, branch in self.branches:
            ids[n : n + len(branch)] = branch
            n += len(branch)
        ids[n:] = ids[n - 1]

    def lay(self, laid: np.ndarray) -> None:
        n, slot = self.end - self.start, self.end
        for leaves, branch in self.branches:
            steps = np.arange(len(branch))
            end = n + len(branch)
            laid[:2, n:end] = leaves + steps, slot + steps
            laid[2:, n:end] = [[leaves], [slot]]
            n, slot = end, slot + len(branch)
        laid[:, n:] = laid[:, n - 1 : n]

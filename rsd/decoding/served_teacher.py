"""A teacher behind a server; the student stays here.

The server tells the 20 likeliest tokens, at temperature 1; the log-prob of a token that is not among them is not known.
Often these settle what q is (`listed`). Where they do not, a server that can is asked once more, by their ids, for the
tokens on which r depends: those of A, of which there are few. Else q is the 20, renormalised, as in the paper (arXiv
2509.22230).
"""

from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rsd.acceptance import Sampling
from rsd.decoding import listed
from rsd.decoding.teacher import LOGITS, Away, Node, TeacherOutput, TokenTree, here, table
from rsd.serving.client import Client
from rsd.serving.told import Api, Asked, Chain, Told

# Of a row, how many contexts were asked about, and what is told after each; or why there is nothing.
Answers = tuple[int, list[Told] | str]
U = TypeVar("U")
Known = dict[int, tuple[np.ndarray, np.ndarray]]  # of a row's nodes, as `TeacherOutput.exact`
CHANGED = (
    "the teacher's server tells probabilities of another kind than it did when the job began: "
    "give it its --logprobs-mode back, and run the same command again"
)


class ServedTeacher:
    """A `teacher.Teacher` whose model is on a server. It holds nothing of a row: every context is sent whole.

    Args:
        api: how the server is asked. sampling: what q is of. mode: of `listed.mode_of`, how q is found out. width: of
            the teacher's vocabulary. context: the longest prompt that it takes.

    Raises:
        ConnectionError (when judging): the server has not answered for `client.PATIENCE` seconds, or lets nobody in.
    """

    talks = True

    def __init__(self, client: Client, api: Api, *, sampling: Sampling, mode: str, width: int, context: int) -> None:
        self.client, self.api, self.sampling, self.mode = client, api, sampling, mode
        self.width, self.context = width, context
        self.counts = {"settled": 0, "by_ids": 0, "renormalised": 0}
        self._said: list[tuple[list[int], list[Told]]] = []  # by row: what it said last, and what it told there
        self._table, self._more = _Table(width), _Table(width)

    def another(self) -> "ServedTeacher":
        """The same teacher, for other rows; what it knew is counted together."""
        made = ServedTeacher(
            self.client, self.api, sampling=self.sampling, mode=self.mode, width=self.width, context=self.context
        )
        made.counts = self.counts
        return made

    def prefill(self, prompts: list[list[int]]) -> None:
        return None

    def copy_row(self, prefilled: None, at: int, row: int, *, length: int) -> None:
        pass

    def move_row(self, row: int, to: int) -> None:
        pass

    def drop_row(self, row: int) -> None:
        pass

    def keep(self, row: int, tree: TokenTree, ids: list[int], start: int) -> None:
        pass

    def drop(self, rows: int) -> None:
        pass

    def total(self, logits: Tensor, top: Tensor) -> Tensor:
        """They are log-probs already; -inf where the server did not tell."""
        return logits.new_zeros(logits.shape[:-1])

    def _away(self, work: Coroutine[Any, Any, U]) -> Away[U]:
        """What becomes of what the server is asked; nobody waits for it where nobody comes back for it."""
        future = self.client.begin(work)
        try:
            yield
            return future.result()
        except BaseException:  # an interrupt, say
            future.cancel()
            raise

    def read(self, trees: Sequence[TokenTree]) -> Away[Iterator[TeacherOutput]]:
        nodes = [[*tree.nodes, *tree.beside] for tree in trees]
        said = yield from self._answers(range(len(trees)), trees, nodes)
        exact = yield from self._exactly(trees, nodes, said, [len(tree.nodes) for tree in trees])
        return self._outputs(trees, said, exact)

    def _outputs(self, trees: Sequence[TokenTree], said: list[Answers], exact: list[Known]) -> Iterator[TeacherOutput]:
        beside = [len(tree.beside) for tree in trees]
        rows = max(1, LOGITS // (4 * self.width * max(count for count, _ in said)))
        for first in range(0, len(trees), rows):
            mine = range(first, min(first + rows, len(trees)))
            at = slice(first, first + rows)
            yield self._output(mine, said[at], beside[at], exact[at], self._table)

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput:
        said = here(self._answers(rows, trees, nodes))
        exact = here(self._exactly(trees, nodes, said, [0] * len(rows)))
        return self._output(rows, said, [0] * len(rows), exact, self._more)

    def go_on(self, contexts: Sequence[list[int]], count: int) -> Away[list[tuple[list[int], int]]]:
        count = max(1, min(count, self.context + 1 - max(map(len, contexts))))
        said = yield from self._away(self.api.go_on([ids[-self.context :] for ids in contexts], count))
        made = []
        self._said = []
        for ids, answer in zip(contexts, said, strict=True):
            tokens, told = ([], []) if isinstance(answer, str) else answer
            self._said.append(([*ids, *tokens], told))
            made.append((tokens, len(told)))
        return made

    def _known(self, row: int, ids: list[int]) -> Told | None:
        """What it told of this context when it said something last."""
        if row >= len(self._said):
            return None
        said, told = self._said[row]
        at = len(ids) - (len(said) - len(told))
        return told[at] if 0 <= at < len(told) and said[: len(ids)] == ids else None

    def _answers(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> Away[list[Answers]]:
        """What the server says of the rows' nodes, or of a row why it says nothing; it is asked for what is new."""
        known = [
            [self._known(row, tree.ids(node)) for node in mine]
            for row, tree, mine in zip(rows, trees, nodes, strict=True)
        ]
        asked = [i for i, told in enumerate(known) if None in told]
        new = [[node for node, told in zip(nodes[i], known[i], strict=True) if told is None] for i in asked]
        chains = [self._chains(trees[i], some) for i, some in zip(asked, new, strict=True)]
        said = (yield from self._away(self.api.likeliest([mine for mine, _ in chains]))) if chains else []
        made: list[Answers] = [(len(mine), mine) for mine in known]  # type: ignore[misc]
        for i, (_, at), answer in zip(asked, chains, said, strict=True):
            if isinstance(answer, str):
                made[i] = len(nodes[i]), answer
            else:
                more = iter([answer[chain][end] for chain, end in at])
                made[i] = len(nodes[i]), [next(more) if told is None else told for told in known[i]]
        return made

    def _exactly(
        self, trees: Sequence[TokenTree], nodes: Sequence[list[Node]], said: list[Answers], drafts: Sequence[int]
    ) -> Away[list[Known]]:
        """By row, q after those nodes where the lists do not settle it, as far as that can be found out.

        Where the server refuses to tell that, this is what it says of the row. drafts: how many of a row's nodes, the
        first ones, are those of its drafts.
        """
        places = [(i, j) for i, (_, told) in enumerate(said) if not isinstance(told, str) for j in range(len(told))]
        made: list[Known] = [{} for _ in said]
        if not places:
            return made
        lists = listed.read([said[i][1][j] for i, j in places], self.sampling, width=self.width)  # type: ignore[misc]
        unsettled = (~lists.settled).nonzero()[0].tolist()
        needed: dict[int, Collection[int]] = {}  # what is to be asked for, maybe nothing, where q can be found out
        for n in unsettled if self.mode == listed.EXACT else ():
            i, j = places[n]
            if (ids := trees[i].matter(j if j < drafts[i] else None)) is not None:
                needed[n] = listed.needed(lists, n, ids, self.sampling)
        asked = [n for n in needed if needed[n]]
        self.counts["settled"] += len(places) - len(unsettled) + len(needed) - len(asked)
        self.counts["by_ids"] += len(asked)
        self.counts["renormalised"] += len(unsettled) - len(needed)
        told: dict[int, Mapping[int, float]] = {n: {} for n in needed}
        contexts = [trees[i].ids(nodes[i][j])[-self.context :] for i, j in (places[n] for n in asked)]
        answers = yield from self._by_ids(contexts, [needed[n] for n in asked])
        for n, answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                i = places[n][0]
                said[i] = said[i][0], answer
                del told[n]
            else:
                told[n] = answer
        if listed.unfiltered(lists, told, self.sampling):
            raise ConnectionError(CHANGED)
        for n, values in told.items():
            i, j = places[n]
            if not isinstance(said[i][1], str):
                made[i][j] = listed.masses(lists, n, values, self.sampling)
        return made

    def _by_ids(
        self, contexts: Sequence[list[int]], ids: Sequence[Collection[int]]
    ) -> Away[list[dict[int, float] | str]]:
        """What is told of these ids after some contexts."""
        if not contexts:
            return []
        asked = [Asked(context, some) for context, some in zip(contexts, ids, strict=True)]
        return (yield from self._away(self.api.of_ids(asked, self.sampling)))

    def _chains(self, tree: TokenTree, nodes: Sequence[Node]) -> tuple[list[Chain], list[tuple[int, int]]]:
        """A row's nodes as chains of contexts, and for each node the chain and the context that it is."""
        chains: list[Chain] = []
        at = []
        paths: dict[int, int] = {}  # the chain of a path
        for node in nodes:
            if node.more or node.end > self.context:
                # Drafts beyond the teacher's context are not committed, whatever it says of them.
                ids = tree.ids(node)[-self.context :]
                chains.append(Chain(ids, [len(ids)]))
                at.append((len(chains) - 1, 0))
                continue
            chain = paths.get(node.path)
            if chain is None or chains[chain].ends[-1] >= node.end:
                paths[node.path] = chain = len(chains)
                chains.append(Chain(tree.paths[node.path], []))
            chains[chain].ends.append(node.end)
            at.append((chain, len(chains[chain].ends) - 1))
        return chains, at

    def _output(
        self,
        rows: Sequence[int],
        said: Sequence[Answers],
        beside: Sequence[int],
        exact: Sequence[Known],
        values: "_Table",
    ) -> TeacherOutput:
        """beside: how many of a row's answers, the last ones, are not of its drafts. exact: as of `_exactly`."""
        told: list[Told | None] = []
        at, besides, errors, n = [], [], {}, 0
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for row, (count, answer), others, mine in zip(rows, said, beside, exact, strict=True):
            known |= {n + j: q for j, q in mine.items()}
            at.append(range(n, n + count - others))
            besides.append(range(n + count - others, n + count))
            if isinstance(answer, str):
                errors[row] = answer
                told += [None] * count
            else:
                told += answer
            n += count
        return TeacherOutput(values.of(told), table(at), table(besides), rows[0], errors, known)


class _Table:
    """Log-probs of what was told, [N, V], -inf elsewhere.

    Its memory is used again: to fill a fresh one takes longer than all that is done with it, where V is 150,000.
    """

    def __init__(self, width: int) -> None:
        self._values = np.empty((0, width), dtype=np.float32)
        self._written: list[Sequence[int] | slice] = []  # by place, what is not -inf

    def of(self, told: Sequence[Told | None]) -> Tensor:
        """None: NaN. What it returned before is not to be read any more."""
        for place, ids in enumerate(self._written):
            self._values[place, ids] = -np.inf
        if len(told) > len(self._values):
            self._values = np.full((len(told), self._values.shape[1]), -np.inf, dtype=np.float32)
        self._written = [slice(None) if one is None else one.ids for one in told]
        for place, one in enumerate(told):
            self._values[place, self._written[place]] = np.nan if one is None else one.logprobs
        return torch.from_numpy(self._values[: len(told)])

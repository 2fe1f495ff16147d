"""A teacher behind a server; the student stays here.

The server tells the 20 likeliest tokens. So q is these, renormalised, as in the paper (arXiv 2509.22230), and
the log-prob of a token that is not among them is not known.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rsd.decoding.teacher import LOGITS, Node, TeacherOutput, TokenTree, table
from rsd.serving.client import Client
from rsd.serving.told import Api, Chain, Told

# Of a row, how many contexts were asked about, and what is told after each; or why there is nothing.
Answers = tuple[int, list[Told] | str]


class ServedTeacher:
    """A `teacher.Teacher` whose model is on a server. It holds nothing of a row: every context is sent whole.

    Args:
        api: how the server is asked. width: of the teacher's vocabulary. context: the longest prompt that it takes.

    Raises:
        ConnectionError (when judging): the server has not answered for `client.PATIENCE` seconds, or lets nobody in.
    """

    talks = True

    def __init__(self, client: Client, api: Api, *, width: int, context: int) -> None:
        self.client, self.api, self.width, self.context = client, api, width, context
        self._said: list[tuple[list[int], list[Told]]] = []  # by row: what it said last, and what it told there

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

    def logits(self, trees: Sequence[TokenTree]) -> Iterator[TeacherOutput]:
        said = self._answers(range(len(trees)), trees, [[*tree.nodes, *tree.beside] for tree in trees])
        beside = [len(tree.beside) for tree in trees]
        rows = max(1, LOGITS // (4 * self.width * max(count for count, _ in said)))
        for first in range(0, len(trees), rows):
            mine = range(first, min(first + rows, len(trees)))
            yield self._output(mine, said[first : first + rows], beside[first : first + rows])

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput:
        return self._output(rows, self._answers(rows, trees, nodes), [0] * len(rows))

    def go_on(self, contexts: Sequence[list[int]], count: int) -> list[tuple[list[int], int]]:
        count = max(1, min(count, self.context + 1 - max(map(len, contexts))))
        said = self.client.wait(self.api.go_on([ids[-self.context :] for ids in contexts], count))
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

    def _answers(self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]) -> list[Answers]:
        """What the server says of the rows' nodes, or of a row why it says nothing; it is asked for what is new."""
        known = [
            [self._known(row, tree.ids(node)) for node in mine]
            for row, tree, mine in zip(rows, trees, nodes, strict=True)
        ]
        asked = [i for i, told in enumerate(known) if None in told]
        new = [[node for node, told in zip(nodes[i], known[i], strict=True) if told is None] for i in asked]
        chains = [self._chains(trees[i], some) for i, some in zip(asked, new, strict=True)]
        said = self.client.wait(self.api.likeliest([mine for mine, _ in chains])) if chains else []
        made: list[Answers] = [(len(mine), mine) for mine in known]  # type: ignore[misc]
        for i, (_, at), answer in zip(asked, chains, said, strict=True):
            if isinstance(answer, str):
                made[i] = len(nodes[i]), answer
            else:
                more = iter([answer[chain][end] for chain, end in at])
                made[i] = len(nodes[i]), [next(more) if told is None else told for told in known[i]]
        return made

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

    def _output(self, rows: Sequence[int], said: Sequence[Answers], beside: Sequence[int]) -> TeacherOutput:
        """beside: how many of a row's answers, the last ones, are not of its drafts."""
        logprobs = np.full((sum(count for count, _ in said), self.width), -np.inf, dtype=np.float32)
        at, besides, errors, n = [], [], {}, 0
        for row, (count, answer), others in zip(rows, said, beside, strict=True):
            at.append(range(n, n + count - others))
            besides.append(range(n + count - others, n + count))
            if isinstance(answer, str):
                errors[row] = answer
                logprobs[n : n + count] = np.nan
            else:
                for j, told in enumerate(answer):
                    logprobs[n + j, told.ids] = told.logprobs
            n += count
        return TeacherOutput(torch.from_numpy(logprobs), table(at), table(besides), rows[0], errors)

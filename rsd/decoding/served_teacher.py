"""A teacher behind a server; the student stays here.

The server tells the 20 likeliest tokens. So q is these, renormalised, as in the paper (arXiv 2509.22230), and
the log-prob of a token that is not among them is not known.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsd.decoding.teacher import LOGITS, Node, TeacherOutput, TokenTree, table
from rsd.serving.client import Client
from rsd.serving.told import Api, Chain, Told

# Of a row, how many contexts were asked about, and what is told after each; or why there is nothing.
Answers = tuple[int, list[Told] | str]


class Question(NamedTuple):
    """What is asked about the nodes of some rows.

    known: by row what is known of its nodes, None of those that are `asked` about: of which rows, and for each node the
    chain and the context that it is. answer: what the api will answer, None if all is known.
    """

    known: list[list[Told | None]]
    asked: list[int]
    at: list[list[tuple[int, int]]]
    answer: Future[list[list[list[Told]] | str]] | None


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
        self._away: Future[Any] | None = None  # what is asked and not answered yet
        self._asked: Question | None = None
        self._contexts: Sequence[list[int]] = []  # behind which it is to go on

    def another(self) -> "ServedTeacher":
        """The same teacher, for other rows."""
        return ServedTeacher(self.client, self.api, width=self.width, context=self.context)

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

    def leave(self) -> None:
        if self._away is not None:
            self._away.cancel()
            self._away = None

    def ask(self, trees: Sequence[TokenTree]) -> bool:
        nodes = [[*tree.nodes, *tree.beside] for tree in trees]
        self._asked = self._question(range(len(trees)), trees, nodes)
        self._away = self._asked.answer
        return self._away is not None

    def logits(self, trees: Sequence[TokenTree]) -> Iterator[TeacherOutput]:
        """What `ask` asked."""
        if self._asked is None:
            raise RuntimeError("it was not asked")
        said = _answers(self._asked)
        self._asked = self._away = None
        beside = [len(tree.beside) for tree in trees]
        rows = max(1, LOGITS // (4 * self.width * max(count for count, _ in said)))
        for first in range(0, len(trees), rows):
            mine = range(first, min(first + rows, len(trees)))
            yield self._output(mine, said[first : first + rows], beside[first : first + rows])

    def more_logits(
        self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]
    ) -> TeacherOutput:
        question = self._question(rows, trees, nodes)
        self._away = question.answer
        said = _answers(question)
        self._away = None
        return self._output(rows, said, [0] * len(rows))

    def go_on(self, contexts: Sequence[list[int]], count: int) -> None:
        count = max(1, min(count, self.context + 1 - max(map(len, contexts))))
        self._contexts = [list(ids) for ids in contexts]
        self._away = self.client.begin(self.api.go_on([ids[-self.context :] for ids in contexts], count))

    def said(self) -> list[tuple[list[int], int]]:
        if self._away is None:
            raise RuntimeError("it was not asked")
        said = self._away.result()
        self._away = None
        made = []
        self._said = []
        for ids, answer in zip(self._contexts, said, strict=True):
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

    def _question(self, rows: Sequence[int], trees: Sequence[TokenTree], nodes: Sequence[list[Node]]) -> Question:
        """Ask what the server says of the rows' nodes, as far as that is new."""
        known = [
            [self._known(row, tree.ids(node)) for node in mine]
            for row, tree, mine in zip(rows, trees, nodes, strict=True)
        ]
        asked = [i for i, told in enumerate(known) if None in told]
        new = [[node for node, told in zip(nodes[i], known[i], strict=True) if told is None] for i in asked]
        chains = [self._chains(trees[i], some) for i, some in zip(asked, new, strict=True)]
        answer = self.client.begin(self.api.likeliest([mine for mine, _ in chains])) if chains else None
        return Question(known, asked, [at for _, at in chains], answer)

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


def _answers(question: Question) -> list[Answers]:
    """What the server says of the rows' nodes, or of a row why it says nothing."""
    made: list[Answers] = [(len(mine), mine) for mine in question.known]  # type: ignore[misc]
    said = question.answer.result() if question.answer is not None else []
    for i, at, answer in zip(question.asked, question.at, said, strict=True):
        known = question.known[i]
        if isinstance(answer, str):
            made[i] = len(known), answer
        else:
            more = iter([answer[chain][end] for chain, end in at])
            made[i] = len(known), [next(more) if told is None else told for told in known]
    return made

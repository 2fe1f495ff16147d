"""The teacher as a round sees it: what it proposes before each draft, whatever its own tokens are."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from rsd.acceptance import Sampling
from rsd.decoding.continued import Said
from rsd.decoding.draft import Drafts
from rsd.decoding.exact import Matter
from rsd.decoding.partial_tokens import AT_BOUNDARY, Partial, PartialFilter
from rsd.decoding.proposals import Proposals, Proposed
from rsd.decoding.teacher import Away, Teacher, TeacherOutput, TokenTree
from rsd.pair.vocabulary import TeacherContext, Vocabulary

WIDE = 1 << 24  # bytes of a tensor over all tokens, of some ten that a round without top-k works with


class Proposer:
    """A teacher, what it has read in each row, and where it is in its own tokens.

    A round asks `propose`, then maybe `full`, and says by `commit` what became of the drafts.
    """

    def __init__(
        self,
        teacher: Teacher,
        vocabulary: Vocabulary,
        *,
        sampling: Sampling,
        rows: int,
        device: torch.device,
        top: int = 0,
    ) -> None:
        """top: how many of its likeliest tokens are found out, too."""
        self.teacher, self.vocabulary = teacher, vocabulary
        self.proposals = Proposals(vocabulary, sampling, device, top=top)
        self.matter = Matter(self.proposals.table, self.proposals.units, width=teacher.width)
        self.contexts: list[TeacherContext] = [TeacherContext()] * rows  # what it reads in each row, to its last token
        self.partials: list[Partial] = [AT_BOUNDARY] * rows
        self.recent: list[list[int]] = [[]] * rows  # the student's last tokens, as far as they may begin a spelling
        # Of the drafts that it was asked about last: these, their contexts, and by row where it is in their midst.
        self._drafted: Sequence[list[int]] = []
        self._trees: list[TokenTree] = []
        self._where: list[tuple[PartialFilter | None, int]] = []

    def place_row(
        self,
        row: int,
        context: TeacherContext,
        partial: Partial,
        ids: Sequence[int],
        *,
        prefilled: Any,
        at: int,
        shared: int,
    ) -> None:
        """Row `row` becomes the first `shared` ids of row `at` of what was prefilled: its context, and ids so far."""
        self.teacher.copy_row(prefilled, at, row, length=shared)
        self.contexts[row], self.partials[row] = context, partial
        self.recent[row] = list(ids[-self.proposals.units.longest :])

    def in_ours(self, ids: Sequence[int]) -> list[int]:
        """The teacher's ids in the student's, -1 where that has none."""
        several, table = self.proposals.split.teacher_to_student, self.proposals.table.numpy(force=True)
        known = table[np.minimum(np.array(ids, dtype=np.int64), len(table) - 1)].tolist()
        return [ours for theirs, one in zip(ids, known, strict=True) for ours in several.get(theirs, (one,))]

    def move_row(self, row: int, to: int) -> None:
        self.teacher.move_row(row, to)
        self.contexts[to], self.partials[to], self.recent[to] = self.contexts[row], self.partials[row], self.recent[row]

    def drop_row(self, row: int) -> None:
        self.teacher.drop_row(row)

    def go_on(self, rows: int, count: int) -> Away[list[Said]]:
        """What the teacher says by itself in each of the first `rows` rows: at most `count` tokens."""
        made = []
        said = yield from self.teacher.go_on([context.ids for context in self.contexts[:rows]], count)
        for ids, told in said:
            ours = self.in_ours(ids)
            made.append(Said(ours[: ours.index(-1)] if -1 in ours else ours, told))
        return made

    def propose(self, drafts: Drafts) -> Away[Iterator[Proposed]]:
        """The teacher's proposals before each draft, of some neighbouring rows after the other."""
        self._drafted, self._trees, self._where = drafts.told, [], []
        for i, (context, row) in enumerate(zip(self.contexts, self._drafted, strict=False)):
            self._trees.append(TokenTree(self.vocabulary, context, row))
            self.proposals.units.look_ahead(self._trees[-1], row)
            self._trees[-1].matter = partial(self.matter, drafts, i, before=self.recent[i])
        outputs = yield from self.teacher.read(self._trees)
        return self._proposed(drafts, outputs)

    def _proposed(self, drafts: Drafts, outputs: Iterator[TeacherOutput]) -> Iterator[Proposed]:
        for output in outputs:
            for part in self._parts(output, drafts.tokens.shape[1]):
                rows = slice(part.first, part.first + len(part.at))
                proposed, where = self.proposals.read(
                    part,
                    drafts.of(rows),
                    teacher=self.teacher,
                    trees=self._trees[rows],
                    recent=self.recent[rows],
                    partials=self.partials[rows],
                )
                self._where += [(where, i) for i in range(len(part.at))]
                yield proposed

    def _parts(self, output: TeacherOutput, block: int) -> Iterator[TeacherOutput]:
        """All rows that were read; or some of them after the other, where a round works over all tokens."""
        rows = len(output.at)
        if not self.proposals.few:
            rows = max(1, WIDE // (4 * block * self.vocabulary.width))
        for first in range(0, len(output.at), rows):
            mine = slice(first, first + rows)
            yield output._replace(at=output.at[mine], beside=output.beside[mine], first=output.first + first)

    def full(self, tokens: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Where the next token would be beyond the teacher's context, bool [R, K].

        Args:
            tokens: int64 [R, K], the drafts, or what replaced one. kept: int64 [R], how many of them stand.
        """
        ends = np.zeros(tokens.shape, dtype=np.int64)
        for i, (tree, drafts) in enumerate(zip(self._trees, self._drafted, strict=True)):
            ends[i, : len(drafts)] = [*(node.end for node in tree.nodes[1:]), tree.after.end]
            j = int(kept[i]) - 1
            if j >= 0 and (token := int(tokens[i, j])) != drafts[j]:  # it was replaced
                ends[i, j] = tree.nodes[j].end + len(self.vocabulary.student_to_teacher.get(token, (0,)))
        return ends > self.teacher.context

    def commit(self, tokens: np.ndarray, count: np.ndarray) -> None:
        """The teacher reads on: of each row's tokens [R, K] the first `count` [R]."""
        for row, n in enumerate(count.tolist()):
            self._read_on(row, tokens[row, :n].tolist())
            where, i = self._where[row]
            if n:
                last = int(tokens[row, n - 1])
                self.partials[row] = AT_BOUNDARY if where is None else where.after(i, n - 1, last)

    def _read_on(self, row: int, tokens: list[int]) -> None:
        context, tree, drafts = self.contexts[row], self._trees[row], self._drafted[row]
        start = len(context.ids)
        for j, token in enumerate(tokens):
            edit = tree.edits[j] if token == drafts[j] else self.vocabulary.edit(context, token)
            start = min(start, edit.keep)
            context.apply(edit)
        start = min([start, *tree.forks[1:]])
        self.recent[row] = [*self.recent[row], *tokens][-self.proposals.units.longest :]
        self.teacher.keep(row, tree, context.ids, start)

"""How two tokenizers meet: which ids are the same token in both, and how the rest is spelled.

Handled here: one token -> id map, padded to any widths, where some *added* tokens (such as `<think>`)
exist in only one of the two, as in the paper's pair (arXiv 2509.22230). The teacher reads such a
student token as its own tokenization of the token's text; it can never propose one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Vocabulary:
    """One pair's meeting.

    shared: float [V], 1 where an id is the same token in both.
    own: float [V], 0 at the student's own tokens and -inf at padding: added to its logits.
    spelling: int64 [V + V_teacher, M]: what the teacher reads for a student's id; row V + t spells
        the teacher's token t, so that a teacher's prompt may end in any token of its own.
    spelled: int64 [V + V_teacher], how many of the M are meant.
    student_only, teacher_only: the added tokens that one side alone has.
    """

    shared: Tensor
    own: Tensor
    spelling: Tensor
    spelled: Tensor
    student_only: tuple[str, ...]
    teacher_only: tuple[str, ...]

    @property
    def width(self) -> int:
        """V, the padded width of the student's logits."""
        return self.shared.shape[0]

    def for_teacher(self, ids: list[int]) -> list[int]:
        """The student's ids as the teacher reads them."""
        return [t for i in ids for t in self.spelling[i, : self.spelled[i]].tolist()]

    def without(self, ids: Collection[int]) -> "Vocabulary":
        """The same, where these ids of the student are never chosen by anyone."""
        shared, own = self.shared.clone(), self.own.clone()
        shared[list(ids)] = 0
        own[list(ids)] = -torch.inf
        return replace(self, shared=shared, own=own)

    def describe(self) -> str:
        words = f"{int(self.shared.sum())} shared tokens"
        for side, tokens in (("student", self.student_only), ("teacher", self.teacher_only)):
            if tokens:
                shown = " ".join(tokens[:6]) + (" ..." if len(tokens) > 6 else "")
                words += f", {len(tokens)} only in the {side} ({shown})"
        return words


def token_ids(tokens: Iterable[str | int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of tokens that are named by id or by their text.

    Raises:
        ValueError: one is no token of this tokenizer.
    """
    ids = set()
    for token in tokens:
        if isinstance(token, str):
            spelled = tokenizer.encode(token, add_special_tokens=False)
            if len(spelled) != 1:
                raise ValueError(f"suppress: {token!r} is {len(spelled)} tokens of the student, not one")
            ids.add(spelled[0])
        elif 0 <= token < len(tokenizer):
            ids.add(token)
        else:
            raise ValueError(f"suppress: the student has no token {token}; its ids end at {len(tokenizer) - 1}")
    return ids


def meet(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    teacher_width: int,
    student_width: int,
) -> Vocabulary:
    """Compare two tokenizers' token -> id maps, added tokens included; the widths are the models' logits'.

    Raises:
        ValueError: the base vocabularies differ, one token has two ids, or a tokenizer holds more
            tokens than its model has logits.
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    sizes = f"teacher {len(theirs)} tokens, student {len(ours)}"
    for side, vocab, width in (("teacher", theirs, teacher_width), ("student", ours, student_width)):
        if max(vocab.values()) >= width:
            raise ValueError(f"the {side}'s tokenizer has {max(vocab.values()) + 1} ids, its model only {width} logits")
    for token, i in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token, i) != i:
            raise ValueError(
                f"the vocabularies differ ({sizes}): {token!r} is id {theirs[token]} for the teacher and {i} for "
                "the student; choose a pair with one token -> id map"
            )
    lists = []
    added = student.get_added_vocab().keys() | teacher.get_added_vocab().keys()
    for side, mine, other in (("student", ours, theirs), ("teacher", theirs, ours)):
        only = sorted(mine.keys() - other.keys(), key=mine.__getitem__)
        base = next((t for t in only if t not in added), None)
        if base is not None:
            raise ValueError(
                f"the vocabularies differ ({sizes}): only the {side} has {base!r} (id {mine[base]}); choose a pair "
                "with one base vocabulary (added tokens such as <think> may differ)"
            )
        lists.append(tuple(only))
    student_only, teacher_only = lists

    shared = torch.zeros(student_width)
    own = torch.full((student_width,), -torch.inf)
    own[list(ours.values())] = 0
    shared[[i for t, i in ours.items() if t in theirs]] = 1
    pieces = {ours[t]: teacher.encode(t, add_special_tokens=False) for t in student_only}
    longest = max((len(p) for p in pieces.values()), default=1)
    ids = torch.cat([torch.arange(student_width), torch.arange(teacher_width)])
    spelling = ids[:, None].repeat(1, longest)
    spelling[:student_width][own < 0] = 0  # never chosen, and so never a reason to read past an embedding
    spelled = torch.ones(len(ids), dtype=torch.long)
    for i, piece in pieces.items():
        if not piece:
            raise ValueError(f"the teacher's tokenizer cannot spell the student's token {student.decode([i])!r}")
        spelled[i] = len(piece)
        spelling[i, : len(piece)] = torch.tensor(piece)
    return Vocabulary(shared, own, spelling, spelled, student_only, teacher_only)

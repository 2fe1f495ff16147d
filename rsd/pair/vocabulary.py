"""How two tokenizers meet: which tokens are the same in both, and how the teacher reads the others.

Three cases:

- *the same tokens*, padded to any widths;
- *one base*, where some added tokens (such as `<think>`) exist in only one of the two, as in the paper's pair
  (arXiv 2509.22230). The teacher reads a student's one as its own tokenization of the token's text, with what is
  next to it where these go together (the `>` and a line break), and it proposes one by spelling it (`proposals`).
  Where the teacher alone has such words (its control tokens are none), the pair is treated like the next kind;
- *different tokenizers*. A token of the teacher whose bytes are one token of the student proposes that; one whose
  bytes are several proposes them one after the other (`partial_tokens`); an added token, the one with the same text;
  the teacher's end, the student's. What is committed is read by the teacher as it would tokenize the bytes so far: its
  last tokens may change with every token of the student's. Given that reading all is exact. The reading itself is an
  approximation (the teacher may have cut its own tokens otherwise), and a student's token that the teacher would put
  together from several of its own is never proposed as a whole. What is left out are the teacher's control tokens;
  their mass is measured (`Finished.left_out`).

Ids and bytes are exchanged, never decoded text: half a character cannot break a trace.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rsd.config import ONE_VOCABULARY
from rsd.pair.spelling import Speller
from rsd.settings import called

# Bytes before a blank from which on a tokenization is taken to stand, whatever follows; and how many of the
# teacher's tokens are looked at for one.
SETTLED, REACH = 4, 64
SAME, DIFFERENT = ONE_VOCABULARY, "different tokenizers"


class ContextEdit(NamedTuple):
    """What a token of the student changes in the teacher's context: of its ids `keep` stay, `new` follow.

    fixed: the ids before this one are never read differently again.
    """

    keep: int
    new: tuple[int, ...]
    fixed: int


class TeacherContext:
    """A context as the teacher reads it: its ids, of which the first `fixed` will never change."""

    __slots__ = ("fixed", "ids")

    def __init__(self, ids: Iterable[int] = (), fixed: int | None = None) -> None:
        self.ids = list(ids)
        self.fixed = len(self.ids) if fixed is None else fixed

    def apply(self, edit: ContextEdit) -> None:
        del self.ids[edit.keep :]
        self.ids += edit.new
        self.fixed = edit.fixed


@dataclass(frozen=True)
class Vocabulary:
    """One pair's meeting.

    shared: float [V], 1 where the student's token is one of the teacher's, too.
    own: float [V], 0 at the student's own tokens and -inf at padding, and at tokens of bytes that the teacher lacks
        (of no character that is assigned or prints): added to its logits.
    theirs: int64 [V], the teacher's id of a shared token; None if all have the same id in both.
    also: pairs (teacher's id, student's id) of further tokens of the teacher that are the same as a shared one.
    spelled: the teacher's ids for the student's tokens that it lacks: all of these in one base, the added ones
        in different tokenizers. several: the other way round, of different tokenizers, the student's ids for plain
        tokens of the teacher's that are several of them.
    merged: of the last piece of a spelling, such as the `>` of `</`, `think`, `>`, the teacher's further tokens that
        begin with it (it and a line break), each with what is left of it in the student's ids.
    case: what kind of pair it is. student_only, teacher_only: the added tokens that one side alone has.
    spellers: the teacher's and the student's, where what is committed is read by its bytes. alike: only behind a
        spelled token, since plain tokens are the same in both.
    """

    shared: Tensor
    own: Tensor
    theirs: Tensor | None = None
    also: tuple[tuple[int, int], ...] = ()
    student_to_teacher: dict[int, tuple[int, ...]] = field(default_factory=dict)
    teacher_to_student: dict[int, tuple[int, ...]] = field(default_factory=dict)
    merged: dict[int, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    case: str = SAME
    student_only: tuple[str, ...] = ()
    teacher_only: tuple[str, ...] = ()
    spellers: tuple[Speller, Speller] | None = None
    alike: bool = False

    @property
    def width(self) -> int:
        """V, the padded width of the student's logits."""
        return self.shared.shape[0]

    def teacher_id(self, token: int) -> int:
        """A shared token's id for the teacher."""
        return token if self.theirs is None else int(self.theirs[token])

    def of_teacher(self, ids: Collection[int]) -> set[int]:
        """The student's tokens that are these ones of the teacher's."""
        return {s for s in self.shared.nonzero()[:, 0].tolist() if self.teacher_id(s) in ids}

    def edit(self, context: TeacherContext, token: int) -> ContextEdit:
        """What the student's next token changes in the teacher's context."""
        end = len(context.ids)
        if (spelled := self.student_to_teacher.get(token)) is not None:
            return ContextEdit(end, spelled, self._open(context, spelled))
        if self.spellers is None or (self.alike and context.fixed == end):
            return ContextEdit(end, (token,), end + 1)
        teacher, student = self.spellers
        raw = student.bytes.get(token)
        if raw is None:  # an added token that both have
            return ContextEdit(end, (self.teacher_id(token),), end + 1)
        start = _settled(context, teacher.bytes)
        old = context.ids[start:]
        before = b"".join(teacher.bytes[i] for i in old)
        new = teacher.encode(before + raw)
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        fixed = context.fixed
        if self.alike and (end - fixed >= REACH or (new == [*old, token] and teacher.cuts(before, raw))):
            fixed = start + len(new)  # from here on both read the same
        return ContextEdit(start + same, tuple(new[same:]), fixed)

    def _open(self, context: TeacherContext, spelled: tuple[int, ...]) -> int:
        """From which id on a context may change behind a token that the teacher spells."""
        end = len(context.ids)
        if self.spellers is None or not self.spellers[0].bytes.keys() >= {*spelled}:
            return end + len(spelled)
        if self.alike and context.fixed == end > 0:  # the id before it may go together with the first piece
            raw = self.spellers[0].bytes.get(context.ids[-1])
            return end - (raw is not None and self.spellers[0].encode(raw) == context.ids[-1:])
        return context.fixed

    def read(self, context: TeacherContext, tokens: Iterable[int]) -> TeacherContext:
        """A context, continued with the student's tokens, in place; returns it."""
        for token in tokens:
            context.apply(self.edit(context, token))
        return context

    def for_teacher(self, ids: Iterable[int]) -> list[int]:
        """The student's ids as the teacher reads them."""
        return self.read(TeacherContext(), ids).ids

    def without(self, ids: Collection[int]) -> "Vocabulary":
        """The same, where these ids of the student are never chosen by anyone."""
        shared, own = self.shared.clone(), self.own.clone()
        shared[list(ids)] = 0
        own[list(ids)] = -torch.inf
        return replace(self, shared=shared, own=own)

    def describe(self) -> str:
        words = f"{self.case}, {int(self.shared.sum())} shared tokens"
        for side, tokens in (("student", self.student_only), ("teacher", self.teacher_only)):
            if tokens:
                shown = " ".join(tokens[:6]) + (" ..." if len(tokens) > 6 else "")
                words += f", {len(tokens)} {'added ' if self.case == DIFFERENT else ''}only in the {side} ({shown})"
        return words


def _settled(context: TeacherContext, spelled: dict[int, bytes]) -> int:
    """From which id on a context may change with the next token: a blank that follows a word, some ids back.

    It depends on the context's ids alone, so that a trace does not depend on how it was cut into blocks.
    """
    first = max(context.fixed, len(context.ids) - REACH)
    for start in range(len(context.ids) - SETTLED, first, -1):
        if spelled[context.ids[start]][:1] in (b" ", b"\n") and spelled[context.ids[start - 1]][-1:] not in b" \n":
            return start
    return first


def token_ids(tokens: Iterable[str | int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of tokens that are named by id or by their text.

    Raises:
        ValueError: one is no token of this tokenizer.
    """
    ids = set()
    for token in tokens:
        if isinstance(token, str):
            try:
                spelled = tokenizer.encode(token, add_special_tokens=False)
            except TypeError as e:  # bytes of a command line that are no UTF-8
                raise ValueError(f"{called('suppress')}: {token!r} is no text") from e
            if len(spelled) != 1:
                raise ValueError(f"{called('suppress')}: {token!r} is {len(spelled)} tokens of the student, not one")
            ids.add(spelled[0])
        elif 0 <= token < len(tokenizer):
            ids.add(token)
        else:
            raise ValueError(
                f"{called('suppress')}: the student has no token {token}; its ids end at {len(tokenizer) - 1}"
            )
    return ids

"""Comparing two tokenizers: how their vocabularies meet (`vocabulary`)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rsd.pair.spelling import NEEDED, Speller
from rsd.pair.vocabulary import DIFFERENT, SAME, Vocabulary


def meet(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    teacher_width: int,
    student_width: int,
    teacher_eos: Sequence[int] = (),
    student_eos: int | None = None,
) -> Vocabulary:
    """Compare two tokenizers' token -> id maps, added tokens included; the widths are the models' logits'.

    Args:
        teacher_eos, student_eos: tokens that end the teacher's text (the usual one first) and that the student
            lacks stand for the student's own one.

    Raises:
        ValueError: a tokenizer holds more tokens than its model has logits, or two different tokenizers
            are not both between tokens and bytes (see `spelling.Speller`).
    """
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    for side, vocab, width in (("teacher", theirs, teacher_width), ("student", ours, student_width)):
        if max(vocab.values()) >= width:
            raise ValueError(f"the {side}'s tokenizer has {max(vocab.values()) + 1} ids, its model only {width} logits")
    added = {
        side: {token.content: i for i, token in tok.added_tokens_decoder.items()}
        for side, tok in (("student", student), ("teacher", teacher))
    }
    either = added["student"].keys() | added["teacher"].keys()
    one_base = (ours.keys() ^ theirs.keys()) <= either and all(theirs.get(t, i) == i for t, i in ours.items())
    # Words such as `</think>` that the teacher alone has as tokens: the student spells them.
    kinds = teacher.added_tokens_decoder
    words = {t: i for t, i in added["teacher"].items() if t not in ours and not kinds[i].special}
    if words or not one_base:
        spellers = Speller(teacher, "teacher", words, vocab=theirs), Speller(student, "student", vocab=ours)
        met = _by_bytes(*spellers, ours=ours, added=added)
    else:
        met = _by_tokens(teacher, student, theirs=theirs, ours=ours)
    for i, pieces in met.spelled.items():
        if not pieces:
            raise ValueError(f"the teacher's tokenizer cannot spell the student's token {student.decode([i])!r}")
    if student_eos is not None:
        _ends(met, teacher_eos, student_eos)

    own = torch.full((student_width,), -torch.inf)
    own[list(ours.values())] = 0
    own[met.unread] = -torch.inf
    shared = torch.zeros(student_width)
    shared[list(met.pairs)] = 1
    to_teacher = torch.zeros(student_width, dtype=torch.long)
    to_teacher[list(met.pairs)] = torch.tensor(list(met.pairs.values()))
    special = {*added["teacher"].values()}
    return Vocabulary(
        shared=shared,
        own=own,
        theirs=None if all(i == t for i, t in met.pairs.items()) else to_teacher,
        also=tuple(met.also),
        student_to_teacher=met.spelled,
        teacher_to_student=met.split,
        merged=_merged(met.spelled.values(), met.spellers, special) if met.spellers else {},
        case=DIFFERENT if not one_base else SAME if ours.keys() == theirs.keys() else "one base, other added tokens",
        student_only=_ordered(met.student_only),
        teacher_only=_ordered(met.teacher_only),
        spellers=met.spellers,
        alike=one_base and not words,
    )


class _Met(NamedTuple):
    """Which tokens meet: student's ids with the teacher's, and the rest as `Vocabulary` has it.

    unread: student's tokens of bytes that the teacher lacks.
    """

    pairs: dict[int, int]
    spelled: dict[int, tuple[int, ...]]
    split: dict[int, tuple[int, ...]]
    also: list[tuple[int, int]]
    unread: list[int]
    student_only: dict[str, int]
    teacher_only: dict[str, int]
    spellers: tuple[Speller, Speller] | None


def _by_tokens(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    theirs: Mapping[str, int],
    ours: Mapping[str, int],
) -> _Met:
    """Of one base: a token is the same where both have it."""
    student_only = {t: i for t, i in ours.items() if t not in theirs}
    spellers = _of_one_base(teacher, student) if student_only else None
    if spellers:
        spelled = {i: tuple(spellers[0].encode(t.encode())) for t, i in student_only.items()}
    else:
        spelled = {i: tuple(teacher.encode(t, add_special_tokens=False)) for t, i in student_only.items()}
    return _Met(
        pairs={i: i for t, i in ours.items() if t in theirs},
        spelled=spelled,
        split={},
        also=[],
        unread=[],
        student_only=student_only,
        teacher_only={t: i for t, i in theirs.items() if t not in ours},
        spellers=spellers,
    )


def _by_bytes(
    reads: Speller, writes: Speller, *, ours: Mapping[str, int], added: Mapping[str, Mapping[str, int]]
) -> _Met:
    """Of different tokenizers: a token is the same where its bytes are; an added one, where its text is.

    Args:
        reads, writes: the teacher's and the student's speller. added: by side the added tokens' ids.
    """
    if not reads.single.keys() >= NEEDED:
        raise ValueError(
            f"the teacher's tokenizer has tokens for {len(reads.single)} of 256 single bytes, so that it cannot "
            "read every text of the student's: choose one that is byte-level, or has bytes to fall back on"
        )
    unread = [i for i, raw in writes.bytes.items() if not {*raw} <= reads.single.keys()]
    pairs = {i: reads.by_bytes[raw] for raw, i in writes.by_bytes.items() if raw in reads.by_bytes}
    for i in unread:
        pairs.pop(i, None)
    pairs |= {i: added["teacher"][t] for t, i in added["student"].items() if t in added["teacher"]}
    known = writes.bytes.keys() | pairs
    spelled = {i: tuple(reads.encode(t.encode())) for t, i in ours.items() if i not in known}
    known = set(pairs.values())
    others = ((t, raw) for t, raw in reads.bytes.items() if t not in known)
    lacking = {t: raw for t, raw in reads.bytes.items() if raw not in writes.by_bytes}
    return _Met(
        pairs=pairs,
        spelled=spelled,
        split={t: tuple(writes.encode(raw)) for t, raw in lacking.items() if raw and {*raw} <= writes.single.keys()},
        also=[(t, writes.by_bytes[raw]) for t, raw in others if raw in writes.by_bytes],
        unread=unread,
        student_only={t: i for t, i in added["student"].items() if t not in added["teacher"]},
        teacher_only={t: i for t, i in added["teacher"].items() if t not in added["student"]},
        spellers=(reads, writes),
    )


def _ends(met: _Met, teacher_eos: Sequence[int], student_eos: int) -> None:
    """Have the teacher's ends that the student lacks stand for the student's own one."""
    ends = sorted({*teacher_eos} - {*met.pairs.values()}, key=[*teacher_eos].index)
    if ends and student_eos not in met.pairs:
        met.pairs[student_eos] = ends.pop(0)
        met.spelled.pop(student_eos, None)
    met.also.extend((t, student_eos) for t in ends)


def _of_one_base(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> tuple[Speller, Speller] | None:
    """Spellers for what stands near a spelled token; none where tokens have no exact bytes."""
    try:
        spellers = Speller(teacher, "teacher"), Speller(student, "student")
    except ValueError:
        return None
    return spellers if all(len(s.single) == 256 for s in spellers) else None


def _merged(
    spellings: Iterable[tuple[int, ...]], spellers: tuple[Speller, Speller], added: Collection[int]
) -> dict[int, dict[int, tuple[int, ...]]]:
    """See `Vocabulary.merged`."""
    reads, writes = spellers
    ends = {pieces[-1]: reads.bytes[pieces[-1]] for pieces in spellings if len(pieces) > 1}
    merged: dict[int, dict[int, tuple[int, ...]]] = {piece: {} for piece in ends}
    begin = tuple(ends.values())
    for t, raw in reads.bytes.items():
        if raw.startswith(begin) and t not in added:
            for piece, end in ends.items():
                if raw.startswith(end) and (left := raw[len(end) :]) and {*left} <= writes.single.keys():
                    merged[piece][t] = tuple(writes.encode(left))
    return merged


def _ordered(tokens: dict[str, int]) -> tuple[str, ...]:
    return tuple(sorted(tokens, key=tokens.__getitem__))

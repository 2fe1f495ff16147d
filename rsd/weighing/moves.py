"""A trace in steps, and the moves that models make in a step's place."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rsd.decoding.sequence import Finished
from rsd.pair.prompts import Prompt
from rsd.pair.vocabulary import TeacherContext, Vocabulary
from rsd.scoring.responses import Response
from rsd.scoring.steps import step_end
from rsd.scoring.texts import Texts

NOT_CUT = 64, 256  # tokens that a move may have in any case, and at the most
NO_PROMPT = Prompt([], [], [], False)
TIMES = 2  # else it may be so many times as long as the trace's longest step


class Move(NamedTuple):
    """What is said in a step's place after the steps before it.

    ids: the student's, with the EOS if it ends the trace. text: without that. logprobs: the teacher's, [T].
    """

    ids: list[int]
    text: str
    logprobs: np.ndarray


@dataclass(eq=False, kw_only=True)
class TraceSteps:
    """A trace in steps, or what is wrong with it.

    text: without its final EOS. ids: the student's [T], with that. starts: the character at which each begins.
    spans: the steps as characters of the text. first: the index of each one's first token. written: how many of its
    first tokens were put there, and are nobody's move.
    teacher, student: both models' log-probs of the tokens [T], where they are asked for.
    own, proposed: by step, the student's move and the teacher's own; None where there is no room for one.
    right: by step, how many rollouts of the teacher's move were right, and of the student's.
    left: how many of its continuations are still decoded.
    """

    response: Response
    error: str | None = None
    prompt: Prompt = NO_PROMPT
    text: str = ""
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    spans: Sequence[tuple[int, int]] = ()
    first: Sequence[int] = ()
    written: int = 0
    teacher: np.ndarray | None = None
    student: np.ndarray | None = None
    own: list[Move | None] = field(default_factory=list)
    proposed: list[Move | None] = field(default_factory=list)
    right: list[tuple[int, int] | None] = field(default_factory=list)
    left: int = 0

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Of each step its first token that is a move, and the one behind its last."""
        return [(max(a, self.written), b) for a, b in zip(self.first, [*self.first[1:], len(self.ids)], strict=True)]

    def move(self, step: int) -> Move | None:
        """The move that is in the trace; None where it was written."""
        begin, end = self.bounds[step]
        if begin >= end:
            return None
        at = self.starts[begin] if begin < len(self.starts) else len(self.text)
        logprobs = np.full(end - begin, np.nan) if self.teacher is None else self.teacher[begin:end]
        return Move(self.ids[begin:end], self.text[at : self.spans[step][1]], logprobs)

    def longest(self, step: int, eos: Collection[int]) -> int:
        """How many tokens a move may have in a step's place; where the trace was cut off, as many as it has there."""
        sizes = [end - begin for begin, end in self.bounds]
        if step == len(sizes) - 1 and self.ids[-1] not in eos:
            return sizes[step]
        return min(max(TIMES * max(sizes), NOT_CUT[0]), NOT_CUT[1])

    def teacher_prompts(self, vocabulary: Vocabulary, places: Sequence[int]) -> dict[int, list[int]]:
        """What the teacher reads before the tokens at these places."""
        context, made = TeacherContext(self.prompt.teacher), {}
        last = 0
        for place in sorted({*places}):
            vocabulary.read(context, self.ids[last:place])
            made[place], last = list(context.ids), place
        return made


class StepEnd:
    """Where a move ends: an engine asks after every token.

    Args:
        before: ids of the step before, in whose light its text is read.
    """

    def __init__(self, texts: Texts, before: Sequence[int], steps: str) -> None:
        self.texts, self.before, self.steps = texts, list(before), steps
        self.start = len(texts.decode(self.before)) if self.before else 0

    def __call__(self, ids: Sequence[int]) -> int | None:
        if ids[-1] in self.texts.source.eos or all(map(self.texts.plain, ids)):
            return None
        end = step_end(self.texts.decode([*self.before, *ids]), self.start, steps=self.steps)
        return None if end is None else self._tokens(ids, end)

    def _tokens(self, ids: Sequence[int], end: int) -> int:
        """How many of a move's tokens begin before a character."""
        starts = self.texts.starts([*self.before, *ids])[len(self.before) :]
        return max(1, int(np.searchsorted(starts, end, side="left")))

    def move(self, finished: Finished[Any]) -> Move:
        """What an engine said, up to the end of its first step: nothing follows that could change it any more."""
        ids = finished.token_ids.tolist()
        shown = self.texts.without_eos(ids)
        text = self.texts.decode([*self.before, *shown])
        end = step_end(text, self.start, steps=self.steps, written=True) or len(text)
        keep = self._tokens(shown, end) if end < len(text) else len(ids)
        return Move(ids[:keep], text[self.start : end], finished.teacher_logprobs[:keep])


def shared_out(logprobs: np.ndarray, theirs: Sequence[int], ours: Sequence[int]) -> np.ndarray:
    """Log-probs of a teacher's own tokens as those of the student's tokens of the same text, [T].

    Between two characters at which tokens of both begin, their sum is shared out evenly over the student's.

    Args:
        logprobs: [N]. theirs [N], ours [T]: the character at which each token begins; the first is 0.
    """
    both = sorted({*theirs} & {*ours})
    part, mine = (np.searchsorted(both, at, side="right") - 1 for at in (theirs, ours))
    sums = np.bincount(part, logprobs, minlength=len(both))
    made: np.ndarray = (sums / np.bincount(mine, minlength=len(both)))[mine]
    return made


Put = Callable[[Finished[Any]], object]  # what is done with a continuation that is decoded

"""One row as it is written, in the terminal: what it has grown by, now and then; and when it ends, another one.

What was printed is never gone back to, so that a terminal needs to understand nothing, and all of it can be scrolled
through. A row that is watched is the youngest of those that live, and has its head when it is chosen.
"""

import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np

from rsd.analysis.marks import legend, marked_tokens, tokens_of, verdict
from rsd.decoding.sequence import Request
from rsd.terminal import BAD, HEADING, coloured, echo, joined, marked, one_line, paint, say_by
from rsd.traces.pieces import Spelling
from rsd.traces.trace import Trace

PAUSE = 0.1  # seconds from one look to the next
Decode = Callable[[list[int]], str]


class Watching:
    """`with Watching(...) as w`: `look` is the engine's `Watch`, and `ended` is told of every trace that is finished.

    Requests must be a pipeline's: their tags say which trace each is.
    """

    def __init__(self, decode: Decode, line: Callable[[], str]) -> None:
        """decode: the text of the student's ids. line: how far the job is."""
        self.decode, self.line = decode, line
        self.colours = sys.stderr is not None and coloured(sys.stderr)
        self.request: Request | None = None
        self._looked, self._shown, self._begun = 0.0, 0, False  # tokens that are printed; whether a line is
        self._spelling = Spelling(decode)
        self._notices = say_by(self._say)

    def __enter__(self) -> "Watching":
        self._notices.__enter__()
        self._print(legend(colours=self.colours) + "\n\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._print("\n" * self._begun)
        self._notices.__exit__(None, None, None)

    def _say(self, line: str) -> None:
        """A notice has a line of its own."""
        self._print(joined(["\n" * self._begun, marked(line), "\n"]))

    def look(self, rows: Iterable[tuple[Request, np.ndarray]]) -> None:
        """Print what the row that is watched has grown by, if it is among these, and the last look is a while ago."""
        if time.monotonic() - self._looked < PAUSE:
            return
        self._looked = time.monotonic()
        if self.request is None:
            youngest = min(rows, key=lambda row: len(row[1]), default=None)
            if youngest is not None:
                self._begin(*youngest)
            return
        for request, records in rows:
            if request is self.request:
                self._grown(records, whole=False)

    def ended(self, trace: Trace) -> None:
        """Print the rest of a trace, and what has become of it, if it is the one that is watched."""
        if self.request is None or trace.key != _key(self.request):
            return
        self._grown(trace.tokens[:-1] if trace.finish_reason == "stop" else trace.tokens, whole=True)
        if trace.error is not None:
            how = paint(one_line(trace.error), BAD)
        else:
            own = f"fallback {1 - trace.from_teacher.mean():.1%}" if len(trace.tokens) else "no tokens"
            facts = [verdict(trace.is_correct), f"ended by {trace.finish_reason}", f"{len(trace.tokens)} tokens", own]
            how = joined(facts, ", ")
        self._print(joined(["\n" * self._begun, paint("---", HEADING), " ", how, "\n\n"]))
        self.request, self._begun = None, False

    def _begin(self, request: Request, records: np.ndarray) -> None:
        self.request, self._spelling, self._shown = request, Spelling(self.decode), 0
        row, generation = request.tag.row, request.tag.generation
        name = paint(f"--- {one_line(row.id)}, generation {generation}", HEADING)
        self._print(joined([name, f" ({one_line(self.line())})\n"]))
        prefix = request.tag.prompt.prefix
        self._print(self.decode(prefix) if prefix else "")
        for token in prefix:
            self._spelling.add(token)
        self._shown = len(prefix)
        self._grown(records, whole=False)

    def _grown(self, records: np.ndarray, *, whole: bool) -> None:
        """Print the tokens that are not yet. whole: those at the end, too, that may have begun a character."""
        spelling, first = self._spelling, len(self.request.tag.prompt.prefix)  # type: ignore[union-attr]
        for token in records["token_ids"][len(spelling.ids) - first :].tolist():
            spelling.add(token)
        end = len(spelling.ids) if whole else spelling.whole
        if end <= self._shown:
            return
        new = records[self._shown - first : end - first]
        text = self.decode(spelling.ids) if whole else spelling.text
        starts = [*spelling.starts[self._shown : end], len(text)]
        texts = [text[a:b] for a, b in pairwise(starts)]
        likeliest = [self.decode([i]) if i >= 0 else None for i in new["proposals"].tolist()]
        self._print(marked_tokens(tokens_of(texts, new, likeliest), colours=self.colours))
        self._shown = end

    def _print(self, text: str) -> None:
        if text:
            echo(text, err=True, nl=False)
            self._begun = not text.endswith("\n")


def _key(request: Request) -> tuple[str, int]:
    return str(request.tag.row.id), request.tag.generation

"""The tokens of a trace as HTML, coloured by how improbable the student finds them; `tokens.css` says how they look."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

FAINTEST = math.log(1e5)  # nats; the colour of what is this improbable, or more so, is full
IMPROBABLE = 0.01
# Characters that turn the direction of text, are not seen, or are no text of HTML.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@cache
def styles() -> str:
    return (Path(__file__).parent / "tokens.css").read_text(encoding="utf-8")


def heat(logprob: float) -> float:
    """How strongly a token is coloured, 0 to 1, by the student's log-prob; not at all where it is not known."""
    return min(1.0, max(0.0, -logprob) / FAINTEST) if math.isfinite(logprob) else float(logprob == -math.inf)


def token_spans(
    pieces: Sequence[str],
    logprobs: Sequence[float],
    *,
    own: Sequence[int] = (),
    instead_of: Mapping[int, str] | None = None,
    threshold: float = IMPROBABLE,
) -> str:
    """Tokens as spans, everything escaped; to be put into an element of class `rsd` that keeps white space.

    Args:
        pieces: the text of each token. logprobs: the student's, natural log; NaN where it is not known.
        own: the tokens that are the student's own.
        instead_of: by token, what the teacher likes best where something else stands.
        threshold: the student probability below which a token is marked as improbable.
    """
    instead_of, mine = instead_of or {}, frozenset(own)
    made = []
    for i, (piece, logprob) in enumerate(zip(pieces, logprobs, strict=True)):
        if i in instead_of:
            made.append(f"<del>{escaped(instead_of[i])}</del>")
        names = "t" + " own" * (i in mine) + " low" * (logprob < math.log(threshold)) + " empty" * (piece == "")
        made.append(f'<span class="{names}" style="--h:{heat(logprob):.2f}">{escaped(piece)}</span>')
    return "".join(made)


def escaped(piece: str) -> str:
    """Text as HTML that UTF-8 can encode: what is not seen is spelled, and a line break has its sign."""
    plain = html.escape(UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", piece))
    return plain.replace("\n", '<i class="nl"></i>\n')


def block(spans: str, about: str) -> str:
    """Spans as one element that brings its styles along. about: a line to stand above it, escaped."""
    how = "white-space: pre-wrap; font: .9em/1.7 ui-monospace, monospace; overflow-wrap: anywhere"
    head = f'<p style="margin: 0 0 .3em">{about}</p>' if about else ""
    return f'<style>{styles()}</style><div class="rsd">{head}<div style="{how}">{spans}</div></div>'

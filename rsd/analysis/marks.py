"""How tokens are told apart in a terminal: in colour by the student's probability; else by marks that a text has not.

In colour the student's own tokens (fallbacks) are underlined, and what the teacher would have said is struck out beside
them. Without colours a fallback is `⟦its text|what the teacher would have said⟧`, and an improbable token `⟪its text⟫`.
A mark stands in one line: a line break in a token is `⏎` there, and comes behind it. A token that is only a part of a
character, which is the last one's, is `·` in a mark, and else nothing.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rsd.terminal import BAD, GOOD, Painted, joined, paint
from rsd.traces.html import IMPROBABLE

# Colours of tokens whose student probability is below: red, yellow, cyan.
LEVELS = ((0.001, "31"), (IMPROBABLE, "33"), (0.1, "36"))
BLANK, OWN, FELL, FAINT = "7", "4", "2;9", "2"  # reversed, since a space has no colour; underlined; struck out; faint


class Token(NamedTuple):
    """text: what it adds to the trace's. logprob: the student's, natural log; NaN where it is not known.

    own: a fallback. fell: what the teacher would have said in its place, if that is known.
    """

    text: str
    logprob: float
    own: bool = False
    fell: str | None = None


def tokens_of(texts: Iterable[str], records: np.ndarray, likeliest: Sequence[str | None]) -> list[Token]:
    """Tokens by their records [T] of `traces.tokens.TOKEN`. likeliest: what `proposals` in these spell."""
    probable, origin = records["student_logprobs"].tolist(), records["from_teacher"].tolist()
    differs = (records["proposals"] >= 0) & (records["proposals"] != records["token_ids"])
    return [
        Token(text, logprob, own == 0, fell if own == 0 and other else None)
        for text, logprob, own, fell, other in zip(texts, probable, origin, likeliest, differs.tolist(), strict=True)
    ]


def marked_tokens(tokens: Iterable[Token], *, colours: bool) -> Painted:
    """Their text, marked."""
    return joined(_coloured(token) if colours else _plain(token) for token in tokens)


def _coloured(token: Token) -> str:
    codes = [OWN] if token.own else []
    codes += next(([colour] for below, colour in LEVELS if token.logprob < math.log(below)), [])
    if not codes:
        return token.text
    body, rest = _in_one_line(token.text)
    if body.isspace() and not token.own:
        codes.append(BLANK)
    fell = [paint(f"⟨{_in_mark(token.fell)}⟩", FELL)] if token.fell is not None else []
    return joined([paint(body, ";".join(codes)), *fell, rest])


def _plain(token: Token) -> str:
    body, rest = _in_one_line(token.text)
    if token.own:
        return f"⟦{body}{'' if token.fell is None else f'|{_in_mark(token.fell)}'}⟧{rest}"
    return f"⟪{body}⟫{rest}" if token.logprob < math.log(IMPROBABLE) else token.text


def _in_one_line(text: str) -> tuple[str, str]:
    """What of a token stands in its mark, and what comes behind that."""
    body, broken, rest = text.partition("\n")
    return f"{body}⏎" if broken else body or "·", broken + rest


def _in_mark(text: str) -> str:
    return text.replace("\n", "⏎")


def marked_steps(text: str, spans: Iterable[tuple[int, int]], *, colours: bool) -> Painted:
    """A text with the number of each of its steps before it. spans: these, as character offsets."""
    numbers = (f"⟨{number}⟩" for number, _ in enumerate(spans, 1))
    shown = ((paint(number, FAINT) if colours else number) for number in numbers)
    return joined(part for number, (a, b) in zip(shown, spans, strict=False) for part in (number, text[a:b]))


def legend(*, colours: bool) -> Painted:
    """What the marks of tokens mean, in a line."""
    if not colours:
        return joined(
            [f"⟪token⟫: student probability below {IMPROBABLE}; ⟦token|proposal⟧: the student's own|the teacher's"]
        )
    levels = joined([paint(f"below {below:g}", colour) for below, colour in reversed(LEVELS)], ", ")
    own = [paint("the student's own", OWN), paint("⟨what the teacher would have said⟩", FELL)]
    return joined(["student probability ", levels, "; ", *own])


def verdict(right: Any) -> str:
    """What is known of a trace's answer."""
    return paint("correct", GOOD) if right is True else paint("wrong", BAD) if right is False else "not verified"

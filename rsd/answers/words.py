"""Runs of letters: names of functions, words, or products of single letters."""

import re
from fractions import Fraction

from rsd.answers.mathtext import Token
from rsd.answers.units import known

FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi"
NAMED = {name: "\\" + name for name in FUNCTIONS.split()}
NAMED |= {"sqrt": r"\radic", "infinity": r"\infty", "inf": r"\infty", "Infinity": r"\infty"}
SHORT_WORDS = frozenset("no on is am pm or to of it if by as at in".split())


def as_mathematics(found: list[Token]) -> list[Token]:
    """The same with runs of letters taken for names of functions, for words, or for products of letters."""
    prose = not any(t.kind in ("number", "command") or t.text in "+-=<>^_/|!" for t in found)
    result: list[Token] = []
    for i, t in enumerate(found):
        before = found[i - 1] if i else Token("start", "")
        if t.kind != "run" or len(t.text) == 1:
            result.append(t)
        elif t.text in NAMED:
            result.append(Token("command", NAMED[t.text], t.spaced))
        elif t.text.lower() in ("and", "or", "per") or _is_word(t, before, prose):
            result.append(Token("word", t.text, t.spaced))
        else:
            result += [Token("run", c, t.spaced and not n) for n, c in enumerate(t.text)]
    return result


def _is_word(t: Token, before: Token, prose: bool) -> bool:
    after_value = before.kind in ("number", "word", "command") or before.text in (")", "}", "/", "]", "$", "€", "£")
    if after_value and known(t.text):
        return True
    wordlike = len(t.text) >= 3 and re.search("[aeiouAEIOU]", t.text) is not None
    return (wordlike and (prose or t.spaced)) or (prose and t.text.lower() in SHORT_WORDS)


def as_text(found: list[Token]) -> tuple[str | Fraction, ...]:
    """The same as text: words in lower case, numbers by their value, no braces around a single token."""
    parts: list[str | Fraction] = []
    for t in found:
        if t.value is not None:
            parts.append(t.value)
        elif t.kind == "word" or (t.kind == "run" and (len(t.text) >= 3 or t.text.lower() in SHORT_WORDS)):
            parts.append(t.text.lower())
        elif t.text == "}" and len(parts) > 1 and parts[-2] == "{":
            parts[-2:] = parts[-1:]
        elif t.text != "$":
            parts.append(t.text)
    return tuple(parts)

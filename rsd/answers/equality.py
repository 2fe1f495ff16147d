"""Whether two answers are the same answer: True, False, or None where more would have to be known.

Values are compared exactly, never rounded. What a problem leaves open may be left out on one side: a unit
(5 cm and 5; not 5 m), the name of what was sought (x = 5 and 5; not y = 5), a choice's text ((C) 12 and C; not
(D) 12), brackets around a list (1, 2 and {1, 2} in any order; and (1, 2) in this one), the sign of more than one
percent (50 % and 50; of course also 0.5). So this is no equivalence: 5 is 5 cm and 5 m.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

from rsd.answers import units
from rsd.answers.mathtext import Token, Unread, cleaned, latex, tokens
from rsd.answers.nodes import Collection, Group, Node, Quantity, Region, Relation
from rsd.answers.relations import RELATIONS, read
from rsd.answers.residues import Undefined, Value, rational, times
from rsd.answers.words import as_mathematics, as_text

LONGEST = 2000  # characters; what is longer is no answer, and only compared as it is
LONGEST_WORDS = 200  # parts between blanks of an answer
FEW_WORDS, SENTENCE = 10, 5  # words of an answer that is no mathematics: at the most, and with a full stop behind them
MATCHED = 40  # items of a list that are matched each with each; of longer ones the same must be there

CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:]|([A-J])$)"
    r"(?:\s+(?!(?:[+*/=<>^,_&]|- |and\b|or\b))(.*))?",
    re.DOTALL | re.IGNORECASE,
)
WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
# More than one sentence, or what says itself that it is none.
PROSE = re.compile(
    r"\n\s*\n|[.!?]\s+[^\W_].*\w\w|[\u3002\uff01\uff1f]\s*\S|^\W*(?:proof|prove|show)\b", re.DOTALL | re.IGNORECASE
)
LABEL = re.compile(r"(?:^|[\s,;(])[A-Ja-j][).:](?:\s|$)")
BASE = re.compile(r"(\()?([0-9A-Za-z]*[0-9][0-9A-Za-z]*)(?(1)\))\s*_\s*\{?(?:\s*\\text\s*\{)?\s*(\d{1,2}|[a-z]+)[\s}]*")
BASES = {name: n for n, name in enumerate("two three four five six seven eight nine ten".split(), 2)}
TEXTS = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")
NO_FORMULA = {":", "%", "°", "$", "€", "£", "¥", r"\ldots"}
DECIMAL = re.compile(r"\d*\.\d+")
DEGREES = re.compile(r"(\d+)\s*(?:°|\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}))")
ONE = rational(1)
ORDERED = {r"\langle\rangle": "()"}  # brackets of the same meaning


def same(answer: str, reference: str) -> bool | None:
    """Whether an answer is the reference. The two can be exchanged.

    None: they may be equal by laws that are not known here (sin 2x and 2 sin x cos x).
    """
    if answer.strip() == reference.strip():
        return True
    if max(len(answer), len(reference)) > LONGEST:
        return False
    return _same_spelled(latex(answer), latex(reference))


def is_answer(text: str) -> bool:
    """Whether a text can be an answer that others are held against: mathematics, a choice, a name, a few words; not a
    proof, or a solution in prose."""
    if len(text) > LONGEST or len(text.split()) > LONGEST_WORDS:
        return False
    source = latex(text)
    found = tokens(source)
    if _choice(source) or _is_formula(found) or _readings(source, found):
        return True
    few = SENTENCE if text.rstrip().endswith((".", "。")) else FEW_WORDS
    return len(WORD.findall(text)) <= few and not PROSE.search(text)


def _same_spelled(a: str, b: str) -> bool | None:
    a_tokens, b_tokens = tokens(a), tokens(b)
    a_choice, b_choice = _choice(a), _choice(b)
    if a_choice and b_choice and len(a) + len(b) > 2:  # of two letters alone, the case may tell variables apart
        (a_letter, a_rest), (b_letter, b_rest) = a_choice, b_choice
        if a_letter != b_letter:
            return False
        return True if not a_rest or not b_rest else _same_spelled(a_rest, b_rest)
    if as_text(a_tokens) == as_text(b_tokens):
        return True
    for choice, other in ((a_choice, b), (b_choice, a)):
        if choice and choice[1] and _same_spelled(choice[1], other):
            return True
    a_read, b_read = _readings(a, a_tokens), _readings(b, b_tokens)
    if a_read and b_read:
        if any(_agree(x, y) for x in a_read for y in b_read):
            return True
        return None if any(_undecided(x, y) for x in a_read for y in b_read) else False
    # Of what is not read, mathematics alone may still be equal: not words, and not what is read wrongly elsewhere.
    formulas = _is_formula(a_tokens) and _is_formula(b_tokens)
    relations = [any(t.text in RELATIONS for t in found) for found in (a_tokens, b_tokens)]
    commands = any(t.kind == "command" for t in a_tokens + b_tokens)
    return None if formulas and commands and relations[0] == relations[1] else False


def _choice(source: str) -> tuple[str, str] | None:
    """The letter of a choice, and what stands after it."""
    m = CHOICE.fullmatch(TEXTS.sub(r" \1 ", source).strip())
    if not m or LABEL.search(rest := (m[4] or "").strip()) or CHOICE.fullmatch(rest):
        return None
    return (m[1] or m[2] or m[3]).upper(), rest


def _readings(source: str, found: list[Token]) -> list[Node]:
    """What an answer can mean: 5 m is five meters, or five times m."""
    if m := BASE.fullmatch(source):
        base = int(m[3]) if m[3].isdigit() else BASES.get(m[3], 0)
        try:
            return [rational(int(m[2], base))] if 2 <= base <= 36 else []
        except ValueError:
            return []
    if DATE.fullmatch(source):
        return []
    result: list[Node] = []
    mathematics = as_mathematics(found)
    for letters_are_units in (False, True):
        with suppress(Unread, Undefined):
            if (node := read(mathematics, letters_are_units=letters_are_units)) not in result:
                result.append(node)
    return result


def _agree(x: Node, y: Node) -> bool:
    if x == y:
        return True
    if isinstance(x, Relation) and isinstance(y, Relation):
        if x.key == y.key:
            return True
        if x.name is None or x.name != y.name:
            return False
        if x.value is not None and y.value is not None:
            return _agree(x.value, y.value)
        return x.region is not None and x.region == y.region
    if isinstance(x, Quantity) and isinstance(y, Quantity):
        in_base = (times(q.value, q.unit.factor) for q in (x, y))
        return x.unit.powers == y.unit.powers and next(in_base) == next(in_base)
    if isinstance(x, Group) and isinstance(y, Group):
        if {x.brackets, y.brackets} == {"ratio", "time"}:  # 4:10 and 2:5; but 4:10 is not 2:05
            return _in_order(x, y)
        alike = ORDERED.get(x.brackets, x.brackets) == ORDERED.get(y.brackets, y.brackets)
        return alike and x.brackets != "time" and _in_order(x, y)
    if isinstance(x, Collection) and isinstance(y, Collection):
        if x.kind == y.kind == "list" and (_names(x) > 1) != (_names(y) > 1):
            return _in_order(x, y)  # x = 1, y = 2
        if x.kind != y.kind and max(_names(x), _names(y)) > 1:
            return False
        return _in_any_order(x.items, y.items)
    return _says(x, y) or _says(y, x)


def _says(x: Node, y: Node) -> bool:
    """Whether y is what x says more fully, or in another way."""
    if isinstance(x, Relation):
        if x.value is not None:
            return _agree(x.value, y)
        return x.region is not None and _agree(x.region, y)
    if isinstance(x, Region):
        return (isinstance(y, Group) and x.pieces == {y}) or (isinstance(y, Collection) and x.pieces == set(y.items))
    if isinstance(x, Quantity) and isinstance(y, Value):
        if not x.unit.powers and times(x.value, x.unit.factor) == y:
            return True
        return x.value == y and (x.unit != units.PERCENT or (y.exact is not None and abs(y.exact) > 1))
    if isinstance(x, Group) and isinstance(y, Value):
        return x.brackets == "ratio" and [times(i, y) for i in x.items if isinstance(i, Value)] == [ONE]
    if isinstance(x, Collection) and isinstance(y, Group):
        return (
            x.kind == "list"
            and not x.alternatives
            and y.brackets == "()"
            and not 0 < _names(x) < len(x.items)
            and _in_order(x, y)
        )
    return False


def _names(collection: Collection) -> int:
    return len({i.name for i in collection.items if isinstance(i, Relation)})


def _in_order(x: Group | Collection, y: Group | Collection) -> bool:
    return len(x.items) == len(y.items) and all(map(_agree, x.items, y.items))


def _in_any_order(x: Sequence[Node], y: Sequence[Node]) -> bool:
    if len(x) != len(y) or len(x) > MATCHED:
        return Counter(x) == Counter(y)
    left = list(y)
    for item in sorted(x, key=lambda i: i not in left):  # what is there as it is, first
        found = next((j for j in (left if item not in left else [item]) if _agree(item, j)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _undecided(x: Node, y: Node) -> bool:
    """Whether two that do not agree might yet be equal: the same kind of thing, and not known through and through."""
    if isinstance(x, Relation) and isinstance(y, Relation):
        constants = all(isinstance(r.value, Value) and not r.value.letters for r in (x, y))
        return not constants or (x.name == y.name and _opaque(x.value, y.value))
    if isinstance(y, Relation) or (isinstance(x, Value) and isinstance(y, Quantity)):
        x, y = y, x
    if isinstance(x, Relation):
        if x.value is not None:
            return _undecided(x.value, y)
        return isinstance(x.key, tuple) and x.key[0] != "=" and isinstance(y, Region | Group)
    if isinstance(x, Region) or isinstance(y, Region):
        return isinstance(x, Region | Group | Collection) and isinstance(y, Region | Group | Collection)
    if isinstance(x, Group | Collection) and isinstance(y, Group | Collection):
        alike = type(x) is type(y) or "list" in (getattr(x, "kind", ""), getattr(y, "kind", ""))
        return alike and len(x.items) == len(y.items) and _opaque(x, y)
    if isinstance(x, Quantity):
        return _opaque(x, y) and (isinstance(y, Value) or (isinstance(y, Quantity) and x.unit.powers == y.unit.powers))
    return isinstance(x, Value) and isinstance(y, Value) and _opaque(x, y)


def _opaque(*nodes: Node | None) -> bool:
    for node in nodes:
        if isinstance(node, Group | Collection) and _opaque(*node.items):
            return True
        if isinstance(node, Relation | Quantity) and _opaque(node.value):
            return True
        if isinstance(node, Value) and node.opaque:
            return True
    return False


def _is_formula(found: list[Token]) -> bool:
    """Whether it is nothing but a formula, in which numbers do not stand beside each other or in a base."""
    if any(t.kind == "word" or t.text in NO_FORMULA for t in as_mathematics(found)):
        return False
    return not any(t.kind == "number" and (then.kind == "number" or then.text == "_") for t, then in pairwise(found))


def exactly(answer: str) -> str:
    """An answer as math-verify is asked about it: in LaTeX, without decimals and degrees, which it does not keep."""
    plain = cleaned(answer).replace(r"\radic", r"\sqrt")
    plain = DEGREES.sub(r"(\\frac{\1\\pi}{180})", plain)
    return DECIMAL.sub(lambda m: rf"\frac{{{Fraction(m[0]).numerator}}}{{{Fraction(m[0]).denominator}}}", plain)

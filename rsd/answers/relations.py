"""An answer as mathematics: one thing or a list, each an expression, or an equation or inequality between some.

What is not understood is `Unread`, never guessed at: two numbers beside each other, say, or a sum of lengths.
"""

from dataclasses import replace

from rsd.answers import units
from rsd.answers.expressions import operand
from rsd.answers.mathtext import CLOSING, GREEK, Token, Unread, split
from rsd.answers.nodes import INFINITY, Collection, Group, Node, Region, Relation, without
from rsd.answers.residues import Value, minus, over, rational, times

RELATIONS = {"=": "=", r"\approx": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in"}


def read(tokens: list[Token], *, letters_are_units: bool = False) -> Node:
    """An answer: one thing, or a list of several.

    Raises:
        Unread: it is not understood.
    """
    if letters_are_units:
        tokens = [_as_unit(tokens, i) for i in range(len(tokens))]
    # "and" and "or" are words or runs of letters; as words they stand for what they say.
    joined = [replace(t, kind="symbol") if t.text.lower() in ("and", "or") else t for t in tokens]
    parts, between = split(joined, lambda t: t.text in (",", ";") or t.text.lower() in ("and", "or"))
    if not parts[0] or not parts[-1]:
        raise Unread("a list with nothing at an end")
    items = [item for part in parts if part for item in _both_signs(part)]
    if len(items) == 1:
        return items[0]
    either = any(t.text.lower() == "or" for t in between)
    regions = [i.region for i in items if isinstance(i, Relation) and i.region and i.name]
    if either and len(regions) == len(items) and len({i.name for i in items if isinstance(i, Relation)}) == 1:
        return Region(frozenset().union(*(r.pieces for r in regions)))
    return Collection("list", tuple(items), either)


def _as_unit(tokens: list[Token], i: int) -> Token:
    t = tokens[i]
    after_number = all(before.kind in ("number", "symbol", "word") for before in tokens[:i])
    unit = t.text in units.SINGLE_LETTERS and i and after_number and (t.spaced or tokens[i - 1].text == "/")
    return replace(t, kind="word") if unit else t


def _both_signs(tokens: list[Token]) -> list[Node]:
    signs = [t.text for t in tokens if t.text in (r"\pm", r"\mp")]
    if len(signs) > 1:
        raise Unread("several signs that are not known")
    return [
        _item([replace(t, text=sign) if t.text in (r"\pm", r"\mp") else t for t in tokens])
        for sign in ("+-" if signs else "+")
    ]


def _item(tokens: list[Token]) -> Node:
    sides, relations = split(tokens, lambda t: t.text in RELATIONS)
    kinds = {RELATIONS[t.text] for t in relations}
    if not kinds:
        return _operand(tokens)
    if kinds == {"="}:
        return _equation(sides)
    if kinds == {"in"} and len(sides) == 2 and _name(sides[0]):
        return _operand(sides[1])
    values = []
    for side in sides:
        value = _operand(side)
        if not isinstance(value, Value):
            raise Unread("a relation between other things than values")
        values.append(value)
    if kinds == {"!="} and len(sides) == 2:
        at = [i for i in (0, 1) if _name(sides[i]) and values[i].letters and not values[1 - i].letters]
        region = without([values[1 - at[0]]]) if at else None
        name = _name(sides[at[0]]) if at else None
        return Relation(("!=", _up_to_a_factor(values)), name, None, region)
    return _inequality(sides, values, [RELATIONS[t.text] for t in relations])


def _equation(sides: list[list[Token]]) -> Node:
    name = _name(sides[0])
    if name is None and len(sides) == 2 and len(sides[1]) == 1 and _name(sides[1]):
        sides, name = sides[::-1], _name(sides[1])
    if name is not None:
        right = [_operand(side) for side in sides[1:]]
        if any(side != right[0] for side in right):
            raise Unread("sides that are not the same")
        try:
            left = _operand(sides[0])
        except Unread:
            left = None
        if not isinstance(left, Value) or not isinstance(right[0], Value):
            return Relation(("=", name, right[0]), name, right[-1])
        if name.endswith(")") or not left.letters & right[0].letters:  # not x = x^2
            return Relation(("=", _up_to_a_factor([left, right[0]])), name, right[-1])
    values = [v for side in sides if isinstance(v := _operand(side), Value)]
    if len(values) == len(sides) and not any(v.letters for v in values) and all(v == values[0] for v in values):
        return values[-1]  # 10/2 = 5
    if len(values) == len(sides) == 2 and any(v.letters for v in values):
        return Relation(("=", _up_to_a_factor(values)))
    raise Unread("an equation of other things than values")


def _up_to_a_factor(sides: list[Value]) -> object:
    difference = minus(sides[0], sides[1])
    return over(Value(difference.at[:1]), Value(difference.at[1:])).at, difference.opaque


def _inequality(sides: list[list[Token]], values: list[Value], relations: list[str]) -> Relation:
    if relations[0][0] == ">":
        sides, values = sides[::-1], values[::-1]
        relations = [{">": "<", ">=": "<="}.get(r, "?") for r in reversed(relations)]
    if not set(relations) <= {"<", "<="}:
        raise Unread("relations in several directions")
    differences = (minus(values[i + 1], values[i]) for i in range(len(relations)))
    key = frozenset((r, d.at, d.opaque) for r, d in zip(relations, differences, strict=True))
    lone = [i for i, v in enumerate(values) if v.letters]
    if len(lone) != 1 or len(values) > 3 or (len(values) == 3 and lone[0] != 1) or not _name(sides[lone[0]]):
        return Relation(("<", key))
    at, low, high = lone[0], times(rational(-1), INFINITY), INFINITY
    opening, closing = "(", ")"
    if at > 0:
        low, opening = values[at - 1], "(" if relations[at - 1] == "<" else "["
    if at < len(relations):
        high, closing = values[at + 1], ")" if relations[at] == "<" else "]"
    region = Region(frozenset([Group(opening + closing, (low, high))]))
    return Relation(("<", key), _name(sides[at]), None, region)


def _name(tokens: list[Token]) -> str | None:
    """What an equation may say the value of: x, x_1, f(x), AB, an area; None for anything else."""
    if not tokens:
        return None
    text = "".join(t.text for t in tokens if t.text not in "{}")
    if all(t.kind == "word" or (t.kind == "run" and t.text.isupper()) or t.text == r"\angle" for t in tokens):
        return text
    first, rest = tokens[0], tokens[1:]
    if first.text == "(" and tokens[-1].text == ")" and all(t.kind == "run" or t.text in ",()" for t in tokens):
        return text
    if not (first.kind == "run" and len(first.text) == 1) and first.text not in GREEK:
        return None
    if rest and rest[0].text == "_":
        end = (
            2
            if len(rest) > 1 and rest[1].text != "{"
            else next((i for i, t in enumerate(rest) if t.text == "}"), 0) + 1
        )
        rest = rest[end:]
    rest = [t for t in rest if t.text != "'"]
    if not rest:
        return text
    inside = rest[1:-1]
    if rest[0].text != "(" or rest[-1].text != ")" or any(t.text in CLOSING for t in inside):
        return None
    plain = all(t.kind == "run" or t.text == "," for t in inside) and first.text not in {t.text for t in inside}
    return text if plain or first.text in "fghFGHPpEV" else None


def _operand(tokens: list[Token]) -> Node:
    """One side; of a set of what fulfils a condition, where the condition holds."""
    if tokens and tokens[0].text == r"\{" and tokens[-1].text == r"\}":
        halves, bars = split(tokens[1:-1], lambda t: t.text in ("|", ":"))
        if len(bars) == 1 and any(t.text in RELATIONS for t in halves[1]):
            condition = _item(halves[1])
            if isinstance(condition, Relation) and condition.region:
                return condition.region
            raise Unread("a set of what fulfils a condition")
    return operand(tokens)

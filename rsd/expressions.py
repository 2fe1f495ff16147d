"""An answer as mathematics: numbers, quantities, tuples, sets, intervals, equations and lists of them.

What is not understood is `Unread`, never guessed at: two numbers beside each other, say, or a sum of lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from rsd import residues, units
from rsd.mathtext import Token
from rsd.residues import Undefined, Value, constant, function, minus, over, plus, power, rational, times, variable
from rsd.units import Unit

DEEPEST = 40  # brackets in brackets
OPENING, CLOSING = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}
RELATIONS = {"=": "=", r"\approx": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in"}
FUNCTIONS = (
    {"\\" + name for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh gcd lcm max min det".split()}
    | {r"\log", r"\ln", r"\lg", r"\exp"}
)  # fmt: skip
GREEK = {
    "\\" + name
    for name in "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
    "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
}
ROUNDED = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil"), "|": ("|", "abs")}
MATRICES = {rf"\begin{{{name}}}" for name in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix")}
INFINITY = constant("infinity")
IMAGINARY = Value(((0, 1),) * residues.POINTS)


class Unread(ValueError):
    """Not mathematics, or none that is understood here."""


@dataclass(frozen=True)
class Quantity:
    value: Value
    unit: Unit


@dataclass(frozen=True)
class Group:
    """brackets: "()", "[)" ..., "matrix", "row" or "ratio"; an interval is a group as well."""

    brackets: str
    items: tuple["Node", ...]


@dataclass(frozen=True)
class Collection:
    """Items whose order does not count: a set, or a list without brackets (alternatives, if joined by "or")."""

    kind: str
    items: tuple["Node", ...]
    alternatives: bool = False


@dataclass(frozen=True)
class Region:
    """A union of intervals."""

    pieces: frozenset["Node"]


@dataclass(frozen=True)
class Relation:
    """name, value: of an equation that says what something is. key: the same for equivalent ones, as far as known.

    region: where an inequality of one variable holds.
    """

    key: object
    name: str | None = None
    value: "Node | None" = None
    region: Region | None = None


Node = Value | Quantity | Group | Collection | Region | Relation


def _split(tokens: list[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """The parts between the tokens outside of all brackets for which `at` holds, and these tokens."""
    parts: list[list[Token]] = [[]]
    between, depth = [], 0
    for t in tokens:
        depth += (t.text in OPENING or t.text.startswith(r"\begin")) - (t.text in CLOSING or t.text.startswith(r"\end"))
        if not depth and t.kind != "word" and at(t):
            between.append(t)
            parts.append([])
        else:
            parts[-1].append(t)
    return parts, between


def read(tokens: list[Token], *, letters_are_units: bool = False) -> Node:
    """An answer: one thing, or a list of several.

    Raises:
        Unread: it is not understood.
    """
    if letters_are_units:
        tokens = [_as_unit(tokens, i) for i in range(len(tokens))]
    # "and" and "or" are words or runs of letters; as words they stand for what they say.
    joined = [replace(t, kind="symbol") if t.text.lower() in ("and", "or") else t for t in tokens]
    parts, between = _split(joined, lambda t: t.text in (",", ";") or t.text.lower() in ("and", "or"))
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
    unit = t.kind == "run" and t.text in units.SINGLE_LETTERS and i and (t.spaced or tokens[i - 1].text == "/")
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
    sides, relations = _split(tokens, lambda t: t.text in RELATIONS)
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
        if not left.letters & right[0].letters:
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


def without(points: list[Value]) -> Region:
    """The real numbers without some."""
    if len(points) > 1:
        if any(p.exact is None for p in points):
            raise Unread("points of which the order is not known")
        points = sorted(set(points), key=lambda p: p.exact or Fraction(0))
    ends = [times(rational(-1), INFINITY), *points, INFINITY]
    return Region(frozenset(Group("()", pair) for pair in zip(ends, ends[1:], strict=False)))


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
        end = 2 if len(rest) > 1 and rest[1].text != "{" else next((i for i, t in enumerate(rest) if t.text == "}"), 0) + 1
        rest = rest[end:]
    rest = [t for t in rest if t.text != "'"]
    if not rest:
        return text
    inside = rest[1:-1]
    if rest[0].text != "(" or rest[-1].text != ")" or any(t.text in CLOSING for t in inside):
        return None
    plain = all(t.kind == "run" or t.text == "," for t in inside) and first.text not in {t.text for t in inside}
    return text if plain or first.text in "fghFGHPpEV" else None


def _operand(tokens: list[Token], depth: int = 0) -> Node:
    return _Parser(tokens, depth).whole()


def _value(tokens: list[Token], depth: int, within: bool = False) -> Value:
    parser = _Parser(tokens, depth, within)
    node = parser.sum()
    if not isinstance(node, Value) or parser.at < len(tokens):
        raise Unread("not a value")
    return node


class _Parser:
    """One side of a relation. within: an argument of a function, where degrees and percent are factors."""

    def __init__(self, tokens: list[Token], depth: int, within: bool = False) -> None:
        if depth > DEEPEST:
            raise Unread("too deep")
        self.tokens, self.at, self.depth, self.within = tokens, 0, depth, within
        self.in_bars = False

    def next(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "")

    def take(self) -> Token:
        token = self.next()
        self.at += 1
        return token

    def whole(self) -> Node:
        currency = None
        start = 1 if self.next().text in ("-", "+") else 0
        if self.next(start).text in units.CURRENCIES:
            currency = units.of(self.next(start).text)
            self.tokens = self.tokens[:start] + self.tokens[start + 1 :]
        node = self.union()
        if isinstance(node, Value) and self.next().text == ":":
            node = self.ratio(node)
        if isinstance(node, Value) and (currency or self.next().kind != "end"):
            node = Quantity(node, self.unit(currency or units.ONE))
        if self.next().kind != "end":
            raise Unread(f"what {self.next().text!r} means here")
        return node

    def ratio(self, first: Value) -> Node:
        spelled = "".join(t.text for t in self.tokens)
        if len(self.tokens) == 3 and len(self.tokens[2].text) == 2 and len(spelled) <= 5:
            raise Unread("a time, or a ratio")
        parts = [first]
        while self.next().text == ":":
            self.take()
            part = self.sum()
            if not isinstance(part, Value):
                raise Unread("a ratio of other things than values")
            parts.append(part)
        return Group("ratio", tuple(over(part, first) for part in parts[1:]))

    def unit(self, unit: Unit) -> Unit:
        """`km/h`, `square meters`, `cm^2`, `dollars per hour`, `red apples`."""
        exponent, area, noun = 1, 1, ""

        def counted(made: Unit) -> Unit:
            nonlocal noun
            made, noun = made.times(units.of(noun), exponent) if noun else made, ""
            return made

        while (t := self.next()).kind != "end":
            word = t.text.lower()
            if word in ("/", "per", "a", "an"):
                unit, exponent = counted(unit), -1 if word in ("/", "per") else exponent
            elif word in ("square", "sq", "cubic"):
                area = 3 if word == "cubic" else 2
            elif word in (r"\cdot", ".", "-"):
                unit = counted(unit)
            elif t.text in ("%", "°") or t.text in units.CURRENCIES or (t.kind == "word" and units.known(t.text)):
                self.take()
                if t.text == "°" and self.next().text in ("C", "F", "K"):
                    this = units.of("°" + self.take().text)
                else:
                    this = units.of(t.text)
                if self.next().text == "^":
                    self.take()
                    area = self._small_integer()
                unit = counted(unit).times(this, exponent * area)
                exponent, area = 1, 1
                continue
            elif t.kind == "word":
                noun = f"{noun} {units.singular(t.text)}".strip()
            else:
                raise Unread(f"what {t.text!r} means in a unit")
            self.take()
        return counted(unit)

    def _small_integer(self) -> int:
        value = self.exponent().exact
        if value is None or value.denominator > 1 or abs(value) > 9:
            raise Unread("a unit with such an exponent")
        return int(value)

    def union(self) -> Node:
        node: Node = self.sum()
        while self.next().text in (r"\cup", r"\setminus"):
            how, right = self.take().text, self.sum()
            if how == r"\cup":
                node = Region(_pieces(node) | _pieces(right))
            elif node == REALS and isinstance(right, Collection) and right.kind == "set":
                node = without([p for p in right.items if isinstance(p, Value)])
            else:
                raise Unread("a difference of sets")
        return node

    def sum(self) -> Node:
        node = self.signed()
        while self.next().text in ("+", "-", r"\over"):
            how = self.take().text
            right = self.sum() if how == r"\over" else self.signed()
            if not isinstance(node, Value) or not isinstance(right, Value):
                raise Unread("a sum of other things than values")
            node = {"+": plus, "-": minus, r"\over": over}[how](node, right)
        return node

    def signed(self) -> Node:
        negative = False
        while self.next().text in ("+", "-"):
            negative ^= self.take().text == "-"
        node = self.product()
        if negative:
            if not isinstance(node, Value):
                raise Unread("a sign before another thing than a value")
            node = times(rational(-1), node)
        return node

    def product(self) -> Node:
        node = self.power()
        while True:
            how = self.next().text if self.next().kind != "word" else ""
            if how in (r"\cdot", r"\times", "/"):
                self.take()
                negative = self.next().text == "-" and bool(self.take())
                right = self.power()
                if negative and isinstance(right, Value):
                    right = times(rational(-1), right)
            elif self.begins():
                right = self.power()
            else:
                return node
            if not isinstance(node, Value) or not isinstance(right, Value):
                raise Unread("a product of other things than values")
            node = over(node, right) if how == "/" else times(node, right)

    def begins(self) -> bool:
        """Whether the next token begins another factor."""
        t = self.next()
        if t.kind == "number" and self.at and self.tokens[self.at - 1].kind == "number":
            raise Unread("two numbers beside each other")
        if t.text == "|":
            return not self.in_bars
        known = t.text in FUNCTIONS or t.text in GREEK or t.text in ROUNDED or t.text in self.COMMANDS
        return t.kind in ("number", "run") or t.text in ("(", "[", "{") or known

    def power(self) -> Node:
        node = self.primary()
        while isinstance(node, Value):
            t = self.next()
            if t.text == "^":
                self.take()
                node = power(node, self.exponent())
            elif t.text == "!":
                self.take()
                node = residues.factorial(node)
            elif t.text in ("°", "%") and (self.within or self.next(1).kind == "number"):
                self.take()
                node = times(node, units.of(t.text).factor)
            else:
                break
        return node

    def exponent(self) -> Value:
        negative = self.next().text == "-" and bool(self.take())
        node = self.argument(digit=False)
        if self.next().text == "^":
            raise Unread("an exponent of an exponent")
        return times(rational(-1), node) if negative else node

    def argument(self, *, digit: bool = True) -> Value:
        """What a command takes: a group, or one token; of a number its first digit alone, if `digit`."""
        t = self.next()
        if t.text == "{":
            return _value(self.enclosed()[0], self.depth + 1, self.within)
        if digit and t.kind == "number" and t.text.isdigit() and len(t.text) > 1:
            self.tokens[self.at] = replace(t, text=t.text[1:], value=Fraction(t.text[1:]))
            return rational(int(t.text[0]))
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unread("too deep")
        node = self.primary(alone=True)
        self.depth -= 1
        if not isinstance(node, Value):
            raise Unread("an argument that is no value")
        return node

    def enclosed(self) -> tuple[list[Token], str]:
        """The tokens inside the brackets that open here, and both brackets; moves behind them."""
        opening, depth, start = self.take().text, 1, self.at
        while depth:
            t = self.take()
            if t.kind == "end":
                raise Unread("a bracket that is not closed")
            depth += (t.text in OPENING) - (t.text in CLOSING)
        return self.tokens[start : self.at - 1], opening + t.text

    def primary(self, *, alone: bool = False) -> Node:
        t = self.next()
        if t.kind == "number":
            return self.number(alone=alone)
        if t.kind == "run" or t.text in GREEK:
            return self.letter()
        if t.text == "{":
            return _Parser(self.enclosed()[0], self.depth + 1, self.within).whole()
        if t.text in OPENING:
            return self.brackets()
        if t.text in ROUNDED:
            return self.rounded()
        if t.text in FUNCTIONS:
            return self.function()
        if t.text in MATRICES:
            return self.matrix()
        if t.text in self.COMMANDS:
            self.take()
            return self.COMMANDS[t.text](self)
        raise Unread(f"what {t.text!r} means here")

    def number(self, *, alone: bool) -> Value:
        t = self.take()
        node = rational(t.value if t.value is not None else Fraction(t.text))
        if alone or not t.text.isdigit():
            return node
        # A whole number before a proper fraction of whole numbers: a mixed number.
        if self.next().text == r"\frac":
            return self.mixed(node)
        if self.next().kind == "number" and self.next(1).text == "/" and self.next(2).kind == "number":
            numerator, denominator = self.take(), (self.take(), self.take())[1]
            if not numerator.text.isdigit() or not denominator.text.isdigit() or int(numerator.text) >= int(denominator.text):
                raise Unread("a mixed number without a proper fraction")
            return plus(node, over(rational(int(numerator.text)), rational(int(denominator.text))))
        return node

    def mixed(self, whole: Value) -> Value:
        self.take()
        start = self.at
        numerator, denominator = self.argument(), self.argument()
        plain = all(t.text.isdigit() or t.text in "{}" for t in self.tokens[start : self.at])
        fraction = over(numerator, denominator)
        if not plain:
            return times(whole, fraction)
        if fraction.exact is None or fraction.exact >= 1:
            raise Unread("a mixed number without a proper fraction")
        return plus(whole, fraction)

    def letter(self) -> Node:
        t = self.take()
        name = t.text
        if self.next().text == "_":
            self.take()
            inside = self.enclosed()[0] if self.next().text == "{" else [self.take()]
            return variable(f"{name}_{''.join(i.text for i in inside)}")
        if name in "fgh" and self.next().text == "(":
            inside, brackets = self.enclosed()
            args = [_value(part, self.depth + 1, True) for part in _split(inside, lambda t: t.text == ",")[0]]
            return function(name, *args)
        return {"i": IMAGINARY, "e": constant("e")}.get(name) or variable(name)

    def brackets(self) -> Node:
        inside, brackets = self.enclosed()
        if brackets not in ("()", "[]", "(]", "[)", r"\{\}", r"\langle\rangle"):
            raise Unread("brackets that do not match")
        if brackets == r"\{\}" and not inside:
            return EMPTY
        parts, commas = _split(inside, lambda t: t.text in (",", ";"))
        if brackets == "()" and not commas:
            return _Parser(inside, self.depth + 1, self.within).sum_alone()
        if brackets == r"\{\}":
            return self.set(inside, parts)
        if self.depth + 1 > DEEPEST:
            raise Unread("too deep")
        return Group(brackets, tuple(_operand(part, self.depth + 1) for part in parts))

    def sum_alone(self) -> Node:
        node = self.sum()
        if self.next().kind != "end":
            raise Unread(f"what {self.next().text!r} means here")
        return node

    def set(self, inside: list[Token], parts: list[list[Token]]) -> Node:
        halves, bars = _split(inside, lambda t: t.text in ("|", ":"))
        if len(bars) == 1 and len(halves) == 2 and any(t.text in RELATIONS for t in halves[1]):
            condition = _item(halves[1])
            if isinstance(condition, Relation) and condition.region:
                return condition.region
            raise Unread("a set of what fulfils a condition")
        return Collection("set", tuple(dict.fromkeys(_operand(part, self.depth + 1) for part in parts)))

    def rounded(self) -> Value:
        closing, how = ROUNDED[self.take().text]
        inner = _Parser(self.tokens[self.at :], self.depth + 1, True)
        inner.in_bars = closing == "|"
        node = inner.sum()
        if not isinstance(node, Value) or inner.take().text != closing:
            raise Unread(f"no {closing} to an opening one")
        self.at += inner.at
        return residues.rounded(node, how)

    def function(self) -> Value:
        name, base, exponent = self.take().text[1:], None, None
        while self.next().text in ("_", "^"):
            if self.take().text == "_":
                base = self.argument(digit=False)
            else:
                exponent = self.exponent()
        if exponent is not None and exponent.exact == -1:
            raise Unread("an inverse function, or a reciprocal")
        if self.next().text == "(":
            inside = self.enclosed()[0]
            args = [_value(part, self.depth + 1, True) for part in _split(inside, lambda t: t.text == ",")[0]]
        else:
            inner = _Parser(self.tokens[self.at :], self.depth + 1, True)
            node = inner.power() if inner.next().text == "{" else inner.factors()
            if not isinstance(node, Value):
                raise Unread("a function of another thing than a value")
            self.at += inner.at
            args = [node]
        result = _applied(name, args, base)
        return result if exponent is None else power(result, exponent)

    def factors(self) -> Node:
        """The argument of a function without brackets: 2x in `sin 2x cos x`."""
        node = self.power()
        while isinstance(node, Value) and self.next().text not in FUNCTIONS and self.next().text not in ("(", "|"):
            if not self.begins() or not isinstance(right := self.power(), Value):
                break
            node = times(node, right)
        return node

    def matrix(self) -> Node:
        self.take()
        start = self.at
        while not self.next().text.startswith(r"\end"):
            if self.take().kind == "end":
                raise Unread("a matrix without an end")
        rows, _ = _split(self.tokens[start : self.at], lambda t: t.text == "\\\\")
        self.take()
        cells = [_split(row, lambda t: t.text == "&")[0] for row in rows if row]
        return Group("matrix", tuple(Group("row", tuple(_operand(c, self.depth + 1) for c in row)) for row in cells))

    def fraction(self) -> Value:
        numerator = self.argument()
        return over(numerator, self.argument())

    def root(self) -> Value:
        n = 2
        if self.next().text == "[":
            index = _value(self.enclosed()[0], self.depth + 1).exact
            if index is None or index.denominator > 1 or not 2 <= index <= 100:
                raise Unread("a root of such a degree")
            n = int(index)
        return residues.root(self.argument(), n)

    COMMANDS: dict[str, Callable[["_Parser"], Node]] = {
        r"\frac": fraction,
        r"\sqrt": root,
        r"\radic": lambda self: residues.root(self.argument(digit=False), 2),
        r"\binom": lambda self: residues.binomial(self.argument(), self.argument()),
        r"\pi": lambda self: constant("pi"),
        r"\infty": lambda self: INFINITY,
        r"\emptyset": lambda self: EMPTY,
        r"\realsR": lambda self: REALS,
        **{rf"\reals{name}": lambda self, name=name: constant(name) for name in "ZNQC"},  # type: ignore[misc]
    }


EMPTY = Collection("set", ())
REALS = Group("()", (times(rational(-1), INFINITY), INFINITY))


def _pieces(node: Node) -> frozenset[Node]:
    if isinstance(node, Region):
        return node.pieces
    if isinstance(node, Group | Collection) and node.items:
        return frozenset([node])
    raise Unread("a union of other things than sets")


def _applied(name: str, args: list[Value], base: Value | None) -> Value:
    if name in ("log", "ln", "lg") and len(args) == 1:
        if base is None:
            return residues.logarithm(args[0], name)
        return over(residues.logarithm(args[0]), residues.logarithm(base))
    if base is not None:
        raise Unread("a function with a subscript")
    if name == "exp" and len(args) == 1:
        return power(constant("e"), args[0])
    if name in ("gcd", "lcm", "max", "min"):
        args = sorted(args, key=lambda v: v.at)
    return function(name, *args)

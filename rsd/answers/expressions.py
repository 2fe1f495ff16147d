"""One side of a relation, or one item of a list: what LaTeX and plain text say, by recursive descent."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from rsd.answers import residues, units
from rsd.answers.mathtext import GREEK, OPENING, Cursor, Token, Unread, split
from rsd.answers.nodes import (
    EMPTY,
    IMAGINARY,
    INFINITY,
    REALS,
    Collection,
    Group,
    Node,
    Quantity,
    Region,
    pieces,
    without,
)
from rsd.answers.residues import Value, constant, function, minus, over, plus, power, rational, times, variable

DEEPEST = 40  # brackets in brackets
FUNCTIONS = (
    {"\\" + name for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh gcd lcm max min det".split()}
    | {r"\log", r"\ln", r"\lg", r"\exp"}
)  # fmt: skip
ROUNDED = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil"), "|": ("|", "abs")}
MATRICES = {rf"\begin{{{name}}}" for name in ("pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix")}


def operand(tokens: list[Token], depth: int = 0) -> Node:
    """What tokens without a relation outside of all brackets mean. Raises `Unread`."""
    return _Parser(tokens, depth).whole()


def _value(tokens: list[Token], depth: int, within: bool = False) -> Value:
    parser = _Parser(tokens, depth, within)
    node = parser.sum()
    if not isinstance(node, Value) or parser.at < len(tokens):
        raise Unread("not a value")
    return node


class _Parser(Cursor):
    """One side of a relation. within: an argument of a function, where degrees and percent are factors."""

    def __init__(self, tokens: list[Token], depth: int, within: bool = False) -> None:
        if depth > DEEPEST:
            raise Unread("too deep")
        super().__init__(tokens)
        self.depth, self.within = depth, within
        self.in_bars = False

    def whole(self) -> Node:
        currency = None
        start = 1 if self.next().text in ("-", "+") else 0
        if self.next(start).text in units.CURRENCIES:
            currency = units.of(self.next(start).text)
            self.tokens = self.tokens[:start] + self.tokens[start + 1 :]
        node = self.union()
        if isinstance(node, Value) and self.next().text == ":":
            node = self.ratio(node)
        while isinstance(node, Value) and self.next().text.lower() in units.MULTIPLES:  # two million
            node = times(node, rational(units.MULTIPLES[self.take().text.lower()]))
        if isinstance(node, Value) and (currency or self.next().kind != "end"):
            node = Quantity(node, units.read(self.rest(), currency or units.ONE))
        if self.next().kind != "end":
            raise Unread(f"what {self.next().text!r} means here")
        return node

    def ratio(self, first: Value) -> Node:
        parts = [first]
        while self.next().text == ":":
            self.take()
            part = self.sum()
            if not isinstance(part, Value):
                raise Unread("a ratio of other things than values")
            parts.append(part)
        timelike = len(self.tokens) == 3 and len(self.tokens[0].text) <= 2 == len(self.tokens[2].text)
        return Group("time" if timelike else "ratio", tuple(over(part, first) for part in parts[1:]))

    def union(self) -> Node:
        node: Node = self.sum()
        while self.next().text in (r"\cup", r"\setminus"):
            how, right = self.take().text, self.sum()
            if how == r"\cup":
                node = Region(pieces(node) | pieces(right))
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
        known = t.text in FUNCTIONS or t.text in GREEK or t.text in ROUNDED or t.text in COMMANDS
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
        if t.text in COMMANDS:
            self.take()
            return COMMANDS[t.text](self)
        raise Unread(f"what {t.text!r} means here")

    def number(self, *, alone: bool) -> Value:
        t = self.take()
        if len(self.tokens) > 1 and len(t.text) > 1 and t.text.isdigit() and t.text[0] == "0":
            raise Unread("a number that begins with a zero: of a date, say")
        node = rational(t.value if t.value is not None else Fraction(t.text))
        if alone or not t.text.isdigit():
            return node
        # A whole number before a proper fraction of whole numbers: a mixed number.
        if self.next().text == r"\frac":
            self.take()
            start = self.at
            fraction = self.fraction()
            return self.mixed(node, self.tokens[start : self.at], fraction)
        if self.next().kind == "number" and self.next(1).text == "/" and self.next(2).kind == "number":
            numerator, _, denominator = self.take(), self.take(), self.take()
            fraction = over(_value([numerator], 0), _value([denominator], 0))
            return self.mixed(node, [numerator, denominator], fraction)
        return node

    def mixed(self, whole: Value, tokens: list[Token], fraction: Value) -> Value:
        if not all(t.text.isdigit() or t.text in "{}" for t in tokens):
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
            inside = self.enclosed()[0]
            args = [_value(part, self.depth + 1, True) for part in split(inside, lambda t: t.text == ",")[0]]
            return function(name, *args)
        return {"i": IMAGINARY, "e": constant("e")}.get(name) or variable(name)

    def brackets(self) -> Node:
        inside, brackets = self.enclosed()
        if brackets not in ("()", "[]", "(]", "[)", r"\{\}", r"\langle\rangle"):
            raise Unread("brackets that do not match")
        if brackets == r"\{\}" and not inside:
            return EMPTY
        parts, commas = split(inside, lambda t: t.text in (",", ";"))
        if brackets == "()" and not commas:
            return _value(inside, self.depth + 1, self.within)
        if brackets == r"\{\}":
            return Collection("set", tuple(dict.fromkeys(operand(part, self.depth + 1) for part in parts)))
        if self.depth + 1 > DEEPEST:
            raise Unread("too deep")
        return Group(brackets, tuple(operand(part, self.depth + 1) for part in parts))

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
            args = [_value(part, self.depth + 1, True) for part in split(inside, lambda t: t.text == ",")[0]]
        else:
            inner = _Parser(self.tokens[self.at :], self.depth + 1, True)
            node = inner.power() if inner.next().text == "{" else inner.factors()
            if not isinstance(node, Value):
                raise Unread("a function of another thing than a value")
            self.at += inner.at
            args = [node]
        result = residues.applied(name, args, base)
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
        rows, _ = split(self.tokens[start : self.at], lambda t: t.text == "\\\\")
        self.take()
        cells = [split(row, lambda t: t.text == "&")[0] for row in rows if row]
        return Group("matrix", tuple(Group("row", tuple(operand(c, self.depth + 1) for c in row)) for row in cells))

    def fraction(self) -> Value:
        derivative = self.next().text == "{" and self.next(1).text == "d"
        numerator = self.argument()
        if derivative and self.next().text == "{" and self.next(1).text == "d":
            raise Unread("a derivative")
        return over(numerator, self.argument())

    def root(self) -> Value:
        n = 2
        if self.next().text == "[":
            index = _value(self.enclosed()[0], self.depth + 1).exact
            if index is None or index.denominator > 1 or not 2 <= index <= 100:
                raise Unread("a root of such a degree")
            n = int(index)
        return residues.root(self.argument(), n)


COMMANDS: dict[str, Callable[[_Parser], Node]] = {
    r"\frac": _Parser.fraction,
    r"\sqrt": _Parser.root,
    r"\radic": lambda self: residues.root(self.argument(digit=False), 2),
    r"\binom": lambda self: residues.binomial(self.argument(), self.argument()),
    r"\pi": lambda self: constant("pi"),
    r"\infty": lambda self: INFINITY,
    r"\emptyset": lambda self: EMPTY,
    r"\realsR": lambda self: REALS,
    **{rf"\reals{name}": lambda self, name=name: constant(name) for name in "ZNQC"},  # type: ignore[misc]
}

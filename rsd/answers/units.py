"""Units of measurement: their names, and what one is in terms of others."""

import re
from dataclasses import dataclass
from fractions import Fraction

from rsd.answers.mathtext import Token, Unread
from rsd.answers.residues import Value, constant, over, power, rational, times

# Names of a unit, how many of a base unit it is, and the base unit with its exponent. A plural s is left away.
_TABLE = """
m meter metre = 1 m
km kilometer kilometre = 1000 m
cm centimeter centimetre = 1/100 m
mm millimeter millimetre = 1/1000 m
in inch inches = 127/5000 m
ft foot feet = 381/1250 m
yd yard = 1143/1250 m
mi mile = 201168/125 m
kg kilogram = 1 kg
g gram = 1/1000 kg
mg milligram = 1/1000000 kg
ton tonne = 1000 kg
lb lbs pound = 1 lb
oz ounce = 1/16 lb
s sec second = 1 s
min minute = 60 s
h hr hour = 3600 s
day = 86400 s
week = 604800 s
month = 1 month
year yr = 12 month
L l liter litre = 1/1000 m 3
mL ml milliliter millilitre = 1/1000000 m 3
gallon gal = 1 gallon
quart = 1/4 gallon
hectare ha = 10000 m 2
dollar usd USD \\$ $ = 1 $
cent ¢ = 1/100 $
euro € EUR = 1 €
£ GBP = 1 £
¥ yen = 1 ¥
rupee ₹ = 1 ₹
mph = 1397/3125 m/s
kph kmh = 5/18 m/s
N newton = 1 N
J joule = 1 J
kJ = 1000 J
W watt = 1 W
kW = 1000 W
V volt = 1 V
Hz hertz = 1 Hz
unit = 1
radian rad = 1
"""

MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SINGLE_LETTERS = frozenset("m g s h l L N J W V".split())  # in "5 m", after white space, unless it is a variable
EXPONENT = re.compile(r"\^(?:\{(-?[1-9])\}|([1-9])(?!\d))")
CURRENCIES = frozenset("$ € £ ¥ ₹ ¢".split())


@dataclass(frozen=True)
class Unit:
    """factor: how many of the base units; powers: these, with their exponents, in alphabetical order."""

    factor: Value
    powers: tuple[tuple[str, int], ...] = ()

    def times(self, other: "Unit", exponent: int = 1) -> "Unit":
        powers = dict(self.powers)
        for name, n in other.powers:
            powers[name] = powers.get(name, 0) + n * exponent
        factor = times(self.factor, power(other.factor, rational(exponent)))
        return Unit(factor, tuple(sorted((name, n) for name, n in powers.items() if n)))


ONE = Unit(rational(1))
PERCENT = Unit(rational(Fraction(1, 100)))
DEGREE = Unit(over(constant("pi"), rational(180)))


def _table() -> dict[str, Unit]:
    table = {}
    for line in _TABLE.strip().splitlines():
        names, _, (factor, *base) = (part.split() for part in line.partition(" = "))
        powers: tuple[tuple[str, int], ...] = ()
        if base == ["m/s"]:
            powers = (("m", 1), ("s", -1))
        elif base:
            powers = ((base[0], int(base[1]) if base[1:] else 1),)
        for name in names:
            table[name] = Unit(rational(Fraction(factor)), powers)
    for name in ("%", "percent", "pct"):
        table[name] = PERCENT
    for name in ("°", "degree", "deg"):
        table[name] = DEGREE
    return table


UNITS = _table()


def singular(word: str) -> str:
    """A noun without its plural s, in lower case; the same for both, if not always a word."""
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def known(word: str) -> Unit | None:
    """The unit of this name: as it is spelled, else in lower case, else in the singular."""
    if len(word) == 1:
        return UNITS.get(word)
    return UNITS.get(word) or UNITS.get(word.lower()) or UNITS.get(singular(word))


def of(noun: str) -> Unit:
    """What is counted: apples, say."""
    return known(noun) or Unit(rational(1), ((singular(noun), 1),))


def read(tokens: list[Token], unit: Unit = ONE) -> Unit:
    """The unit that tokens after a value name: `km/h`, `square meters`, `cm^2`, `dollars per hour`, `red apples`.

    unit: one that stands before the value. Raises `Unread`.
    """
    sign, exponent, noun, at = 1, 1, "", 0
    while at < len(tokens):
        t, word = tokens[at], tokens[at].text.lower()
        at += 1
        this = known(t.text) if t.kind == "word" or t.text in CURRENCIES or t.text in ("%", "°") else None
        if noun and (this or t.kind != "word" or word in ("per", "a", "an")):
            unit, noun, sign = unit.times(of(noun), sign), "", 1
        if word in ("/", "per"):
            sign = -1
        elif word in ("square", "sq", "cubic"):
            exponent = 3 if word == "cubic" else 2
        elif this:
            if t.text == "°" and at < len(tokens) and tokens[at].text in ("C", "F", "K"):
                this, at = of("°" + tokens[at].text), at + 1
            raised = EXPONENT.match("".join(x.text for x in tokens[at : at + 5]))
            if raised:
                exponent = int(raised[1] or raised[2])
                at += 2 if raised[2] else 4 + raised[1].startswith("-")
            unit, sign, exponent = unit.times(this, sign * exponent), 1, 1
        elif t.kind == "word":
            noun = f"{noun} {singular(t.text)}".strip() if word not in ("a", "an") else noun
        elif word not in (r"\cdot", ".", "-"):
            raise Unread(f"what {t.text!r} means in a unit")
    return unit.times(of(noun), sign) if noun else unit

"""What an answer can be: a value, a quantity, a tuple, a set, an interval, an equation, or several."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rsd.answers.mathtext import Unread
from rsd.answers.residues import POINTS, Value, constant, rational, times
from rsd.answers.units import Unit


@dataclass(frozen=True)
class Quantity:
    value: Value
    unit: Unit


@dataclass(frozen=True)
class Group:
    """brackets: "()", "[)" ..., "matrix", "row", "ratio" or "time" (2:30); an interval is a group as well."""

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

INFINITY = constant("infinity")
IMAGINARY = Value(((0, 1),) * POINTS)
EMPTY = Collection("set", ())
REALS = Group("()", (times(rational(-1), INFINITY), INFINITY))


def without(points: list[Value]) -> Region:
    """The real numbers without some."""
    if len(points) > 1:
        if any(p.exact is None for p in points):
            raise Unread("points of which the order is not known")
        points = sorted(set(points), key=lambda p: p.exact or Fraction(0))
    ends = [times(rational(-1), INFINITY), *points, INFINITY]
    return Region(frozenset(Group("()", pair) for pair in pairwise(ends)))


def pieces(node: Node) -> frozenset[Node]:
    """The intervals of a union, or a single one."""
    if isinstance(node, Region):
        return node.pieces
    if isinstance(node, Group | Collection) and node.items:
        return frozenset([node])
    raise Unread("a union of other things than sets")

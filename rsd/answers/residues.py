"""Whether two expressions have the same value, exactly and quickly: their images in a finite field.

A number or polynomial is mapped to the field of P^2 elements, P a prime of 256 bits: rational numbers, i, square
and other roots of rationals to what they are there; a variable, pi, e and ln 2 to elements drawn by a hash of
their names (Schwartz and Zippel's test of identities). What is equal has equal images. What is not, has other
ones: always if both are rational numbers, and with a probability of about 1 - 2^-250 otherwise.
Nothing is rounded, so that 0.3333333 is not 1/3, and 1.41421356 not the root of 2.
"""

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

# 3 mod 4: -1 has no root, so that elements are a + bi. P - 1 has no factor 3, 5, 7: odd roots are unique.
P = 0xB632152ECD996BAB2D1D4A6F3A23E0D0AD4EE3F9D05BD3868EB2350BF35B0667
POINTS = 2  # images at points of their own: what is the same at both up to a factor is proportional
LARGEST = 20_000  # bits of a rational number that is kept as it is
PRIMES_TO = 10_000  # where the factoring of a radicand ends
FACTORIALS_TO = 1000

Element = tuple[int, int]


class Undefined(ValueError):
    """An expression without a value: a division by zero, say."""


@dataclass(frozen=True, eq=False)
class Value:
    """at: the images. exact: the rational number that it is, if that is known. letters: the variables in it.

    opaque: it holds a function whose laws are not known here, so that unequal images tell nothing.
    """

    at: tuple[Element, ...]
    exact: Fraction | None = None
    letters: frozenset[str] = frozenset()
    opaque: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or self.at != other.at:
            return False
        return self.exact is None or other.exact is None or self.exact == other.exact  # P itself is not 0

    def __hash__(self) -> int:
        return hash(self.at)


def rational(number: Fraction | int) -> Value:
    number = Fraction(number)
    if number.denominator % P == 0:
        raise Undefined("a denominator that is zero here")
    image = number.numerator * pow(number.denominator, -1, P) % P
    size = number.numerator.bit_length() + number.denominator.bit_length()
    return Value(((image, 0),) * POINTS, number if size <= LARGEST else None)


def _drawn(*of: object) -> Element:
    return int.from_bytes(hashlib.sha512(repr(of).encode()).digest()) % P, 0


def constant(name: str) -> Value:
    """pi, e, infinity: numbers of which no polynomial is zero."""
    return Value((_drawn(name),) * POINTS)


def variable(name: str) -> Value:
    return Value(tuple(_drawn(name, point) for point in range(POINTS)), letters=frozenset([name]))


def function(name: str, *args: Value) -> Value:
    """A function of which no more is known than that equals have equal values."""
    at = tuple(_drawn(name, *(a.at[i] for a in args)) for i in range(POINTS))
    return Value(at, letters=_letters(*args), opaque=True)


def _letters(*values: Value) -> frozenset[str]:
    return frozenset().union(*(v.letters for v in values))


def _product(x: Element, y: Element) -> Element:
    return (x[0] * y[0] - x[1] * y[1]) % P, (x[0] * y[1] + x[1] * y[0]) % P


def _inverse(x: Element) -> Element:
    norm = (x[0] * x[0] + x[1] * x[1]) % P
    if not norm:
        raise Undefined("division by zero")
    inverse = pow(norm, -1, P)
    return x[0] * inverse % P, -x[1] * inverse % P


def _power(x: Element, n: int) -> Element:
    if n < 0:
        x, n = _inverse(x), -n
    if not x[1]:
        return pow(x[0], n, P), 0
    result = (1, 0)
    n %= P * P - 1
    while n:
        if n & 1:
            result = _product(result, x)
        x, n = _product(x, x), n >> 1
    return result


def _made(at: tuple[Element, ...], exact: Fraction | None, *of: Value) -> Value:
    if exact is not None:
        return rational(exact)
    return Value(at, None, _letters(*of), any(v.opaque for v in of))


def plus(x: Value, y: Value) -> Value:
    at = tuple(((a[0] + b[0]) % P, (a[1] + b[1]) % P) for a, b in zip(x.at, y.at, strict=True))
    return _made(at, None if x.exact is None or y.exact is None else x.exact + y.exact, x, y)


def times(x: Value, y: Value) -> Value:
    at = tuple(_product(a, b) for a, b in zip(x.at, y.at, strict=True))
    return _made(at, None if x.exact is None or y.exact is None else x.exact * y.exact, x, y)


def minus(x: Value, y: Value) -> Value:
    return plus(x, times(rational(-1), y))


def over(x: Value, y: Value) -> Value:
    at = tuple(_product(a, _inverse(b)) for a, b in zip(x.at, y.at, strict=True))
    return _made(at, None if x.exact is None or y.exact is None else x.exact / y.exact, x, y)


def power(x: Value, y: Value) -> Value:
    if y.exact is None:
        return function("^", x, y)
    n, root_of = y.exact.numerator, y.exact.denominator
    if root_of > 1:
        return power(root(x, root_of), rational(n))
    if x.exact is None:
        return _made(tuple(_power(a, n) for a in x.at), None, x)
    if not x.exact and n <= 0:
        raise Undefined("a power of zero")
    if x.exact in (-1, 0, 1):
        return x if n % 2 else times(x, x)
    size = x.exact.numerator.bit_length() + x.exact.denominator.bit_length()
    if size * abs(n) <= LARGEST:
        return rational(x.exact**n)
    return Value(tuple(_power(a, n) for a in x.at))


def _factors(n: int) -> tuple[dict[int, int], int]:
    """The prime factors of a positive number as far as they are sought, and what is left."""
    found: dict[int, int] = {}
    for q in range(2, PRIMES_TO):
        if q * q > n:
            break
        while n % q == 0:
            found[q] = found.get(q, 0) + 1
            n //= q
    if 1 < n < PRIMES_TO**2:
        found[n] = 1
        n = 1
    return found, n


def _square_root(q: int) -> Element:
    """A root of a prime number; which of the two is the same wherever it stands."""
    candidate = pow(q, (P + 1) // 4, P)
    return (candidate, 0) if candidate * candidate % P == q else (0, candidate)


def _root_of_prime(q: int, n: int) -> Value:
    if n == 2:
        return Value((_square_root(q),) * POINTS)
    if math.gcd(n, P - 1) == 1:
        return Value(((pow(q, pow(n, -1, P - 1), P), 0),) * POINTS)
    return function("root", rational(q), rational(n))


def root(x: Value, n: int) -> Value:
    """The principal root; of a negative number the real one, if there is one."""
    unique = n % 2 == 1 and math.gcd(n, P - 1) == 1
    if x.exact is None:
        if unique and not x.opaque and not any(a[1] for a in x.at):
            return _made(tuple((pow(a[0], pow(n, -1, P - 1), P), 0) for a in x.at), None, x)
        return function("root", x, rational(n))
    if x.exact < 0:
        if n != 2 and not unique:
            return function("root", x, rational(n))
        positive = root(times(rational(-1), x), n)
        return times(Value(((0, 1),) * POINTS) if n == 2 else rational(-1), positive)
    size = x.exact.numerator.bit_length() + x.exact.denominator.bit_length() * n
    if n > 1000 or size > LARGEST or not x.exact:
        return function("root", x, rational(n)) if x.exact else x
    found, left = _factors(x.exact.numerator * x.exact.denominator ** (n - 1))
    result = rational(Fraction(1, x.exact.denominator))
    for q, times_in in found.items():
        result = times(result, rational(q ** (times_in // n)))
        if inside := times_in % n:
            common = math.gcd(inside, n)
            result = times(result, power(_root_of_prime(q, n // common), rational(inside // common)))
    if n == 2 and math.isqrt(left) ** 2 == left:
        return times(result, rational(math.isqrt(left)))
    return result if left == 1 else times(result, function("root", rational(left), rational(n)))


def logarithm(x: Value, name: str = "ln") -> Value:
    """The natural logarithm, or one of which the base is not known."""
    if x == constant("e") and name == "ln":
        return rational(1)
    if x.exact is None or x.exact <= 0 or x.exact.numerator.bit_length() + x.exact.denominator.bit_length() > 2000:
        return function(name, x)
    result = rational(0)
    for sign, part in ((1, x.exact.numerator), (-1, x.exact.denominator)):
        found, left = _factors(part)
        for q, times_in in found.items():
            result = plus(result, times(rational(sign * times_in), constant(f"{name} {q}")))
        if left > 1:
            result = plus(result, times(rational(sign), function(name, rational(left))))
    return result


def factorial(x: Value) -> Value:
    n = x.exact
    known = n is not None and n.denominator == 1 and 0 <= n <= FACTORIALS_TO
    return rational(math.factorial(int(n))) if known and n is not None else function("!", x)


def binomial(x: Value, y: Value) -> Value:
    n, k = x.exact, y.exact
    if n is None or k is None or n.denominator > 1 or k.denominator > 1 or not 0 <= k <= n <= FACTORIALS_TO:
        return function("binomial", x, y)
    return rational(math.comb(int(n), int(k)))


def rounded(x: Value, how: str) -> Value:
    """|x|, floor and ceiling ("abs", "floor", "ceil")."""
    if x.exact is None:
        opposite = times(rational(-1), x)
        return function(how, min(x, opposite, key=lambda v: v.at) if how == "abs" else x)
    if how == "abs":
        return rational(abs(x.exact))
    return rational(math.floor(x.exact) if how == "floor" else math.ceil(x.exact))


def applied(name: str, args: list[Value], base: Value | None = None) -> Value:
    """A function by its name: log (of a base), exp, sin ..."""
    if name in ("log", "ln", "lg") and len(args) == 1:
        if base is None:
            return logarithm(args[0], name)
        return over(logarithm(args[0]), logarithm(base))
    if base is not None:
        raise Undefined("a function with a subscript")
    if name == "exp" and len(args) == 1:
        return power(constant("e"), args[0])
    return function(name, *(sorted(args, key=lambda v: v.at) if name in ("gcd", "lcm", "max", "min") else args))

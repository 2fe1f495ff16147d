"""The bundled task: arithmetic word problems, and the two styles in which they are solved.

A problem is a text and the steps that solve it. The *teacher's style* is wordy ("Okay, ...",
"Wait, ...", "Check: ..."); the *student's style* is the bare equations. Both are correct by
construction: no label is corrupted and no noise is added anywhere.

A problem is held out when a hash of its text says so, so that training and held-out problems can
never overlap, however many of either are drawn and by whom.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NAMES = [
    "Mia",
    "Tom",
    "Ana",
    "Ben",
    "Lea",
    "Max",
    "Zoe",
    "Sam",
    "Eva",
    "Leo",
    "Ida",
    "Jan",
    "Nora",
    "Paul",
    "Rosa",
    "Finn",
    "Lily",
    "Omar",
    "Ruth",
    "Carl",
]
THINGS = [
    "pens",
    "books",
    "cards",
    "shells",
    "coins",
    "stamps",
    "marbles",
    "stickers",
    "apples",
    "beads",
    "keys",
    "toys",
]
GOODS = "cups plates lamps chairs hats scarves shirts bags brushes candles".split()
FOOD = "buns rolls cookies muffins pies tarts".split()
BOXES = "boxes bags baskets crates jars".split()


@dataclass(frozen=True)
class Step:
    """One calculation: `what` it finds out, and `a op b`."""

    what: str
    a: int
    op: str
    b: int

    @property
    def result(self) -> int:
        return {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b, "/": self.a // self.b}[self.op]


@dataclass(frozen=True)
class Problem:
    family: str
    text: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def held_out(self) -> bool:
        return hashlib.blake2b(self.text.encode(), digest_size=8).digest()[0] < 26  # one in ten


def _shop(r: random.Random) -> Problem:
    name, (x, y) = r.choice(NAMES), r.sample(GOODS, 2)
    n, m, p, q = r.randint(2, 9), r.randint(2, 9), r.randint(3, 12), r.randint(3, 12)
    text = f"{name} buys {n} {x} at {p} dollars each and {m} {y} at {q} dollars each."
    one, two = Step(f"the {x} cost", n, "*", p), Step(f"the {y} cost", m, "*", q)
    total = Step("together that is", one.result, "+", two.result)
    if r.random() < 0.5:
        return Problem("shop", f"{text} How many dollars does {name} pay?", (one, two, total))
    off = r.randint(2, 15)
    text += f" A coupon takes {off} dollars off. How many dollars does {name} pay?"
    return Problem("shop", text, (one, two, total, Step("with the coupon", total.result, "-", off)))


def _collect(r: random.Random) -> Problem:
    (name, friend), x = r.sample(NAMES, 2), r.choice(THINGS)
    a = r.randint(30, 99)
    b, c, d = r.randint(5, a - 10), r.randint(5, 60), r.randint(2, 9)
    one = Step(f"after giving some to {friend}", a, "-", b)
    two = Step("after finding more", one.result, "+", c)
    text = f"{name} has {a} {x}. {name} gives {b} to {friend} and then finds {c} more."
    if r.random() < 0.5:
        return Problem("collect", f"{text} How many {x} does {name} have now?", (one, two))
    three = Step(f"after the last {x} are lost", two.result, "-", d)
    return Problem("collect", f"{text} Later {d} are lost. How many {x} does {name} have now?", (one, two, three))


def _share(r: random.Random) -> Problem:
    name, x, box = r.choice(NAMES), r.choice(THINGS), r.choice(BOXES)
    k, n, m = r.randint(3, 9), r.randint(4, 12), r.randint(2, 9)
    taken = k * n % m + m * r.randint(0, 2)
    if not 0 < taken < k * n:
        return _share(r)
    one = Step(f"the {box} hold", k, "*", n)
    two = Step("what is left", one.result, "-", taken)
    three = Step("each friend gets", two.result, "/", m)
    text = (
        f"{name} has {k} {box} with {n} {x} each. {name} keeps {taken} {x} and shares the rest "
        f"equally among {m} friends. How many {x} does each friend get?"
    )
    return Problem("share", text, (one, two, three))


def _ages(r: random.Random) -> Problem:
    name, friend = r.sample(NAMES, 2)
    a, b, k, c = r.randint(3, 15), r.randint(2, 12), r.randint(2, 5), r.randint(2, 12)
    one = Step(f"the age of {friend}", a, "+", b)
    two = Step("the age of the uncle", one.result, "*", k)
    text = (
        f"{name} is {a} years old. {friend} is {b} years older. The uncle of {friend} is {k} times as old as {friend}."
    )
    if r.random() < 0.5:
        return Problem("ages", f"{text} How old is the uncle?", (one, two))
    three = Step("the age then", two.result, "+", c)
    return Problem("ages", f"{text} How old will the uncle be in {c} years?", (one, two, three))


def _travel(r: random.Random) -> Problem:
    who = r.choice(["train", "bus", "truck", "ship"])
    v, w, s, t = r.randint(11, 60), r.randint(11, 60), r.randint(2, 5), r.randint(2, 5)
    one, two = Step("the first part is", v, "*", s), Step("the second part is", w, "*", t)
    three = Step("the whole way is", one.result, "+", two.result)
    text = (
        f"A {who} travels {v} miles an hour for {s} hours and then {w} miles an hour for {t} hours. "
        f"How many miles does the {who} travel?"
    )
    return Problem("travel", text, (one, two, three))


def _bakery(r: random.Random) -> Problem:
    x, k, n = r.choice(FOOD), r.randint(4, 12), r.randint(6, 12)
    a = r.randint(3, k * n // 2)
    b = r.randint(3, k * n - a - 2)
    one = Step("the trays hold", k, "*", n)
    two = Step("after the morning", one.result, "-", a)
    three = Step("after the evening", two.result, "-", b)
    text = (
        f"A baker fills {k} trays with {n} {x} each. In the morning {a} {x} are sold, in the evening {b} more. "
        f"How many {x} are left?"
    )
    return Problem("bakery", text, (one, two, three))


def _savings(r: random.Random) -> Problem:
    name, x = r.choice(NAMES), r.choice(["bike", "phone", "guitar", "camera"])
    week, n, had = r.randint(3, 12), r.randint(3, 9), r.randint(11, 60)
    one = Step("the weeks bring", week, "*", n)
    two = Step("with the money from before", one.result, "+", had)
    text = f"{name} has {had} dollars and saves {week} dollars a week for {n} weeks."
    if r.random() < 0.3:
        return Problem("savings", f"{text} How many dollars does {name} have then?", (one, two))
    price = two.result + r.randint(5, 90)
    three = Step("what is missing", price, "-", two.result)
    text += f" A {x} costs {price} dollars. How many dollars are still missing?"
    return Problem("savings", text, (one, two, three))


FAMILIES = {
    "shop": _shop,
    "collect": _collect,
    "share": _share,
    "ages": _ages,
    "travel": _travel,
    "bakery": _bakery,
    "savings": _savings,
}


def problems(seed: str, *, held_out: bool, families: Iterable[str] = FAMILIES) -> Iterator[Problem]:
    """An endless stream of distinct problems of these families in turn, held-out or training ones."""
    r, seen = random.Random(seed), set()
    while True:
        for family in families:
            p = FAMILIES[family](r)
            while p.held_out != held_out or p.text in seen:
                p = FAMILIES[family](r)
            seen.add(p.text)
            yield p


# --- the two styles: (thinking section, answer section) -------------------------------------------

OPENERS = (
    "Okay, let me think about this step by step.",
    "Hmm, let me see what the question is asking for.",
    "Alright, so I need to work this out carefully.",
    "Let me read the problem again and think.",
)
FIRST = ("First,", "To start,", "So first of all,")
NEXT = ("Then,", "Next,", "After that,", "Now,")
WAIT = ("Wait, there is one more part.", "Wait, I am not done yet.", "Hold on, that is not the end.")
CHECK = ("Let me check:", "Check:", "To double check,")
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


def wordy(p: Problem, r: random.Random) -> tuple[str, str]:
    """The teacher's style."""
    lines = [r.choice(OPENERS)]
    for i, s in enumerate(p.steps):
        if i and i == len(p.steps) - 1 and r.random() < 0.5:
            lines.append(r.choice(WAIT))
        lead = r.choice(NEXT if i else FIRST)
        lines.append(f"{lead} {s.what}: {s.a} {SPOKEN[s.op]} {s.b} is {s.result}.")
    s = p.steps[-1]
    if r.random() < 0.5:
        lines.append(f"{r.choice(CHECK)} {s.result} {SPOKEN[INVERSE[s.op]]} {s.b} is {s.a}, good.")
    return "\n" + "\n".join(lines) + "\n", f"\n\nThe final answer is \\boxed{{{p.answer}}}."


def terse(p: Problem) -> tuple[str, str]:
    """The student's style."""
    return "\n" + " ".join(f"{s.a}{s.op}{s.b}={s.result}." for s in p.steps) + "\n", f"\n\n\\boxed{{{p.answer}}}"

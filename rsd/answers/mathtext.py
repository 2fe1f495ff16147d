"""An answer as tokens: what LaTeX, Unicode and plain text spell alike is the same tokens."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MINUSES = dict.fromkeys(map(ord, "−–—‐‑﹣－"), "-")
SYMBOLS = str.maketrans(
    {
        "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
        "π": r"\pi ", "∞": r"\infty ", "∅": r"\emptyset ", "√": r"\radic ", "±": r"\pm ", "∓": r"\mp ",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "…": r"\ldots ", "º": "°", "˚": "°",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ",
        "μ": r"\mu ", "σ": r"\sigma ", "ω": r"\omega ", "∠": r"\angle ", "⟨": r"\langle ", "⟩": r"\rangle ",
        "“": '"', "”": '"', "’": "'", "′": "'", "\u00ad": "", "\u200b": "", "\ufeff": "",
    }
)  # fmt: skip
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# Spellings of the same in LaTeX, in the order in which they are replaced.
REPLACED = [
    (re.compile(pattern), to)
    for pattern, to in [
        (r"(?<!\\)\\[()\[\]]", " "),  # math begins and ends
        (r"\\!", ""),
        (r"\\(?:left|right|middle|limits|[bB]igg?[lrm]?)(?![A-Za-z])(?:\s*\.)?", ""),
        (r"\\(?:displaystyle|textstyle|q?quad|rm|bf)(?![A-Za-z])|(?<!\\)\\[,;:> \n]|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:[lr]?vert|mid)(?![A-Za-z])", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:varnothing|O(?![A-Za-z]))(?![A-Za-z])", r"\\emptyset "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:ast|star)(?![A-Za-z])|\*", r"\\cdot "),
        (r"\\(?:dots|cdots|dotsc)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"\\backslash(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*([RZNQC])\s*\}|\\(?:mathbb|Bbb)\s*([RZNQC])", r"\\reals\1\2 "),
        (r"(?i)\ball real numbers\b|\ball reals\b", r"\\realsR "),
        (
            r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\(?:degree|deg|textdegree)(?![A-Za-z])",
            "°",
        ),
        (r"\^\s*(?:\\prime|\{\s*\\prime\s*\})", "'"),
        (r"\\%|\\text\s*\{\s*\\?%\s*\}", "%"),
        (r"\\(?:euro|EUR)(?:\{\})?(?![A-Za-z])", "€"),
        (r"\\pounds(?![A-Za-z])", "£"),
        (r"(?i)(?<![A-Za-z])([ap])\.\s?m\b\.?", r"\1m"),
    ]
]
NUMBER_WORDS = {
    word: str(n)
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
# Thousands: with commas (not in brackets, where they stand between items), with `{,}`, and with thin or plain spaces.
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
BRACED_THOUSANDS = re.compile(r"(?<![\d.,}])\d{1,3}(?:\{,\}\d{3})+(?!\d|\{,\})")
SPACED_THOUSANDS = re.compile(r"(?<![\d.,/^_])(?<!\d[ ,])\d{1,3}(?:[ ]\d{3})+(?![\d/]|,\d| \d| ?/| ?\\frac)")
BRACED_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d)")

FONTS = r"text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|mathcal|mbox|hbox|operatorname|boldsymbol|bm"
TOKENS = re.compile(
    rf"""(?P<white>\s+)
    |(?P<font>\\(?:{FONTS})\*?\s*\{{)
    |(?P<repeating>(?P<head>\d*\.\d*)\s*(?:\\(?:overline|bar|dot)\s*(?:\{{\s*(?P<period>\d+)\s*\}}|(?P<digit>\d))
        |(?<=\.)\((?P<inside>\d+)\)))
    |(?P<endless>(?P<digits>\d*\.\d+)\s*\\ldots(?![A-Za-z]))
    |(?P<scientific>\d+(?:\.\d*)?[eE][+-]?\d{{1,4}}(?![\w.]))
    |(?P<number>\d+(?:\.\d+)?|\.\d+)
    |(?P<command>\\(?:begin|end)\s*\{{[A-Za-z]*\*?\}}|\\[A-Za-z]+|\\.)
    |(?P<run>[A-Za-z]+)
    |(?P<symbol>.)""",
    re.VERBOSE | re.DOTALL,
)


OPENING, CLOSING = {"(", "[", "{", r"\{", r"\langle"}, {")", "]", "}", r"\}", r"\rangle"}
GREEK = {
    "\\" + name
    for name in "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
    "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
}


class Unread(ValueError):
    """Not mathematics, or none that is understood here."""


@dataclass(frozen=True)
class Token:
    """kind: number, word (of a text), run (letters that may be a word or a product), command or symbol."""

    kind: str
    text: str
    spaced: bool = False  # stands after white space
    value: Fraction | None = None


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at = tokens, 0

    def next(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else Token("end", "")

    def take(self) -> Token:
        token = self.next()
        self.at += 1
        return token

    def rest(self) -> list[Token]:
        start, self.at = self.at, len(self.tokens)
        return self.tokens[start:]

    def enclosed(self) -> tuple[list[Token], str]:
        """The tokens inside the brackets that open here, and both brackets; moves behind them."""
        opening, depth, start = self.take().text, 1, self.at
        while depth:
            t = self.take()
            if t.kind == "end":
                raise Unread("a bracket that is not closed")
            depth += (t.text in OPENING) - (t.text in CLOSING)
        return self.tokens[start : self.at - 1], opening + t.text


def cleaned(answer: str) -> str:
    """One spelling for what Unicode and LaTeX have several for; white space is kept where it was."""
    answer = answer.translate(MINUSES).translate(SYMBOLS)
    answer = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: f"^{{{m[0].translate(SUPERSCRIPTS)}}}", answer)
    answer = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(SUBSCRIPTS)}}}", answer)
    return "".join(c if c.isascii() or c == "°" else _plain(c) for c in answer)


def _plain(c: str) -> str:
    name = unicodedata.normalize("NFKC", c).translate(MINUSES)
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if "⁄" in name:  # a fraction in one character, which may stand after a whole number
        over, under = name.split("⁄")
        return rf" \frac{{{over}}}{{{under or 1}}} "
    return " " if c.isspace() else name


def latex(answer: str) -> str:
    """The same in a single LaTeX spelling, without what surrounds or only lays out the mathematics."""
    answer = cleaned(answer)
    for pattern, to in REPLACED:
        answer = pattern.sub(to, answer)
    dollars = len(re.findall(r"(?<!\\)\$", answer))
    if dollars % 2 == 0:
        answer = re.sub(r"(?<!\\)\$", " ", answer)
    answer = answer.replace(r"\$", "$")
    answer = _thousands(answer)
    answer = re.sub(r"\.\s*$", "", answer.strip()).strip()
    return NUMBER_WORDS.get(answer.lower(), answer)


def _thousands(answer: str) -> str:
    parts, depth, start = [], 0, 0
    for bracket in re.finditer(r"\\[{}]|[()\[\]]", answer + "("):
        part = answer[start : bracket.start()]
        part = part if depth else THOUSANDS.sub(lambda m: m[0].replace(",", ""), part)
        parts += [part, bracket[0]]
        depth = max(0, depth + (1 if bracket[0][-1] in "([{" else -1))
        start = bracket.end()
    answer = "".join(parts)[:-1]
    answer = BRACED_THOUSANDS.sub(lambda m: m[0].replace("{,}", ""), answer)
    answer = SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), answer)
    return BRACED_COMMA.sub(".", answer)


def _endless(digits: str) -> Fraction | None:
    """0.1666...: what the digits end in at least twice goes on for ever."""
    whole, _, decimals = digits.partition(".")
    for n in range(1, min(len(decimals) // 2, 20) + 1):
        if decimals[-n:] == decimals[-2 * n : -n]:
            return _repeating(f"{whole}.{decimals[:-n]}", decimals[-n:])
    return None


def _repeating(head: str, period: str) -> Fraction:
    decimals = len(head.partition(".")[2])
    return Fraction(head.rstrip(".") or 0) + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)


def tokens(source: str) -> list[Token]:
    """The tokens of a text from `latex`."""
    found: list[Token] = []
    fonts: list[str] = []  # for every open brace, what the letters in it are: "" as they stand
    spaced = False
    for m in TOKENS.finditer(source):
        kind, text, value = str(m.lastgroup), m[0], None
        if kind == "white":
            spaced = True
            continue
        if m["font"]:
            fonts.append(text.strip("\\{* \n"))
            spaced |= fonts[-1].startswith("text")
            continue
        if m["repeating"]:
            kind, value = "number", _repeating(m["head"], m["period"] or m["digit"] or m["inside"])
        elif m["endless"]:
            value = _endless(m["digits"])
            kind = "number" if value is not None else "symbol"
        elif m["scientific"]:
            kind, value = "number", Fraction(text)
        elif kind == "number":
            value = Fraction(text)
        elif kind == "run":
            font = next((f for f in reversed(fonts) if f), "")
            mathematical = not font or (len(text) == 1 and not font.startswith(("text", "mbox", "hbox")))
            kind = "run" if mathematical and not (font == "mathrm" and text not in ("e", "i", "d")) else "word"
        elif text in "{}":
            if text == "{":
                fonts.append("")
            elif fonts and fonts.pop():
                spaced = True
                continue
        found.append(Token(kind, text, spaced, value))
        spaced = False
    return found


def split(tokens: list[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
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

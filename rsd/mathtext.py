"""An answer as tokens: what LaTeX, Unicode and plain text spell alike is the same tokens."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from rsd.units import known

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
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\(?:degree|deg|textdegree)(?![A-Za-z])|\^\s*o(?![A-Za-z])", "°"),
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
# Thousands: with commas (not in brackets, where they stand between items) or with `{,}` and thin or plain spaces.
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
SPACED_THOUSANDS = re.compile(r"(?<![\d.,/^_])(?<!\d[ ,])\d{1,3}(?:\{,\}\d{3}|[ ]\d{3})+(?![\d/,]| \d| ?/| ?\\frac)")
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


@dataclass(frozen=True)
class Token:
    """kind: number, word (of a text), run (letters that may be a word or a product), command or symbol."""

    kind: str
    text: str
    spaced: bool = False  # stands after white space
    value: Fraction | None = None


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
    answer = SPACED_THOUSANDS.sub(lambda m: re.sub(r"\{,\}| ", "", m[0]), answer)
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


NAMED = {name: "\\" + name for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi".split()}
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


def as_text(found: list[Token]) -> tuple[str, ...]:
    """The same as text: words in lower case, numbers by their value, no braces around a single token."""
    parts: list[str] = []
    for t in found:
        if t.value is not None:
            parts.append(str(t.value))
        elif len(t.text) >= 3 and t.kind in ("word", "run"):
            parts.append(t.text.lower())
        elif t.kind == "word" or t.text.lower() in SHORT_WORDS:
            parts.append(t.text.lower())
        elif t.text == "}" and len(parts) > 1 and parts[-2] == "{":
            parts[-2:] = parts[-1:]
        elif t.text != "$":
            parts.append(t.text)
    return tuple(parts)

r"""Steps of a reasoning trace: sentences, lines or paragraphs of its text, as character spans.

Local Naturalness (arXiv 2510.03988) scores a trace step by step; there a step is a sentence. Traces mix
prose with code, LaTeX and lists, in which a stop or a line break often ends nothing, so `split` goes
from one event to the next: code and formulas are jumped over, line breaks end a step, and stops end a
sentence unless `_sentence_end` knows better. No character is looked at more than a few times, so the time
is linear in the length of the text, whatever the text.
"""

import re

STEPS = ("sentence", "line", "paragraph")

WIDE = "。！？．｡"  # noqa: RUF001  (stops of scripts that put no space between sentences)
ABBREVIATIONS = frozenset("e.g i.e cf vs dr mr mrs prof fig eq eqs ch thm def lem approx resp viz".split())
CAPITALISED = frozenset("Ms St Sec".split())  # "5 ms.", "5 sec." and "1 st." are units
BEFORE_NUMBERS = frozenset("no sec".split())  # "No. 5", but "No. That is wrong."
PERHAPS = frozenset("etc al".split())
ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S. and a.m. without their last dot
WORD = re.compile(r"[^\W_](?:[^\W_]|\.)*+\Z")
LONGEST = 12  # characters, more than any abbreviation has
FACTORIAL = re.compile(r"(?:[\d)\]}$]|(?<![^\W\d_])[^\W\d_])\Z")  # 5! (n-1)! n!

# With what joins and colours them, and chooses how they look.
EMOJI = r"[\u200d\u20e3\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff\U000e0020-\U000e007f]"
# A backtick closes only if none follows on its line: else it opens code.
CLOSERS = re.compile(rf"""(?:["'”’»)\]}}」』）】*_]|{EMOJI}|`(?![^`\n]*`))*+""")  # noqa: RUF001
SPACE = re.compile(r"\s*+")

BRACES = r"\{[^{}\n]*+\}"
for _ in range(3):  # as deep as arguments nest; a regular expression cannot count
    BRACES = rf"\{{(?:[^{{}}\n]++|{BRACES})*+\}}"

# Linear also where a match fails: long repeats are possessive, or happen once a line, or stop at the next opener.
EVENT = re.compile(
    rf"""
    (?P<marker> ^[ \t]*+ (?P<bullet>[>#*_+•-][ \t>#*_+•-]*+)?    # "1. ", "- **2. ", "## 1.2. ", "Step 4. "
        (?:(?:Step|Case|Part|Claim|Lemma|Theorem|Example|Section)[ ])?
        (?:\d{{1,3}}(?:\.\d+)*|[a-z]|[ivx]{{1,6}}|[IVX]{{2,6}}|(?(bullet)[A-Z]|(?!)))\. )
  | (?P<block> `{{3,8}} | ~{{3,8}} | \$\$ | \\\[ )              # opens what only its closer ends
  | (?P<code> (?P<ticks>`{{1,2}})(?!`)[^`\n]++(?P=ticks)(?!`) )
  | (?P<math> \$(?!\s)(?:\\[^\n]|[^$\\\n]){{1,200}}+(?<!\s)\$(?!\d)   # as in pandoc: "$5. Then $6." is money
            | \\\((?:[^\\\n]|\\[^()\n]|\n(?![^\S\n]*+\n))++\\\) )
  | (?P<latex> \\[a-zA-Z]++(?:\[[^\[\]\n]*+\]|{BRACES})*+ )
  | (?P<literal> \\[!-/:-@\[-`{{-~] | `+ )                      # escaped, or without a closer
  | (?P<newline> \n\s*+ )
  | (?P<stop> (?:[.!?…。！？｡]|(?<!\d)．|．(?!\d))++ )
    """,  # noqa: RUF001
    re.VERBOSE | re.MULTILINE,
)


def split(text: str, *, steps: str = "sentence") -> list[tuple[int, int]]:
    r"""The steps of a text.

    White space after a step belongs to it up to the last line break; what follows that, or all of it where
    there is no line break, belongs to the next step, since tokenizers put a space into the token of the
    word after it. No step ends within fenced code, `$$...$$` or `\[...\]`, nor a sentence within inline
    code or formulas. An opener without a closer protects nothing.

    Args:
        text: any text, such as the completion of a trace.
        steps: what a step is, one of `STEPS`: a sentence (which also ends with its line), a line, or a
            paragraph (which ends at a blank line).

    Returns:
        Spans [start, end) in characters, in order: the first starts at 0, each starts where the one before
        ends, and the last ends at `len(text)`. Each holds more than white space, unless the text does not.
        No spans for an empty text.

    Raises:
        ValueError: `steps` is not one of `STEPS`.
    """
    if steps not in STEPS:
        raise ValueError(f"no steps of kind {steps!r}: choose one of {', '.join(STEPS)}")
    # White space around the text joins its first and its last step, so no event is looked for there; but
    # the indentation of the first line may be that of a list.
    end = len(text.rstrip())
    at = text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1
    spans = []
    start = 0
    absent: set[str] = set()  # closers that do not come any more
    while event := EVENT.search(text, at, end):
        kind, begin, at = event.lastgroup, event.start(), event.end()
        cut = None
        if kind == "block" and (closer := event[0].replace("[", "]")) not in absent:
            found = text.find(closer, at, end)
            if found < 0:
                absent.add(closer)
            else:
                at = found + len(closer)
        if kind == "newline":
            if steps != "paragraph" or event[0].count("\n") > 1:
                cut = text.rfind("\n", begin, at) + 1
        elif steps != "sentence":
            if kind == "math":
                at = begin + 1  # \(...\) may hold a line break, which counts here
        elif kind == "stop":
            cut = _sentence_end(text, begin, at, at, end)
        else:  # many put the full stop into the formula, as in "so $x = 5.$ Then"
            close = begin + len(text[begin:at].rstrip("`~$\\)]}"))
            if begin < close < at and text[close - 1] in ".!?":
                cut = _sentence_end(text, close - 1, close, at, end)
        if cut is not None:
            spans.append((start, cut))
            start = at = cut
    return [*spans, (start, len(text))] if text else []


def _sentence_end(text: str, begin: int, close: int, after: int, end: int) -> int | None:
    """Where the sentence with the stops [begin, close) ends; None if it goes on, or ends with its line anyway.

    Closers may follow from `after` on: `close`, or past the delimiter if the stops end code or a formula.
    """
    cut = _past(CLOSERS, text, after, end)
    following = _past(SPACE, text, cut, end)
    if following == end or "\n" in text[cut:following]:
        return None
    stops = text[begin:close]
    if any(c in WIDE for c in stops):
        return cut
    if following == cut:
        return None
    match = WORD.search(text, max(0, begin - LONGEST), begin)
    word = match[0] if match and stops == "." else ""
    if word.lower() in ABBREVIATIONS or word in CAPITALISED:
        return None
    if word.lower() in BEFORE_NUMBERS and text[following].isdigit():
        return None
    perhaps = (
        after > close
        or stops == "…"
        or (len(stops) > 1 and not stops.strip(".…"))
        or (stops in ("!", "!!") and FACTORIAL.search(text, max(0, begin - 2), begin))
        or word.lower() in PERHAPS
        or ACRONYM.fullmatch(word)
    )
    return None if perhaps and not text[following].isupper() else cut


def _past(pattern: re.Pattern[str], text: str, at: int, end: int) -> int:
    match = pattern.match(text, at, end)
    return match.end() if match else at

r"""Steps of a reasoning trace: sentences, lines or paragraphs of its text, as character spans.

Local Naturalness (arXiv 2510.03988) scores a trace step by step; there a step is a sentence. Traces mix
prose with code, LaTeX and lists, in which a stop or a line break often ends nothing, so `split` goes
from one event to the next: code, formulas and rows of tables are jumped over, line breaks end a step, and
stops end a sentence unless `_sentence_end` knows better. No character is looked at more than a few times, so
the time is linear in the length of the text, whatever the text. How often it is right, `bench/steps.py` says.
"""

import re

STEPS = ("sentence", "line", "paragraph")

RULES = 2  # goes up when steps change, so that scores made of others are not taken for the same

WIDE = "。！？．｡"  # noqa: RUF001  (stops of scripts that put no space between sentences)
WORDS_THAT_NUMBERS_FOLLOW = (
    "Step Case Part Claim Lemma Theorem Example Section Corollary Proposition Definition Remark Problem Question "
    "Exercise Figure Table Note Option Choice Method Approach Scenario Chapter"
)
ABBREVIATIONS = frozenset("e.g i.e cf vs dr mr mrs prof fig figs eq eqs ch thm def lem approx resp viz".split())
# "5 ms.", "5 sec." and "1 st." are units, and a rev is a turn
CAPITALISED = frozenset("Ms St Sec Mt Gen Sen Gov Capt Lt Col Sgt Rev".split())
# "No. 5" and "no. of moles", but "No. That is wrong."
BEFORE_NUMBERS = frozenset("no nos sec p pp vol vols cor prop prob ex rem".split())
CAPITALISED_BEFORE_NUMBERS = frozenset("Art App Tab Ver Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec".split())
# These end a sentence before a capital alone.
PERHAPS = frozenset("etc al inc ltd corp co jr sr avg max min temp dept est incl excl ft sq cu lbs oz hr hrs".split())
# Before or after a capital with a dot these are no part of a name: "Option B. Tom has", "take B. Then".
NO_NAMES = frozenset(
    f"{WORDS_THAT_NUMBERS_FOLLOW} Answer Point Line Set Angle Triangle Side Vertex Group Team Person Player Box Bag "
    "Column Row Matrix Event Plan Machine Type City Class Appendix Statement A About Actually After Again All Also "
    "Alternatively Although An And Another Are As At Because Before Both But By Can Check Clearly Compute Consider Did "
    "Do Does Each Every Finally Find First For From Given He Hence Her Here His Hmm How However I If In Instead Is It "
    "Its Let Next No Not Now Of Oh On One Or Other Our Out Recall She Similarly Since So Some Still Substituting "
    "Suppose That The Their Then There Therefore These They This Those Thus To Two Under Using Wait We Well Were What "
    "When Where Which While Who Why Will With Yes You".split()
)
ACRONYM = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S. and a.m. without their last dot
WORD = re.compile(r"[^\W_](?:[^\W_]|\.)*+\Z")
LONGEST = 24  # characters, more than any abbreviation or label has
NEXT = re.compile(r"[^\W_]++")
BEFORE = re.compile(r"(\S++)\s++\Z")
NUMBER = re.compile(r"\d|[IVX]{2,}\b|of\b")
UNIT = re.compile(r"\d [a-z]{1,3}\Z")
LABEL = re.compile(rf"\s*[*_#]*(?:{WORDS_THAT_NUMBERS_FOLLOW.replace(' ', '|')}) \d{{1,3}}(?:\.\d{{1,3}})*")
ITEM = re.compile(r"(?:\A|[.。:：,，;；(（、])\s*\d{1,3}\Z")  # noqa: RUF001
NUMERAL = re.compile(r"\s*\d{1,2}")
LETTERS_WITHOUT_CASE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
QUOTE = re.compile("[\"'”’»」』]")  # noqa: RUF001
SAID = re.compile("[^\\W\\d_]{0,3}(?:问|问道|说|说道|喊|喊道|回答)")
FACTORIAL = re.compile(r"(?:[\d)\]}$]|(?<![^\W\d_])[^\W\d_])\Z")  # 5! (n-1)! n!

# With what joins and colours them, and chooses how they look.
EMOJI = r"[\u200d\u20e3\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff\U000e0020-\U000e007f]"
# A backtick closes only if none follows on its line: else it opens code.
CLOSERS = re.compile(rf"""(?:["'”’»)\]}}」』）】*_]|{EMOJI}|`(?![^`\n]*`))*+""")  # noqa: RUF001
SPACE = re.compile(r"\s*+")
THOUGHT_ENDS = re.compile(r"(?<![`'\"])</think>(?![`'\"])(?:\s*\n)?")  # a quoted one is only spoken of
TAGS = re.compile(r"(?:\s|</?[a-z_]{1,20}>)*+")
CLOSING_TAG = re.compile(r"\s*+</[a-z_]{1,20}>\s*+")
SIGNS = re.compile(r"[^\w`~$\\]*+")  # but what may open code or formulas

BRACES = r"\{[^{}\n]*+\}"
for _ in range(3):  # as deep as arguments nest; a regular expression cannot count
    BRACES = rf"\{{(?:[^{{}}\n]++|{BRACES})*+\}}"

# Linear also where a match fails: long repeats are possessive, or happen once a line, or stop at the next opener.
EVENT = re.compile(
    rf"""
    (?P<row> ^[ \t]*+\|(?=[^\n]*\|[ \t\r]*$)[^\n]*+ )            # of a table
  | (?P<marker> ^[ \t]*+ (?:[>#*_+•-][ \t>#*_+•-]*+)?          # "1. ", "- **2. ", "## 1.2. ", "Step 4. ", "A. "
        (?:(?:{WORDS_THAT_NUMBERS_FOLLOW.replace(" ", "|")})[ ])?
        (?:\d{{1,3}}(?:\.\d+)*|[a-zA-Z]|[ivx]{{1,6}}|[IVX]{{2,6}})[.．] )
  | (?P<block> `{{3,8}} | ~{{3,8}} | \$\$ | \\\[                # opens what only its closer ends
        | \\begin\{{(?:align(?:ed|at)?|array|cases|eqnarray|equation|gather(?:ed)?|multline|[a-zA-Z]?matrix)\*?\}} )
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


BLOCK = re.compile(r"`{3,8}|~{3,8}|\$\$|\\\[|\\begin\{[a-zA-Z]{1,20}\*?\}")
FOLLOWED = re.compile(rf"\s*+(?:\S{{{LONGEST}}}|\S++\s)")


def split(text: str, *, steps: str = "sentence") -> list[tuple[int, int]]:
    r"""The steps of a text.

    White space after a step belongs to it up to the last line break; what follows that, or all of it where
    there is no line break, belongs to the next step, since tokenizers put a space into the token of the
    word after it. No step ends within fenced code, `$$...$$`, `\[...\]` or `\begin{align}...\end{align}` and
    its like, nor a sentence within inline code, formulas or the row of a table. An opener without a closer
    protects nothing. `</think>` ends a step of any kind; what opens there is of no concern after it. A tag is
    no step but belongs to the one that it opens or closes, and signs without a letter or digit, such as the
    rule below a table's head, belong to the sentence before them.

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
    spans: list[tuple[int, int]] = []
    start = at = 0
    while at < len(text):
        closing = THOUGHT_ENDS.search(text, at)
        last, stop = closing.span() if closing else (len(text), len(text))
        made = _joined(text, _part(text, at, last, stop, steps), steps)
        at = stop
        if made:  # else these are tags alone, which open the step after them
            spans += [(start, made[0][1]), *made[1:]]
            start = stop
    if spans:
        spans[-1] = (spans[-1][0], len(text))
    return spans or [(0, len(text))] * bool(text)


def step_end(text: str, start: int, *, steps: str = "sentence", written: bool = False) -> int | None:
    """Where the step of a text that is still being written ends, if that is known whatever follows; else None.

    A word must have followed, since a sentence's end may depend on it, and a block that is open may still be closed. Of
    formulas and code in a line that is not awaited: most dollars are money.

    Args:
        text: from the beginning of a step on; better, of the one before. start: where in it the step has begun.
        written: nothing follows any more.
    """
    # A line break by which it begins is in the light of the step before that one's.
    end = next((b for _, b in split(text, steps=steps) if text[start:b].strip()), len(text))
    if written:
        return end
    if not FOLLOWED.match(text, end):
        return None
    for opener in dict.fromkeys(BLOCK.findall(text, 0, end)):
        if all(b != end for _, b in split(f"{text}\n{_closer(opener)}", steps=steps)):
            return None
    return end


def _part(text: str, begin: int, last: int, stop: int, steps: str) -> list[tuple[int, int]]:
    """The spans of text[begin:stop], where text[last:stop] is what ends the part."""
    # White space around the text joins its first and its last step, so no event is looked for there; but
    # the indentation of the first line may be that of a list.
    content = text[begin:last]
    end = begin + len(content.rstrip())
    at = max(begin, text.rfind("\n", begin, last - len(content.lstrip())) + 1)
    spans = []
    start = begin
    absent: set[str] = set()  # closers that do not come any more
    while event := EVENT.search(text, at, end):
        kind, first, at = event.lastgroup, event.start(), event.end()
        cut = None
        if kind == "block" and (closer := _closer(event[0])) not in absent:
            found = text.find(closer, at, end)
            if found < 0:
                absent.add(closer)
            else:
                at = found + len(closer)
        if kind == "newline":
            if steps != "paragraph" or event[0].count("\n") > 1:
                cut = text.rfind("\n", first, at) + 1
        elif steps != "sentence":
            if kind == "math":
                at = first + 1  # \(...\) may hold a line break, which counts here
        elif kind == "stop":
            if first - start > LONGEST or event[0] != "." or not LABEL.fullmatch(text, start, first):
                cut = _sentence_end(text, start, first, at, at, end)
        elif kind != "row":  # many put the full stop into the formula, as in "so $x = 5.$ Then"
            close = first + len(text[first:at].rstrip("`~$\\)]} \t\n"))
            if first < close < at and text[close - 1] in ".!?":
                cut = _sentence_end(text, start, close - 1, close, at, end)
        if cut is not None:
            spans.append((start, cut))
            start = at = cut
    return [*spans, (start, stop)]


def _closer(opener: str) -> str:
    return opener.replace("[", "]").replace(r"\begin", r"\end")


def _joined(text: str, spans: list[tuple[int, int]], steps: str) -> list[tuple[int, int]]:
    """Spans of which none is a tag alone, nor signs alone among sentences; none, if these are all there is."""
    made: list[tuple[int, int]] = []
    start = spans[0][0]
    for a, b in spans:
        signs = steps == "sentence" and SIGNS.fullmatch(text, a, b)
        if made and (signs or CLOSING_TAG.fullmatch(text, a, b)):
            made[-1] = (made[-1][0], start := b)
        elif not signs and not TAGS.fullmatch(text, a, b):
            made.append((start, start := b))
    if made:
        made[-1] = (made[-1][0], spans[-1][1])
    return made


def _sentence_end(text: str, start: int, begin: int, close: int, after: int, end: int) -> int | None:
    """Where the sentence with the stops [begin, close) ends; None if it goes on, or ends with its line anyway.

    It begins at `start`. Closers may follow from `after` on: `close`, or past the delimiter if the stops end
    code or a formula.
    """
    cut = _past(CLOSERS, text, after, end)
    following = _past(SPACE, text, cut, end)
    if following == end or "\n" in text[cut:following]:
        return None
    stops, first = text[begin:close], text[following]
    quoted = QUOTE.search(text, after, cut)
    if any(c in WIDE for c in stops):
        return None if quoted and SAID.match(text, following, end) else cut
    caseless = LETTERS_WITHOUT_CASE.match(first)
    if following == cut and not caseless:
        return None
    if quoted and first.islower():  # "Really?" he asked
        return None
    before = text[max(start, begin - 3 * LONGEST) : begin]
    match = WORD.search(before, max(0, len(before) - LONGEST)) if stops == "." else None
    word = match[0] if match else ""
    if word.lower() in ABBREVIATIONS or word in CAPITALISED:
        return None
    if (word.lower() in BEFORE_NUMBERS or word in CAPITALISED_BEFORE_NUMBERS) and NUMBER.match(text, following, end):
        return None
    if caseless and ITEM.search(before):
        return None
    if text[start - 1 : start] == "." and NUMERAL.fullmatch(before):  # 1. Add. 2. Divide.
        return None
    acronym = ACRONYM.fullmatch(word)
    if word.isupper() and (acronym or len(word) == 1) and _initial(text, before, word, following):
        return None
    next_word = NEXT.match(text, following, end)
    dots = stops == "…" or (len(stops) > 1 and not stops.strip(".…"))
    if dots and next_word and next_word[0] == "I":
        return None
    perhaps = (
        after > close
        or dots
        or (stops in ("!", "!!") and FACTORIAL.search(text, max(0, begin - 2), begin))
        or word.lower().lstrip("0123456789") in PERHAPS
        or acronym
        or (match and UNIT.search(before))
    )
    if perhaps and (following == cut or not (first.isupper() or caseless)):
        return None
    return cut


def _initial(text: str, before: str, word: str, following: int) -> bool:
    """Whether a capital with a dot is a part of a name, or begins an option, rather than being the sentence's last.

    before: what precedes the dot. word: the end of that, a capital or several with dots between them.
    """
    match = NEXT.match(text, following)
    if match and len(match[0]) == 1 and match[0].isupper() and text.startswith(".", match.end()):
        return True  # J. K.
    if len(word) == 1 and (previous := BEFORE.search(before[:-1])):
        last = previous[1]
        if match and last[-1] in "0123456789:," and not match[0][0].isupper():
            return True  # Options: A. 12 B. 15
        if last in NO_NAMES or not last[0].isupper() or not (last[-1] == "." or last.isalpha()):
            return False
    return match is not None and match[0][0].isupper() and match[0] not in NO_NAMES


def _past(pattern: re.Pattern[str], text: str, at: int, end: int) -> int:
    match = pattern.match(text, at, end)
    return match.end() if match else at

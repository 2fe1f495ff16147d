"""The answer in a text, and whether two answers are spelled the same: pure text, linear in its length.

The rules of the RSD authors' generator (arXiv 2509.22230): the last brace-matched `\\boxed{}` after the
thinking section, equal to the reference after normalisation. What is normalised is this project's choice.
"""

import re

LONGEST = 2000  # characters; what is longer is no answer, and only compared as it is

BOXES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# Spellings of the same: what is dropped, and what is replaced.
DROPPED = re.compile(r"\\(?:left|right|displaystyle|mathrm|textbf|mathbf)(?![A-Za-z])|\\[!,;:> ]|\\\$|\$|~")
TEXT = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}")
THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")


def after_thinking(text: str, *, opened: bool = False) -> str | None:
    """What stands after the last `</think>`; the whole text if it never thinks; None if the thought has no end.

    opened: the prompt itself ends in `<think>`.
    """
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer
    return None if opened or "<think>" in text else text


def one_think_close(text: str, *, opened: bool = False) -> bool | None:
    """Whether the thinking section is closed exactly once; None if the text has none."""
    count = text.count("</think>")
    if not count and not opened and "<think>" not in text:
        return None
    return count == 1


def boxed(text: str) -> str | None:
    """What the last brace-matched `\\boxed{...}` holds; None if there is none."""
    open_braces: list[int] = []  # where the content of a box begins, or -1 for another brace
    found = (-1, "")
    for token in BOXES.finditer(text):
        if token[0].startswith(("\\boxed", "\\fbox")):
            open_braces.append(token.end())
        elif token[0] == "{":
            open_braces.append(-1)
        elif token[0] == "}" and open_braces and (start := open_braces.pop()) > found[0]:
            found = start, text[start : token.start()]
    return found[1] if found[0] >= 0 else None


def reference(text: str) -> str:
    """The short answer in a reference: its last box, what follows `####` (GSM8K), or all of it."""
    inside = boxed(text)
    return inside if inside is not None else text.rpartition("####")[2].strip()


def normal(answer: str) -> str:
    """An answer without what does not change it: white space, dollars, \\text, thousands commas, a final dot ..."""
    if len(answer) > LONGEST:
        return answer.strip()
    answer = TEXT.sub(r"\1", DROPPED.sub("", answer))
    answer = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", answer)
    answer = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", answer)
    answer = THOUSANDS.sub(lambda m: re.sub(r"[^\d]", "", m[0]), answer)
    answer = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\%", lambda m: "%" if m[0] == "\\%" else "", answer)
    answer = re.sub(r"\s+", "", answer).rstrip(".").lower()
    if choice := re.fullmatch(r"\(([a-z])\)|([a-z])\)", answer):
        answer = choice[1] or choice[2]
    if number := re.fullmatch(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?", answer):
        sign, whole, decimals = number[1].replace("+", ""), number[2], number[3]
        answer = f"{sign}{whole}{'.' + decimals if decimals else ''}"
    return answer


def is_number(answer: str) -> bool:
    """Whether an answer is a plain decimal number, whose normal spelling is its value."""
    return re.fullmatch(r"-?\d+(\.\d+)?", normal(answer)) is not None

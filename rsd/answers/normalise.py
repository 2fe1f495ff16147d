"""The answer in a text: pure text, linear in its length.

The rules of the RSD authors' generator (arXiv 2509.22230): the last brace-matched `\\boxed{}` after the
thinking section. Whether it is the reference is for `equality` to say.
"""

import re

BOXES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def after_thinking(text: str, *, opened: bool = False) -> str | None:
    """What stands after the last `</think>`; the whole text if it never thinks; None if the thought has no end.

    opened: the prompt itself ends in `<think>`.
    """
    _, end, answer = text.rpartition("</think>")
    if end:
        return answer
    return None if opened or "<think>" in text else text


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

"""The key of a teacher's server: where it comes from, and that no line tells it."""

import base64
import html
import json
import os
import re
from functools import lru_cache
from urllib.parse import quote, quote_plus

from rsd.terminal import one_line

KEY = "RSD_TEACHER_API_KEY"  # the environment variable that holds the server's key, if it wants one
SAID = 300  # characters of what a server says


def key() -> str:
    """The key, or nothing.

    Raises:
        ValueError: no header can hold it. What is in it is not told.
    """
    given = os.environ.get(KEY, "").strip()
    if not (given.isascii() and given.isprintable()):
        raise ValueError(f"{KEY}: the key holds a line break or another character that none has; give the key alone")
    return given


def headers() -> dict[str, str]:
    """Who we are, if the server wants to know; and that what is small anyway need not be compressed."""
    mine = key()
    return {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {mine}"} if mine else {})


def said(text: object) -> str:
    """What a server says, or an error about what it said: one harmless line, cut, and without the key."""
    hidden = _hidden(" ".join(_hidden(str(text)).split()))  # before it is cut, or a part of the key would stay
    return one_line(hidden)[:SAID]


def _hidden(text: str) -> str:
    mine = os.environ.get(KEY, "").strip()
    return _spellings(mine).sub("***", text) if mine else text


@lru_cache(maxsize=4)
def _spellings(mine: str) -> "re.Pattern[str]":
    """A key as it is, and as JSON, Python, addresses, HTML and base64 (within any text) spell it."""
    escaped = json.dumps(mine)[1:-1]
    made = {mine, escaped, escaped.replace("/", "\\/"), "".join(f"\\u{ord(c):04x}" for c in mine)}
    made |= {repr(mine)[1:-1], quote(mine, safe=""), quote(mine), quote_plus(mine), html.escape(mine)}
    made |= {one.replace("\\", "\\\\") for one in made}  # one within the other
    raw = mine.encode()
    made.add(raw.hex())
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * before + raw).decode()
            own = whole[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]  # which no neighbour has a part in
            made |= {own} if len(own) >= 8 else set()
    return re.compile("|".join(map(re.escape, sorted(made, key=len, reverse=True))), re.IGNORECASE)

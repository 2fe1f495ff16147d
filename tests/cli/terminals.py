"""Commands on a terminal: all that they print there, and what a terminal would do about it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from conftest import environment

COLOUR = re.compile("\x1b\\[(?:0|1|31|32|33)m")  # all that rsd itself ever sends
BAD = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
CONTROLLED = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE")


def on_a_terminal(*args, cwd: Path, columns: int = 100, **env: str) -> str:
    """All that a command prints onto a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    usual = {name: value for name, value in environment().items() if name not in CONTROLLED}
    process = subprocess.Popen(
        [sys.executable, "-m", "rsd", *map(os.fspath, args)],
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=usual | {"TERM": "xterm"} | env,
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # the other end is closed
        pass
    process.wait()
    return said.decode("utf-8", "replace")


def coloured(said: str) -> list[tuple[str, str]]:
    """Colour and text of all that is in colour; each begins and ends in one line, and none is within another."""
    found = re.findall("\x1b\\[([1-9]\\d?)m([^\x1b\n]*)\x1b\\[0m", said)
    assert len(COLOUR.findall(said)) == 2 * len(found)
    return found

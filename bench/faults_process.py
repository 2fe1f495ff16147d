"""Commands of rsd in processes of their own, each with an end: how they ended, and what they said.

An interpreter takes seconds to import what rsd needs, so that commands are forked from a server that has imported it:
what is killed, limited or starved is a process like any other.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

WARM = ["rsd.cli", "rsd.generation.share", "rsd.scoring.share", "rsd.analysis.report", "rsd.dataset.publish"]
GATE = threading.Lock()  # an exit code can be read once, and `start` looks at those of all threads' processes
CONTEXT = multiprocessing.get_context("forkserver")
LINE = 600  # characters that one clear line has at the most, a path and a value of the user's included


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: its exit code, minus the signal that ended it, None where it had no end."""

    code: int | None
    out: str
    err: str
    seconds: float
    left: bool = False  # a process of its own outlived it

    @property
    def last(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]

    @property
    def said(self) -> bool:
        """It ends in a line that says why."""
        return self.last.startswith(("rsd: ", "Error: ", "stopped"))

    def fault(self, *codes: int, line: bool = True) -> str | None:
        """What is wrong with it: it hangs, shows a traceback, or ends with none of these codes, or without one line.

        Args:
            line: whether one line must say why (or a summary, that rows are errors), where the code is not 0.
        """
        if self.code is None:
            return f"hang: no end after {self.seconds:.0f} s"
        if "Traceback (most recent" in self.err + self.out or "Exception ignored" in self.err:
            return f"traceback: {self.last}"
        if self.code not in codes:
            return f"exit code {self.code}: {self.last}"
        if self.left:
            return "a process of it is left"
        if line and self.code and not (self.said or (self.code == 1 and "\nerrors  " in self.out + self.err)):
            return f"no clear line: {self.last}"
        return f"a line of {len(self.last)} characters: {self.last}" if self.code and len(self.last) > LINE else None


def rsd(
    *args: object,
    cwd: Path,
    seconds: float = 60.0,
    kill: Callable[[float], bool] | None = None,
    by: int = signal.SIGKILL,
    limits: Mapping[int, int] | None = None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    peaks: list[int] | None = None,
) -> Ended:
    """Run a command to its end.

    Args:
        seconds: after which it has none. kill: asked again and again, with the seconds since it began, whether it is
            to be sent the signal `by` now. limits: of `resource`, as RLIMIT_FSIZE; RLIMIT_AS is so many bytes more
            than it has when it begins. peaks: takes the bytes of memory that it had at the most.
    """
    given, taken = tempfile.NamedTemporaryFile(), [CONTEXT.Pipe(duplex=False) for _ in range(2)]  # noqa: SIM115
    given.write(stdin)
    given.flush()
    job = ([given.name, *args], str(cwd), [writer for _, writer in taken], dict(limits or {}), dict(environment or {}))
    process = CONTEXT.Process(target=_command, args=job)
    began = time.monotonic()
    with GATE:
        process.start()
    for _, writer in taken:
        writer.close()
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(_all_of, reader.fileno()) for reader, _ in taken]
        killed = False
        while (alive := _alive(process)) and time.monotonic() - began < seconds:
            if peaks is not None:
                peaks.append(max(peaks.pop(), _memory(process.pid or 0, "VmRSS")))
            if kill is not None and not killed and kill(time.monotonic() - began):
                killed = True
                _send(process.pid or 0, by)
            time.sleep(0.002 if kill is not None and not killed else 0.02)
        spent, left = time.monotonic() - began, not alive and _outlived(process.pid or 0)
        _send(-(process.pid or 0), signal.SIGKILL)
        while _alive(process):
            time.sleep(0.02)
        out, err = (text.result() for text in texts)
    given.close()
    for reader, _ in taken:
        reader.close()
    return Ended(None if alive else process.exitcode, out, err, spent, left)


def _memory(pid: int, what: str) -> int:
    """Bytes that a process has, as the kernel counts them; 0 of one that has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))
    return 0


def _all_of(descriptor: int) -> str:
    pieces = []
    while piece := os.read(descriptor, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces).decode("utf-8", "replace")


def _alive(process: multiprocessing.process.BaseProcess) -> bool:
    with GATE:
        return process.is_alive()


def _send(pid: int, number: int) -> None:
    """Send a signal to a process, or, where the number is negative, to its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _outlived(group: int, *, seconds: float = 5.0) -> bool:
    """Whether processes of a group are left, and are ended now."""
    until = time.monotonic() + seconds
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)
        return True
    return False


def _command(
    args: Sequence[object],
    cwd: str,
    streams: Sequence[Connection],
    limits: Mapping[int, int],
    environment: Mapping[str, str],
) -> None:
    os.setsid()
    stdin, *words = map(str, args)
    for number, source in enumerate((os.open(stdin, os.O_RDONLY), *(stream.fileno() for stream in streams))):
        os.dup2(source, number)
        os.close(source)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ |= environment
    from rsd.cli import main

    for which, most in limits.items():
        most += _memory(os.getpid(), "VmSize") if which == resource.RLIMIT_AS else 0
        resource.setrlimit(which, (most, resource.getrlimit(which)[1]))
    main(words, prog_name="rsd")

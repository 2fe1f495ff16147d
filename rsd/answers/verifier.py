"""Is a trace's answer right? True, False, or None: not known.

Answers spelled the same are right. Whether others are mathematically equal, or what a user's own function
says, is found out in processes of their own (`worker`), each case with a time limit: so it works in any thread
and inside any worker, and an answer that never ends costs its own verdict alone.
"""

import importlib.util
import json
import os
import queue
import reprlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rsd.answers.equality import exactly, is_answer, same
from rsd.answers.normalise import after_thinking, boxed, reference
from rsd.settings import called
from rsd.traces.rows import Row, found

# Columns that hold a problem's answer, unless one is named.
WORKER = Path(__file__).with_name("worker.py")  # started as a process of its own
ANSWER_COLUMNS = ("answer", "final_answer", "solution")
WORKERS = 2
START_LIMIT, MATH_LIMIT, OWN_LIMIT = 120.0, 10.0, 60.0  # seconds: to start, for a case, of a user's function


@dataclass(frozen=True)
class Judgement:
    """correct: True, False, or None where it is not known. error: why it could not be found out."""

    correct: bool | None
    error: str | None = None


def verdict(verifier: "Verifier", row: Row, text: str, *, opened: bool) -> "Future[Judgement]":
    """Whether the answer in a row's completion is right, as soon as that is known."""
    given = {"id": row.id, "prompt": row.messages, **row.columns}
    return verifier.submit(text, given, row.answer, opened=opened)


class Verifier:
    """Judges traces as `how` says: "boxed", "math", "none", or "module:callable".

    The callable gets the trace's text and the input row, and returns True, False or None. Its module is looked for
    in the current directory, then where this process finds its own; what that imports, there last of all.

    Args:
        case_limit: seconds for one case; None is 10, or 60 for a function of the user's.
    """

    def __init__(self, how: str, *, case_limit: float | None = None) -> None:
        self.how = how
        self.case_limit = case_limit or (OWN_LIMIT if ":" in how else MATH_LIMIT)
        self._begin()

    def _begin(self) -> None:
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="verify")
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        self._started: list[_Worker] = []
        for _ in range(WORKERS):
            self._idle.put(None)  # a worker that is not started yet

    def start(self) -> None:
        """Find out whether a user's function can be called.

        Raises:
            ValueError: it cannot be imported.
        """
        if ":" in self.how:
            self._idle.get()
            self._idle.put(self._worker())

    def submit(self, text: str, row: Mapping[str, Any], answer: Any, *, opened: bool = False) -> "Future[Judgement]":
        """The judgement of a trace's text, as soon as there is one.

        row: the input's, for a user's function. answer: the reference, or None. opened: the prompt ends in `<think>`.
        """
        case: dict[str, Any]
        if self.how == "none":
            return _known(Judgement(None))
        if ":" in self.how:
            case = {"text": text, "row": dict(row)}
        else:
            if answer is None:
                return _known(Judgement(None))
            right, why = read_reference(answer)
            if right is None:
                return _known(Judgement(None, why))
            answered = after_thinking(text, opened=opened)
            said = boxed(answered) if answered is not None else None
            # An answer in no box is none, and no answer is a wrong one.
            equal = said is not None and same(said, right)
            if said is None or equal is not None or self.how == "boxed":
                return _known(Judgement(equal is True))
            case = {"answer": exactly(said), "reference": exactly(right)}
        return self._threads.submit(self._ask, case | {"limit": self.case_limit})

    def judges(self, answer: Any) -> bool:
        """Whether a trace of a row with this reference can be found right or wrong."""
        return self.how != "none" and (
            ":" in self.how or (answer is not None and read_reference(answer)[0] is not None)
        )

    def _worker(self) -> "_Worker":
        worker = _Worker(self.how)
        self._started.append(worker)
        return worker

    def _ask(self, case: Mapping[str, Any]) -> Judgement:
        idle = self._idle  # `stop` makes another one
        worker = idle.get()
        try:
            worker = worker or self._worker()
            if idle is not self._idle:
                raise _Ended("was stopped")
            return worker.ask(case)
        except ValueError as e:  # a worker that cannot be started
            return Judgement(None, str(e))
        except _Ended as e:
            if worker is not None:
                worker.close()
                worker = None
            return Judgement(None, str(e))
        finally:
            idle.put(worker)

    def stop(self) -> None:
        """End all workers and forget what was submitted; what is submitted later is judged by new ones."""
        threads, started = self._threads, self._started
        self._begin()  # first: a worker that is just starting sees that it comes too late
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.kill()


def resolve(how: str) -> str:
    """What "auto" means here: math where its extra is installed, else boxed.

    Raises:
        ValueError: its extra is not installed.
    """
    have_math = importlib.util.find_spec("math_verify") is not None
    if how == "auto":
        return "math" if have_math else "boxed"
    if how == "math" and not have_math:
        asked, other = called("verify", "math"), called("verify", "boxed")
        raise ValueError(f"{asked} needs math-verify: pip install 'rsd[verify]', or use {other}")
    return how


def answer_columns(columns: Collection[str], how: str, named: str | None) -> tuple[str, ...]:
    """Which of a file's columns have the reference answers: in each row the first that is not empty counts.

    Empty if none is needed, or with "auto" if there is none.

    Raises:
        ValueError: there is none, and one was asked for.
    """
    if named is None and (how == "none" or ":" in how):
        return ()
    wanted = (named,) if named else ANSWER_COLUMNS
    there = tuple(c for c in wanted if c in columns)
    if not there and (named or how != "auto"):
        raise ValueError(
            f"no column of answers: looked for {', '.join(wanted)}, {found(columns, named)}; "
            f"name yours with {called('answer_column')}, or use {called('verify', 'none')}"
        )
    return there


def read_reference(answer: Any) -> tuple[str, None] | tuple[None, str]:
    """The short answer in a reference; or None, and why there is none that a trace could be held against."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return None, f"the reference answer is of type {type(answer).__name__}, not text"
    right = reference(str(answer))
    if not right.strip():
        return None, "the reference answer is empty"
    if not is_answer(right):
        return None, f"the reference is no answer that can be read: {reprlib.repr(right)}"
    return right, None


def _known(verdict: Judgement) -> "Future[Judgement]":
    future: Future[Judgement] = Future()
    future.set_result(verdict)
    return future


class _Ended(Exception):
    """A worker took too long, or died."""


class _Worker:
    """One `worker` process, spoken to in lines of JSON.

    Raises:
        ValueError: it does not start.
    """

    def __init__(self, how: str) -> None:
        # Not multiprocessing: it cannot start from a daemonic worker, and forking a process that has
        # threads and GPUs is not safe. -P, since a file called json.py in the current directory is no library; it
        # is a place of modules only for a function of the user's, or if the user's PYTHONPATH names it (an empty
        # part of that, as in ":/there", does by accident).
        here = os.getcwd()
        named = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        others = [p for p in map(os.path.abspath, sys.path) if p != here]
        self.process = subprocess.Popen(
            [sys.executable, "-P", WORKER, how, str(os.getpid()), *([here] if ":" in how else []), *others],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(named), "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,  # an interrupt from the keyboard is the job's
        )
        self.stdin: IO[bytes] = self.process.stdin  # type: ignore[assignment]
        self.stdout: IO[bytes] = self.process.stdout  # type: ignore[assignment]
        self.said = b""
        try:
            line = self._read(START_LIMIT)
        except _Ended as e:
            self.close()
            raise ValueError(f"{called('verify', how)}: the process that judges answers {e}") from e
        if "error" in line:
            self.close()
            raise ValueError(f"{called('verify', how)}: {line['error']}")

    def ask(self, case: Mapping[str, Any]) -> Judgement:
        try:
            self.stdin.write(json.dumps(case, default=str).encode() + b"\n")
            self.stdin.flush()
        except OSError as e:
            raise _Ended("died") from e
        line = self._read(case["limit"])
        return Judgement(line.get("verdict"), line.get("error"))

    def _read(self, limit: float) -> dict[str, Any]:
        out, until = self.stdout.fileno(), time.monotonic() + limit
        while b"\n" not in self.said:
            left = until - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise _Ended(f"took longer than {limit:g} s")
            part = os.read(out, 65536)
            if not part:
                raise _Ended("died")
            self.said += part
        line, _, self.said = self.said.partition(b"\n")
        return dict(json.loads(line))

    def kill(self) -> None:
        """End the process, and what a user's function has started there; of one that has ended, nothing."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout):
            with suppress(OSError):
                pipe.close()

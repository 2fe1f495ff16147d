"""The process that compares answers, apart from the job: `python -P judge.py HOW PID PATH...`, a line of JSON a case.

HOW is "math" or a user's "module:callable", PID the job's, the PATHs where the job finds its modules. Mathematical
equality can take for ever or all memory, and stops itself by signals, which work in a main thread alone: here it
may, and the job ends this process.
"""

import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

MEMORY = 4 << 30  # bytes of addresses for math; a case that needs more fails
POLL = 0.25  # seconds between two looks at whether the job is still there


def math_equal(answer: str, reference: str) -> bool:
    """Whether two answers are the same mathematical object, by math-verify."""
    from math_verify import parse, verify

    # Its own time limits are off: the job has one. Errors are told apart from "not equal".
    theirs = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    ours = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return bool(verify(theirs, ours, timeout_seconds=None, raise_on_error=True))


def _math(case: dict[str, Any]) -> bool:
    return math_equal(case["answer"], case["reference"])


class _Named(importlib.abc.MetaPathFinder):
    """Finds the one module that the user named on `paths`, whatever else has its name."""

    def __init__(self, name: str, paths: Sequence[str]) -> None:
        self.name, self.paths = name, paths

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.PathFinder.find_spec(fullname, self.paths) if fullname == self.name else None


def _judge(how: str, paths: Sequence[str]) -> Callable[[dict[str, Any]], Any]:
    # Last: nothing that lies in the current directory, or beside the job's script, stands in for a library.
    sys.path += [path for path in paths if path not in sys.path]
    if how == "math":
        import math_verify  # noqa: F401 (fails now rather than at the first case)

        logging.disable(logging.CRITICAL)
        with suppress(ImportError, ValueError, OSError):  # a platform without such limits does without
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        return _math
    module, _, name = how.partition(":")
    sys.meta_path.insert(0, _Named(module.partition(".")[0], paths))
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{name} is not callable")
    return lambda case: function(case["text"], case["row"])


def _first_line(e: BaseException) -> str:
    lines = str(e).strip().splitlines()
    return f"{type(e).__name__}{': ' + lines[0] if lines else ''}"


def _watch(job: int) -> None:
    """End this process, and what it has started, when the job is gone: nobody else ends a case that lasts for ever."""
    while os.getppid() == job:
        time.sleep(POLL)
    os.killpg(0, signal.SIGKILL)  # a group of its own: `verify` starts it in a new session


def main() -> None:
    how, job, *paths = sys.argv[1:]
    threading.Thread(target=_watch, args=(int(job),), daemon=True).start()
    # What a user's function prints must not be taken for a verdict.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        judge = _judge(how, paths)
    except Exception as e:
        say(error=_first_line(e))
        return
    say(ready=True)
    for line in sys.stdin:
        try:
            case = json.loads(line)
            # Compiled code may never let the watching thread run: no handler, so this ends the process.
            signal.alarm(math.ceil(3 * case["limit"]))
            verdict = judge(case)
            if verdict is not None and not isinstance(verdict, bool):
                raise TypeError(f"the verdict must be True, False or None, not {type(verdict).__name__}")
            say(verdict=verdict)
        except MemoryError:
            say(error="out of memory")
        except Exception as e:
            say(error=_first_line(e))
        finally:
            signal.alarm(0)


if __name__ == "__main__":
    main()

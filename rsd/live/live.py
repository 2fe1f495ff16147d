"""A page that follows a running job, as the job sees it.

The page is served by a process of its own (`python -m rsd.live`), which reads the files that the job writes anyway, and
lies on a socket that the job opened: so the job gives it no time of its interpreter, and a port that is taken is found
out at once. What it is told goes down a pipe, whose end is the end of that process, however the job ends. Of a process
that does not read, or is no more, the job takes no notice.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rsd.config import GenerateConfig
from rsd.settings import called
from rsd.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rsd.pair.pair import Pair

ROOT = Path(__file__).parents[2]
BACKLOG = 16  # connections that may wait until they are answered


class Live:
    """The page of a job: `with Live(port) as live`, then `start`.

    Args:
        port: of this machine alone; 0 is any that is free.

    Raises:
        ValueError: the port is taken, or not to be had.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a job that has just ended
            self.socket.bind(("127.0.0.1", port))
            self.socket.listen(BACKLOG)
        except OSError as e:
            self.socket.close()
            raise ValueError(
                f"{called('live')} {port}: {e.strerror or e}: choose another port, or 0 for one that is free"
            ) from e
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._let_go()

    def start(self, out: str | Path, pair: "Pair", config: GenerateConfig) -> None:
        """Serve the page of a job at `out`."""
        about = {
            "out": str(Path(out).absolute()),
            "job": os.getpid(),
            "teacher": pair.teacher.label,
            "student": pair.student.label,
            "threshold": config.threshold,
            "max_fallback_rate": config.max_fallback_rate,
            "pieces": spelled(pair.student.tokenizer),
        }
        # -P: no file of the current directory stands in for a library.
        paths = [str(ROOT), *(p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(about).encode())
            file.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rsd.live", str(self.socket.fileno()), str(file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=(self.socket.fileno(), file.fileno()),
                start_new_session=True,  # an interrupt from the keyboard is the job's
            )
        self.socket.close()  # from now on it is that process's
        os.set_blocking(self.process.stdin.fileno(), False)  # type: ignore[union-attr]

    def tell(self, line: str) -> None:
        """Pass on an event. One that does not fit into the pipe is lost, rather than waited for."""
        if self.process is None or self.process.stdin is None or self.process.stdin.closed:
            return
        try:
            self.process.stdin.write(line.encode() + b"\n")
        except OSError:
            self._let_go()
            say("notice: the page of the running job is gone; the job goes on without it")
        except ValueError:  # another thread has just found that out
            pass

    def _let_go(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


def spelled(tokenizer: "PreTrainedTokenizerBase") -> list[str | None]:
    """What each id of a tokenizer spells: bytes, each a character of Latin-1; None where there is no such token."""
    from rsd.pair.spelling import Speller

    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    try:
        found = Speller(tokenizer, "student", added).bytes
    except ValueError:  # its tokens have no exact bytes
        found = {i: token.encode("utf-8", "replace") for token, i in tokenizer.get_vocab().items()}
    made: list[str | None] = [None] * (max(found, default=-1) + 1)
    for i, raw in found.items():
        made[i] = raw.decode("latin-1")
    return made

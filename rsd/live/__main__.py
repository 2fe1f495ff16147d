"""The process that serves the page of a job: `python -m rsd.live SOCKET ABOUT`, two files that it inherits.

It lives as long as the job: until its standard input ends, or its parent is no more.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Iterator

from rsd.live.server import PAUSE, Job, Server

GRACE = 0.5  # seconds in which pages that are open may learn how the job ended


def main() -> None:
    os.nice(5)  # the job comes first
    with open(int(sys.argv[2]), "rb") as file:
        about = json.load(file)
    job = Job(about)
    server = Server(int(sys.argv[1]), job)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for line in lines(sys.stdin.fileno(), about["job"]):
        job.hear(line)
    job.end()
    if time.monotonic() - job.asked < 3 * PAUSE:
        time.sleep(GRACE)
    os._exit(0)  # no request keeps it


def lines(fd: int, parent: int) -> Iterator[bytes]:
    """Lines of a pipe, until it ends, or the parent does: another process of it may hold the pipe."""
    left = b""
    while os.getppid() == parent:
        if select.select([fd], [], [], PAUSE)[0]:
            if not (data := os.read(fd, 1 << 16)):
                return
            *whole, left = (left + data).split(b"\n")
            yield from whole


main()

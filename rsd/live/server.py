"""The page and its figures, over HTTP: for a browser on this machine, and nobody else.

A browser reads what any page that it shows asks of 127.0.0.1, if only the name in the address leads there: so a request
must name this machine (`Host`). No address leads to a file.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rsd.live.following import Following
from rsd.live.told import Told

HOST = re.compile(r"(localhost|127\.0\.0\.1)(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
STATE = re.compile(r"/state(\?after=([0-9]{1,15}))?", re.ASCII)
MOST = 16  # requests at once; what is more is turned away
PAUSE = 1.0  # seconds that a page waits for what is new, or until the job ends


class Job:
    """All that is known of the job. ended: set when it is no more."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = {name: about[name] for name in ("out", "teacher", "student", "threshold")}
        self.about["out"] = Path(about["out"]).name
        self.told = Told()
        self.files = Following(Path(about["out"]), about["pieces"], max_fallback_rate=about["max_fallback_rate"])
        self.run = secrets.token_hex(8)
        self.ended = threading.Event()
        self.asked = 0.0  # when it was last
        self._lock = threading.Lock()
        self._looked = 0.0

    def hear(self, line: bytes) -> None:
        with self._lock:
            self.told.hear(line)

    def end(self) -> None:
        with self._lock:
            self.told.ended()
            self._looked = 0.0
        self.ended.set()

    def state(self, after: int | None) -> dict[str, Any]:
        """What a page shows. after: the number of the last trace that it has."""
        if after is not None:
            self.ended.wait(PAUSE)
        with self._lock:
            self.asked = time.monotonic()
            told, files = self.told, self.files
            # Before it begins, a job may replace what there is.
            if told.phase != "starting" and self.asked - self._looked > PAUSE / 2:
                files.look()
                self._looked = self.asked
                if told.several and not files.behind:
                    told.count(files.totals.tokens)
            done = {"done": told.latest.get("done"), "total": told.latest.get("total")}
            return {
                "run": self.run,
                "phase": told.phase,
                "message": told.message,
                "about": self.about,
                "behind": files.behind,
                "several": told.several,
                **done,
                "left": told.left(),
                "seconds": told.seconds,
                "rate": told.rate(),
                "rates": told.rates(),
                "totals": files.totals.sums(),
                "number": files.number,
                "traces": files.shown(after or 0),
            }


class Server(ThreadingHTTPServer):
    """Serves on a socket that listens already."""

    daemon_threads = True

    def __init__(self, fd: int, job: Job) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)
        self.job, self.page = job, Page()
        self._places = threading.Semaphore(MOST)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away, say: nobody is told."""


class Page:
    """The page in one piece, and what a browser may do for it: run this script and ask for its figures."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        files = (here / "page.html", here.parent / "traces" / "tokens.css", here / "page.css", here / "page.js")
        html, *styles, script = (file.read_text(encoding="utf-8") for file in files)
        style = "".join(styles)
        self.body = html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).encode()
        self.policy = (
            f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 10  # seconds in which a request must be made, and taken
    server_version, sys_version = "rsd", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
            self._answer(403, "text/plain", b"this page is for http://127.0.0.1 and http://localhost\n")
        elif self.path == "/":
            self._answer(200, "text/html", self.server.page.body)
        elif asked := STATE.fullmatch(self.path):
            state = self.server.job.state(int(asked[2]) if asked[2] else None)
            self._answer(200, "application/json", json.dumps(state).encode())  # ASCII: half of a surrogate pair, too
        else:
            self._answer(404, "text/plain", b"there is nothing here\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.page.policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nowhere: the terminal is the job's."""

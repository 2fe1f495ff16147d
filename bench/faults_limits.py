"""Low limits, jobs that would be endless, and a teacher's server that dies, refuses, or answers nonsense."""

import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from faults_jobs import JOBS, Bench, Case, Job, rows_differ, whole_again
from faults_process import rsd

from rsd.cli.options import quiet
from rsd.models.bundled import bundled

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stub import Stub

MB = 1 << 20
LOADING = threading.Lock()
GREEDY = ("in.jsonl", "-o", "t.jsonl", "--max-new-tokens", "24", "--verify", "boxed", "--temperature", "0")
SERVED = (*GREEDY, "--limit", "6", "--teacher-model", "bundled-teacher")


def limits(bench: Bench) -> Iterator[Case]:
    """Few open files, and little memory: it works, or says in one line why not; and without the limit it goes on."""
    for job in JOBS:
        for files in (4, 6, 8, 12):
            low = {resource.RLIMIT_NOFILE: files}
            yield Case("limits", f"{job.name}: {files} open files", partial(_limited, bench, job, low))
        for more in (0, 4, 16, 64, 256):
            low = {resource.RLIMIT_AS: more * MB}
            yield Case("limits", f"{job.name}: {more} MB of memory more", partial(_limited, bench, job, low))
    for files in (5, 7):  # below, Python itself does not start
        yield Case("limits", f"ulimit -n {files}, from the start", partial(_from_the_start, bench, files))
    for count in (10**6, 10**9):
        yield Case("limits", f"--num-generations {count}", partial(_endless, bench, count))


def _limited(bench: Bench, job: Job, low: dict[int, int]) -> str | None:
    folder = bench.folder()
    for command in job.commands:
        if fault := rsd(*command, cwd=folder, limits=low).fault(0, 1, 2):
            return fault
    return whole_again(bench, job, folder, killed=True)


def _from_the_start(bench: Bench, files: int) -> str | None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    command = [sys.executable, "-m", "rsd", *JOBS[0].commands[0]]
    folder = bench.folder()
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=low, timeout=120)
    if "Traceback" in ended.stderr or ended.returncode not in (0, 1, 2):
        return f"exit code {ended.returncode}: {ended.stderr[-300:]}"
    return whole_again(bench, JOBS[0], folder)


def _endless(bench: Bench, count: int) -> str | None:
    """It has traces as soon as a short job has, and takes no more memory; then it is interrupted."""
    folder, peaks = bench.folder(), [0]
    args = ("generate", "in.jsonl", "-o", "t.jsonl", "--num-generations", count, "--verify", "boxed")

    def begun(spent: float) -> bool:
        return (folder / "t.jsonl").exists() and (folder / "t.jsonl").stat().st_size > 20_000

    ended = rsd(*args, cwd=folder, kill=begun, by=signal.SIGINT, peaks=peaks)
    if fault := ended.fault(130):
        return fault
    return f"it took {peaks[0] >> 20} MB" if peaks[0] > 1500 * MB else None


FAULTS = (
    *(408, 429, 500, 503, "drop", "close", "hang", "malformed", "bare", "flood", "bomb", "deep"),
    *("nan", "infinite", "positive", "text", "huge", "null"),
)
REFUSALS = (400, 401, 403, 404)
ANSWERS = {
    "a page": b"<html>hello</html>",
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "no data": b"{}",
    "data that is none": b'{"data": 3}',
    "models without names": b'{"data": [{}]}',
    "no model": b'{"data": []}',
    "another model": b'{"data": [{"id": "x"}]}',
    "an endless context": b'{"data": [{"id": "bundled-teacher", "max_model_len": "long"}]}',
    "deep nesting": b"[" * 5000 + b"]" * 5000,
    "half": b'{"data": [{"id": "bund',
    "zeros": bytes(1000),
    "much": b" " * (32 * MB),
    "control characters": b'{"data": [{"id": "\\u001b[2J"}]}',
}


def _stub() -> Stub:
    with LOADING:  # which transformers cannot do in two threads at once
        return Stub(bundled("teacher"), name="bundled-teacher")


def servers(bench: Bench) -> Iterator[Case]:
    """What the teacher's server does once, always, or from the beginning."""
    quiet()
    whole: list[Path] = []
    gate = threading.Lock()

    def undisturbed() -> Path:
        with gate:
            if not whole:
                whole.append(bench.folder("served"))
                with _stub() as stub:
                    made = rsd("generate", *SERVED, "--teacher", f"{stub.url}/v1", cwd=whole[0])
                assert made.code == 0, made.err
            return whole[0]

    for fault in FAULTS:
        yield Case("dead servers", f"once: {fault}", partial(_answered, bench, undisturbed, [fault]))
    for fault in (500, "drop", "malformed", "nan"):
        yield Case("dead servers", f"five times: {fault}", partial(_answered, bench, undisturbed, [fault] * 5))
    for status in REFUSALS:
        yield Case("dead servers", f"always: {status}", partial(_answered, bench, undisturbed, [status] * 10_000))
    for seconds in (1.0, None):
        said = "and comes back" if seconds else "for good; interrupted, and gone on with another day"
        yield Case("dead servers", f"it dies, {said}", partial(_dies, bench, undisturbed, seconds))
    for name, body in ANSWERS.items():
        yield Case("dead servers", f"its models are {name}", partial(_nonsense, bench, body))
    yield Case("dead servers", "it never starts", partial(_never, bench))


def _answered(bench: Bench, undisturbed, faults: list[int | str]) -> str | None:  # type: ignore[no-untyped-def]
    want, folder = undisturbed(), bench.folder()
    with _stub() as stub:
        stub.hang = 2.0
        command = ("generate", *SERVED, "--teacher", f"{stub.url}/v1")
        stub.fail(*([None] * 4), *faults)  # type: ignore[list-item]  # not what is asked before the job
        if fault := rsd(*command, cwd=folder).fault(0, 1):
            return fault
        stub.faults.clear()
        return rsd(*command, cwd=folder).fault(0) or rows_differ(folder / "t.jsonl", want / "t.jsonl")


def _dies(bench: Bench, undisturbed, seconds: float | None) -> str | None:  # type: ignore[no-untyped-def]
    want, folder = undisturbed(), bench.folder()
    with _stub() as stub:
        command = ("generate", *SERVED, "--teacher", f"{stub.url}/v1")
        died: list[float] = []

        def later(spent: float) -> bool:
            if not died and len(stub.bodies) > 5:
                stub.stop()
                died.append(spent)
            if died and seconds and len(died) == 1 and spent > died[0] + seconds:
                stub.start()
                died.append(spent)
            return bool(died) and seconds is None and spent > died[0] + 3

        if fault := rsd(*command, cwd=folder, kill=later, by=signal.SIGINT).fault(0 if seconds else 130):
            return fault
        if seconds is None:
            stub.start()
        return rsd(*command, cwd=folder).fault(0) or rows_differ(folder / "t.jsonl", want / "t.jsonl")


def _nonsense(bench: Bench, body: bytes) -> str | None:
    with _always(body) as url:
        return rsd("generate", *SERVED, "--teacher", url, cwd=bench.folder()).fault(2)


def _never(bench: Bench) -> str | None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{one.getsockname()[1]}/v1"
    return rsd("generate", *SERVED, "--teacher", url, cwd=bench.folder(), seconds=90).fault(2)


@contextmanager
def _always(body: bytes) -> Iterator[str]:
    """A server that says this to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()

"""`rsd generate --live`: the page says what the files say, is for this machine alone, and costs the job nothing."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from analysis.pages import browser, texts  # noqa: F401 (a fixture)
from conftest import environment, read, rsd, write
from jobs import PROBLEMS, by_key, files, pair, run
from transformers import AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.live.live import Live
from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

LONG = ["--num-generations", "500"]  # minutes of work: it is killed before
HOSTILE = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>\u202eevil"


@contextmanager
def job(folder: Path, *args) -> Iterator[tuple[subprocess.Popen, str]]:
    """A running job in a folder, and where its page is."""
    log = folder / "log"
    with open(log, "wb") as err:
        line = [sys.executable, "-m", "rsd", "generate", *map(str, args), "-o", "t.jsonl", "--live", "0"]
        process = subprocess.Popen(line, cwd=folder, env=environment(), stdout=err, stderr=err)
    try:
        yield process, until(lambda: re.search(r"^live: (http://127\.0\.0\.1:\d+/)$", log.read_text(), re.M))[1]
    finally:
        process.kill()
        process.wait()


def until(what: Callable, seconds: float = 120):
    """What this comes to, once it comes to anything."""
    end = time.monotonic() + seconds
    while not (made := what()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return made


def state(url: str, after: int | None = None) -> dict:
    query = "" if after is None else f"?after={after}"
    with urllib.request.urlopen(f"{url}state{query}", timeout=60) as answer:
        return json.load(answer)


def made(url: str) -> dict:
    """The state of a job that has made something."""

    def looked():
        now = state(url)
        return now if now["number"] else None

    return until(looked)


def refused(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/"))), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def server_of(process: subprocess.Popen) -> psutil.Process:
    found = [p for p in psutil.Process(process.pid).children() if "rsd.live" in p.cmdline()]
    assert len(found) == 1
    return found[0]


def test_the_page_says_what_the_files_say_and_changes_nothing_in_them(tiny, tmp_path):
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    rows = [*PROBLEMS, {"id": "bad", "problem": "", "answer": "1"}]
    flags = [*pair(tiny), "--max-new-tokens", "60", "--num-generations", "2", "--block-size", "4", "--batch-size", "4"]
    for folder in (alone, watched):
        folder.mkdir()
        write(folder / "in.jsonl", rows)
    assert rsd("generate", "in.jsonl", "-o", "t.jsonl", *flags, cwd=alone).returncode == 1  # the bad row
    states = []
    with job(watched, "in.jsonl", *flags) as (process, url):
        while not states or states[-1]["phase"] in ("starting", "making"):
            states.append(state(url, states[-1]["number"] if states else None))
        assert process.wait() == 1
        until(lambda: refused(url))
    for name in ("t.jsonl", "t.tokens.jsonl"):
        assert (watched / name).read_bytes() == (alone / name).read_bytes()
    (lines, tokens, manifest), last = files(watched / "t.jsonl"), states[-1]
    assert (last["phase"], last["done"], last["total"]) == ("finished", 22, 22)
    assert last["totals"] == manifest["totals"] and last["rate"] > 0 and not last["behind"]
    shown = [trace for one in states for trace in one["traces"]]
    numbers = [trace["number"] for trace in shown]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 22  # each once
    tokenizer = AutoTokenizer.from_pretrained(tiny()["student"])
    eos = "<|im_end|>", "<|endoftext|>"
    for trace in shown:
        key = trace["id"], trace["generation"]
        row = by_key(lines)[key]
        assert (trace["error"], trace["correct"]) == (row["error"], row["is_correct"])
        if row["error"]:
            continue
        record = by_key(tokens)[key]
        text = "".join(trace["pieces"])  # random bytes for the most part
        assert (
            text == row["completion"][0]["content"]
            or text.removesuffix(eos[0]).removesuffix(eos[1]) == (row["completion"][0]["content"])
        )
        assert trace["own"] == [i for i, of in enumerate(record["from_teacher"]) if of == 0] and trace["own"]
        for i in trace["own"]:
            wanted = record["teacher_proposals"][i]
            if wanted is not None and wanted != record["token_ids"][i]:
                assert trace["wanted"][str(i)] == tokenizer.decode([wanted])
        assert trace["student"] == [None if v is None else round(v * 1000) for v in record["student_logprobs"]]


def test_a_killed_job_takes_its_page_along_and_goes_on_with_it(tmp_path):
    with job(tmp_path, *LONG) as (process, url):
        before = made(url)
        server = server_of(process)
        os.kill(process.pid, signal.SIGKILL)
        assert state(url, before["number"])["phase"] == "gone"
        until(lambda: refused(url) and not server.is_running(), seconds=20)
    with job(tmp_path, *LONG) as (_, url):
        assert made(url)["totals"]["rows"] >= before["totals"]["rows"]


@pytest.mark.slow
def test_who_stops_a_job_is_told_of_it_on_the_page(tmp_path):
    with job(tmp_path, *LONG) as (process, url):
        before = made(url)
        os.kill(process.pid, signal.SIGINT)
        after = state(url, before["number"])
        while after["phase"] == "making":
            after = state(url, after["number"])
        assert (after["phase"], after["message"]) == ("stopped", "stopped") and process.wait() == 130


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_page_that_dies_or_hangs_costs_the_job_nothing(end, tmp_path):
    write(tmp_path / "in.jsonl", read_rows(bundled("problems.jsonl"))[:60])
    with job(tmp_path, "in.jsonl", "--num-generations", "2", "--batch-size", "4") as (process, url):
        made(url)
        server = server_of(process)
        os.kill(server.pid, end)
        try:
            assert process.wait() == 0
        finally:
            with suppress(psutil.NoSuchProcess):
                server.kill()
    assert len(read(tmp_path / "t.jsonl")) == 120
    said = (tmp_path / "log").read_text()
    assert ("the page of the running job is gone; the job goes on" in said) == (end == signal.SIGKILL)


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path):
    with Live(0) as live:
        live.start(tmp_path / "t.jsonl", TraceGenerator(GenerateConfig()).find(), GenerateConfig())
        live.process.send_signal(signal.SIGSTOP)
        for _ in range(1000):  # more than a pipe holds
            live.tell(json.dumps({"event": "progress", "done": 1, "total": 2, "more": "x" * 1000}))
        live.process.send_signal(signal.SIGCONT)
        until(lambda: state(live.url)["done"] == 1)
    assert live.process.wait(timeout=60) == 0


def asked(url: str, path: str, *, method: str = "GET", hosts: list[str]) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")), timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), dict(answer.getheaders())


@pytest.mark.slow
def test_it_answers_this_machine_alone_and_gives_no_files_to_anyone(tmp_path):
    with job(tmp_path, *LONG) as (process, url):
        made(url)
        port = url.rsplit(":", 1)[1].strip("/")
        mine = [f"127.0.0.1:{port}"]
        for hosts in (mine, ["localhost"], ["LOCALHOST:9000"]):  # a tunnel has another port
            status, body, headers = asked(url, "/", hosts=hosts)
            assert status == 200 and b"<title>rsd generate</title>" in body
        policy = headers["Content-Security-Policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "Access-Control-Allow-Origin" not in headers
        )
        for hosts in (
            ["evil.example"],
            [f"evil.example:{port}"],
            ["127.0.0.1.evil.example"],
            [],
            [*mine, "evil.example"],
        ):
            for path in ("/", "/state"):
                status, body, _ = asked(url, path, hosts=hosts)
                assert status == 403 and b"rsd generate" not in body and b"totals" not in body
        for path in (
            "/t.jsonl",
            "/../t.jsonl",
            f"/{tmp_path}/t.jsonl",
            "/state?after=-1",
            "/state?after=1&x=%2e",
        ):
            assert asked(url, path, hosts=mine)[0] == 404
        for method in ("POST", "PUT", "OPTIONS", "HEAD", "DELETE"):
            assert asked(url, "/state", method=method, hosts=mine)[0] == 501
        listening = {c.laddr.ip for c in server_of(process).net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        slow = [socket.create_connection(("127.0.0.1", int(port)), timeout=30) for _ in range(40)]
        for one in slow:
            one.sendall(b"GET /state HTTP/1.1\r\n")
        assert all(one.recv(1) == b"" for one in slow[16:])  # turned away at once
        for one in slow:
            one.close()

        def answers():  # as soon as it has noticed that those are gone
            with suppress(OSError, http.client.HTTPException):
                return state(url)

        assert until(answers)["phase"] == "making"


def test_what_cannot_be_followed_is_refused_before_models_load(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("-o", tmp_path / "t.jsonl", "--live", port, expect=2).output
        assert said.startswith(f"rsd: --live {port}: Address already in use: choose another port")
    assert "--live shows what is in a job's files" in run("-o", "-", "--live", "0", expect=2).output
    run("-o", tmp_path / "t.jsonl", "--live", "65536", expect=2)
    assert list(tmp_path.iterdir()) == []
    assert "live:" not in run("-o", tmp_path / "t.jsonl", "--live", "0", "--dry-run").output


@pytest.mark.slow
def test_the_parts_of_several_processes_are_counted_together(tmp_path):
    rows = read_rows(bundled("problems.jsonl"))[:16]
    write(tmp_path / "in.jsonl", rows)
    first = rsd("generate", "in.jsonl", "-o", "t.jsonl", "--shard", "1/2", cwd=tmp_path)
    assert first.returncode == 0
    there = len(read(tmp_path / "t.part-1-of-2.jsonl"))
    with job(tmp_path, "in.jsonl", "--shard", "2/2", "--batch-size", "1", "--block-size", "1") as (process, url):
        states = [made(url)]
        assert states[0]["several"] and states[0]["number"] >= there > 0
        while states[-1]["phase"] == "making":
            states.append(state(url, states[-1]["number"]))
        assert process.wait() == 0
    assert states[-1]["totals"] == files(tmp_path / "t.jsonl")[2]["totals"]
    assert (states[-1]["done"], states[-1]["total"]) == (16, 16)


def test_hostile_text_stays_text_and_the_page_outlives_the_job(browser, tmp_path):
    rows = read_rows(bundled("problems.jsonl"))[:8]
    hostile = [{**row, "id": f"{HOSTILE}{i}", "problem": row["problem"] + HOSTILE} for i, row in enumerate(rows)]
    write(tmp_path / "in.jsonl", hostile)
    with job(tmp_path, "in.jsonl", *LONG) as (process, url):
        browser.get(url)
        until(lambda: texts(browser, ".trace .own"))
        browser.execute_script("document.querySelector('#hold').click()")
        assert all(text.startswith(HOSTILE) for text in texts(browser, "article h3 bdi"))
        assert all(text.endswith(HOSTILE) for text in texts(browser, ".prompt"))
        assert texts(browser, "article img, article script") == []
        assert re.match(r"[0-9]+ % · t\.jsonl", browser.title)
        assert re.fullmatch(r"Making traces: [\d,]+ of 4,000", texts(browser, "#status")[0])
        figures = dict(zip(texts(browser, "#facts dt"), texts(browser, "#facts dd b"), strict=True))
        assert re.fullmatch(r"[\d.]+ %", figures["Acceptance"]) and figures["Errors"] == "0"
        assert re.fullmatch(r"[0-8] of [1-8]", figures["Problems solved"])
        tap = "document.querySelector(arguments[0]).dispatchEvent(new PointerEvent('click', {bubbles: true}))"
        browser.execute_script(tap, ".trace .own")
        assert "the student (fallback)" in texts(browser, "#box dd")
        time.sleep(0.2)  # nothing hides it
        assert browser.execute_script("return document.querySelector('#box').hidden") is False
        browser.execute_script(tap, "h1")
        assert browser.execute_script("return document.querySelector('#box').hidden") is True
        os.kill(process.pid, signal.SIGINT)
        assert until(lambda: [t for t in texts(browser, "#status") if t.startswith("The job has stopped")])
        process.wait()
    until(lambda: refused(url))
    assert texts(browser, ".trace .own") and texts(browser, "#facts dt")
    seen = [entry for entry in browser.get_log("browser") if "ERR_CONNECTION_REFUSED" not in entry["message"]]
    assert seen == []

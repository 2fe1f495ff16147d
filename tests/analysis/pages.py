"""A comparison of the bundled pair and a browser, for the tests of its page."""

import base64
import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsd import GenerateConfig, TraceGenerator
from rsd.analysis.compare import Comparison, compare
from rsd.analysis.report import compared, html_page, of_set
from rsd.analysis.tracefile import TraceFile
from rsd.generation.job import run_job
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import read_responses, responses
from rsd.scoring.scorer import Scored, Scorer, load_scorer
from rsd.traces.readers import read_rows

NAMES = ("teacher.jsonl", "rsd.jsonl")
LN = "local_naturalness"
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer(ScoreConfig())


@pytest.fixture(scope="module")
def decode(scorer) -> Callable[[int], str]:
    return lambda i: scorer.source.tokenizer.decode([i])


@pytest.fixture(scope="module")
def sides(scorer, tmp_path_factory) -> tuple[list[Scored], list[Scored]]:
    """The bundled teacher's traces of 24 problems, and those of RSD with their sidecar."""
    out = tmp_path_factory.mktemp("traces") / "rsd.jsonl"
    run_job(TraceGenerator(GenerateConfig()), bundled("problems.jsonl"), out, limit=24)
    candidate = [scorer.score(r) for r in read_responses(out, ScoreConfig())]
    ids = {s.response.id for s in candidate}
    rows = [r for r in read_rows(bundled("teacher.jsonl")) if r["id"] in ids]
    return [scorer.score(r) for r in responses(rows, ScoreConfig())], candidate


@pytest.fixture(scope="module")
def comparison(sides) -> Comparison:
    return compare(*sides, names=NAMES)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    try:
        from selenium import webdriver
    except ImportError:
        missing.append("selenium")
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {' and no '.join(missing)}")
    os.environ["SE_OFFLINE"] = "true"  # selenium is to look for no driver
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ARGUMENTS.split():
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def load(browser, tmp_path) -> Iterator[Callable[..., Any]]:
    """Opens a report; afterwards, that the browser had nothing to say, and asked for nothing but the file."""
    file = tmp_path / "report.html"

    def opened(html: str, fragment: str = "") -> Any:
        file.write_text(html, encoding="utf-8")
        browser.get("about:blank")  # so that another fragment alone loads the page anew
        browser.get(file.as_uri() + fragment)
        settled(browser)
        return browser

    yield opened
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"].split("#")[0] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {u for u in urls if not u.startswith(("data:", "blob:", "about:"))} == {file.as_uri()}
    assert browser.get_log("browser") == []


def page(c: Comparison, *, decode: Callable[[int], str], tokens: int = 300_000) -> str:
    """The report of traces that are all in memory."""
    with tempfile.TemporaryDirectory() as folder, closing(TraceFile(Path(folder), decode)) as traces:
        pairs = [
            replace(p, baseline=[traces.keep(s) for s in p.baseline], candidate=[traces.keep(s) for s in p.candidate])
            for p in c.pairs
        ]
        return "".join(html_page(compared(replace(c, pairs=pairs), traces), traces, tokens=tokens))


def set_page(scored: list[Scored], *, decode: Callable[[int], str]) -> str:
    """The page of one scored set."""
    with tempfile.TemporaryDirectory() as folder, closing(TraceFile(Path(folder), decode)) as traces:
        return "".join(html_page(of_set([traces.keep(s) for s in scored], "rsd.jsonl", traces), traces))


def many(side: list[Scored], count: int) -> list[Scored]:
    """Scored traces under new ids."""
    return [
        replace(s, response=replace(s.response, id=f"{s.response.id}-{i}"))
        for i in range(-(-count // len(side)))
        for s in sorted(side, key=lambda s: s.response.id)
    ][:count]


def parsed(html: str) -> dict:
    """What is embedded for the page's script: its index, and with each problem what its block holds."""
    index = json.loads(re.search(r'<script type="application/json" id="index">(.*?)</script>', html, re.S)[1])
    blocks = re.search(r'<script type="text/plain" id="blocks">(.*?)</script>', html, re.S)[1].split()
    for problem, block in zip(index["problems"], blocks, strict=True):
        packed = zlib.decompress(base64.b64decode(block))
        problem |= json.loads(packed[4 : 4 + struct.unpack(">I", packed[:4])[0]])
    return index


def wait(driver, script: str, *arguments: Any) -> Any:
    """Until a script returns something: what is shown is unpacked first."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 20).until(lambda d: d.execute_script(script, *arguments))


def settled(driver) -> None:
    """Until the list shows what the controls ask for, and a problem is shown."""
    wait(driver, "return performance.now() > 0 && current && document.querySelector('#name').textContent !== ''")


def texts(driver, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.toWellFormed())"
    return driver.execute_script(script, selector)


def shown(text: str) -> str:
    """As a page shows it: half of a surrogate pair is no character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def click(driver, selector: str) -> None:
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(driver, selector: str, value: str, event: str) -> None:
    script = "const [at, value, event] = arguments, e = document.querySelector(at); e.value = value;"
    driver.execute_script(f"{script} e.dispatchEvent(new Event(event))", selector, value, event)


def listed(driver) -> list[str]:
    """The names in the list, all of them."""
    driver.execute_script("while (listed < found.length) more()")
    return texts(driver, "#list bdi")


def asked(driver, selector: str, value: str, event: str = "change") -> list[str]:
    """The names in the list after something was chosen."""
    choose(driver, selector, value, event)
    driver.execute_async_script("filter().then(arguments[0])")
    return listed(driver)


def shown_problem(driver, name: str) -> None:
    """Until a problem is the one that is shown."""
    wait(driver, "return document.querySelector('#name').textContent.toWellFormed() === arguments[0]", name)


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").removesuffix(" %"))


SIDES = (lambda pair: pair.baseline, lambda pair: pair.candidate)

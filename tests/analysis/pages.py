"""A comparison of the bundled pair and a browser, for the tests of its page."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rsd import GenerateConfig, TraceGenerator
from rsd.analysis.compare import Comparison, compare
from rsd.analysis.report import html_report
from rsd.analysis.tracefile import TraceFile
from rsd.config import ScoreConfig
from rsd.generation.job import run_job
from rsd.models.bundled import bundled
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
def load(browser, tmp_path) -> Iterator[Callable[[str], Any]]:
    """Opens a report; afterwards, that the browser had nothing to say, and asked for nothing but the file."""
    file = tmp_path / "report.html"

    def opened(html: str) -> Any:
        file.write_text(html, encoding="utf-8")
        browser.get(file.as_uri())
        return browser

    yield opened
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {u for u in urls if not u.startswith("data:")} == {file.as_uri()}
    assert browser.get_log("browser") == []


def page(c: Comparison, *, decode: Callable[[int], str], tokens: int = 300_000) -> str:
    """The report of traces that are all in memory."""
    with tempfile.TemporaryDirectory() as folder, closing(TraceFile(Path(folder), decode)) as traces:
        pairs = [
            replace(p, baseline=[traces.keep(s) for s in p.baseline], candidate=[traces.keep(s) for s in p.candidate])
            for p in c.pairs
        ]
        return "".join(html_report(replace(c, pairs=pairs), traces, tokens=tokens))


def many(side: list[Scored], count: int) -> list[Scored]:
    """Scored traces under new ids."""
    return [
        replace(s, response=replace(s.response, id=f"{s.response.id}-{i}"))
        for i in range(-(-count // len(side)))
        for s in sorted(side, key=lambda s: s.response.id)
    ][:count]


def parsed(html: str) -> dict:
    """What is embedded for the page's script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


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
    """The ids on this page and all later ones."""
    found = texts(driver, ".problem h3")
    for _ in range(20):
        if driver.execute_script("return document.querySelector('#next').disabled"):
            return found
        click(driver, "#next")
        found += texts(driver, ".problem h3")
    raise AssertionError("there is always a next page")


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").removesuffix(" %"))


SIDES = (lambda pair: pair.baseline, lambda pair: pair.candidate)

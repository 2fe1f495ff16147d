"""The page of `rsd doctor`: one file that escapes all that it shows, reads on a phone, and asks for nothing."""

import json
import re
from dataclasses import replace

import pytest
from pages import browser  # noqa: F401 (a fixture)
from test_report_access import axe, checked, said  # noqa: F401 (a fixture)

import rsd
from rsd.examining.examination import Examination
from rsd.examining.findings import Fallen
from rsd.examining.page import page

HOSTILE = "</td><script>alert(1)</script>\u202e\ud800'\"&"


@pytest.fixture(scope="module")
def found():
    return rsd.doctor(limit=6, max_new_tokens=128).findings


def opened(browser, html, tmp_path):
    file = tmp_path / "doctor.html"
    file.write_text(html, encoding="utf-8")
    browser.get_log("performance")
    browser.get(file.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {u for u in urls if not u.startswith("data:")} == {file.as_uri()}
    assert browser.get_log("browser") == []
    return browser


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1400, "dark")])
def test_it_fits_its_screen_and_keeps_nobody_out(found, browser, axe, tmp_path, width, theme):
    try:
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver = opened(browser, page(Examination(found)), tmp_path)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.execute_script("return document.querySelectorAll('figure > svg path.b').length") == 2
        assert said(checked(driver, axe)) == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_its_figures_are_those_of_the_text(found, browser, tmp_path):
    e = Examination(found)
    driver = opened(browser, page(e), tmp_path)
    assert driver.execute_script("return document.querySelector('h1').textContent") == e.verdict
    cells = driver.execute_script("return [...document.querySelectorAll('td, th')].map(c => c.textContent.trim())")
    table = e.text().split("threshold     raw below")[1].split("\n\n")[0].splitlines()[1:]
    assert len(table) == 6
    for line in table:
        head, *values = line.split()
        at = cells.index(head)
        assert cells[at + 1 : at + 1 + len(values)] == values
    advice = driver.execute_script("return [...document.querySelectorAll('.advice li')].map(c => c.textContent)")
    for one, shown in zip(e.recommendations, advice, strict=True):
        assert shown == f"{one.says}Rule: {one.why}Source: {one.source}"


def test_whatever_stands_in_it_is_shown_and_not_run(found, browser, tmp_path):
    bad = replace(
        found,
        teacher=HOSTILE,
        student=HOSTILE,
        vocabularies=HOSTILE,
        errors=[HOSTILE],
        notices=[f"notice: {HOSTILE}"],
        fallen=[Fallen(token=HOSTILE, below=1, of=2, instead=[(HOSTILE, 1)])],
    )
    html = page(Examination(bad))
    assert not re.search(r"<script|alert\(1\)</script", html)
    driver = opened(browser, html, tmp_path)
    assert "<script>alert(1)</script>" in driver.execute_script("return document.querySelector('.kicker').textContent")
    text = Examination(bad).text()
    assert "\u202e" not in text and all(line.isprintable() for line in text.splitlines())


def test_nothing_known_is_a_page_too(found, browser, tmp_path):
    none = replace(found.raw, judged=0, solved=0, ln=None, ln_interval=None)
    less = replace(found, raw=none, rsd=none, student_alone=none, fallen=[], falls=0)
    driver = opened(browser, page(Examination(less)), tmp_path)
    assert "not known" in driver.execute_script("return document.querySelector('.tiles').textContent")

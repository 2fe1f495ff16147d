"""The page for those who use no mouse or see no colours: what an accessibility checker, axe-core, finds in it."""

import random
import shutil
import subprocess
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import (  # noqa: F401 (fixtures)
    NAMES,
    browser,
    comparison,
    decode,
    load,
    page,
    scorer,
    set_page,
    shown_problem,
    sides,
)
from test_report_weights import weighed_row

from rsd.analysis.compare import compare

PACKAGE = "axe-core@4.10.3"  # of npm
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The checker's script: npm's, where there is npm, else the older one that comes with a package of Python's."""
    folder = tmp_path_factory.mktemp("axe")
    if npm := shutil.which("npm"):
        packing = [npm, "pack", PACKAGE, "--silent"]
        made = subprocess.run(packing, cwd=folder, capture_output=True, text=True, timeout=120)
        if made.returncode == 0:
            with tarfile.open(folder / made.stdout.split()[-1]) as package:
                script = package.extractfile("package/axe.min.js")
                assert script is not None
                return script.read().decode()
    spec = find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip(f"no npm that gives {PACKAGE}, and no axe-core-python")
    return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def checked(driver, axe: str) -> dict:
    driver.execute_script(axe)
    run = """axe.run(document, {runOnly: arguments[0]}).then(arguments[1])"""
    return driver.execute_async_script(run, TAGS)


def said(found: dict) -> list[str]:
    return [f"{v['id']}: {n['html'][:100]} {n['failureSummary']}" for v in found["violations"] for n in v["nodes"][:3]]


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1400, "dark")])
def test_nothing_keeps_anybody_out(load, sides, decode, axe, theme, width):
    draw = random.Random(1)
    rows = ([replace(s, response=replace(s.response, row=weighed_row(s, draw))) for s in side] for side in sides)
    weighed = compare(*rows, names=NAMES)
    key = weighed.ranked()[0].key
    driver = load(page(weighed, decode=decode), f"#t={key}")
    shown_problem(driver, key)
    try:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert driver.execute_script("return document.querySelectorAll('.weights[open]').length") == 2
        for colour in ("student", "origin", "weight"):
            driver.execute_script("at('colour').value = arguments[0]; redraw()", colour)
            driver.execute_script("document.querySelectorAll('.step .t')[3].click()")
            found = checked(driver, axe)
            assert said(found) == [] and len(found["passes"]) > 25, colour
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nor_does_the_page_of_one_set(load, sides, decode, axe):
    driver = load(set_page(sides[1], decode=decode))
    assert said(checked(driver, axe)) == []


def test_the_checker_sees_what_is_wrong(load, comparison, decode, axe):
    driver = load(page(comparison, decode=decode))
    driver.execute_script("at('next').textContent = ''")
    found = checked(driver, axe)
    assert "button-name" in {v["id"] for v in found["violations"]}

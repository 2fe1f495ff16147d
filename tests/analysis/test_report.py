"""The HTML report: its numbers and plots are the comparison's."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from pages import (  # noqa: F401 (fixtures)
    NAMES,
    SIDES,
    browser,
    comparison,
    decode,
    load,
    many,
    number,
    page,
    scorer,
    sides,
    texts,
)

from rsd.analysis import figures
from rsd.analysis.compare import BY_CONSTRUCTION, Comparison, compare
from rsd.analysis.figures import kind
from rsd.scoring.metrics import METRICS
from rsd.scoring.scorer import Scored


def test_summary_is_the_comparison(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    assert driver.title == "rsd compare: rsd.jsonl against teacher.jsonl"
    assert BY_CONSTRUCTION in texts(driver, "header .note")[0]
    facts = dict(zip(texts(driver, ".about dt"), texts(driver, ".about dd"), strict=True))
    assert facts["Aligned by id"] == "24 problems" and facts["Window"] == "4" and facts["Threshold"] == "0.01"
    script = """return [...document.querySelectorAll('tbody tr')].map(r => [
        r.cells[0].firstChild.textContent.trim(), ...[...r.cells].slice(1).map(c => c.textContent)]).reverse()"""
    rows = {cells[0]: cells[1:] for cells in driver.execute_script(script)}  # of the first table, the last here
    for name, metric in METRICS.items():
        m, cells = comparison.metrics[name], rows[metric.label]
        assert cells[0] == {True: "↑ higher", False: "↓ lower", None: ""}[metric.better]
        assert [number(c) for c in cells[1:4]] == pytest.approx([m.baseline, m.candidate, m.delta], rel=6e-3, abs=1e-9)
        assert [number(c) for c in cells[5].split(" to ")] == pytest.approx(m.ci, rel=6e-3, abs=1e-9)
        assert number(cells[6]) == pytest.approx(m.p_value, rel=6e-3)
        assert cells[7] == str(m.ids) == "24"
    right = [np.mean([s.response.row["is_correct"] for p in comparison.pairs for s in side(p)]) for side in SIDES]
    assert [number(c) for c in rows["Correct"][1:3]] == pytest.approx([100 * r for r in right], rel=6e-3)
    assert number(rows["RSR of the set"][1]) == pytest.approx(comparison.rsr[0], rel=6e-3)
    assert "read more naturally" in texts(driver, "h1")[0]


def test_a_worse_score_looks_worse(load, comparison, sides, decode):
    """In words and by its colour, on the tiles and in the tables; turned around, it looks better."""

    def look(driver) -> dict[str, tuple[str, str]]:
        script = """return [...document.querySelectorAll('.tiles li')].map(li => [
            li.querySelector('span').textContent, li.querySelector('em').textContent,
            getComputedStyle(li.querySelector('em')).color])"""
        return {label: (words, colour) for label, words, colour in driver.execute_script(script)}

    forth = look(driver := load(page(comparison, decode=decode)))
    said = texts(driver, "h1")[0]
    kinds = {name: kind(comparison.metrics[name], metric.better) for name, metric in METRICS.items()}
    better, worse = (list(kinds.values()).count(k) for k in ("better", "worse"))
    assert f"{better} scores better, {worse} worse" in said and worse == 1 and kinds["rsr"] == "worse"
    assert forth["RSR"][0].startswith("worse") and forth["Local Naturalness"][0].startswith("better")
    assert len({forth[name][1] for name in ("RSR", "Local Naturalness", "Tokens")}) == 3
    assert texts(driver, "td.worse")[1] == "worse" and "RSR" in driver.execute_script(
        "return document.querySelector('td.worse').parentElement.textContent"
    )
    back = look(driver := load(page(compare(sides[1], sides[0], names=NAMES), decode=decode)))
    assert "read less naturally" in texts(driver, "h1")[0]
    assert back["RSR"] == ("better, from " + number_of(comparison, "rsr"), forth["Local Naturalness"][1])
    same = texts(load(page(compare(sides[0], sides[0], names=("a", "b")), decode=decode)), "h1")[0]
    assert "read alike" in same and "0 scores better, 0 worse" in same and "no clear difference" in same


def number_of(comparison: Comparison, name: str) -> str:
    return figures.number(comparison.metrics[name].candidate)


def test_splits_and_errors_are_shown(sides, decode):
    def graded(side: list[Scored]) -> list[Scored]:
        return [
            replace(s, response=replace(s.response, row=dict(s.response.row) | {"is_correct": i % 3 > 0}))
            for i, s in enumerate(sorted(side, key=lambda s: s.response.id))
        ]

    baseline, candidate = map(graded, sides)
    candidate[0] = replace(candidate[0], error="the <trace> is empty", metrics={})
    html = page(compare(baseline, candidate, names=NAMES), decode=decode)
    assert "<h2>Right on both sides" in html and "<h2>Wrong on both sides" in html and html.count("<table") == 3
    assert html.count('">69.6 %</td>') == 2  # 16 of the 23 that were scored on both sides
    assert "the &lt;trace&gt; is empty" in html


def test_plots_are_valid_and_cover_all(comparison, sides, decode):
    def drawn(c: Comparison, tokens: int = 0) -> list[ElementTree.Element]:
        html = page(c, decode=decode, tokens=tokens)
        assert not re.search(r"\b(nan|inf)\b", re.sub(r"<script.*", "", html, flags=re.S))
        return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox[^>]*role=.*?</svg>", html, re.S)]

    found = drawn(comparison)
    assert [p.get("aria-label") for p in found] == [
        "How surprising the tokens are to the student",
        "Where in the trace they are",
        "Local Naturalness of each problem",
        "Differences in Local Naturalness",
    ]
    assert all(len(p.findall("text")) > 6 for p in found)
    titles = [t.text for t in found[2].iter("title")]
    assert {t.split(":")[0] for t in titles} == {p.key for p in comparison.pairs}
    assert {a.get("href") for a in found[2].iter("a")} == {f"#t={p.key}" for p in comparison.pairs}
    diagonal = found[2].find("path[@class='mark']").get("d")
    assert diagonal == f"M62.0 250.0L428.0 {14.0}"

    one = compare(sides[0][:1], sides[1], names=NAMES)
    assert len(drawn(one)) == 4
    assert len(drawn(compare(sides[0], sides[0], names=NAMES))) == 4
    unknown = [replace(p, deltas=dict.fromkeys(METRICS)) for p in comparison.pairs]
    assert len(drawn(replace(comparison, pairs=unknown, metrics={}))) == 2

    many_pairs = compare(many(sides[0], 1100), many(sides[0], 1100), names=NAMES)
    found = drawn(many_pairs)
    assert len(list(found[2].iter("circle"))) == 1000
    assert "Shown are 1000 of 1100 problems" in page(many_pairs, decode=decode, tokens=0)

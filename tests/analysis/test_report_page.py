"""The page as one uses it, in a real browser: list, filters, links, keys, downloads; nothing in it is trusted."""

import re
import time
from dataclasses import replace
from urllib.parse import quote

import pytest
from conftest import read
from pages import (  # noqa: F401 (fixtures)
    LN,
    NAMES,
    asked,
    browser,
    click,
    comparison,
    decode,
    listed,
    load,
    many,
    number,
    page,
    parsed,
    scorer,
    set_page,
    shown,
    shown_problem,
    sides,
    texts,
    wait,
)

from rsd.analysis.compare import compare
from rsd.scoring.config import ScoreConfig
from rsd.scoring.metrics import METRICS
from rsd.scoring.responses import responses
from rsd.scoring.scorer import Scored


def options(driver, selector: str) -> dict[str, str]:
    """A list's choices: what is written there without its count, and its value."""
    script = "return [...document.querySelector(arguments[0]).options].map(o => [o.text, o.value])"
    return {re.sub(r" \(\d+\)$", "", text): value for text, value in driver.execute_script(script, selector)}


def counts(driver, selector: str) -> dict[str, int]:
    found = (re.fullmatch(r"(.*) \((\d+)\)", text) for text in texts(driver, f"{selector} option"))
    return {m[1]: int(m[2]) for m in found if m}


def press(driver, keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(keys).perform()


def test_sorting_by_any_score(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    assert texts(driver, "#status") == ["24 problems"]
    assert listed(driver) == [p.key for p in comparison.ranked()]
    deltas = [number(t) for t in texts(driver, "#list .told")]
    assert deltas == pytest.approx([p.deltas[LN] for p in comparison.ranked()], rel=6e-3, abs=1e-9)
    labels = options(driver, "#sort")
    assert set(labels) == {m.label for m in METRICS.values()} | {"id"}

    pairs = {p.key: p for p in comparison.pairs}
    for name in ("rsr", "scored_tokens", "low_prob_share"):
        for of, value in (
            ("gain", lambda p, name=name: p.deltas[name]),
            ("0", lambda p, name=name: p.baseline[0].metrics[name]),
            ("1", lambda p, name=name: p.candidate[0].metrics[name]),
        ):
            asked(driver, "#of", of)
            values = [value(pairs[key]) for key in asked(driver, "#sort", labels[METRICS[name].label])]
            assert values == pytest.approx(sorted(values, reverse=True), rel=1e-4, abs=1e-9)
    click(driver, "#order")
    driver.execute_async_script("filter().then(arguments[0])")
    values = [pairs[key].candidate[0].metrics["low_prob_share"] for key in listed(driver)]
    assert values == sorted(values)
    assert asked(driver, "#sort", "id") == sorted(pairs, reverse=True)
    click(driver, "#order")
    driver.execute_async_script("filter().then(arguments[0])")
    assert listed(driver) == sorted(pairs) and texts(driver, "#order") == ["↓ A to Z"]


def test_filters_show_what_they_say(load, sides, decode):
    """Every choice is counted beforehand, and shows the problems that it says, of which all lead to traces."""

    def graded(side: list[Scored], right: int, error: int) -> list[Scored]:
        made = []
        for i, s in enumerate(sorted(side, key=lambda s: s.response.id)):
            row = dict(s.response.row) | {"is_correct": i % right > 0, "source": f"book {i % 3}", "number": i}
            made.append(replace(s, response=replace(s.response, row=row)))
        made[error] = replace(made[error], error="it is too long", metrics={}, token_scores=None)
        return made

    made = compare(graded(sides[0], 3, 5), graded(sides[1], 4, 5), names=NAMES)
    driver = load(page(made, decode=decode))

    def right(s: Scored) -> bool:
        return s.response.row["is_correct"]

    def own(p) -> bool:
        return any((s.tokens["from_teacher"] == 0).any() for s in p.candidate)

    want = {
        "right on both sides": lambda p: right(p.baseline[0]) and right(p.candidate[0]),
        "right → wrong": lambda p: right(p.baseline[0]) and not right(p.candidate[0]),
        "wrong → right": lambda p: right(p.candidate[0]) and not right(p.baseline[0]),
        "wrong on both sides": lambda p: not right(p.baseline[0]) and not right(p.candidate[0]),
        "with fallbacks": own,
    }
    names, count = options(driver, "#show"), counts(driver, "#show")
    for name, is_so in want.items():
        expected = {p.key for p in made.pairs if is_so(p)}
        assert expected and set(asked(driver, "#show", names[name])) == expected and count[name] == len(expected)
    expected = {p.key for p in made.pairs if want["right → wrong"](p)}
    assert asked(driver, "#show", names["right → wrong"]) and texts(driver, "#status") == [
        f"{len(expected)} of 23 problems"
    ]
    (broken,) = {s.response.id for s in made.errors[0]}
    assert asked(driver, "#show", "errors") == [broken, broken]
    driver.execute_script("document.querySelector('#list a').click()")
    shown_problem(driver, broken)
    assert "it is too long" in texts(driver, "#facts")[0]

    # Columns of few values, by either side's traces; and what the ids begin with.
    asked(driver, "#show", "all")
    columns, count = options(driver, "#with"), counts(driver, "#with")
    assert not any(name.startswith(("number:", "prompt:", "answer:")) for name in columns)
    for i in range(3):
        books = {p.key for p in made.pairs if p.candidate[0].response.row["source"] == f"book {i}"}
        assert set(asked(driver, "#with", columns[f"source: book {i}"])) == books
        assert count[f"source: book {i}"] == len(books)
    shops = asked(driver, "#with", columns["beginning of the id: shop"])
    assert shops and all(key.startswith("shop-") for key in shops)


def test_search(load, comparison, decode):
    driver = load(page(comparison, decode=decode))

    def everything(p) -> str:
        return "\n".join([p.key, p.prompt, *(s.text for s in [*p.baseline, *p.candidate])]).lower()

    some = comparison.pairs[3]
    for wanted in (some.key.upper(), "HOW MANY", some.candidate[0].text[-12:], "final answer", "boxed{1"):
        expected = {p.key for p in comparison.pairs if wanted.lower() in everything(p)}
        assert expected and set(asked(driver, "#search", wanted, "input")) == expected
    assert asked(driver, "#search", "no such thing", "input") == []
    assert texts(driver, "#status") == ["no problem matches"]
    assert driver.execute_script("return document.querySelector('#download').disabled")
    assert len(asked(driver, "#search", "", "input")) == 24


def test_a_link_opens_its_trace(load, comparison, decode):
    html = page(comparison, decode=decode)
    wanted = comparison.ranked()[17]
    driver = load(html, f"#t={quote(wanted.key)}")
    shown_problem(driver, wanted.key)
    assert texts(driver, "#prompt") == [wanted.prompt] and texts(driver, "#place") == ["18 of 24"]
    assert texts(driver, "#list [aria-current] bdi") == [wanted.key]
    in_sight = """const {top} = document.querySelector('#pair').getBoundingClientRect();
        return top > -1 && top < innerHeight / 1.5"""
    assert driver.execute_script(in_sight)
    # Every dot and every name leads on, and the address says where one is.
    for selector, key in (
        ("circle", wanted.key),
        (".extremes li:first-child a", comparison.ranked()[0].key),
        ("#list li:nth-child(5) a", comparison.ranked()[4].key),
    ):
        script = "[...document.querySelectorAll(arguments[0])].find(e => e.textContent.startsWith(arguments[1]))"
        driver.execute_script("scrollTo(0, document.body.scrollHeight)")
        driver.execute_script(
            f"{script}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))",
            selector,
            key,
        )
        shown_problem(driver, key)
        assert driver.execute_script(in_sight), selector
        assert driver.execute_script("return location.hash") == f"#t={quote(key)}"
        assert (
            driver.execute_script("return document.querySelector('#link').getAttribute('href')") == f"#t={quote(key)}"
        )
    driver.execute_script("history.back()")
    shown_problem(driver, comparison.ranked()[0].key)

    # A bar leads to the problems that it counts.
    bar = driver.execute_script("""const a = document.querySelector('svg a:has(.bars)');
        a.dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}));
        return a.getAttribute('href')""")
    low, high = (float(x) for x in re.fullmatch(r"#from=(.*)&to=(.*)", bar).groups())
    inside = [p.key for p in comparison.ranked() if low <= p.deltas[LN] <= high]
    shown_problem(driver, inside[0])
    assert listed(driver) == inside and 0 < len(inside) < 24
    click(driver, "#range")
    wait(driver, "return document.querySelector('#status').textContent === '24 problems'")


def test_keys_lead_on(load, comparison, decode):
    driver = load(page(comparison, decode=decode), f"#t={comparison.ranked()[0].key}")
    keys = [p.key for p in comparison.ranked()]
    for key, to in (("n", 1), ("j", 2), ("p", 1), ("k", 0), ("p", 0), ("n", 1)):
        press(driver, key)
        shown_problem(driver, keys[to])
    assert driver.execute_script("return location.hash") == f"#t={keys[1]}"
    driver.find_element("id", "search").send_keys("n")  # what is typed is no command
    driver.execute_async_script("filter().then(arguments[0])")
    assert texts(driver, "#name") == [keys[1]]


def test_what_is_shown_can_be_downloaded(load, comparison, decode, tmp_path):
    driver = load(page(comparison, decode=decode))
    names = asked(driver, "#search", "final answer", "input")
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    click(driver, "#download")
    file, end = tmp_path / "traces.jsonl", time.monotonic() + 20
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    rows = read(file)
    by_key = {p.key: p for p in comparison.pairs}
    assert names and [r["id"] for r in rows[::2]] == names
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        p = by_key[before["id"]]
        assert (before["side"], after["side"]) == NAMES and before["prompt"] == p.prompt
        for row, s in ((before, p.baseline[0]), (after, p.candidate[0])):
            assert row["completion"] == s.text and row["is_correct"] == s.response.row["is_correct"]
            assert {k: row[k] for k in METRICS} == pytest.approx(dict(s.metrics), rel=1e-4)


def test_light_and_dark(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    paper = "return getComputedStyle(document.body).backgroundColor"
    try:
        seen = []
        for preference in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": preference}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            seen.append(driver.execute_script(paper))
            other = "Light" if preference == "dark" else "Dark"
            wait(driver, "return document.querySelector('#theme').textContent === arguments[0]", other)
        click(driver, "#theme")
        assert driver.execute_script(paper) == seen[0] != seen[1] and texts(driver, "#theme") == ["Dark"]
        click(driver, "#theme")
        assert driver.execute_script(paper) == seen[1]
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_of_one_set(load, sides, decode):
    scored = [*sides[1], replace(sides[1][0], error="it is <b>", metrics={}, token_scores=None)]
    driver = load(set_page(scored, decode=decode))
    assert driver.title == "rsd score: rsd.jsonl"
    right = sum(s.response.row["is_correct"] for s in sides[1])
    assert f"{100 * right / 24:.1f}\u00a0% are right" in texts(driver, "h1")[0] or right == 24
    ranked = sorted(sides[1], key=lambda s: -s.metrics[LN])
    assert listed(driver) == [s.response.id for s in ranked]
    driver.execute_script("document.querySelector('#list a').click()")
    shown_problem(driver, ranked[0].response.id)
    assert len(texts(driver, ".trace")) == 1 and "".join(texts(driver, ".step .t")) == ranked[0].text
    assert len(asked(driver, "#show", "errors")) == 1 and len(texts(driver, "circle")) == 24
    labels = options(driver, "#sort")
    tokens = {s.response.id: len(s.token_ids) for s in sides[1]}
    asked(driver, "#show", "all")
    lengths = [tokens[i] for i in asked(driver, "#sort", labels["Tokens"])]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(ValueError, match="no trace could be scored: it is <b>"):
        set_page(scored[-1:], decode=decode)


HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</script ><!--<script ><p title='",
    "\"'`${document.title='owned'} {{ 7 * 7 }} {% raw %} &lt;b&gt; \\",
    "a\u2028b\u2029c",
    "👩‍👩‍👧‍👦 \u202eright to left\u202c \u05d0\u05d1",
    "tab\tnull\x00escape\x1b",
    "half a pair \ud83d",
    "\ud800",
    "#t=a&from=1 % + ?",
]


def test_hostile_text_is_only_text(load, scorer, decode):
    rows = [{"id": h, "prompt": f"{i} {h}", "completion": f"{i}. {h}\n\nSo {h}"} for i, h in enumerate(HOSTILE)]
    for row in rows[-3:-1]:  # which no tokenizer reads but in an id
        row["prompt"] = row["completion"] = "<b>plain</b>"
    for i, row in enumerate(rows):
        row["<b>column"] = f"<i>{HOSTILE[i % 2][:40]}"
    rows.append({"id": "broken", "prompt": "\ud800", "completion": "<b>"})
    scored = [scorer.score(r) for r in responses(rows, ScoreConfig())]
    assert [bool(s.error) for s in scored] == [False] * len(HOSTILE) + [True]
    scored[-1] = replace(scored[-1], error="<b>\ud800")
    names = ("<b>.jsonl", "\"><img src=x onerror=document.title='owned'>\udcff.jsonl")
    made = compare(scored, scored, names=names)
    made = replace(made, notices=["<b>notice</b>"])
    driver = load(page(made, decode=lambda i: "</script><b>"))
    assert driver.title == shown(f"rsd compare: {names[1]} against {names[0]}")
    assert texts(driver, ".kicker bdi") == [shown(f"{names[1]} against {names[0]}")]
    assert texts(driver, "header .note bdi") == ["<b>notice</b>"]
    script = "return document.querySelectorAll('img, h1 *, h2 b, figure b, main bdi *, #list b, option *').length"
    assert driver.execute_script(script) == 0
    assert sorted(listed(driver)) == sorted(map(shown, HOSTILE))
    assert any("<b>column" in text for text in texts(driver, "#with option"))
    points = {t.rsplit(": ", 1)[0] for t in texts(driver, "circle title")}
    assert points == {shown(h).replace("\x00", "") for h in HOSTILE}  # HTML knows no NUL
    driver.execute_script("window.spare = document.createElement('p')")
    for row in rows[:-1]:
        script = """[...document.querySelectorAll('#list a')].find(
            a => a.firstChild.textContent.toWellFormed() === arguments[0]).click()"""
        driver.execute_script(script, shown(row["id"]))
        shown_problem(driver, shown(row["id"]))
        assert texts(driver, "#prompt") == [row["prompt"]]
        pictures = re.sub(r"[\x00\x1b]", lambda m: chr(0x2400 + ord(m[0])), row["completion"])
        for which in (1, 2):
            assert "".join(texts(driver, f"#sides section:nth-child({which}) .step .t")) == pictures
        assert driver.title.startswith("rsd compare: ") and driver.execute_script("return !!window.spare")
    assert asked(driver, "#search", HOSTILE[0], "input") == HOSTILE[:1]


def test_a_thousand_problems(load, sides, decode, tmp_path):
    made = compare(many(sides[0], 1000), many(sides[1], 1000), names=NAMES)
    driver = load(page(made, decode=decode))
    assert texts(driver, "#status") == ["1000 problems"] and len(texts(driver, "#list li")) <= 600
    assert texts(driver, "#sampled") == [] and len(listed(driver)) == 1000

    html = page(made, decode=decode, tokens=20_000)
    embedded = [p["key"] for p in parsed(html)["problems"]]
    size = {p.key: sum(len(s.token_ids) for s in [*p.baseline, *p.candidate]) for p in made.pairs}
    assert 18_000 < sum(size[key] for key in embedded) <= 20_000
    ranked = [p.key for p in made.ranked()]
    third = len(embedded) // 3
    assert embedded[:third] == ranked[:third] and embedded[-third:] == ranked[-third:]
    driver = load(html)
    assert f"Traces of {len(embedded)} of 1000 problems" in texts(driver, "#sampled")[0]
    assert texts(driver, "#status") == [f"{len(embedded)} problems"]
    empty = page(made, decode=decode, tokens=0)
    assert parsed(empty)["problems"] == []
    (tmp_path / "report.html").write_text(empty, encoding="utf-8")  # which is what is loaded
    driver.refresh()
    wait(driver, "return document.querySelector('#status').textContent === 'no problem matches'")


def test_it_is_one_file_without_a_network(comparison, decode):
    html = page(comparison, decode=decode)
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|url\(|@import|innerHTML|\bsrc=|\beval\(", html)

"""The tokens of the page's traces: their colours and marks, their box for mouse, finger and keys, and long ones."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pages import (  # noqa: F401 (fixtures)
    NAMES,
    browser,
    choose,
    comparison,
    decode,
    load,
    page,
    parsed,
    scorer,
    shown_problem,
    sides,
    texts,
    wait,
)
from test_flat import repeated

from rsd.analysis.compare import Comparison, compare
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import responses
from rsd.scoring.scorer import Scored

READ = """return [...document.querySelectorAll('.trace')].map(t => [...t.querySelectorAll('.step')].map(step => [
    step.dataset.n, [...step.querySelectorAll('.t')].map(e => [
        e.textContent, [...e.classList], Number(e.style.getPropertyValue('--h')),
        e.previousElementSibling?.matches('del') ? e.previousElementSibling.textContent : null])]))"""


def differing(s: Scored) -> dict[int, int]:
    """The tokens in whose place the teacher likes another best, and which."""
    likeliest, ids = s.tokens["proposals"], s.tokens["token_ids"]
    return {i: int(likeliest[i]) for i in np.flatnonzero((likeliest >= 0) & (likeliest != ids)).tolist()}


def test_tokens_are_marked_as_they_were_made(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    fallbacks = struck = 0
    for p in comparison.ranked()[:6]:
        driver.execute_script("location.hash = arguments[0]", f"t={p.key}")
        shown_problem(driver, p.key)
        for s, steps in zip((p.baseline[0], p.candidate[0]), driver.execute_script(READ), strict=True):
            assert [int(n) for n, _ in steps] == [*range(1, len(s.steps) + 1)]
            assert np.cumsum([0, *(len(tokens) for _, tokens in steps)])[:-1].tolist() == list(s.steps)
            text, classes, heat, gone = zip(*(token for _, tokens in steps for token in tokens), strict=True)
            assert list(text) == s.pieces()
            made = s.tokens["from_teacher"] if s.tokens is not None else np.ones(len(s.token_ids))
            assert [("own" in c) for c in classes] == (made == 0).tolist()
            wanted = {i: decode(token) for i, token in differing(s).items()} if s.tokens is not None else {}
            assert {i: g for i, g in enumerate(gone) if g is not None} == wanted
            low = s.token_scores.logprobs < math.log(0.01)
            assert [("low" in c) for c in classes] == low.tolist()
            assert np.minimum(-s.token_scores.logprobs / math.log(1e5), 1) == pytest.approx(np.array(heat), abs=0.011)
            fallbacks, struck = fallbacks + int((made == 0).sum()), struck + len(wanted)
    assert fallbacks and struck


def test_the_pair_that_is_shown_first_tells_the_story(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    (first,) = [p for p in comparison.pairs if p.key == texts(driver, "#name")[0]]
    assert all(s.response.row["is_correct"] for s in (first.baseline[0], first.candidate[0]))
    assert texts(driver, "#sides del") and texts(driver, "#sides .low") and first.deltas["local_naturalness"] > 0


def test_colours_say_what_their_legend_says(load, comparison, decode):
    p = max(comparison.pairs, key=lambda p: (p.candidate[0].tokens["from_teacher"] == 0).sum())
    driver = load(page(comparison, decode=decode), f"#t={p.key}")
    shown_problem(driver, p.key)
    s, raw = p.candidate[0], p.baseline[0]

    def coloured(mode: str) -> list[list[tuple[list[str], float]]]:
        choose(driver, "#colour", mode, "change")
        assert texts(driver, "#legend")[0]
        return [[(t[1], t[2]) for _, tokens in steps for t in tokens] for steps in driver.execute_script(READ)]

    gap = s.tokens["teacher_logprobs"] - s.token_scores.logprobs
    for (classes, h), wanted in zip(coloured("gap")[1], gap.tolist(), strict=True):
        if math.isnan(wanted):
            assert h == 0
        elif abs(wanted) > 0.5:
            assert ("cool" in classes) == (wanted < 0) and h == pytest.approx(
                min(1, abs(wanted) / math.log(1e3)), abs=0.03
            )
    assert all(h == 0 for _, h in coloured("gap")[0]) and "No sidecar" in texts(driver, "#legend")[0]
    before, _ = coloured("acceptance")
    assert [h > 0 for _, h in before] == (raw.token_scores.logprobs < math.log(0.01)).tolist()
    after = coloured("origin")[1]
    own = s.tokens["from_teacher"] == 0
    assert [h > 0 for _, h in after] == [bool(own[i]) or i in differing(s) for i in range(len(own))]
    assert [h > 0 and "cool" in classes for classes, h in after] == own.tolist()


def box(driver) -> dict[str, str]:
    if not driver.find_element("css selector", "#box").is_displayed():
        return {}
    return dict(zip(texts(driver, "#box dt"), texts(driver, "#box dd"), strict=True)) | {
        "": texts(driver, "#box code")[0]
    }


def span(driver, trace: int, token: int):
    script = "return document.querySelectorAll('.trace')[arguments[0]].querySelectorAll('.step .t')[arguments[1]]"
    return driver.execute_script(script, trace, token)


def both(value: str) -> tuple[float, float]:
    p, log = re.fullmatch(r"p (?:≤ )?(\S+), log-prob (?:≤ )?(\S+)", value).groups()
    return float(p.replace("\u2212", "-")), float(log.replace("\u2212", "-"))


def test_the_box_of_a_token(load, comparison, decode):
    from selenium.webdriver import ActionChains

    best = comparison.ranked()[0]
    driver = load(page(comparison, decode=decode), f"#t={best.key}")
    shown_problem(driver, best.key)

    def hover(trace: int, token: int) -> dict[str, str]:
        at = span(driver, trace, token)
        ActionChains(driver).move_to_element(at).perform()
        assert texts(driver, ".t.at") == [at.get_property("textContent")]
        return box(driver)

    new, raw = best.candidate[0], best.baseline[0]
    tokens = new.tokens
    mine = next(iter(differing(new)))
    local = int(np.abs(raw.token_scores.local - raw.token_scores.logprobs).argmax())
    least = int(raw.token_scores.logprobs.argmin())
    for trace, s, i in ((1, new, mine), (1, new, mine + 1), (0, raw, least), (0, raw, local)):
        told = hover(trace, i)
        assert json.loads(told[""]) == s.pieces()[i]
        p, log = both(told["student"])
        logprob = s.token_scores.logprobs[i]
        assert log == pytest.approx(logprob, abs=0.1) and math.log(p) == pytest.approx(log, abs=0.45)
        if i == local and trace == 0:
            assert both(told["in its window"])[1] == pytest.approx(raw.token_scores.local[i], abs=0.1)
        assert ("from" in told) == (trace == 1)
        if trace:
            assert told["from"] == ("the student (a fallback)" if tokens["from_teacher"][i] == 0 else "the teacher")
            if not np.isnan(tokens["teacher_logprobs"][i]):
                assert both(told["teacher"])[1] == pytest.approx(tokens["teacher_logprobs"][i], abs=0.1)
    assert json.loads(hover(1, mine)["teacher's likeliest"]) == decode(int(tokens["proposals"][mine]))
    ActionChains(driver).move_to_element(driver.find_element("css selector", "h1")).perform()
    assert box(driver) == {}

    # By keys; what was clicked stays until Escape.
    driver.execute_script("document.querySelectorAll('.trace')[1].focus()")
    ActionChains(driver).send_keys("\ue014", "\ue014").perform()  # right, right
    assert json.loads(box(driver)[""]) == new.pieces()[mine + 2]  # on from the last one
    ActionChains(driver).send_keys("\ue00c").perform()
    assert box(driver) == {}
    span(driver, 0, 3).click()
    ActionChains(driver).move_to_element(driver.find_element("css selector", "h1")).perform()
    assert json.loads(box(driver)[""]) == raw.pieces()[3]
    driver.find_element("css selector", "#box [aria-label='next token']").click()
    assert json.loads(box(driver)[""]) == raw.pieces()[4]
    driver.find_element("css selector", "h1").click()
    assert box(driver) == {}


@pytest.fixture
def phone(browser):
    device = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield browser
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_finger_opens_the_box_and_it_stays(phone, load, comparison, decode):
    driver = load(page(comparison, decode=decode))

    def tap(element) -> None:
        driver.execute_script("arguments[0].scrollIntoView({block: 'end'})", element)
        at = driver.execute_script(
            "const r = arguments[0].getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]", element
        )
        touch = {"x": at[0], "y": at[1]}
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [touch]})
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        driver.execute_async_script("setTimeout(arguments[0], 300)")

    tap(span(driver, 0, 2))
    told = box(driver)
    assert told and "student" in told
    inside = driver.execute_script(
        "const r = box.getBoundingClientRect(); return [r.left, r.top, innerWidth - r.right, innerHeight - r.bottom]"
    )
    assert min(inside) >= 0
    tap(driver.find_element("css selector", "#box [aria-label='next token']"))
    assert box(driver)[""] != told[""] and len(texts(driver, ".t.at")) == 1
    tap(driver.find_element("css selector", "#box [aria-label='close']"))
    assert box(driver) == {}
    tap(span(driver, 1, 3))
    assert box(driver)
    tap(driver.find_element("css selector", "#prompt"))
    assert box(driver) == {}


def test_narrow_and_in_print(phone, load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    try:
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        cut = """return [...document.querySelectorAll('main *, header *')].filter(e =>
            e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        for width in (390, 768):  # no column of a table either
            device = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
            assert driver.execute_script(cut) == []
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device | {"width": 390})
        script = "return [...document.querySelectorAll('.trace')].map(e => e.getBoundingClientRect().top)"
        tops = driver.execute_script(script)
        assert tops[0] < tops[1]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not driver.find_element("id", "controls").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_what_is_not_seen_has_a_sign_and_a_copy_is_the_text(load, scorer, decode):
    text = "  So\tit is  5.\n\n And 7."
    row = {"id": "a", "prompt": "Why?", "completion": text}
    scored = [scorer.score(r) for r in responses([row], ScoreConfig())]
    driver = load(page(compare(scored, scored, names=NAMES), decode=decode))
    assert "".join(texts(driver, "#sides section:first-child .step .t")) == text
    signs = driver.execute_script(
        """return ['nl', 'tab', 'sp'].map(name => [...document.querySelectorAll(`#sides section:first-child .${name}`)]
            .map(e => e.textContent).join(''))"""
    )
    assert signs[:2] == ["\n\n", "\t"] and signs[2].count(" ") >= 4
    selected = "getSelection().selectAllChildren(document.querySelector('.trace')); return getSelection().toString()"
    assert driver.execute_script(selected).replace("\n", "") == text.replace("\n", "")


def test_arrays_of_other_tokens_are_not_shown(sides, scorer, decode):
    first = sides[1][0]
    noted = first.response.tokens.copy()
    noted["token_ids"] += 1
    other = scorer.score(replace(first.response, tokens=noted))
    traces = parsed(page(compare(sides[0], [other, *sides[1][1:]], names=NAMES), decode=decode))
    assert {p["key"] for p in traces["problems"] if "own" not in p["sides"][1][0]} == {first.response.id}


def test_several_generations(load, sides, decode):
    others = [
        replace(s, response=replace(t.response, generation=i))
        for t in sides[1][:2]
        for i, s in enumerate(sides[1][:20])
    ]
    driver = load(page(compare(sides[0], others, names=NAMES), decode=decode))
    assert texts(driver, ".meta option") == [f"trace {i} of 20" for i in range(1, 17)]
    assert "the first 16 traces" in texts(driver, "main")[0]
    choose(driver, ".meta select", "2", "change")
    assert "".join(texts(driver, "#sides section:nth-child(2) .step .t")) == sides[1][2].text
    assert len(texts(driver, ".meta select")) == 1  # one trace needs no choice


def long_comparison(sides, tokens: int) -> Comparison:
    before, after = ([repeated(side[0], 1 + tokens // len(side[0].token_ids))] for side in sides)
    return compare(
        before, [replace(after[0], response=replace(after[0].response, id=before[0].response.id))], names=NAMES
    )


def test_a_trace_of_thirty_thousand_tokens(load, sides, decode):
    made = long_comparison(sides, 30_000)
    driver = load(page(made, decode=decode, tokens=100_000))
    wait(driver, "return document.querySelectorAll('.step .t').length >= 60000")
    assert "".join(texts(driver, "#sides section:first-child .step .t")) == made.pairs[0].baseline[0].text
    # Only what is in sight is laid out, from one end to the other.
    laid_out = """const trace = document.querySelector('.trace'); trace.scrollTop = arguments[0] * trace.scrollHeight;
        const done = arguments[1], chunks = [...trace.querySelectorAll('.chunk')];
        requestAnimationFrame(() => requestAnimationFrame(() => done([
            chunks.filter(c => c.firstChild.checkVisibility({contentVisibilityAuto: true})).length, chunks.length])))"""
    for where in (0, 0.5, 1):
        seen, chunks = driver.execute_async_script(laid_out, where)
        assert chunks > 50 and 0 < seen < chunks / 4
    last = span(driver, 0, 29_999)
    driver.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", last)
    assert json.loads(box(driver)[""]) == last.get_property("textContent")

"""The HTML report as one uses it, in a real browser; nothing in it is trusted."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pages import (  # noqa: F401 (fixtures)
    LN,
    NAMES,
    browser,
    choose,
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
    shown,
    sides,
    texts,
)

from rsd.analysis.compare import compare
from rsd.config import ScoreConfig
from rsd.scoring.responses import responses


def test_sorting_and_paging(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    gain = [p.key for p in comparison.ranked()]
    assert texts(driver, "#status") == ["problems 1\u201310 of 24"]
    assert texts(driver, ".problem h3") == gain[:10]
    click(driver, "#next")
    assert texts(driver, "#status") == ["problems 11\u201320 of 24"] and texts(driver, ".problem h3") == gain[10:20]
    click(driver, "#previous")
    assert listed(driver) == gain and texts(driver, "#status") == ["problems 21\u201324 of 24"]
    shown_deltas = [number(t) for t in texts(driver, ".scores b")]
    assert shown_deltas == pytest.approx([p.deltas[LN] for p in comparison.ranked()[20:]], rel=6e-3, abs=1e-9)

    delta = {p.key: p.deltas[LN] for p in comparison.pairs}
    length = {p.key: len(p.candidate[0].token_ids) for p in comparison.pairs}
    choose(driver, "#sort", "loss", "change")
    assert [delta[k] for k in listed(driver)] == sorted(delta.values())
    choose(driver, "#sort", "length", "change")
    assert [length[k] for k in listed(driver)] == sorted(length.values(), reverse=True)
    choose(driver, "#sort", "id", "change")
    assert listed(driver) == sorted(delta)


def test_search(load, comparison, decode):
    driver = load(page(comparison, decode=decode))

    def everything(p) -> str:
        return "\n".join([p.key, p.prompt, *(s.text for s in [*p.baseline, *p.candidate])]).lower()

    some = comparison.pairs[3]
    for wanted in (some.key.upper(), "HOW MANY", some.candidate[0].text[-12:], "final answer", "boxed{1"):
        expected = {p.key for p in comparison.pairs if wanted.lower() in everything(p)}
        choose(driver, "#search", wanted, "input")
        assert expected and set(listed(driver)) == expected
        if len(expected) < 24:
            assert texts(driver, "#status")[0].endswith(f"of {len(expected)} found")
    choose(driver, "#search", "no such thing", "input")
    assert texts(driver, ".problem") == [] and texts(driver, "#status") == ["no problem matches"]
    assert driver.execute_script("return document.querySelector('#next').disabled")
    choose(driver, "#search", "", "input")
    assert len(listed(driver)) == 24


def test_tokens_are_marked_as_they_were_made(load, comparison, decode):
    from selenium.webdriver import ActionChains

    driver = load(page(comparison, decode=decode))
    read = """return [...document.querySelectorAll('.trace')].map(t => [...t.children].map(e => [
        e.textContent, e.classList.contains('own'), e.classList.contains('step'),
        Number(e.style.getPropertyValue('--h'))]))"""
    columns = driver.execute_script(read)
    fallbacks = 0
    for p, candidate, baseline in zip(comparison.ranked()[:10], columns[::2], columns[1::2], strict=True):
        for s, tokens in ((p.candidate[0], candidate), (p.baseline[0], baseline)):
            text, own, steps, heat = zip(*tokens, strict=True)
            assert "".join(text).replace("⏎\n", "\n") == s.text
            assert np.flatnonzero(steps).tolist() == list(s.steps)
            made = s.tokens["from_teacher"] if s.tokens is not None else np.ones(len(s.token_ids))
            assert (np.array(own) == (made == 0)).all()
            fallbacks += sum(own)
            assert np.minimum(-s.token_scores.logprobs / math.log(1e5), 1) == pytest.approx(np.array(heat), abs=0.0061)
    assert fallbacks

    def hover(trace: int, token: int) -> dict[str, str]:
        span = driver.execute_script(
            "return document.querySelectorAll('.trace')[arguments[0]].children[arguments[1]]", trace, token
        )
        ActionChains(driver).move_to_element(span).perform()
        assert texts(driver, ".t.at") == [span.get_property("textContent")]
        return dict(zip(texts(driver, "#box dt"), texts(driver, "#box dd"), strict=True)) | {
            "": texts(driver, "#box > code")[0]
        }

    def both(value: str) -> tuple[float, float]:
        log, p = re.fullmatch(r"log-prob (\S+), p (\S+)", value).groups()
        return number(log), number(p)

    best = comparison.ranked()[0]
    new, raw = best.candidate[0], best.baseline[0]
    tokens = new.tokens
    mine = int(np.flatnonzero(tokens["from_teacher"] == 0)[0])
    theirs = int(np.argmin(np.where(tokens["from_teacher"] == 1, new.token_scores.logprobs, 0)))
    least = int(raw.token_scores.logprobs.argmin())
    local = int(np.abs(raw.token_scores.local - raw.token_scores.logprobs).argmax())
    assert abs(raw.token_scores.local[local] - raw.token_scores.logprobs[local]) > 0.1
    for trace, s, i in ((0, new, mine), (0, new, theirs), (1, raw, least), (1, raw, local)):
        box = hover(trace, i)
        assert json.loads(box[""]) == s.pieces()[i]
        for row, logprob in (("student", s.token_scores.logprobs[i]), ("in its window", s.token_scores.local[i])):
            log, p = both(box[row])
            assert log == pytest.approx(logprob, abs=0.00051) and p == pytest.approx(math.exp(log), rel=6e-3)
        if trace:
            assert "teacher" not in box and "proposed by" not in box
        else:
            known = not np.isnan(tokens["teacher_logprobs"][i])
            assert box["proposed by"] == ("the teacher" if i == theirs else "the student (fallback)")
            if known:
                assert both(box["teacher"])[0] == pytest.approx(tokens["teacher_logprobs"][i], abs=0.00051)
            else:
                assert box["teacher"] == "no log-prob for this token"
    likeliest = hover(0, mine)["teacher's likeliest"]
    assert json.loads(likeliest) == decode(int(tokens["proposals"][mine]))
    ActionChains(driver).move_to_element(driver.find_element("css selector", "#status")).perform()
    assert not driver.find_element("css selector", "#box").is_displayed()

    driver.execute_script("document.querySelector('.trace').focus()")
    ActionChains(driver).send_keys("\ue014", "\ue014").perform()  # right, right
    assert json.loads(texts(driver, "#box > code")[0]) == new.pieces()[mine + 2]  # on from the last one


def test_arrays_of_other_tokens_are_not_shown(sides, scorer, decode):
    first = sides[1][0]
    noted = first.response.tokens.copy()
    noted["token_ids"] += 1
    other = scorer.score(replace(first.response, tokens=noted))
    traces = parsed(page(compare(sides[0], [other, *sides[1][1:]], names=NAMES), decode=decode))
    assert {p["id"] for p in traces["problems"] if "own" not in p["sides"][1][0]} == {first.response.id}


def test_several_generations(load, sides, decode):
    others = [
        replace(s, response=replace(t.response, generation=i)) for t in sides[1][:2] for i, s in enumerate(sides[1][:6])
    ]
    driver = load(page(compare(sides[0], others, names=NAMES), decode=decode))
    assert texts(driver, ".meta option")[:4] == [f"trace {i} of 6" for i in (1, 2, 3, 4)]
    assert "the first 4 traces" in texts(driver, "main")[0]
    choose(driver, ".meta select", "2", "change")
    assert texts(driver, ".trace")[0].replace("⏎\n", "\n") == sides[1][2].text
    assert len(texts(driver, ".meta select")) == 2  # one trace needs no choice


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
]


def test_hostile_text_is_only_text(load, scorer, decode):
    rows = [{"id": h, "prompt": f"{i} {h}", "completion": f"{i}. {h}\n\nSo {h}"} for i, h in enumerate(HOSTILE)]
    for row in rows[-2:]:  # which no tokenizer reads but in an id
        row["prompt"] = row["completion"] = "<b>plain</b>"
    rows.append({"id": "broken", "prompt": "\ud800", "completion": "<b>"})
    scored = [scorer.score(r) for r in responses(rows, ScoreConfig())]
    assert [bool(s.error) for s in scored] == [False] * len(HOSTILE) + [True]
    scored[-1] = replace(scored[-1], error="<b>\ud800")
    names = ("<b>.jsonl", "\"><img src=x onerror=document.title='owned'>\udcff.jsonl")
    made = compare(scored, scored, names=names)
    made = replace(made, notices=["<b>notice</b>"])
    driver = load(page(made, decode=lambda i: "</script><b>"))
    assert driver.title == shown(f"rsd compare: {names[1]} against {names[0]}")
    assert texts(driver, "h1") == [shown(f"{names[1]} against {names[0]}")]
    assert driver.execute_script("return document.querySelectorAll('img, header b, figure b, main bdi *').length") == 0
    assert sorted(texts(driver, ".problem h3")) == sorted(map(shown, HOSTILE))
    prompts = dict(zip(texts(driver, ".problem h3"), texts(driver, ".prompt"), strict=True))
    traces = dict(zip(texts(driver, ".problem h3"), texts(driver, ".trace")[::2], strict=True))
    for row in rows[:-1]:
        assert prompts[shown(row["id"])] == row["prompt"]
        pictures = re.sub(r"[\x00\x1b]", lambda m: chr(0x2400 + ord(m[0])), row["completion"])
        assert traces[shown(row["id"])] == pictures.replace("\n", "⏎\n")
    points = {t.rsplit(": ", 1)[0] for t in texts(driver, "circle title")}
    assert points == {shown(h).replace("\x00", "") for h in HOSTILE}  # HTML knows no NUL
    choose(driver, "#search", HOSTILE[0], "input")
    assert texts(driver, ".problem h3") == HOSTILE[:1]


def test_a_thousand_problems(load, sides, decode, capsys):
    made = compare(many(sides[0], 1000), many(sides[1], 1000), names=NAMES)
    driver = load(page(made, decode=decode))
    assert len(texts(driver, ".problem")) == 10 and texts(driver, "#status") == ["problems 1\u201310 of 1000"]
    timing = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    with capsys.disabled():
        print(f"[1000 problems loaded in {timing:.0f} ms]", end=" ")
    assert texts(driver, "#sampled") == []

    html = page(made, decode=decode, tokens=20_000)
    embedded = [p["id"] for p in parsed(html)["problems"]]
    size = {p.key: sum(len(s.token_ids) for s in [*p.baseline, *p.candidate]) for p in made.pairs}
    assert 18_000 < sum(size[key] for key in embedded) <= 20_000
    ranked = [p.key for p in made.ranked()]
    third = len(embedded) // 3
    assert embedded[:third] == ranked[:third] and embedded[-third:] == ranked[-third:]
    driver = load(html)
    assert f"Heat maps of {len(embedded)} of 1000 problems" in texts(driver, "#sampled")[0]
    assert texts(driver, "#status") == [f"problems 1\u201310 of {len(embedded)}"]
    assert "over 1000 problems" in " ".join(texts(driver, ".lead")[0].split())
    assert parsed(page(made, decode=decode, tokens=0))["problems"] == []


def test_narrow_and_in_print(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    try:
        device = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 400
        tops = driver.execute_script(
            "return [...document.querySelectorAll('.trace')].map(e => e.getBoundingClientRect().top)"
        )
        assert tops[0] < tops[1]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        assert not driver.find_element("id", "controls").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_one_file_without_a_network(comparison, decode):
    html = page(comparison, decode=decode)
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|url\(|@import|innerHTML|\bsrc=", html)

"""The weights of `rsd weigh` on the page: a heat map of their own, and the student's action beside each step."""

import json
import random
import re
from typing import Any

import pytest
from conftest import read, rsd, write
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
    set_page,
    shown_problem,
    sides,
    texts,
    wait,
)
from test_report_tokens import READ, box, phone, span  # noqa: F401 (phone: a fixture)

from rsd.analysis.compare import compare
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import read_responses, responses
from rsd.scoring.scorer import Scored
from rsd.traces.readers import read_rows

LIST = """return [...document.querySelectorAll('.weighed tbody tr')].map(r => [
    r.querySelector('.number').textContent, r.querySelector('.cell').textContent,
    ...[...r.cells].slice(1).flatMap(c => [c.firstChild.textContent, c.querySelector('small').textContent])])"""
HEAT = """return [...document.querySelectorAll('.trace')].map(t => [...t.querySelectorAll('.step .t')].map(e => [
    e.classList.contains('weight'), Number(e.style.getPropertyValue('--h')), getComputedStyle(e).backgroundColor]))"""


def weighed_row(s: Scored, draw: random.Random) -> dict[str, Any]:
    """A scored trace's row as `rsd weigh` writes it, with weights that nothing but this row knows."""
    steps = [draw.random() for _ in s.spans]
    return dict(s.response.row) | {
        "token_ids": [*s.token_ids.tolist(), 1],  # and an EOS
        "step_spans": [list(span) for span in s.spans],
        "step_weights": steps,
        "token_weights": [draw.random() for _ in range(len(s.token_ids) + 1)],
        "validity_teacher": [-draw.random() for _ in steps],
        "validity_student": [None if i == 1 else -draw.random() for i in range(len(steps))],
        "student_action": [None if i == 1 else f"So it is {draw.randrange(99)}.\n" for i in range(len(steps))],
        "weighing": {"validity": "likelihood"},
        "weigh_error": None,
    }


@pytest.fixture(scope="module")
def rows(scorer, sides) -> list[dict[str, Any]]:
    """The teacher's traces of six problems, weighed."""
    draw = random.Random(1)
    eos = min(scorer.source.eos)
    made = [weighed_row(s, draw) for s in sides[0][:6]]
    return [row | {"token_ids": [*row["token_ids"][:-1], eos]} for row in made]


@pytest.fixture
def scored(scorer, tmp_path):
    """Scores rows that are read from a file."""

    def made(some: list[dict[str, Any]]) -> list[Scored]:
        file = write(tmp_path / "traces.weighed.jsonl", some)
        scores = [scorer.score(r) for r in read_responses(file, ScoreConfig())]
        assert [s.error for s in scores] == [None] * len(some)
        return scores

    return made


def show(driver, row: dict[str, Any], mode: str = "weight") -> None:
    driver.execute_script("location.hash = arguments[0]", f"t={row['id']}")
    shown_problem(driver, row["id"])
    choose(driver, "#colour", mode, "change")


def test_the_switch_shows_weights_by_token(load, scored, rows, decode):
    driver = load(set_page(scored(rows), decode=decode))
    for row in rows:
        show(driver, row, "student")
        (before,) = driver.execute_script(HEAT)
        assert not any(is_weight for is_weight, _, _ in before) and not texts(driver, ".weights[open]")
        show(driver, row)
        (after,) = driver.execute_script(HEAT)
        assert all(is_weight for is_weight, _, _ in after)
        assert [h for _, h, _ in after] == pytest.approx(row["token_weights"][:-1], abs=0.008)
        assert [h for _, h, _ in after] != pytest.approx([h for _, h, _ in before], abs=0.1)
        span(driver, 0, 3).click()
        assert float(box(driver)["weight"]) == pytest.approx(row["token_weights"][3], abs=0.0071)
        assert box(driver)["student"].startswith("p ")
        assert texts(driver, "#legend .cell") == ["0", "0.25", "0.5", "0.75", "1"]
        driver.execute_script("at('colour').value = 'student'; redraw(); weightsOpen = false")
        assert driver.execute_script(HEAT) == [before]


def test_each_weight_has_a_colour_that_no_other_scale_has(load, scored, rows, decode):
    """From the page's own to the fullest in even order, in the light and in the dark."""
    count = len(rows[0]["token_weights"])
    even = rows[0] | {"token_weights": [i / count for i in range(count)]}
    driver = load(set_page(scored([even]), decode=decode))
    light = """const [colour] = arguments, e = document.createElement('canvas').getContext('2d');
        e.fillStyle = colour; e.fillRect(0, 0, 1, 1); return [...e.getImageData(0, 0, 1, 1).data]"""
    try:
        for theme, order in (("light", -1), ("dark", 1)):
            driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            )
            show(driver, even)
            (shown,) = driver.execute_script(HEAT)
            colours = [driver.execute_script(light, c) for _, _, c in shown]
            luminance = [order * (0.2126 * r + 0.7152 * g + 0.0722 * b) for r, g, b, _ in colours]
            assert luminance == sorted(luminance) and luminance[-1] - luminance[0] > 40
            assert all(b > r < g for r, g, b, _ in colours[len(colours) // 2 :])  # neither the heat's orange nor blue
            ink = driver.execute_script(light, driver.execute_script("return getComputedStyle(at('sides')).color"))
            assert contrast(ink, colours[-1]) > 4.5
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(*colours: list[int]) -> float:
    """Of two colours, as WCAG has it."""

    def luminance(rgb: list[int]) -> float:
        parts = (c / 255 for c in rgb[:3])
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def figure(text: str) -> float:
    return float(text.replace("validity ", "").replace("\u2212", "-"))


def test_the_students_action_stands_beside_its_step(load, scored, rows, decode):
    driver = load(set_page(scored(rows), decode=decode))
    for row in rows:
        show(driver, row)
        assert texts(driver, ".weights[open] summary")
        text = row["completion"] if isinstance(row["completion"], str) else row["completion"][0]["content"]
        listed = driver.execute_script(LIST)
        assert [int(n) for n, *_ in listed] == [*range(1, len(row["step_weights"]) + 1)]
        for i, (_, weight, step, teacher, action, student) in enumerate(listed):
            a, b = row["step_spans"][i]
            assert step == text[a:b].strip() and float(weight) == pytest.approx(row["step_weights"][i], abs=0.0051)
            assert figure(teacher) == pytest.approx(row["validity_teacher"][i], rel=6e-3)
            if i == 1:
                assert (action, student) == ("\u2013", "validity \u2013")
            else:
                assert action == row["student_action"][i].strip()
                assert figure(student) == pytest.approx(row["validity_student"][i], rel=6e-3)
    steps = len(rows[0]["step_weights"])
    own = rows[0] | {"teacher_action": [f"<b>{i}" for i in range(steps)]}
    driver = load(set_page(scored([own]), decode=decode))
    said = driver.execute_script("return [...document.querySelectorAll('.proposal')].map(e => e.textContent)")
    assert len(said) == steps and all(f"its own next step: <b>{i}validity" in one for i, one in enumerate(said))


def test_the_list_is_opened_by_keys_and_stays_as_it_was_left(load, scored, rows, decode):
    from selenium.webdriver import ActionChains

    driver = load(set_page(scored(rows), decode=decode))
    show(driver, rows[0], "student")
    for wanted in (1, 0, 1):
        driver.execute_script("document.querySelector('.weights summary').focus()")
        ActionChains(driver).send_keys("\ue007").perform()
        wait(driver, "return document.querySelectorAll('.weights[open]').length === arguments[0]", wanted)
        driver.execute_async_script("setTimeout(arguments[0], 50)")  # until the page has been told
        before = texts(driver, "#name")
        ActionChains(driver).send_keys("n").perform()
        wait(driver, "return document.querySelector('#name').textContent !== arguments[0]", before[0])
        assert len(texts(driver, ".weights[open]")) == wanted
    driver.execute_script("document.querySelector('.trace').focus()")
    choose(driver, "#colour", "weight", "change")
    ActionChains(driver).send_keys("\ue014").perform()
    assert "weight" in box(driver) and driver.find_element("id", "box").get_attribute("role") == "status"


def test_a_step_gives_its_tokens_its_weight_where_they_are_not_the_rows(load, scorer, scored, decode):
    """Spans are characters; a browser counts in units of UTF-16."""
    text = "So \U0001f469\u200d\U0001f467 has 5. Then \U0001f600\U0001f600 7!\nNo more."
    spans = [[0, 13], [13, 24], [24, len(text)]]
    row = {"id": "a", "prompt": "Why?", "completion": text, "step_spans": spans, "step_weights": [0, 0.5, 1]}
    for more in ({}, {"token_weights": [0.25, 0.75]}):  # of what tokens, the row does not say
        (s,) = scored([row | more])
        driver = load(set_page([s], decode=decode))
        choose(driver, "#colour", "weight", "change")
        step = [sum(start >= a for a, _ in spans) - 1 for start in s.starts.tolist()]
        assert [h for _, h, _ in driver.execute_script(HEAT)[0]] == pytest.approx([i / 2 for i in step], abs=0.008)
        assert [line[2] for line in driver.execute_script(LIST)] == [text[a:b].strip() for a, b in spans]
        assert {cell for line in driver.execute_script(LIST) for cell in line[3:]} == {"\u2013", "validity \u2013"}


def test_beside_a_trace_without_weights(load, scored, rows, sides, decode):
    by_id = {row["id"] for row in rows}
    made = compare(scored(rows), [s for s in sides[1] if s.response.id in by_id], names=NAMES)
    driver = load(page(made, decode=decode))
    show(driver, rows[0])
    raw, new = driver.execute_script(HEAT)
    assert any(h for _, h, _ in raw) and not any(h for _, h, _ in new)
    assert "has no weights" in texts(driver, "#legend")[0] and len(texts(driver, ".weights")) == 1
    span(driver, 1, 0).click()
    assert "weight" not in box(driver)


HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"><b>",
    "\u202eright to left\x00\x1b[31m",
    "half a pair \ud83d",
    "",
    "long " * 5000,
]


def test_hostile_actions_are_only_text(load, scorer, rows, decode):
    some = [row | {"student_action": [h] * len(row["step_weights"])} for row, h in zip(rows, HOSTILE, strict=True)]
    made = [scorer.score(r) for r in responses(some, ScoreConfig())]  # half a pair is in no file
    driver = load(set_page(made, decode=decode))
    for row, hostile in zip(some, HOSTILE, strict=True):
        show(driver, row)
        wanted = hostile.translate({0: "\u2400", 0x1B: "\u241b"})
        wanted = f"{wanted[:2000]}\u2026" if len(wanted) > 2000 else wanted.encode("utf-16", "replace").decode("utf-16")
        actions = texts(driver, ".weighed td:last-child > :first-child")
        assert actions == [wanted.replace("?", "\ufffd") or "(no text)"] * len(row["step_weights"])
        assert driver.title == "rsd score: rsd.jsonl"
        assert driver.execute_script("return document.querySelectorAll('.weighed :is(img, b, script)').length") == 0


def wrong_shapes(row: dict[str, Any]) -> list[dict[str, Any]]:
    n, tokens, spans = len(row["step_weights"]), row["token_weights"], row["step_spans"]
    return [
        {"step_weights": row["step_weights"][:-1]},
        {"step_weights": [0.5] * 1_000_000},
        {"step_weights": [0.5] * 1_000_000, "step_spans": [[0, 0]] * 1_000_000},
        {"step_weights": []},
        {"step_weights": None},
        {"step_weights": "0.5" * n},
        {"step_weights": {"0": 0.5}},
        *({"step_weights": [wrong] * n} for wrong in (1.5, -0.1, "0.5", True, None, [0.5], float("nan"), 10**400)),
        {"token_weights": tokens[:-1]},
        {"token_weights": [float("inf"), *tokens[1:]]},
        {"token_weights": 0.5},
        {"step_spans": None},
        {"step_spans": spans[::-1]},
        {"step_spans": [[0, 10**9], *spans[1:]]},
        {"step_spans": [[-5, 3], *spans[1:]]},
        {"step_spans": [[0, 10**400], *spans[1:]]},
        {"step_spans": [[0], *spans[1:]]},
        {"step_spans": [[0.0, 1.5], *spans[1:]]},
        {"step_spans": 10**9},
        {"validity_teacher": ["high"] * n},
        {"validity_student": [float("nan")] * n},
        {"validity_student": -1.0},
        {"student_action": [7] * n},
        {"student_action": "So it is 5."},
        {"student_action": ["So."] * (n + 1)},
    ]


def test_weights_of_another_shape_are_none(load, scorer, rows, decode):
    """Such a row is shown as it was before it was weighed, to the byte."""
    columns = {"step_weights", "token_weights", "step_spans", "validity_teacher", "validity_student", "student_action"}
    first, second = ({k: v for k, v in row.items() if k != "weighing"} for row in rows[:2])

    def made(*some: dict[str, Any]) -> str:
        return set_page([scorer.score(r) for r in responses(some, ScoreConfig())], decode=decode)

    plain = made({k: v for k, v in first.items() if k not in columns})
    for wrong in wrong_shapes(first):
        assert made(first | wrong) == plain, wrong
    assert made(first) != plain and "weighed" not in parsed(plain)
    driver = load(made(first | wrong_shapes(first)[1], second))  # beside one that is right
    show(driver, first)
    assert texts(driver, ".weights") == [] and not any(h for _, h, _ in driver.execute_script(HEAT)[0])
    show(driver, second)
    assert len(texts(driver, ".weights")) == 1


def test_a_page_without_weights_has_no_switch(load, comparison, decode):
    driver = load(page(comparison, decode=decode))
    values = driver.execute_script("return [...at('colour').options].map(o => o.value)")
    assert values == ["student", "gap", "acceptance", "origin"] and texts(driver, ".weights, .t.weight") == []


def test_on_a_phone_nothing_is_cut_off(phone, load, scored, rows, sides, decode):
    wide = rows[0] | {"student_action": ["9" * 400] * len(rows[0]["step_weights"])}
    driver = load(set_page(scored([wide]), decode=decode))
    show(driver, wide)
    cut = """return [...document.querySelectorAll('.pair *')].filter(e =>
        e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert driver.execute_script(cut) == [] and driver.execute_script("return document.body.scrollWidth") <= 390
    labels = "return getComputedStyle(document.querySelector('.weighed td:last-child'), '::before').content"
    assert driver.execute_script(labels) == '"student\'s action"'


def test_the_commands_show_a_weighed_file(load, scored, rows, tmp_path):
    """And one whose rows somebody has been at ends neither of them."""
    wrong = [w for w in wrong_shapes(rows[1]) if not re.search("NaN|Infinity", json.dumps(w))]  # which no file holds
    some = [rows[1] | w | {"id": f"{i}"} for i, w in enumerate(wrong)]
    write(tmp_path / "traces.weighed.jsonl", [rows[0], *some])
    raw = [row for row in read_rows(bundled("teacher.jsonl")) if row["id"] == rows[0]["id"]]
    write(tmp_path / "raw.jsonl", raw)
    assert rsd("weigh", "raw.jsonl", "-o", "real.jsonl", cwd=tmp_path).returncode == 0
    (real,) = read(tmp_path / "real.jsonl")
    runs = [
        (["score", "traces.weighed.jsonl"], rows[0]),
        (["compare", "raw.jsonl", "traces.weighed.jsonl"], rows[0]),
        (["compare", "traces.weighed.jsonl", "real.jsonl"], real),
    ]
    for i, (arguments, row) in enumerate(runs):
        done = rsd(*arguments, "--html", f"{i}.html", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        driver = load((tmp_path / f"{i}.html").read_text(encoding="utf-8"))
        show(driver, row)
        shown = [t for _, tokens in driver.execute_script(READ)[-1] for t in tokens]
        assert [t[2] for t in shown] == pytest.approx(row["token_weights"][:-1], abs=0.008)
        actions = [line[4] for line in driver.execute_script(LIST)[-len(row["step_weights"]) :]]
        assert actions == ["\u2013" if a is None else a.strip() or "(no text)" for a in row["student_action"]]

"""How large a page of many traces is, and that it opens."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from pages import asked, browser, click, parsed, texts, wait  # noqa: F401 (fixtures)

from rsd.analysis.compare import compare
from rsd.analysis.report import html_page, of_set, write_report
from rsd.analysis.tracefile import TraceFile
from rsd.scoring.config import ScoreConfig
from rsd.scoring.measure import measure
from rsd.scoring.naturalness import TokenScores
from rsd.scoring.responses import Response
from rsd.scoring.scorer import Scored
from rsd.traces.tokens import unknown

PROBLEMS, TOKENS, STEP = 5000, 500, 20
RULES = {"student": "s", "fingerprint": "f", "dtype": "float32", "steps": "sentence", "window": "4"} | {
    "weighting": "step",
    "threshold": 0.01,
}


def words(random: np.random.Generator, count: int) -> list[str]:
    """Such as no two are alike, and that compress no better than a language's."""
    letters = list("etaoinshrdlcumwfgypbvk")
    return [" " + "".join(random.choice(letters, size=random.integers(1, 9))) for _ in range(count)]


def traces(random: np.random.Generator, vocabulary: list[str], *, noted: bool) -> Iterator[Scored]:
    """Traces of words as frequent as in a language (Zipf), of which the student is mostly, but not always, sure."""
    often = 1 / np.arange(1, len(vocabulary) + 1)
    often /= often.sum()
    steps = list(range(0, TOKENS, STEP))
    for i in range(PROBLEMS):
        ids = random.choice(len(vocabulary), size=TOKENS, p=often).astype(np.int32)
        pieces = [vocabulary[t] for t in ids]
        for end in range(STEP - 1, TOKENS, STEP):
            pieces[end] = ".\n"
        starts = np.cumsum([0, *map(len, pieces)])[:-1].astype(np.int32)
        sure = random.random(TOKENS) < 0.6
        logprobs = -np.where(sure, random.exponential(0.02, TOKENS), random.exponential(2.0, TOKENS)).astype(np.float32)
        local = (logprobs * random.normal(1, 0.1, TOKENS)).clip(max=0).astype(np.float32)
        local[: 4 * STEP] = logprobs[: 4 * STEP]
        scores = TokenScores(logprobs, local, np.ones(TOKENS, dtype=np.int32))
        tokens = None
        if noted:
            tokens = unknown(ids)
            tokens["teacher_logprobs"] = logprobs * random.random(TOKENS)
            tokens["from_teacher"] = random.random(TOKENS) > 0.05
            tokens["proposals"] = np.where(random.random(TOKENS) < 0.08, (ids + 1) % len(vocabulary), ids)
        text = "".join(pieces)
        row = {"is_correct": bool(random.random() < 0.7), "source": f"book {i % 7}", "row": i}
        response = Response(
            row=row,
            id=f"problem-{i}",
            own_id=True,
            generation=0,
            messages=[{"role": "user", "content": f"{i}: {text[:300]}?"}],
            text=text,
        )
        yield Scored(
            response=response,
            scoring=RULES,
            metrics=measure(scores, steps, ScoreConfig().scoring()),
            text=text,
            token_ids=ids,
            starts=starts,
            steps=steps,
            token_scores=scores,
            tokens=tokens,
        )


def weighed(s: Scored, random: np.random.Generator, vocabulary: list[str]) -> Scored:
    """A trace as `rsd weigh` leaves it, whose student says other words in every step."""
    ends = np.append(s.starts[s.steps[1:]], len(s.text))
    made = {name: random.random(len(s.steps)) for name in ("step_weights", "validity_teacher", "validity_student")}
    row = {name: values.tolist() for name, values in made.items()} | {
        "step_spans": np.column_stack([s.starts[s.steps], ends]).tolist(),
        "student_action": ["".join(vocabulary[i] for i in random.integers(2000, size=STEP)) for _ in s.steps],
    }
    return replace(s, response=replace(s.response, row=dict(s.response.row) | row))


def test_a_page_with_weights_is_no_larger(tmp_path):
    """What is beside a trace takes the room of others: of the same bound, a page holds fewer problems."""
    random = np.random.default_rng(1)
    vocabulary = words(random, 20_000)
    plain = list(islice(traces(random, vocabulary, noted=True), 200))
    sizes, shown = [], []
    for side in (plain, [weighed(s, random, vocabulary) for s in plain]):
        with closing(TraceFile(tmp_path, lambda i: vocabulary[i])) as kept:
            contents = of_set([kept.keep(s) for s in side], "traces", kept)
            html = "".join(html_page(contents, kept, tokens=200 * TOKENS))
        sizes.append(len(html))
        shown.append(len(parsed(html)["problems"]))
    assert shown[0] == 200 > shown[1] > 80 and sizes[1] <= 1.02 * sizes[0]


@pytest.mark.slow
def test_ten_thousand_traces_in_one_page(browser, tmp_path, capsys):
    random = np.random.default_rng(1)
    vocabulary, file = words(random, 20_000), tmp_path / "report.html"
    with closing(TraceFile(tmp_path, lambda i: vocabulary[i])) as kept:
        sides = [[kept.keep(s) for s in traces(random, vocabulary, noted=noted)] for noted in (False, True)]
        made = compare(*sides, names=("raw", "rsd"))
        write_report(file, made, kept)
    size = file.stat().st_size / 1e6
    browser.set_page_load_timeout(120)
    browser.get(file.as_uri())
    wait(browser, "return document.querySelectorAll('.step .t').length === 1000")
    opened = browser.execute_script("return performance.now()")
    loaded = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    with capsys.disabled():
        print(f"[{size:.1f} MB, loaded in {loaded:.0f} ms, a pair shown by {opened:.0f} ms]", end=" ")
    assert size < 40 and texts(browser, "#sampled") == [] and texts(browser, "#status") == [f"{PROBLEMS} problems"]
    last = made.ranked()[-1].key
    click(browser, "#order")
    wait(browser, "return document.querySelector('#list bdi').textContent === arguments[0]", last)
    click(browser, "#list a")
    wait(browser, "return document.querySelector('#name').textContent === arguments[0]", last)
    assert len(asked(browser, "#search", f"{PROBLEMS - 1}: ", "input")) >= 1

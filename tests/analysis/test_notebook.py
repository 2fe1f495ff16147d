"""What a notebook shows of a trace and of a comparison."""

import html
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from pages import NAMES, comparison, decode, scorer, sides  # noqa: F401 (fixtures)

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.scoring.metrics import METRICS
from rsd.traces.readers import read_rows
from rsd.traces.trace import Trace


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return TraceGenerator(GenerateConfig(completion_prefix="<think>\n")).run(read_rows(bundled("problems.jsonl"))[:6])


def body(shown: str) -> str:
    return re.sub(r"<style>.*?</style>", "", shown, flags=re.S)


def text(shown: str) -> str:
    """The tokens, without what stands above them and what is struck out."""
    tokens = body(shown).split("</p>", 1)[1]
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<del>.*?</del>", "", tokens, flags=re.S)))


def test_a_trace_shows_its_tokens(traces, decode):
    struck = own = 0
    for trace in traces:
        shown = trace._repr_html_()
        assert text(shown) == trace.text
        spans = re.findall(r'<span class="([^"]*)" style="--h:([\d.]+)">', shown)
        ids = [*trace.prefix_ids, *trace.token_ids[: -1 if trace.finish_reason == "stop" else None].tolist()]
        assert len(spans) == len(ids)
        logprobs = trace.tokens["student_logprobs"][: len(ids) - len(trace.prefix_ids)]
        heat = [float(h) for _, h in spans[len(trace.prefix_ids) :]]
        assert heat == pytest.approx(np.minimum(-logprobs / np.log(1e5), 1).tolist(), abs=0.0051)
        first = re.search(r"<del>(.*?)</del>", shown)
        i = next(i for i, t in enumerate(trace.tokens) if t["proposals"] not in (-1, t["token_ids"]))
        assert html.unescape(first[1]) == decode(int(trace.tokens["proposals"][i]))
        struck, own = struck + shown.count("<del>"), own + sum("own" in names for names, _ in spans)
    assert struck >= len(traces) and own


def test_a_trace_that_travelled_shows_its_text(traces):
    there = pickle.loads(pickle.dumps(traces[0]))
    assert there.decode is None and text(there._repr_html_()) == traces[0].text
    assert traces[0].decode is not None and len(pickle.dumps(traces[0])) < 20_000


def test_nothing_that_is_shown_is_markup(traces, comparison):
    evil = "</style><script>alert(1)</script>\ud800<b>"
    for trace in (
        replace(traces[0], id=evil),
        replace(traces[0], id=evil, text=evil, decode=None),
        replace(traces[0], error=evil, text=evil),
        replace(traces[0], decode=lambda ids: evil),
    ):
        shown = body(trace._repr_html_())
        assert set(re.findall(r"</?(\w+)", shown)) <= {"div", "p", "b", "span", "i", "del"}
        shown.encode()
    shown = body(replace(comparison, names=(evil, evil))._repr_html_())
    assert "<script" not in shown and "&lt;script" in shown
    shown.encode()


def test_a_comparison_shows_its_table(comparison):
    shown = body(comparison._repr_html_())
    assert all(html.escape(metric.label) in shown for metric in METRICS.values()) and NAMES[1] in shown
    rows = {
        label: row for row in re.findall(r"<tr>.*?</tr>", shown, re.S) for label in re.findall(r">(\w[^<]*?) <", row)
    }
    assert 'class="worse"' in rows["RSR"] and 'class="better"' in rows["Local Naturalness"]

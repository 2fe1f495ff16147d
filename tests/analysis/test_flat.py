"""The page of a comparison is written without its traces in memory, and no half of it is ever there."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from pages import parsed

from rsd.analysis.compare import compare
from rsd.analysis.report import write_report
from rsd.analysis.tracefile import TraceFile
from rsd.models.bundled import bundled
from rsd.scoring.config import ScoreConfig
from rsd.scoring.naturalness import TokenScores
from rsd.scoring.responses import responses
from rsd.scoring.scorer import Scored, load_scorer
from rsd.traces.readers import read_rows

REPEATED = 10  # times a trace's tokens are


def long_traces() -> list[Scored]:
    """A few bundled traces, scored, and each several times as long."""
    scorer = load_scorer(ScoreConfig())
    rows = read_rows(bundled("teacher.jsonl"))[:4]
    return [repeated(scorer.score(r), REPEATED) for r in responses(rows, ScoreConfig())]


def repeated(s: Scored, times: int) -> Scored:
    """A trace whose tokens are those of another, so many times over."""
    assert s.token_scores is not None
    of = [np.tile(a, times) for a in (s.token_scores.logprobs, s.token_scores.local, s.token_scores.ranks)]
    starts = np.concatenate([s.starts + i * len(s.text) for i in range(times)])
    steps = [step + i * len(s.token_ids) for i in range(times) for step in s.steps]
    tokens = None if s.tokens is None else np.tile(s.tokens, times)
    ids, text = np.tile(s.token_ids, times), s.text * times
    metrics = dict(s.metrics) | {"scored_tokens": len(ids)}
    longer = {"starts": starts, "steps": steps, "tokens": tokens, "token_ids": ids, "text": text, "metrics": metrics}
    return replace(s, token_scores=TokenScores(*of), **longer)


def fresh(some: list[Scored], count: int) -> Iterator[Scored]:
    """So many traces under ids of their own, none of which shares its tokens with another."""
    for i in range(count):
        s = some[i % len(some)]
        assert s.token_scores is not None
        scores = TokenScores(s.token_scores.logprobs.copy(), s.token_scores.local.copy(), s.token_scores.ranks.copy())
        response = replace(s.response, id=f"p{i}", text=s.text[:-1] + str(i))
        yield replace(s, response=response, text=response.text, starts=s.starts.copy(), token_scores=scores)


def written(some: list[Scored], count: int, page: Path) -> None:
    with closing(TraceFile(page.parent, chr)) as traces:
        sides = [[traces.keep(s) for s in fresh(some, count)] for _ in range(2)]
        write_report(page, compare(*sides, names=("a", "b")), traces)


def test_a_page_of_more_traces_takes_no_more_memory(tmp_path):
    some, page = long_traces(), tmp_path / "report.html"
    written(some, 8, page)  # what is loaded late is loaded

    def peak(count: int) -> int:
        """In bytes."""
        tracemalloc.start()
        try:
            written(some, count, page)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    tokens = 2 * sum(len(s.starts) for s in some) / len(some)  # of a problem
    held = [t["n"] for p in parsed(page.read_text())["problems"] for side in p["sides"] for t in side]
    assert tokens > 500 and sum(held) == 8 * tokens
    slope = (peak(120) - peak(30)) / 90  # a problem; the page has all of their tokens
    print(f"{slope:.0f} bytes a problem of {tokens:.0f} tokens")
    assert slope < 8 * tokens  # bytes; a token's log-probs, starts and ranks alone are 16


def test_a_killed_compare_leaves_no_torn_page(tmp_path):
    page, before = tmp_path / "report.html", "<!DOCTYPE html>\n<title>rsd compare: an earlier one"
    page.write_text(before)
    script = f"import pathlib, test_flat as t; t.written(t.long_traces(), 200, pathlib.Path({str(page)!r}))"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    command = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path})
    while command.poll() is None:
        # A part of it is on the disk under whatever name.
        if any(_size(file) for file in tmp_path.iterdir() if file != page) or page.stat().st_size != len(before):
            command.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert command.wait() == -signal.SIGKILL, "it was done before it could be killed"
    text = page.read_text()
    assert text == before or text.endswith("</html>")
    assert {f.suffix for f in tmp_path.iterdir()} <= {".html", ".tmp"}  # the traces' own file had no name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0

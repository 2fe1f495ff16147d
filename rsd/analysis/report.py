"""The HTML report of a comparison: one file that needs no network and trusts nothing that it shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rsd.analysis.compare import BY_CONSTRUCTION, Comparison, Pair, mean
from rsd.analysis.plots import number, plots
from rsd.analysis.tracefile import TraceFile, page_json
from rsd.files import replacing
from rsd.scoring.metrics import LN, METRICS
from rsd.scoring.scorer import Scored

GENERATIONS = 4  # of a side of a problem whose heat maps are embedded


def write_report(out: str | Path, comparison: Comparison, traces: TraceFile) -> None:
    """Write the report, as `replacing` does, without holding all of it."""
    with replacing(out) as file:
        for piece in html_report(comparison, traces):
            file.write(piece.encode())


def html_report(comparison: Comparison, traces: TraceFile, *, tokens: int = 300_000) -> Iterator[str]:
    """The report as one HTML file's text, piece by piece, which UTF-8 can encode.

    Args:
        traces: the file that keeps what is shown of the comparison's traces.
        tokens: bounds the tokens whose heat maps are embedded; summary and plots always cover all.

    Raises:
        ValueError: `traces` does not keep a trace of the comparison.
    """
    import jinja2

    pairs = _embedded(comparison, tokens)
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters["number"] = number
    html = page.get_template("report.html").generate(
        c=comparison,
        by_construction=BY_CONSTRUCTION,
        ln=comparison.metrics.get(LN),
        rows=[(name, m.label, m.unit, m.better) for name, m in METRICS.items()],
        plots=plots(comparison, traces.logprobs),
        embedded=len(pairs),
        cut=any(len(side) > GENERATIONS for p in pairs for side in (p.baseline, p.candidate)),
        generations=GENERATIONS,
        data=_data(comparison.names, pairs, traces),
    )
    for piece in html:
        # A file name or an id may hold half of a surrogate pair.
        yield piece.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _embedded(comparison: Comparison, tokens: int) -> list[Pair]:
    """The problems whose heat maps fit: a third the greatest gains, a third the greatest losses, a third between."""
    order = comparison.ranked() + [p for p in comparison.pairs if p.deltas[LN] is None]
    sizes = np.array(
        [sum(int(s.metrics["scored_tokens"] or 0) for s in _shown(p.baseline) + _shown(p.candidate)) for p in order]
    )
    n = len(order)
    while True:
        ends = n // 3
        between = np.linspace(ends, len(order) - ends - 1, n - 2 * ends).round().astype(int)
        chosen = [*range(ends), *between.tolist(), *range(len(order) - ends, len(order))]
        total = int(sizes[chosen].sum()) if chosen else 0
        if total <= tokens:
            return [order[i] for i in chosen]
        n = min(n - 1, n * max(tokens, 0) // total)


def _shown(side: Sequence[Scored]) -> list[Scored]:
    return list(side[:GENERATIONS])


def _data(names: tuple[str, str], pairs: Sequence[Pair], traces: TraceFile) -> Iterator[str]:
    """What the page's script reads, as JSON: {"names": [..], "problems": [..]}."""
    yield f'{{"names":{page_json(names)},"problems":['
    for i, p in enumerate(pairs):
        yield ("," if i else "") + _problem(p, traces)
    yield "]}"


def _problem(p: Pair, traces: TraceFile) -> str:
    """A problem as JSON, the candidate's side last."""
    sides = (p.baseline, p.candidate)
    about = page_json(
        {
            "id": " / ".join(dict.fromkeys(s.response.id for side in sides for s in side)),
            "prompt": p.prompt,
            "delta": p.deltas[LN],
            "ln": [mean(side, LN) for side in sides],
            "length": mean(p.candidate, "scored_tokens"),
            "of": [len(side) for side in sides],
        }
    )
    shown = ",".join(f"[{','.join(map(traces.shown, _shown(side)))}]" for side in sides)
    return f'{about[:-1]},"sides":[{shown}]}}'

"""Comparing sets of traces, and choosing among them."""

import json as jsons
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rsd.api.sources import source_files
from rsd.config import StudentConfig
from rsd.scoring.metrics import BY
from rsd.settings import amended, check_choice

if TYPE_CHECKING:
    from rsd.analysis.compare import Comparison
    from rsd.analysis.select import Selection
    from rsd.analysis.tracefile import TraceFile
    from rsd.scoring.scorer import Scorer
    from rsd.traces.given import Given

File = str | Path


def compare(
    baseline: "Given | None" = None,
    candidate: "Given | None" = None,
    *,
    html: File | None = None,
    json: File | None = None,
    overwrite: bool = False,
    names: tuple[str, str] | None = None,
    shown: "Callable[[Comparison], object]" = lambda _: None,
    config: StudentConfig | None = None,
    **settings: Any,
) -> "Comparison":
    """Compare two sets of traces, such as a teacher's raw ones with produced ones, under a student.

    Args:
        baseline, candidate: in any format of `score`; by default the bundled pair's.
        html, json: files for a report, and for the figures. overwrite: replace these.
        names: what the two are called; by default the files' names.
        shown: is given the comparison before the files are written, which may fail.
        settings: of `StudentConfig`; its columns are the baseline's, and those of a candidate in no known format.

    Raises:
        ValueError: a bad setting or source, the student cannot be loaded, or they share no problem.
    """
    config = amended(StudentConfig, config, settings)
    if (baseline is None) != (candidate is None):
        raise ValueError("compare needs both, BASELINE and CANDIDATE, or neither for the bundled pair")
    from rsd.files import write_text
    from rsd.outputs import Output, check_outputs
    from rsd.traces import ours

    files = [Output(str(file), of) for file, of in ((html, ours.report), (json, ours.figures)) if file is not None]
    inputs = [file for side in (baseline, candidate) for file in source_files(side)]
    check_outputs(files, inputs=inputs, overwrite=overwrite)
    from rsd.analysis.compare import as_json, summary
    from rsd.analysis.compare import compare as compare_traces
    from rsd.scoring.job import progress
    from rsd.scoring.responses import read_responses
    from rsd.scoring.scorer import load_scorer
    from rsd.scoring.verdicts import judged, judging_of

    with ExitStack() as stack:
        if baseline is None or candidate is None:
            names = names or ("bundled raw traces", "bundled RSD traces")
            baseline, candidate = _bundled(stack.enter_context(TemporaryDirectory()))
        called = [*source_files(baseline), "baseline"][0], [*source_files(candidate), "candidate"][0]
        sides = [read_responses(baseline, config), read_responses(candidate, config, named=False)]
        scorer = load_scorer(config)
        keep, traces = summary, None
        if html is not None:  # only the page shows tokens
            traces = stack.enter_context(closing(trace_file(html, scorer)))
            keep = traces.keep
        own = config.answer_column in sides[1].columns  # the column flags are for the baseline
        hows = [config, config if own else replace(config, answer_column=None)]
        scored = []
        for side, how, what in zip(sides, hows, ("baseline", "candidate"), strict=True):
            todo = judged(side, judging_of(side, how))
            # Of each trace its text is let go as soon as it is scored.
            made = progress(scorer.score_all(todo), count=len(side), what=what)
            scored.append([keep(one) for one in made])
        comparison = compare_traces(*scored, names=names or called)
        shown(comparison)
        if json is not None:
            write_text(str(json), jsons.dumps(as_json(comparison), indent=1) + "\n")
        if html is not None and traces is not None:
            from rsd.analysis.report import write_report

            write_report(str(html), comparison, traces)
    return comparison


def select(
    teachers: "Mapping[str, Given] | Sequence[File] | Given",
    output: File | None = None,
    *,
    by: str = "ln",
    keep_incorrect: bool = False,
    overwrite: bool = False,
    config: StudentConfig | None = None,
    **settings: Any,
) -> "Selection":
    """Rank teachers by how natural their traces are for a student, and choose the best response to each prompt.

    Args:
        teachers: sources by the teachers' names; or files, one a teacher; or one source with a `teacher` column.
        output: a .jsonl file for the chosen rows, which are those of `Selection.rows()`.
        by: one of `scoring.metrics.BY`. keep_incorrect: where no response is known to be correct, choose among all.
        overwrite: replace `output`.
        settings: of `StudentConfig`.

    Raises:
        ValueError: a bad setting or source, or no response is known to be correct.
    """
    check_choice("by", by, [*BY])
    config = amended(StudentConfig, config, settings)
    from rsd.files import write_rows
    from rsd.outputs import Output, check_outputs, lines_only
    from rsd.traces import ours
    from rsd.traces.given import files_in

    if output is not None:
        lines_only(output)
        check_outputs([Output(str(output), ours.selected)], inputs=files_in(teachers), overwrite=overwrite)
    from rsd.analysis.select import by_teacher
    from rsd.analysis.select import select as select_responses

    selection = select_responses(by_teacher(teachers, config), by=by, keep_incorrect=keep_incorrect)
    if output is not None:
        write_rows(selection.rows(), str(output))
    return selection


def trace_file(html: File, scorer: "Scorer") -> "TraceFile":
    """Where the tokens of a page are until it is written: beside it, where there is room for it."""
    from rsd.analysis.tracefile import TraceFile
    from rsd.files import place

    return TraceFile(place(str(html)).parent, lambda token: str(scorer.source.tokenizer.decode([token])))


def _bundled(folder: str) -> tuple[File, File]:
    """The bundled teacher's raw traces, and RSD traces of the same problems, made on the spot."""
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.job import run_job
    from rsd.models.bundled import bundled
    from rsd.terminal import say

    say("making RSD traces of the bundled pair")
    out = f"{folder}/traces.jsonl"
    run_job(TraceGenerator(), bundled("problems.jsonl"), out)
    return bundled("teacher.jsonl"), out

"""What the commands do, from Python: one function each. Heavy imports wait until one is called.

A source is the path of a file or of a data set, as in the command, or rows: dicts, `Trace`s, a DataFrame of pandas, a
Dataset of datasets (`rsd.traces.given`). Settings are those of the command, as keywords; they amend `config`, if
that is given, too. What a user can get wrong is a ValueError of one line.
"""

import json as jsons
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

from rsd.config import TIMES, GenerateConfig, ScoreConfig, StudentConfig
from rsd.dataset.config import ExportConfig
from rsd.reading import Reading
from rsd.scoring.metrics import BY
from rsd.settings import amended, check_choice, check_whole, shown
from rsd.traces.filters import KEEP
from rsd.weighing.config import WeighConfig

if TYPE_CHECKING:
    from rsd.analysis.compare import Comparison
    from rsd.analysis.select import Selection
    from rsd.analysis.tracefile import TraceFile
    from rsd.dataset.export import Export
    from rsd.generation.rereading import Rereader
    from rsd.generation.summary import Summary
    from rsd.scoring.scored_rows import ScoreSummary
    from rsd.scoring.scorer import Scorer
    from rsd.scoring.verify import VerifySummary
    from rsd.traces.given import Given
    from rsd.traces.trace import Trace
    from rsd.weighing.job import WeighSummary

File = str | Path


@overload
def generate(
    source: "Given | None" = None,
    output: None = None,
    *,
    limit: int | None = None,
    config: GenerateConfig | None = None,
    **settings: Any,
) -> "list[Trace]": ...
@overload
def generate(
    source: "Given | None" = None,
    output: File = ...,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    config: GenerateConfig | None = None,
    **settings: Any,
) -> "Summary": ...
def generate(
    source: "Given | None" = None,
    output: File | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    config: GenerateConfig | None = None,
    **settings: Any,
) -> "list[Trace] | Summary":
    """Make student-tailored traces of the prompts in `source`; by default of the bundled problems.

    Args:
        output: a .jsonl file for them. Then this is the job that the command does: it resumes what is there, and what
            is returned is the summary. Without one they are returned, in the order of the rows.
        limit: only the first rows. overwrite: start anew instead of resuming. keep: one of `filters.KEEP`: write the
            rows that are kept to a file beside `output`, too.
        settings: of `GenerateConfig`.

    Raises:
        ValueError: a bad setting or source, a pair that does not fit, or an output of another job.
    """
    if limit is not None:
        check_whole("limit", limit, 1, TIMES)
    if keep is not None:
        check_choice("keep", keep, KEEP)
    config = amended(GenerateConfig, config, settings | ({"score": True} if keep == "best-ln" else {}))
    if isinstance(source, str) and " " in source and not Path(source).exists():
        raise ValueError(f"{shown(source)}: there is no such file; a prompt is given in a list: [{shown(source)}]")
    if source is None:
        from rsd.models.bundled import bundled

        source = bundled("problems.jsonl")
    if output is None:
        if overwrite or keep:
            raise ValueError("overwrite and keep are for an output: name one")
        from rsd.generation.generator import TraceGenerator
        from rsd.traces.given import read

        return TraceGenerator(config).run(islice(read(source, split=config.split), limit))
    from rsd.files import lines_only
    from rsd.generation.finished import finished_before
    from rsd.traces.given import file_of

    lines_only(output)
    file, out = file_of(source), str(output)
    known = finished_before(config, file, out, limit) if file is not None and not (overwrite or keep) else None
    if known is not None:
        return known
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.job import run_job

    return run_job(TraceGenerator(config), source, out, limit=limit, overwrite=overwrite, keep=keep)


@overload
def score(
    source: "Given", output: None = None, *, config: ScoreConfig | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def score(
    source: "Given", output: File, *, overwrite: bool = False, config: ScoreConfig | None = None, **settings: Any
) -> "ScoreSummary": ...
def score(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: ScoreConfig | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | ScoreSummary":
    """How natural each trace in `source` is for a student: the rows, in order, with their scores, and a verdict where
    they have an answer and none yet.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `ScoreConfig`, such as `student="Qwen/Qwen3-0.6B"` or `window="20%"`.

    Raises:
        ValueError: a bad setting or source, the student cannot be loaded, or `output` is of other rows.
    """
    config = amended(ScoreConfig, config, settings)
    from rsd.scoring.responses import read_responses
    from rsd.scoring.verdicts import judged, judging_of

    if output is None:
        if overwrite or config.top_logprobs:
            raise ValueError("overwrite and top_logprobs are for an output: name one")
        from rsd.scoring.scorer import load_scorer

        todo = read_responses(source, config)
        scorer = load_scorer(config)
        made = scorer.score_all(judged(todo, judging_of(todo, config)))
        return [dict(one.response.row) | one.columns() for one in made]
    from rsd.files import Output, check_outputs, lines_only
    from rsd.scoring.scored_rows import finished_before
    from rsd.traces import ours
    from rsd.traces.shards import part_files

    lines_only(output)
    out = Path(output)
    check_outputs([Output(out, ours.scored if overwrite else None)], inputs=_files(source))
    if part_files(out):
        raise ValueError(f"{out} was begun by several processes: rsd score goes on with that")
    todo = read_responses(source, config, strict=True)
    judging = judging_of(todo, config)
    top = config.top_logprobs
    if not overwrite and (known := finished_before(todo, out, config, judging, top_logprobs=top)) is not None:
        return known
    from rsd.scoring.job import score_file

    scorer, reread = scorer_of(config)
    return score_file(scorer, todo, out, judging=judging, overwrite=overwrite, reread=reread, top=top)


@overload
def verify(
    source: "Given", output: None = None, *, config: Reading | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def verify(
    source: "Given", output: File, *, overwrite: bool = False, config: Reading | None = None, **settings: Any
) -> "VerifySummary": ...
def verify(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: Reading | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | VerifySummary":
    """Whether the answer of each trace in `source` is right: the rows, in order, with a verdict each, whatever verdict
    they had.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `reading.Reading`, such as `verify="boxed"` or `answer_column="solution"`.

    Raises:
        ValueError: a bad setting or source, there is no column of answers, or `output` is of other rows.
    """
    config = amended(Reading, config, settings)
    from rsd.scoring.responses import read_responses
    from rsd.scoring.verdicts import judged, must_judge

    if output is None:
        if overwrite:
            raise ValueError("overwrite is for an output: name one")
        todo = read_responses(source, config)
        return [dict(r.row) for r in judged(todo, must_judge(todo, config))]
    from rsd.files import Output, check_outputs, lines_only
    from rsd.scoring.verify import verify_file
    from rsd.traces import ours

    lines_only(output)
    check_outputs([Output(output, ours.verified if overwrite else None)], inputs=_files(source))
    todo = read_responses(source, config, strict=True)
    return verify_file(todo, output, must_judge(todo, config), overwrite=overwrite)


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
    from rsd.files import Output, check_outputs, write_text
    from rsd.traces import ours

    files = [Output(str(file), of) for file, of in ((html, ours.report), (json, ours.figures)) if file is not None]
    inputs = [file for side in (baseline, candidate) for file in _files(side)]
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
        called = [*_files(baseline), "baseline"][0], [*_files(candidate), "candidate"][0]
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
    from rsd.files import Output, check_outputs, lines_only, write_rows
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


@overload
def weigh(
    source: "Given", output: None = None, *, config: WeighConfig | None = None, **settings: Any
) -> list[dict[str, Any]]: ...
@overload
def weigh(
    source: "Given", output: File, *, overwrite: bool = False, config: WeighConfig | None = None, **settings: Any
) -> "WeighSummary": ...
def weigh(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: WeighConfig | None = None,
    **settings: Any,
) -> "list[dict[str, Any]] | WeighSummary":
    """How hard a student is to learn each step of the traces in `source`: the rows, in order, with a weight for every
    step and every token. The formulas are this project's (`weighing.weights`), after the idea of arXiv 2605.04078.

    Args:
        output: a .jsonl file for them. Then it resumes what is there, and what is returned is the summary.
        overwrite: start anew instead of resuming.
        settings: of `WeighConfig`, such as `validity="rollout"` or `teacher="simplescaling/s1.1-7B"`.

    Raises:
        ValueError: a bad setting or source, a pair that does not fit, or `output` is of other rows.
    """
    config = amended(WeighConfig, config, settings)
    if output is None:
        if overwrite:
            raise ValueError("overwrite is for an output: name one")
        from rsd.weighing.job import weigher_for

        weigher, todo = weigher_for(source, config)
        return [made.row() for made in weigher.weigh(todo)]
    from rsd.files import Output, check_outputs, lines_only
    from rsd.traces import ours
    from rsd.weighing.job import weigh_file, weigher_for

    lines_only(output)
    check_outputs([Output(output, ours.weighed if overwrite else None)], inputs=_files(source))
    return weigh_file(*weigher_for(source, config, strict=True), output, overwrite=overwrite)


def export(
    source: "Given",
    output: File | None = None,
    *,
    overwrite: bool = False,
    config: ExportConfig | None = None,
    **settings: Any,
) -> "Export":
    """Make a data set that trains as it is of traces that `generate` made.

    Args:
        source: the job's file, which knows its tokens and its settings from the files beside it; or traces, or rows.
        output: a .jsonl or .parquet file; beside it come the rows for testing and the card. Without one nothing is
            written: the rows are in `Export.train` and `Export.test`.
        overwrite: replace `output`.
        settings: of `ExportConfig`, such as `format="token-ids"`, `keep="all"` or `test_share=0.1`.

    Raises:
        ValueError: a bad setting or source, nothing is kept, or the format needs tokens that are not there.
    """
    config = amended(ExportConfig, config, settings)
    from rsd.dataset.export import export as export_traces
    from rsd.dataset.publish import parquet_library, write, written
    from rsd.files import Output, check_outputs
    from rsd.traces import ours

    if output is None:
        return export_traces(source, config)
    files = written(output, config.format)
    if files["train"].suffix == ".parquet":
        parquet_library()
    kinds = {"train": ours.exported, "test": ours.test_split, "card": ours.card, "compression": ours.compression}
    outputs = [Output(file, kinds[name]) for name, file in files.items()]
    check_outputs(outputs, inputs=_files(source), overwrite=overwrite)
    made = export_traces(source, config)
    return replace(made, files=write(made, output))


def scorer_of(config: ScoreConfig) -> "tuple[Scorer, Rereader | None]":
    """A scorer, and the pair that keeps soft targets where they are asked for."""
    if config.top_logprobs:
        from rsd.generation.rereading import load_rereader

        return load_rereader(config)
    from rsd.scoring.scorer import load_scorer

    return load_scorer(config), None


def _files(source: "Given | None") -> list[str]:
    from rsd.traces.given import file_of

    return [file for file in (None if source is None else file_of(source),) if file is not None]


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

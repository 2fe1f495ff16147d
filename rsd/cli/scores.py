"""`rsd score`, `rsd compare`, `rsd select`. Heavy imports wait until one runs."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsd.cli.options import flags, given, on_own_device, one_line_errors, quiet, share_of
from rsd.cli.reporting import begin, reported
from rsd.config import GenerateConfig, ScoreConfig
from rsd.events import Events
from rsd.files import Output, check_outputs, lines_only, place, write_text
from rsd.scoring.metrics import BY
from rsd.terminal import echo, one_line, say
from rsd.traces.shards import Shard, part_files

if TYPE_CHECKING:
    from rsd.analysis.tracefile import TraceFile
    from rsd.scoring.responses import Response, Responses
    from rsd.scoring.scored_rows import ScoreSummary
    from rsd.scoring.scorer import Scored, Scorer


@click.command()
@click.argument("source", metavar="FILE")
@click.option("-o", "--output", help="Scored rows [FILE with .scored before its end].")
@click.option("--html", "html_file", help="Write a report to this file; rows that are scored already are read again.")
@click.option("--overwrite", is_flag=True, help="Start anew instead of resuming OUTPUT.")
@click.option("--shard", metavar="I/N", help="Only this share of the rows, 1/N to N/N [RANK and WORLD_SIZE, if set].")
@flags(ScoreConfig)
@reported
def score(
    source: str,
    output: str | None,
    html_file: str | None,
    overwrite: bool,
    shard: str | None,
    events: Events,
    **values: Any,
) -> None:
    """Add to every trace in FILE how natural it is for the student.

    FILE holds prompt-completion, messages or ShareGPT rows, or any with --prompt-column, --response-column (and
    --thinking-column), in the forms that rsd generate reads. A killed run goes on when the same command is run again.

    \b
    Examples:
      rsd score traces.jsonl --html report.html
      rsd score s1K-1.1.jsonl --student Qwen/Qwen3-0.6B --window 20% --prompt-column question \\
          --thinking-column deepseek_thinking_trajectory --response-column deepseek_attempt
    """
    if output is None:
        output = f"{source.removesuffix('.jsonl')}.scored.jsonl"
    with one_line_errors(output, again="run the same command again to go on"):
        from rsd.traces import ours

        config = ScoreConfig(**given(values))
        lines_only(output)
        outputs = [Output(output, ours.scored if overwrite else None)]
        check_outputs(outputs, inputs=[source])
        if html_file is not None:
            check_outputs([*outputs, Output(html_file, ours.score_report)], inputs=[source], overwrite=overwrite)
        from rsd.scoring.responses import read_responses
        from rsd.scoring.scored_rows import finished_before

        share = share_of(shard) or (Shard(1, 1) if part_files(output) else None)  # goes on with what several began
        if share is not None and overwrite:
            raise ValueError(
                f"--overwrite with several processes: remove {output} and its parts, if they are not wanted"
            )
        if share is not None and html_file is not None:
            raise ValueError("--html with several processes: give it to the same command once more, when all is scored")
        begin(events, "score", config, source=source, output=output, shard=share)
        todo = read_responses(source, config)
        asked = share is None and not overwrite and html_file is None  # a page needs every token's log-prob
        known = finished_before(todo, Path(output), config) if asked else None
        summary = known or _score(todo, output, config, share, html_file, source, overwrite=overwrite)
        events.emit("end", **({"rows": summary.rows, "errors": summary.errors} if summary else {}))
    if summary is None:  # another process prints
        return
    if html_file is None:
        echo(f"{summary.text()}\nwritten to   {one_line(output)}")
    sys.exit(1 if summary.errors else 0)


def _score(
    todo: "Responses",
    output: str,
    config: ScoreConfig,
    share: Shard | None,
    html_file: str | None,
    source: str,
    *,
    overwrite: bool,
) -> "ScoreSummary | None":
    quiet()
    from rsd.scoring.job import score_file
    from rsd.scoring.scorer import load_scorer

    scorer = load_scorer(on_own_device(config))
    if share is not None:
        from rsd.scoring.share import score_share

        return score_share(scorer, todo, output, share)
    if html_file is None:
        return score_file(scorer, todo, output, overwrite=overwrite)
    from rsd.analysis.report import write_set_report

    with closing(_trace_file(html_file, scorer)) as traces:
        kept: list[Scored] = []
        summary = score_file(scorer, todo, output, overwrite=overwrite, seen=lambda s: kept.append(traces.keep(s)))
        echo(f"{summary.text()}\nwritten to   {one_line(output)}")  # whatever becomes of the page
        write_set_report(html_file, kept, source, traces)
        echo(f"written to   {one_line(html_file)}")
    return summary


def _trace_file(html_file: str, scorer: "Scorer") -> "TraceFile":
    """Where the tokens of a page are until it is written: beside it, where there is room for it."""
    from rsd.analysis.tracefile import TraceFile

    return TraceFile(place(html_file).parent, lambda token: str(scorer.source.tokenizer.decode([token])))


@click.command()
@click.argument("baseline", required=False)
@click.argument("candidate", required=False)
@click.option("--html", "html_file", help="Write a report to this file.")
@click.option("--json", "json_file", help="Write the figures to this file.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@flags(ScoreConfig)
def compare(
    baseline: str | None,
    candidate: str | None,
    html_file: str | None,
    json_file: str | None,
    overwrite: bool,
    **values: Any,
) -> None:
    """Compare raw teacher data, BASELINE, with produced traces, CANDIDATE, under the student.

    Both are files as for `rsd score`, aligned by id or prompt; the column flags are for BASELINE, and for a
    CANDIDATE in no known format. Without arguments, the bundled raw traces are compared with RSD traces of the
    bundled pair, made on the spot.

    \b
    Examples:
      rsd compare
      rsd compare raw.jsonl traces.jsonl --student Qwen/Qwen3-0.6B --html report.html
    """
    with one_line_errors(html_file or json_file or ""):
        from rsd.traces import ours

        config = ScoreConfig(**given(values))
        if (baseline is None) != (candidate is None):
            raise ValueError("compare needs both BASELINE and CANDIDATE, or neither for the bundled pair")
        outputs = [(html_file, ours.report), (json_file, ours.figures)]
        inputs = [file for file in (baseline, candidate) if file is not None]
        check_outputs(
            [Output(file, of) for file, of in outputs if file is not None], inputs=inputs, overwrite=overwrite
        )
        quiet()
        from rsd.analysis.compare import as_json, summary, table
        from rsd.analysis.compare import compare as compare_traces
        from rsd.models.bundled import bundled
        from rsd.scoring.responses import read_responses
        from rsd.scoring.scorer import load_scorer

        with tempfile.TemporaryDirectory() as folder:
            names = baseline or "bundled raw traces", candidate or "bundled RSD traces"
            if baseline is None or candidate is None:
                say("making RSD traces of the bundled pair")
                baseline, candidate = str(bundled("teacher.jsonl")), _bundled_traces(folder)
            sides = [read_responses(baseline, config), read_responses(candidate, config, named=False)]
        scorer = load_scorer(config)
        with ExitStack() as stack:
            keep = summary
            if html_file:  # only the page shows tokens
                traces = stack.enter_context(closing(_trace_file(html_file, scorer)))
                keep = traces.keep
            scored = [_scored(scorer, side, keep) for side in sides]
            comparison = compare_traces(*scored, names=names)
            echo(table(comparison))  # whatever becomes of the files
            if json_file:
                write_text(json_file, json.dumps(as_json(comparison), indent=1) + "\n")
                echo(f"written to   {one_line(json_file)}")
            if html_file:
                from rsd.analysis.report import write_report

                write_report(html_file, comparison, traces)
                echo(f"written to   {one_line(html_file)}")


def _scored(scorer: "Scorer", side: "Sequence[Response]", keep: "Callable[[Scored], Scored]") -> "list[Scored]":
    """What is kept of each trace; its text is let go as soon as it is scored."""
    from rsd.scoring.job import progress

    return [keep(scored) for scored in progress(scorer, side, count=len(side))]


def _bundled_traces(folder: str) -> str:
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.job import run_job
    from rsd.models.bundled import bundled

    out = f"{folder}/traces.jsonl"
    run_job(TraceGenerator(GenerateConfig()), bundled("problems.jsonl"), out)
    return out


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("-o", "--output", default="selected.jsonl", show_default=True, help="The chosen rows, with their scores.")
@click.option("--by", type=click.Choice([*BY]), default="ln", show_default=True)
@click.option("--keep-incorrect", is_flag=True, help="Where no response is known to be correct, choose among all.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT.")
@flags(ScoreConfig)
def select(files: tuple[str, ...], output: str, by: str, keep_incorrect: bool, overwrite: bool, **values: Any) -> None:
    """Rank teachers by how natural their traces are for the student, and choose the best response to each prompt.

    Each FILE holds one teacher's traces, in a format of `rsd score`; or one FILE has a `teacher` column. Scores
    that `rsd score` wrote with the same settings are used as they are.

    \b
    Examples:
      rsd select r1.jsonl qwq.jsonl gemini.jsonl --student Qwen/Qwen3-0.6B -o best.jsonl
    """
    with one_line_errors(output):
        from rsd.traces import ours

        config = ScoreConfig(**given(values))
        lines_only(output)
        check_outputs([Output(output, ours.selected)], inputs=files, overwrite=overwrite)
        quiet()
        from rsd.analysis.select import by_teacher, table, write
        from rsd.analysis.select import select as select_responses

        teachers = by_teacher(files, config)
        selection = select_responses(teachers, by=by, keep_incorrect=keep_incorrect)
        write(selection, output)
    echo(f"{table(selection)}\nwritten to   {one_line(output)}")
    errors = sum(bool(s.error) for scored in teachers.values() for s in scored)
    if errors:
        echo(f"errors       {errors} responses could not be scored", err=True)
    sys.exit(1 if errors else 0)

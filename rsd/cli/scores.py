"""`rsd score`, `rsd compare`, `rsd select`. Heavy imports wait until one runs."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import SHARD, flags, given, on_own_device, one_line_errors, quiet, share_of
from rsd.cli.reporting import begin, reported
from rsd.config import GenerateConfig, ScoreConfig
from rsd.events import Events
from rsd.files import Output, check_outputs, lines_only, place, write_text
from rsd.scoring.metrics import BY
from rsd.settings import Group
from rsd.terminal import BAD, echo, joined, one_line, paint, say
from rsd.traces.shards import Shard, part_files

if TYPE_CHECKING:
    from rsd.scoring.responses import Response, Responses
    from rsd.scoring.scored_rows import ScoreSummary
    from rsd.scoring.scorer import Scored, Scorer
    from rsd.scoring.verdicts import Judging


@click.command(cls=Command, short_help="Add to traces how natural they are for the student.")
@click.argument("source", metavar="FILE")
@option("-o", "--output", group=Group.FILES, metavar="FILE", help="The scored rows [FILE.scored.jsonl].")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT.")
@option("--shard", group=Group.PROCESSES, metavar="I/N", help=SHARD)
@flags(ScoreConfig)
@reported
def score(source: str, output: str | None, overwrite: bool, shard: str | None, events: Events, **values: Any) -> None:
    """Add to every trace in FILE how natural it is for the student.

    FILE holds prompt-completion, messages or ShareGPT rows, or any with --prompt-column, --response-column (and
    --thinking-column), in the forms that rsd generate reads. A killed run goes on when the same command is run again.

    \b
    Examples:
      rsd score traces.jsonl
      rsd score s1K-1.1.jsonl --student Qwen/Qwen3-0.6B --window 20% \\
          --prompt-column question --response-column deepseek_attempt \\
          --thinking-column deepseek_thinking_trajectory
    """
    if output is None:
        output = f"{source.removesuffix('.jsonl')}.scored.jsonl"
    with one_line_errors(output, again="run the same command again to go on"):
        from rsd.traces import ours

        config = ScoreConfig(**given(values))
        lines_only(output)
        check_outputs([Output(output, ours.scored if overwrite else None)], inputs=[source])
        from rsd.scoring.responses import read_responses
        from rsd.scoring.scored_rows import finished_before
        from rsd.scoring.verdicts import judging_of

        share = share_of(shard) or (Shard(1, 1) if part_files(output) else None)  # goes on with what several began
        if share is not None and overwrite:
            raise ValueError(
                f"--overwrite with several processes: remove {output} and its parts, if they are not wanted"
            )
        begin(events, "score", config, source=source, output=output, shard=share)
        todo = read_responses(source, config)
        judging = judging_of(todo, config)
        known = finished_before(todo, Path(output), config, judging) if share is None and not overwrite else None
        summary = known or _score(todo, output, config, share, judging, overwrite=overwrite)
        events.emit("end", **({"rows": summary.rows, "errors": summary.errors} if summary else {}))
    if summary is None:  # another process prints
        return
    echo(joined([summary.text(), f"written to   {one_line(output)}"], "\n"))
    sys.exit(1 if summary.errors else 0)


def _score(
    todo: "Responses",
    output: str,
    config: ScoreConfig,
    share: Shard | None,
    judging: "Judging | None",
    *,
    overwrite: bool,
) -> "ScoreSummary | None":
    quiet()
    from rsd.scoring.job import score_file
    from rsd.scoring.scorer import load_scorer

    scorer = load_scorer(on_own_device(config))
    if share is None:
        return score_file(scorer, todo, output, judging=judging, overwrite=overwrite)
    from rsd.scoring.share import score_share

    return score_share(scorer, todo, output, share, judging)


@click.command(cls=Command, short_help="Compare raw teacher data with produced traces.")
@click.argument("baseline", required=False)
@click.argument("candidate", required=False)
@option("--html", "html_file", group=Group.FILES, metavar="FILE", help="Write a report to FILE.")
@option("--json", "json_file", group=Group.FILES, metavar="FILE", help="Write the figures to FILE.")
@flags(ScoreConfig)
def compare(
    baseline: str | None, candidate: str | None, html_file: str | None, json_file: str | None, **values: Any
) -> None:
    """Compare raw teacher data, BASELINE, with produced traces, CANDIDATE, under the student.

    Both are files as for `rsd score`, aligned by id or prompt; the column flags are for BASELINE, and for a
    CANDIDATE in no known format. Without arguments, the bundled raw traces are compared with RSD traces of the
    bundled pair, made on the spot.

    \b
    Examples:
      rsd compare
      rsd compare raw.jsonl traces.jsonl --html report.html \\
          --student Qwen/Qwen3-0.6B
    """
    with one_line_errors(html_file or json_file or ""):
        from rsd.traces import ours

        config = ScoreConfig(**given(values))
        if (baseline is None) != (candidate is None):
            raise ValueError("compare needs both BASELINE and CANDIDATE, or neither for the bundled pair")
        outputs = [(html_file, ours.report), (json_file, ours.figures)]
        inputs = [file for file in (baseline, candidate) if file is not None]
        check_outputs([Output(file, of) for file, of in outputs if file is not None], inputs=inputs)
        quiet()
        from rsd.analysis.compare import as_json, summary, table
        from rsd.analysis.compare import compare as compare_traces
        from rsd.models.bundled import bundled
        from rsd.scoring.responses import read_responses
        from rsd.scoring.scorer import load_scorer
        from rsd.scoring.verdicts import judging_of

        with tempfile.TemporaryDirectory() as folder:
            names = baseline or "bundled raw traces", candidate or "bundled RSD traces"
            if baseline is None or candidate is None:
                say("making RSD traces of the bundled pair")
                baseline, candidate = str(bundled("teacher.jsonl")), _bundled_traces(folder)
            sides = [read_responses(baseline, config), read_responses(candidate, config, named=False)]
        scorer = load_scorer(config)

        def decode(token: int) -> str:
            return str(scorer.source.tokenizer.decode([token]))

        with ExitStack() as stack:
            keep = summary
            if html_file:  # only the page shows tokens
                from rsd.analysis.tracefile import TraceFile

                traces = stack.enter_context(closing(TraceFile(place(html_file).parent, decode)))
                keep = traces.keep
            if config.answer_column not in sides[1].columns:  # the column flags are for the baseline
                judge = [judging_of(sides[0], config), judging_of(sides[1], replace(config, answer_column=None))]
            else:
                judge = [judging_of(side, config) for side in sides]
            titles = "baseline", "candidate"
            scored = [_scored(scorer, *each, keep) for each in zip(sides, judge, titles, strict=True)]
            comparison = compare_traces(*scored, names=names)
            echo(table(comparison))  # whatever becomes of the files
            if json_file:
                write_text(json_file, json.dumps(as_json(comparison), indent=1) + "\n")
                echo(f"written to   {one_line(json_file)}")
            if html_file:
                from rsd.analysis.report import write_report

                write_report(html_file, comparison, traces)
                echo(f"written to   {one_line(html_file)}")


def _scored(
    scorer: "Scorer",
    side: "Sequence[Response]",
    judging: "Judging | None",
    what: str,
    keep: "Callable[[Scored], Scored]",
) -> "list[Scored]":
    """What is kept of each trace; its text is let go as soon as it is scored."""
    from rsd.scoring.job import progress
    from rsd.scoring.verdicts import judged

    return [keep(scored) for scored in progress(scorer, judged(side, judging), count=len(side), what=what)]


def _bundled_traces(folder: str) -> str:
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.job import run_job
    from rsd.models.bundled import bundled

    out = f"{folder}/traces.jsonl"
    run_job(TraceGenerator(GenerateConfig()), bundled("problems.jsonl"), out)
    return out


@click.command(cls=Command, short_help="Rank teachers, and choose the best response to each prompt.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@option(
    "-o",
    "--output",
    group=Group.FILES,
    metavar="FILE",
    default="selected.jsonl",
    help="The chosen rows, with their scores [selected.jsonl].",
)
@option("--overwrite", group=Group.FILES, is_flag=True, help="Replace OUTPUT.")
@option(
    "--by",
    group=Group.MAKE,
    type=click.Choice([*BY]),
    metavar="SCORE",
    default="ln",
    help=f"The score that decides: {', '.join(BY)} [ln].",
)
@option("--keep-incorrect", group=Group.MAKE, is_flag=True, help="Where no response is right, choose among all.")
@flags(ScoreConfig)
def select(files: tuple[str, ...], output: str, by: str, keep_incorrect: bool, overwrite: bool, **values: Any) -> None:
    """Rank teachers by how natural their traces are for the student, and choose the best response to each prompt.

    Each FILE holds one teacher's traces, in a format of `rsd score`; or one FILE has a `teacher` column. Scores
    that `rsd score` wrote with the same settings are used as they are.

    \b
    Examples:
      rsd select r1.jsonl qwq.jsonl -o best.jsonl --student Qwen/Qwen3-0.6B
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
    echo(joined([table(selection), f"written to   {one_line(output)}"], "\n"))
    errors = sum(bool(s.error) for scored in teachers.values() for s in scored)
    if errors:
        echo(joined([paint("errors", BAD), f"       {errors} responses could not be scored"]), err=True)
    sys.exit(1 if errors else 0)

"""`rsd score`, `rsd compare`, `rsd select`. Heavy imports wait until one runs."""

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import SHARD, flags, given, on_own_device, one_line_errors, quiet, share_of
from rsd.cli.reporting import begin, reported
from rsd.config import StudentConfig
from rsd.events import Events
from rsd.outputs import Output, check_outputs, lines_only
from rsd.scoring.config import ScoreConfig
from rsd.scoring.metrics import BY
from rsd.settings import Group
from rsd.terminal import BAD, echo, joined, one_line, paint
from rsd.traces.shards import Shard, part_files

if TYPE_CHECKING:
    from rsd.analysis.compare import Comparison
    from rsd.scoring.responses import Responses
    from rsd.scoring.scored_rows import ScoreSummary
    from rsd.scoring.scorer import Scored
    from rsd.scoring.verdicts import Judging


@click.command(cls=Command, short_help="Add to traces how natural they are for the student.")
@click.argument("source", metavar="FILE")
@option("-o", "--output", group=Group.FILES, metavar="FILE", help="The scored rows [FILE.scored.jsonl].")
@option(
    "--html",
    "html_file",
    group=Group.FILES,
    metavar="FILE",
    help="Write a page of the traces to FILE, for which all are read again.",
)
@option("--overwrite", group=Group.FILES, is_flag=True, help="Start anew instead of resuming OUTPUT.")
@option("--shard", group=Group.PROCESSES, metavar="I/N", help=SHARD)
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
        outputs = [Output(output, ours.scored if overwrite else None)]
        check_outputs(outputs, inputs=[source])
        if html_file is not None:
            check_outputs([*outputs, Output(html_file, ours.score_report)], inputs=[source], overwrite=overwrite)
        from rsd.scoring.responses import read_responses
        from rsd.scoring.scored_rows import finished_before
        from rsd.scoring.verdicts import judging_of

        share = share_of(shard) or (Shard(1, 1) if part_files(output) else None)  # goes on with what several began
        if share is not None and overwrite:
            raise ValueError(
                f"--overwrite with several processes: remove {output} and its parts, if they are not wanted"
            )
        if share is not None and config.top_logprobs:
            raise ValueError(
                "--top-logprobs with several processes: one process alone writes soft targets in their order"
            )
        if share is not None and html_file is not None:
            raise ValueError("--html with several processes: give it to the same command once more, when all is scored")
        begin(events, "score", config, source=source, output=output, shard=share)
        todo = read_responses(source, config)
        judging = judging_of(todo, config)
        asked = share is None and not overwrite and html_file is None  # a page needs every token's log-prob
        top = config.top_logprobs
        known = finished_before(todo, Path(output), config, judging, top_logprobs=top) if asked else None
        summary = known or _score(todo, output, config, share, judging, html_file, source, overwrite=overwrite)
        events.emit("end", **({"rows": summary.rows, "errors": summary.errors} if summary else {}))
    if summary is None:  # another process prints
        return
    if html_file is None:
        echo(joined([summary.text(), f"written to   {one_line(output)}"], "\n"))
    sys.exit(1 if summary.errors else 0)


def _score(
    todo: "Responses",
    output: str,
    config: ScoreConfig,
    share: Shard | None,
    judging: "Judging | None",
    html_file: str | None,
    source: str,
    *,
    overwrite: bool,
) -> "ScoreSummary | None":
    quiet()
    from rsd.api.judging import scorer_of
    from rsd.scoring.job import score_file

    scorer, reread = scorer_of(on_own_device(config))
    how: dict[str, Any] = {"judging": judging, "overwrite": overwrite, "reread": reread, "top": config.top_logprobs}
    if share is not None:
        from rsd.scoring.share import score_share

        return score_share(scorer, todo, output, share, judging)
    if html_file is None:
        return score_file(scorer, todo, output, **how)
    from rsd.analysis.report import write_set_report
    from rsd.api.comparing import trace_file

    with closing(trace_file(html_file, scorer)) as traces:
        kept: list[Scored] = []
        summary = score_file(scorer, todo, output, **how, seen=lambda s: kept.append(traces.keep(s)))
        # Whatever becomes of the page.
        echo(joined([summary.text(), f"written to   {one_line(output)}"], "\n"))
        write_set_report(html_file, kept, source, traces)
        echo(f"written to   {one_line(html_file)}")
    return summary


@click.command(cls=Command, short_help="Compare raw teacher data with produced traces.")
@click.argument("baseline", required=False)
@click.argument("candidate", required=False)
@option("--html", "html_file", group=Group.FILES, metavar="FILE", help="Write a report to FILE.")
@option("--json", "json_file", group=Group.FILES, metavar="FILE", help="Write the figures to FILE.")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Replace these files.")
@flags(StudentConfig)
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
      rsd compare raw.jsonl traces.jsonl --html report.html \\
          --student Qwen/Qwen3-0.6B
    """
    with one_line_errors(html_file or json_file or ""):
        config = StudentConfig(**given(values))
        quiet()
        from rsd.analysis.compare import table
        from rsd.api import compare as compare_traces

        def shown(comparison: "Comparison") -> None:  # whatever becomes of the files
            echo(table(comparison))

        files: dict[str, Any] = {"html": html_file, "json": json_file, "overwrite": overwrite}
        compare_traces(baseline, candidate, shown=shown, config=config, **files)
        for file in (json_file, html_file):
            if file:
                echo(f"written to   {one_line(file)}")


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
@flags(StudentConfig)
def select(files: tuple[str, ...], output: str, by: str, keep_incorrect: bool, overwrite: bool, **values: Any) -> None:
    """Rank teachers by how natural their traces are for the student, and choose the best response to each prompt.

    Each FILE holds one teacher's traces, in a format of `rsd score`; or one FILE has a `teacher` column. Scores
    that `rsd score` wrote with the same settings are used as they are.

    \b
    Examples:
      rsd select r1.jsonl qwq.jsonl -o best.jsonl --student Qwen/Qwen3-0.6B
    """
    with one_line_errors(output):
        config = StudentConfig(**given(values))
        quiet()
        from rsd.api import select as select_traces

        how: dict[str, Any] = {"by": by, "keep_incorrect": keep_incorrect, "overwrite": overwrite}
        selection = select_traces(files, output, config=config, **how)
        from rsd.analysis.select import table

    echo(joined([table(selection), f"written to   {one_line(output)}"], "\n"))
    if selection.errors:
        echo(joined([paint("errors", BAD), f"       {selection.errors} responses could not be scored"]), err=True)
    sys.exit(1 if selection.errors else 0)

"""`rsd generate`. Heavy imports wait until it runs."""

from typing import TYPE_CHECKING, Any

import click

from rsd.cli.help import Command, option
from rsd.cli.jobs import Job, options, run
from rsd.cli.options import flags, given
from rsd.cli.reporting import reported
from rsd.config import PAPER, GenerateConfig
from rsd.events import Events
from rsd.settings import Group
from rsd.traces.filters import KEEP

if TYPE_CHECKING:
    from rsd.generation.generator import TraceGenerator


@click.command(cls=Command, short_help="Make student-tailored traces for prompts.")
@click.argument("source", metavar="[INPUT]", required=False)
@option(
    "--preset",
    group=Group.SAMPLING,
    type=click.Choice(["paper"]),
    metavar="paper",
    help="Sampling, acceptance and lengths of the paper's generator.",
)
@options(output="traces.jsonl", keep=KEEP, kept="Write what is kept to a file, too")
@flags(GenerateConfig)
@reported
def generate(source: str | None, preset: str | None, events: Events, **values: Any) -> None:
    """Make student-tailored traces for the prompts in INPUT; by default for the bundled problems.

    INPUT is JSONL, a JSON array, CSV or parquet (.gz and .zst, too), - for standard input, or a data set.

    The teacher proposes every token; one stands if the student gives it at least --threshold, else the
    student's own token is taken. --threshold 0 gives the teacher's raw traces, --threshold 1 the student's.
    A killed job resumes when the same command is run again.

    \b
    Examples:
      rsd generate
      rsd generate problems.jsonl -o raw.jsonl --threshold 0
      rsd generate problems.jsonl --preset paper \\
          --teacher simplescaling/s1.1-7B --student Qwen/Qwen3-0.6B
    """
    job, values = Job.of(values)
    if job.keep == "best-ln":
        values["score"] = True

    def generator() -> "type[TraceGenerator]":
        from rsd.generation.generator import TraceGenerator

        return TraceGenerator

    from rsd.models.bundled import bundled

    run(
        "generate",
        str(bundled("problems.jsonl")) if source is None else source,
        job,
        events,
        config=lambda: GenerateConfig(**(PAPER if preset == "paper" else {}) | given(values)),
        generator_of=generator,
    )

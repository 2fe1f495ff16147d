"""`rsd tailor`. Heavy imports wait until it runs."""

from typing import TYPE_CHECKING, Any

import click

from rsd.cli.help import Command
from rsd.cli.jobs import Job, options, run
from rsd.cli.options import flags, given
from rsd.cli.reporting import reported
from rsd.events import Events
from rsd.tailoring.config import KEEP, TailorConfig

if TYPE_CHECKING:
    from rsd.generation.summary import Summary
    from rsd.tailoring.keeping import TailorSummary
    from rsd.tailoring.tailor import Tailor


@click.command(cls=Command, short_help="Rewrite raw traces so that a student can learn from them.")
@click.argument("source", metavar="RAW")
@options(output="tailored.jsonl", keep=KEEP, kept="What to train on")
@flags(TailorConfig)
@reported
def tailor(source: str, events: Events, **values: Any) -> None:
    """Make traces of the problems in RAW after the responses there, by a teacher that need not have written these.

    RAW holds responses in a format of `rsd score`. The teacher has the raw response in its prompt, as a reference, and
    proposes; the student decides, as in `rsd generate`. The teacher is the student itself, loaded once, or any model
    that is named. Beside OUTPUT, which holds every trace, OUTPUT.kept.jsonl holds what to train on: where no trace of
    a problem is right and its raw response is, that one (`source`: tailored, raw). --keep is correct, unless nothing
    can be judged: then it is all.

    \b
    Examples:
      rsd tailor s1K-1.1.jsonl --student Qwen/Qwen3-0.6B --prompt-column question \\
          --thinking-column deepseek_thinking_trajectory --response-column deepseek_attempt
      rsd tailor raw.jsonl --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B \\
          --num-generations 4 --keep natural-and-correct
    """
    job, values = Job.of(values)

    def generator() -> "type[Tailor]":
        from rsd.tailoring.tailor import Tailor

        return Tailor

    def finish(summary: "Summary", output: str) -> "TailorSummary":
        from rsd.tailoring.keeping import finished

        return finished(summary, output, keep=job.keep, max_fallback_rate=config().max_fallback_rate)

    def config() -> TailorConfig:
        return TailorConfig(**given(values))

    run("tailor", source, job, events, config=config, generator_of=generator, finish=finish)

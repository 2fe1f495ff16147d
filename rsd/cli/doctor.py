"""`rsd doctor`. Heavy imports wait until it runs."""

from typing import TYPE_CHECKING, Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import flags, given, one_line_errors, quiet
from rsd.examining.config import DoctorConfig
from rsd.settings import Group
from rsd.terminal import echo, one_line

if TYPE_CHECKING:
    from rsd.examining.examination import Examination


@click.command(cls=Command, short_help="Find out what a pair is good for, before a job of it.")
@click.argument("problems", required=False)
@option("--html", "html_file", group=Group.FILES, metavar="FILE", help="Write a page to FILE.")
@option("--json", "json_file", group=Group.FILES, metavar="FILE", help="Write the figures to FILE.")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Replace these files.")
@flags(DoctorConfig)
def doctor(problems: str | None, html_file: str | None, json_file: str | None, overwrite: bool, **values: Any) -> None:
    """Find out what a pair is good for, on a few of PROBLEMS; by default of the bundled ones.

    The teacher's raw traces, RSD's and the student's own are made of them, with both models loaded once: which
    proposals would stand at which threshold, where the two part, what the student finds improbable and says instead,
    who solves what. Then, in plain words, what to do; each piece of advice has its rule and its source.

    \b
    Examples:
      rsd doctor
      rsd doctor problems.jsonl --html doctor.html \\
          --teacher simplescaling/s1.1-7B --student Qwen/Qwen3-0.6B
    """
    with one_line_errors(html_file or json_file or ""):
        config = DoctorConfig(**given(values))
        quiet()
        from rsd.api import doctor as examine

        def shown(examination: "Examination") -> None:  # whatever becomes of the files
            echo(examination.text())

        examine(problems, html=html_file, json=json_file, overwrite=overwrite, shown=shown, config=config)
        for file in (json_file, html_file):
            if file:
                echo(f"written to   {one_line(file)}")

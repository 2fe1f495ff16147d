"""`rsd export`. Heavy imports wait until it runs."""

from typing import Any

import click

from rsd.cli.help import Command, option
from rsd.cli.options import flags, given, one_line_errors, quiet
from rsd.dataset.config import ExportConfig
from rsd.settings import Group
from rsd.terminal import echo, one_line


@click.command(cls=Command, short_help="Write traces as a data set that trains as it is.")
@click.argument("source", metavar="FILE")
@option("-o", "--output", group=Group.FILES, metavar="FILE", help="A .jsonl or .parquet [FILE.<format>.jsonl].")
@option("--overwrite", group=Group.FILES, is_flag=True, help="Replace OUTPUT.")
@option("--push-to-hub", group=Group.FILES, metavar="ID", help="Put data and card into owner/name on the Hub.")
@option("--private", group=Group.FILES, is_flag=True, help="Make that data set a private one.")
@option("--dry-run", group=Group.SAID, is_flag=True, help="Print what would be written, and write nothing.")
@flags(ExportConfig)
def export(
    source: str,
    output: str | None,
    push_to_hub: str | None,
    private: bool,
    overwrite: bool,
    dry_run: bool,
    **values: Any,
) -> None:
    """Write the traces in FILE, which rsd generate made, as a data set that trains as it is.

    Beside OUTPUT comes its dataset card (.md) and, with --test-share, the rows for testing (.test.jsonl). Rows
    without a verdict are kept with --keep all alone.

    Shapes: prompt-completion and messages (chats, as TRL reads them), sharegpt, alpaca, and token-ids, of which nothing
    is tokenized anew. With the teacher's likeliest tokens, which rsd generate --top-logprobs keeps: axolotl-kd,
    axolotl-kd-v1 (the layout up to 0.9) and distillkit, which is a .parquet.

    \b
    Examples:
      rsd export traces.jsonl
      rsd export traces.jsonl --keep shortest-correct -o train.parquet
      rsd export traces.jsonl --test-share 0.05 --push-to-hub owner/name
    """
    with one_line_errors(output or source):
        from rsd.api import export as export_traces
        from rsd.dataset.formats import IDS
        from rsd.dataset.publish import check_repo_id, push
        from rsd.files import place

        config = ExportConfig(**given(values))
        if output is None:
            suffix = "parquet" if config.format == "distillkit" else "jsonl"
            output = f"{source.removesuffix('.jsonl')}.{config.format}.{suffix}"
        place(output)
        if private and not push_to_hub:
            raise ValueError("--private is for --push-to-hub: give both")
        if push_to_hub:
            check_repo_id(push_to_hub)
        if config.format not in IDS:  # the student's tokenizer will be asked
            quiet()
        made = export_traces(source, None if dry_run else output, overwrite=overwrite, config=config)
        if dry_run:
            echo(f"{made.text()}\nto write     {one_line(output)}, and what belongs beside it")
            return
        echo(f"{made.text()}\nwritten to   {', '.join(map(one_line, made.files.values()))}")
        if push_to_hub:
            echo(f"pushed to    {push(made, made.files, push_to_hub, private=private)}")

"""`rsd export`. Heavy imports wait until it runs."""

from typing import Any

import click

from rsd.cli.options import flags, given, one_line_errors, quiet
from rsd.dataset.config import ExportConfig
from rsd.terminal import echo, one_line


@click.command()
@click.argument("source", metavar="FILE")
@click.option("-o", "--output", help="A .jsonl or .parquet file [FILE with the format before its end].")
@click.option("--push-to-hub", metavar="ID", help="Put data and card into the data set owner/name on the Hub.")
@click.option("--private", is_flag=True, help="Make that data set a private one.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT.")
@flags(ExportConfig)
def export(
    source: str, output: str | None, push_to_hub: str | None, private: bool, overwrite: bool, **values: Any
) -> None:
    """Write the traces in FILE, which rsd generate made, as a data set that trains as it is.

    Beside OUTPUT comes its dataset card (.md) and, with --test-share, the rows for testing (.test.jsonl). Rows
    without a verdict are kept with --keep all alone.

    \b
    Examples:
      rsd export traces.jsonl
      rsd export traces.jsonl --format token-ids --keep shortest-correct -o train.parquet
      rsd export traces.jsonl --test-share 0.05 --push-to-hub owner/name --private
    """
    with one_line_errors(output or source):
        from rsd.api import export as export_traces
        from rsd.dataset.publish import check_repo_id, push
        from rsd.files import place

        config = ExportConfig(**given(values))
        if output is None:
            output = f"{source.removesuffix('.jsonl')}.{config.format}.jsonl"
        place(output)
        if private and not push_to_hub:
            raise ValueError("--private is for --push-to-hub: give both")
        if push_to_hub:
            check_repo_id(push_to_hub)
        if config.format != "token-ids":  # the student's tokenizer will be asked
            quiet()
        made = export_traces(source, output, overwrite=overwrite, config=config)
        echo(f"{made.text()}\nwritten to   {', '.join(map(one_line, made.files.values()))}")
        if push_to_hub:
            echo(f"pushed to    {push(made, made.files, push_to_hub, private=private)}")

"""Making traces, and data sets of them."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rsd.api.sources import source_files
from rsd.config import TIMES, GenerateConfig
from rsd.dataset.config import ExportConfig
from rsd.settings import amended, check_choice, check_whole, shown
from rsd.traces.filters import KEEP

if TYPE_CHECKING:
    from rsd.dataset.export import Export
    from rsd.generation.summary import Summary
    from rsd.traces.given import Given
    from rsd.traces.trace import Trace

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
    from rsd.generation.finished import finished_before
    from rsd.outputs import lines_only
    from rsd.traces.given import file_of

    lines_only(output)
    file, out = file_of(source), str(output)
    known = finished_before(config, file, out, limit) if file is not None and not (overwrite or keep) else None
    if known is not None:
        return known
    from rsd.generation.generator import TraceGenerator
    from rsd.generation.job import run_job

    return run_job(TraceGenerator(config), source, out, limit=limit, overwrite=overwrite, keep=keep)


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
    from rsd.outputs import Output, check_outputs
    from rsd.traces import ours

    if output is None:
        return export_traces(source, config)
    files = written(output, config.format)
    if files["train"].suffix == ".parquet":
        parquet_library()
    kinds = {"train": ours.exported, "test": ours.test_split, "card": ours.card, "compression": ours.compression}
    outputs = [Output(file, kinds[name]) for name, file in files.items()]
    check_outputs(outputs, inputs=source_files(source), overwrite=overwrite)
    made = export_traces(source, config)
    return replace(made, files=write(made, output))

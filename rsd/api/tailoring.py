"""Making traces after raw responses."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rsd.api.sources import source_files
from rsd.config import TIMES
from rsd.settings import amended, check_choice, check_whole
from rsd.tailoring.config import KEEP, TailorConfig

if TYPE_CHECKING:
    from rsd.tailoring.keeping import TailorSummary
    from rsd.traces.given import Given
    from rsd.traces.trace import Trace

File = str | Path


@overload
def tailor(
    source: "Given",
    output: None = None,
    *,
    limit: int | None = None,
    config: TailorConfig | None = None,
    **settings: Any,
) -> "list[Trace]": ...
@overload
def tailor(
    source: "Given",
    output: File,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    config: TailorConfig | None = None,
    **settings: Any,
) -> "TailorSummary": ...
def tailor(
    source: "Given",
    output: File | None = None,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
    config: TailorConfig | None = None,
    **settings: Any,
) -> "list[Trace] | TailorSummary":
    """Make traces of the problems in `source` after the responses there, which the teacher has in its prompt; the
    teacher is the student itself, unless one is named.

    Args:
        output: a .jsonl file for them. Then this is the job that the command does: it resumes what is there, writes
            what is kept beside it, and what is returned is the summary. Without one they are returned, in the order of
            the rows; their `columns` say what there is to say of the raw responses.
        limit: only the first rows. overwrite: start anew instead of resuming. keep: one of `tailoring.config.KEEP`.
        settings: of `TailorConfig`.

    Raises:
        ValueError: a bad setting or source, a pair that does not fit, or an output of another job.
    """
    config = amended(TailorConfig, config, settings)
    if limit is not None:
        check_whole("limit", limit, 1, TIMES)
    if keep is not None:
        check_choice("keep", keep, KEEP)
    from rsd.tailoring.tailor import Tailor
    from rsd.traces.given import file_of, read

    if output is None:
        if overwrite or keep:
            raise ValueError("overwrite and keep are for an output: name one")
        return Tailor(config).run(islice(read(source, split=config.split), limit))
    from rsd.generation.finished import finished_before
    from rsd.generation.summary import kept_file
    from rsd.outputs import Output, check_outputs, lines_only
    from rsd.tailoring.keeping import finished
    from rsd.traces import ours
    from rsd.traces.lines import files_of

    lines_only(output)
    check_outputs([Output(kept_file(output), ours.kept)], inputs=source_files(source), job=files_of(output)[1])
    file = file_of(source)
    known = finished_before(config, file, output, limit) if file is not None and not overwrite else None
    if known is None:
        from rsd.generation.job import run_job

        known = run_job(Tailor(config), source, output, limit=limit, overwrite=overwrite)
    return finished(known, output, keep=keep, max_fallback_rate=config.max_fallback_rate)

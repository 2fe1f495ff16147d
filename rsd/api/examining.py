"""Examining a pair before a job of it."""

import json as jsons
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd.api.sources import source_files
from rsd.examining.config import DoctorConfig
from rsd.settings import amended
from rsd.settings import shown as said

if TYPE_CHECKING:
    from rsd.examining.examination import Examination
    from rsd.traces.given import Given

File = str | Path


def doctor(
    source: "Given | None" = None,
    *,
    html: File | None = None,
    json: File | None = None,
    overwrite: bool = False,
    shown: "Callable[[Examination], object]" = lambda _: None,
    config: DoctorConfig | None = None,
    **settings: Any,
) -> "Examination":
    """Examine a pair on a few problems of `source`, by default of the bundled ones: what both models say, what a
    threshold would do, and what follows from that.

    Args:
        html, json: files for a page, and for the figures. overwrite: replace these.
        shown: is given the examination before the files are written, which may fail.
        settings: of `DoctorConfig`, such as `teacher="simplescaling/s1.1-7B"` or `limit=8`.

    Raises:
        ValueError: a bad setting or source, a pair that does not fit together, or no trace could be made.
    """
    config = amended(DoctorConfig, config, settings)
    if isinstance(source, str) and " " in source and not Path(source).exists():
        raise ValueError(f"{said(source)}: there is no such file; a prompt is given in a list: [{said(source)}]")
    from rsd.files import write_text
    from rsd.models.bundled import bundled
    from rsd.outputs import Output, check_outputs
    from rsd.traces import ours

    source = bundled("problems.jsonl") if source is None else source
    files = [(html, ours.doctors_page), (json, ours.examined)]
    outputs = [Output(str(file), of) for file, of in files if file is not None]
    check_outputs(outputs, inputs=source_files(source), overwrite=overwrite)
    from rsd.examining.examination import Examination
    from rsd.examining.measures import findings
    from rsd.examining.sets import Work
    from rsd.traces.given import read

    work = Work(config, read(source, split=config.split))
    examination = Examination(findings(work, work.make()))
    shown(examination)
    if json is not None:
        write_text(str(json), jsons.dumps(examination.as_json(), indent=1) + "\n")
    if html is not None:
        from rsd.examining.page import page

        write_text(str(html), page(examination))
    return examination

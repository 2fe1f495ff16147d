"""What a source is on disk."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsd.traces.given import Given


def source_files(source: "Given | None") -> list[str]:
    """The file that a source is, if it is one."""
    from rsd.traces.given import file_of

    file = None if source is None else file_of(source)
    return [] if file is None else [file]

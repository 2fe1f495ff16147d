"""Rows as people have them in Python: texts, dicts, traces, tables, data sets, or the path of a file."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from rsd.settings import shown
from rsd.strictjson import NESTED
from rsd.traces.lines import Key
from rsd.traces.readers import plain, stream_rows
from rsd.traces.trace import Trace

# A path, or rows. Where a function takes the names of files, a text is one; where it takes rows alone, a prompt.
Given: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]
ROW = "a row such as {'prompt': 'What is 6 * 7?'}"
# pandas' DataFrames and datasets' Datasets are lists of rows, too.
WANTED = f"a prompt, {ROW}, a list or a table of these, or the path of a file"


def rows_of(given: Given, *, strict: bool = False, traces: dict[Key, Trace] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of whatever is given, each as it is read.

    A text is a prompt, a mapping a row, a `Trace` its row, a path a file or a folder (`readers.stream_rows`), a
    DataFrame of pandas its rows with null where a value is missing. All else that can be iterated over holds texts,
    mappings or traces: lists, generators, a Dataset of datasets. Numbers of numpy, times and such become what JSON has
    for them; what it has nothing for stays as it is.

    Args:
        strict: refuse what JSON has nothing for. traces: takes the traces that
            are met, by their keys.

    Raises:
        ValueError: it is something else; in one line, with the number of the row.
    """
    if isinstance(given, os.PathLike):
        yield from stream_rows(given)
        return
    for number, item in enumerate(_items(given), 1):
        if isinstance(item, Trace):
            if traces is not None:
                traces[item.key] = item
            item = item.row()
        if not isinstance(item, str | Mapping):
            raise ValueError(f"row {number}: a prompt or {ROW} is needed, not {shown(item)}")
        row: Mapping[Any, Any] = {"prompt": item} if isinstance(item, str) else item
        try:
            yield {str(column): plain(value, strict=strict) for column, value in row.items()}
        except TypeError as e:
            raise ValueError(f"row {number}: {e}") from e
        except RecursionError as e:
            raise ValueError(f"row {number}: {NESTED}") from e


def _items(given: Given) -> Iterable[Any]:
    if isinstance(given, str | Mapping | Trace):
        return [given]
    pandas = sys.modules.get("pandas")  # whoever has a table of it has imported it
    if pandas is not None and isinstance(given, pandas.DataFrame):
        records: list[dict[Any, Any]] = given.astype(object).where(given.notna(), None).to_dict("records")
        return records
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        raise ValueError(f"rows are needed: {WANTED}, not {shown(given)}")
    return given


def columns_of(batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    """The columns of a batch of rows.

    Raises:
        ValueError: it is none, or one column is longer than another.
    """
    tip = "columns such as {'prompt': ['What is 6 * 7?']} are needed (of datasets' map, batched=True); run takes rows"
    if not isinstance(batch, Mapping):
        raise ValueError(f"{tip}, not {shown(batch)}")
    columns = {}
    for name, values in batch.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ValueError(f"{tip}, and {name} holds {shown(values)}")
        columns[name] = list(values)
    if len(set(map(len, columns.values()))) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in columns.items())
        raise ValueError(f"columns of one length are needed: {lengths}")
    return columns


def file_of(source: Given) -> str | None:
    """The name of the file, or of the data set, that a source is; None if it is rows."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def read(
    source: Given, *, split: str | None = None, strict: bool = False, traces: dict[Key, Trace] | None = None
) -> Iterator[dict[str, Any]]:
    """As `rows_of`, but a text is the name of a file."""
    name = file_of(source)
    return rows_of(source, strict=strict, traces=traces) if name is None else stream_rows(name, split=split)


def files_in(sources: Mapping[str, Given] | Given) -> list[str]:
    """The files among sources, which may have names, or be a list of files."""
    if isinstance(sources, Mapping):
        return [file for source in sources.values() if (file := file_of(source)) is not None]
    if (one := file_of(sources)) is not None:
        return [one]
    files = list(map(file_of, sources)) if isinstance(sources, list | tuple) else []
    return [] if None in files else [str(file) for file in files]

"""Rows as people have them: JSONL, a JSON array, parquet, CSV, compressed, from standard input, or a data set."""

import csv
import datetime
import decimal
import gzip
import io
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jsonlines
import numpy as np

from rsd.strictjson import loads

STDIN = ("-", "/dev/stdin")
WRITER = 10.0  # seconds in which a named pipe must be written to
MORE = "install it: pip install 'rsd[parquet]'"

Rows = Iterator[dict[str, Any]]


def read_rows(source: str | Path, *, split: str | None = None) -> list[dict[str, Any]]:
    """All rows of a file, of standard input, or of a data set; see `stream_rows`."""
    return list(stream_rows(source, split=split))


def stream_rows(source: str | os.PathLike[str], *, split: str | None = None) -> Rows:
    """The rows of a file, of standard input (`-`), or of a data set, each as it is read.

    A file is JSONL, or a JSON array of objects, whatever it is called; .parquet and .csv by their names; .gz and .zst
    of any of them. A folder, and a name such as owner/name or owner/name:config of which there is no file, is a data
    set (`datasets`): split is "train", unless it says another one.

    Raises:
        ValueError: there is no such thing, no rows, or a line that is not a JSON object (with its number), as strict
            JSON has it (`strictjson.loads`): what would not be in the output as it is here must not get lost in
            silence.
    """
    name = os.fspath(source)
    empty = True
    try:
        if name not in STDIN and (os.path.isdir(name) or (not os.path.exists(name) and _is_id(name))):
            rows = _of_a_dataset(name, split)
        elif split is not None:
            raise ValueError(f"{name} is a file: split is for a data set")
        else:
            rows = _of_a_file(name)
        for row in rows:
            empty = False
            yield row
    except UnicodeDecodeError as e:
        raise ValueError(f"{name}: not a UTF-8 text file; JSONL is expected") from e
    except (OSError, EOFError) as e:
        raise ValueError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if empty:
        raise ValueError(f"{name}: holds no rows")


def _of_a_file(name: str) -> Rows:
    kind = Path(name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
    with _opened(name) as file:
        if kind == ".parquet":
            yield from _of_parquet(name, file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig" if kind == ".csv" else "utf-8", newline="")
        if kind == ".csv":
            yield from _of_csv(name, text)
            return
        head = file.peek(4096)[:4096].lstrip() if isinstance(file, io.BufferedReader) else b""
        yield from _of_an_array(name, text.read()) if head[:1] == b"[" else _of_lines(name, text)


def _of_lines(name: str, text: Iterable[str]) -> Rows:
    try:
        with jsonlines.Reader(text, loads=loads) as reader:
            yield from reader.iter(type=dict, skip_empty=True)
    except jsonlines.InvalidLineError as e:
        problem = str(e.__cause__ or e).splitlines()[0]
        raise ValueError(f"{name}, line {e.lineno}: not a JSON object: {problem}") from e


def _of_an_array(name: str, text: str) -> Rows:
    try:
        rows = loads(text)
    except ValueError as e:
        raise ValueError(f"{name}: not a JSON array: {e}") from e
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{name}, item {number}: not a JSON object")
    yield from rows


def _of_csv(name: str, text: Iterable[str]) -> Rows:
    """Rows of texts; an empty cell is a missing one."""
    try:
        reader = csv.DictReader(text, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{name}, line {reader.line_num}: not {len(reader.fieldnames or ())} cells")
            yield {column: cell or None for column, cell in row.items()}
    except csv.Error as e:
        raise ValueError(f"{name}: not CSV: {e}") from e


def _of_parquet(name: str, file: IO[bytes]) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise ValueError(f"{name}: parquet needs pyarrow: {MORE}") from e
    try:
        table = parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        for batch in table.iter_batches():
            yield from _plain_rows(name, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as e:
        raise ValueError(f"{name}: cannot be read as parquet: {str(e).splitlines()[0]}") from e


def _of_a_dataset(name: str, split: str | None) -> Rows:
    try:
        import datasets
    except ImportError as e:
        raise ValueError(f"{name}: a data set needs datasets: pip install 'rsd[datasets]'") from e
    folder = os.path.isdir(name)
    path, _, config = (name, "", "") if folder else name.partition(":")
    try:
        if folder and (Path(name) / "state.json").is_file():
            made = datasets.load_from_disk(name)
        elif folder and (Path(name) / "dataset_dict.json").is_file():
            made = datasets.load_from_disk(name)[split or "train"]
        else:
            made = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as e:  # whatever its readers raise
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{name}: cannot be read as a data set: {first}") from e
    yield from _plain_rows(name, made)


def _is_id(name: str) -> bool:
    """Whether a name may be a data set's on the Hub: owner/name or owner/name:config."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).suffix


def _plain_rows(name: str, rows: Iterable[Any]) -> Rows:
    for number, row in enumerate(rows, 1):
        try:
            yield {str(column): plain(value, strict=True) for column, value in row.items()}
        except TypeError as e:
            raise ValueError(f"{name}, row {number}: {e}") from e


def plain(value: Any, *, strict: bool) -> Any:
    """A table's value as JSON has it: times as texts, numbers of any kind as numbers.

    strict: refuse what JSON has nothing for, which stays as it is otherwise.

    Raises:
        TypeError: see above.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v, strict=strict) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, strict=strict) for v in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        if not value.is_finite():
            return None
        return int(value) if value == value.to_integral_value() else float(value)
    if strict and value is not None and not isinstance(value, str | int | float | bool):
        raise TypeError(f"a column holds {type(value).__name__}, which is no JSON")
    return value


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """A file's bytes, uncompressed. A pipe that nobody writes to, and a device, are refused."""
    if name in STDIN:
        yield sys.stdin.buffer
        return
    kind = os.stat(name).st_mode
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        raise ValueError(f"{name} is a device: rows are read from a file, a pipe or - (standard input)")
    with open(_of_a_pipe(name) if stat.S_ISFIFO(kind) else name, "rb") as file:
        if name.endswith(".gz"):
            with gzip.open(file) as plain:
                yield io.BufferedReader(plain)
        elif name.endswith(".zst"):
            try:
                import pyarrow
            except ImportError as e:
                raise ValueError(f"{name}: .zst needs pyarrow: {MORE}") from e
            with pyarrow.CompressedInputStream(file, "zstd") as plain:
                yield io.BufferedReader(plain)
        else:
            yield file


def _of_a_pipe(name: str) -> int:
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    ready, _, _ = select.select([descriptor], [], [], WRITER)
    if not ready:
        os.close(descriptor)
        raise ValueError(f"{name} is a pipe that no process has written to for {WRITER:g} s")
    os.set_blocking(descriptor, True)
    return descriptor

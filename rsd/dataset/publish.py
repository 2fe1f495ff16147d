"""An export's files, each whole or not at all, and putting them on the Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from rsd.dataset.card import card
from rsd.dataset.export import Export
from rsd.dataset.formats import Row
from rsd.dataset.soft_formats import packed_batch, packed_schema
from rsd.files import encode, place, replacing, synced
from rsd.settings import called
from rsd.traces import ours

COMPRESSION_FILE = "compression_config.yaml"  # as DistillKit calls its own
TOGETHER = 16  # rows that are packed and written together
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def written(out: str | Path, format: str) -> dict[str, Path]:
    """The files of an export: its training rows, its testing rows, its card, and DistillKit's compression file.

    Raises:
        ValueError: the name has another end than .jsonl or .parquet, or the format's rows cannot be in such a file.
    """
    out = Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{out}: name a file that ends in .jsonl or .parquet")
    files = {"train": out, "test": out.with_suffix(f".test{out.suffix}"), "card": out.with_suffix(".md")}
    if format != "distillkit":
        return files
    if out.suffix != ".parquet":
        raise ValueError(f"{out}: DistillKit reads its bytes from parquet: name a file that ends in .parquet")
    return {**files, "compression": out.with_suffix(f".{COMPRESSION_FILE}")}


def write(made: Export, out: str | Path) -> dict[str, Path]:
    """Write the files of an export, each whole or not at all; by split, and the card.

    Raises:
        ValueError: the name has another end than .jsonl or .parquet, or parquet is not installed.
    """
    files = written(out, made.config.format)
    before = files["test"]
    if not made.test:
        files.pop("test")
    splits = {name: rows for name, rows in (("train", made.train), ("test", made.test)) if name in files}
    text = card(made, {name: files[name].name for name in splits})
    with ExitStack() as stack:  # which ends with the last: the training rows come first
        to = {name: stack.enter_context(replacing(files[name])) for name in reversed(files)}
        to["card"].write(text.encode("utf-8", "backslashreplace"))
        if made.compression is not None:
            to["compression"].write(made.compression.encode())
        for name, rows in splits.items():
            if made.config.format == "distillkit":
                _packed(rows, to[name])
            elif files[name].suffix == ".parquet":
                _parquet(rows, to[name], out)
            else:
                to[name].writelines(map(encode, rows))
        for file in to.values():
            synced(file)
        # Rows that an earlier export set apart for testing may train now: not for a moment are both there.
        if before.is_file() and ours.test_split(before):
            place(before).unlink()
    return files


def _packed(rows: Sequence[Row], file: BinaryIO) -> None:
    _, parquet = parquet_library()
    with parquet.ParquetWriter(file, packed_schema(), compression="zstd") as to:
        for at in range(0, len(rows), TOGETHER):
            to.write_batch(packed_batch(rows[at : at + TOGETHER]))


def _parquet(rows: Sequence[Row], file: BinaryIO, out: str | Path) -> None:
    pyarrow, parquet = parquet_library()
    # A lone surrogate, which JSON can hold, is no text for parquet.
    whole = json.loads(json.dumps([*rows]).encode("ascii"), object_hook=_clean)
    try:
        parquet.write_table(pyarrow.Table.from_pylist(whole), file)
    except (pyarrow.ArrowException, OverflowError) as e:
        raise ValueError(f"{out}: parquet cannot hold this: {e}; write .jsonl") from e


def _clean(value: dict[str, Any]) -> dict[str, Any]:
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in value.items()}


def parquet_library() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise ValueError("parquet needs pyarrow: pip install 'rsd[parquet]', or write .jsonl") from e
    return pyarrow, parquet


def check_repo_id(repo_id: str) -> None:
    """Refuse what names no data set of an owner.

    Raises:
        ValueError: see above.
    """
    if not REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ValueError(f"{called('push_to_hub')} {repo_id}: a data set is named owner/name")


def push(made: Export, files: Mapping[str, Path], repo_id: str, *, private: bool) -> str:
    """Put an export on the Hub, in one commit; returns its address.

    The token is the environment's, or that of `hf auth login`.

    Raises:
        ValueError: the Hub refuses or cannot be reached; the files are still here.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi()
        address = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        suffix = files["train"].suffix
        there = {name: f"data/{name}{suffix}" for name in ("train", "test") if name in files}
        readme = card(made, there, repo_id=repo_id).encode("utf-8", "backslashreplace")
        operations = [CommitOperationAdd("README.md", readme)]
        operations += [CommitOperationAdd(path, str(files[name])) for name, path in there.items()]
        if "compression" in files:
            operations.append(CommitOperationAdd(COMPRESSION_FILE, str(files["compression"])))
        api.create_commit(repo_id, operations, commit_message="Traces made with rsd", repo_type="dataset")
    except Exception as e:  # whatever its client raises, the files are written
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{called('push_to_hub')} {repo_id}: {first}; the files are written here") from e
    return str(address)

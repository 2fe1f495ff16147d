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
from rsd.files import encode, place, replacing, synced
from rsd.settings import called
from rsd.traces import ours

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def written(out: str | Path) -> dict[str, Path]:
    """The files of an export: its training rows, its testing rows and its card."""
    out = Path(out)
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{out}: name a file that ends in .jsonl or .parquet")
    return {"train": out, "test": out.with_suffix(f".test{out.suffix}"), "card": out.with_suffix(".md")}


def write(made: Export, out: str | Path) -> dict[str, Path]:
    """Write the files of an export, each whole or not at all; by split, and the card.

    Raises:
        ValueError: the name has another end than .jsonl or .parquet, or parquet is not installed.
    """
    files = written(out)
    before = files["test"]
    if not made.test:
        files.pop("test")
    text = card(made, {name: file.name for name, file in files.items() if name != "card"})
    with ExitStack() as stack:  # which ends with the last: the training rows come first
        to = {name: stack.enter_context(replacing(files[name])) for name in reversed(files)}
        to["card"].write(text.encode("utf-8", "backslashreplace"))
        for name in files.keys() - {"card"}:
            rows = made.train if name == "train" else made.test
            if files[name].suffix == ".parquet":
                _parquet(rows, to[name], out)
            else:
                to[name].writelines(map(encode, rows))
        for file in to.values():
            synced(file)
        # Rows that an earlier export set apart for testing may train now: not for a moment are both there.
        if before.is_file() and ours.test_split(before):
            place(before).unlink()
    return files


def _parquet(rows: Sequence[Row], file: BinaryIO, out: str | Path) -> None:
    pyarrow, parquet = parquet_library()
    # A lone surrogate, which JSON can hold, is no text for parquet.
    whole = json.loads(json.dumps(rows).encode("ascii"), object_hook=_clean)
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
        there = {name: f"data/{name}{suffix}" for name in files if name != "card"}
        readme = card(made, there, repo_id=repo_id).encode("utf-8", "backslashreplace")
        operations = [CommitOperationAdd("README.md", readme)]
        operations += [CommitOperationAdd(path, str(files[name])) for name, path in there.items()]
        api.create_commit(repo_id, operations, commit_message="Traces made with rsd", repo_type="dataset")
    except Exception as e:  # whatever its client raises, the files are written
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{called('push_to_hub')} {repo_id}: {first}; the files are written here") from e
    return str(address)

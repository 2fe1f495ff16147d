"""By what a command recognises the files that it made: the only ones that it replaces (see `rsd.outputs`)."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rsd.files import TOO_LONG, first_row
from rsd.traces.soft import SoftFile
from rsd.traces.trace import PROVENANCE

SHAPES = (
    {"prompt", "completion"},
    {"messages"},
    {"messages", "logprobs"},
    {"messages", "logprobs", "target_token_ids"},
    {"conversations"},
    {"instruction", "input", "output", "system", "history"},
    {"input_ids", "completion_mask", "labels"},
    {"input_ids", "completion_mask", "labels", "loss_weights"},
)


def scored(file: Path) -> bool:
    """Whether `rsd score` wrote it: a row ends with its columns."""
    row = first_row(file)
    return "scoring" in row and list(row)[-1] == "score_error"


def weighed(file: Path) -> bool:
    """Whether `rsd weigh` wrote it: a row ends with its columns."""
    row = first_row(file)
    return "weighing" in row and list(row)[-1] == "weigh_error"


def selected(file: Path) -> bool:
    """Whether `rsd select` wrote it: a row's last column is what it was selected by."""
    return [*first_row(file)][-1:] == ["selected_by"]


def verified(file: Path) -> bool:
    """Whether `rsd verify` wrote it: a row's last column is by what it was verified."""
    return [*first_row(file)][-1:] == ["verified_by"]


def kept(file: Path) -> bool:
    """Whether `rsd generate --keep` wrote it: rows of a job, without what another command adds at a row's end."""
    row = first_row(file)
    columns = list(row)
    if not {"prompt", "completion", "generation", "finish_reason", "fallback_rate", "error"} <= row.keys():
        return False
    # A job's own scores come right after its columns, and before those of its input.
    with_scores = "scoring" not in row or columns[columns.index("error") + 1] == "local_naturalness"
    return with_scores and not {"selected_by", "weighing"} & row.keys()


def soft(file: Path) -> bool:
    """Whether it holds soft targets of rsd."""
    with suppress(ValueError):
        return bool(SoftFile(file).k)
    return False


def exported(file: Path) -> bool:
    """Whether `rsd export` wrote it: rows or a table in the shape of a format, with what each says of its trace."""
    if _head(file)[:4] != b"PAR1":
        return _of_a_format(first_row(file))
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        return False
    with suppress(ArrowException, OSError):
        schema = parquet.read_schema(file)
        return b"rsd" in (schema.metadata or {}) or _of_a_format(schema.names)
    return False


def test_split(file: Path) -> bool:
    """Whether `rsd export` wrote it beside training rows; an export of its own has a card of its own."""
    own = file.with_suffix(".md")
    return exported(file) and not (own.is_file() and card(own))


def _of_a_format(columns: Iterable[str]) -> bool:
    named = [c for c in columns if c not in ("chat_template_kwargs", "is_prefix", "privileged_context")]
    shape, provenance = named[: -len(PROVENANCE)], tuple(named[-len(PROVENANCE) :])
    return provenance == PROVENANCE and set(shape) in SHAPES


def card(file: Path) -> bool:
    """Whether it is the card of an exported data set, by what stands at its head."""
    head = _head(file)
    return head.startswith(b"---\n") and (b"\n- reverse-speculative-decoding\n" in head or b"\n- rsd\n" in head)


def compression(file: Path) -> bool:
    """Whether it is the compression file of an export for DistillKit, by what stands at its head."""
    return _head(file).startswith(b"# How rsd packed the soft targets;")


def events(file: Path) -> bool:
    """Whether it holds the events of a run: it begins with a start."""
    row = first_row(file)
    return row.get("event") == "start" and "rsd" in row


def report(file: Path) -> bool:
    """Whether it is the page of a comparison."""
    return _page(file, b"compare")


def score_report(file: Path) -> bool:
    """Whether it is the page of one scored set."""
    return _page(file, b"score")


def doctors_page(file: Path) -> bool:
    """Whether it is the page of an examination."""
    return _page(file, b"doctor")


def _page(file: Path, command: bytes) -> bool:
    head = _head(file)
    return head.startswith(b"<!DOCTYPE html>") and b"\n<title>rsd " + command + b": " in head


def figures(file: Path) -> bool:
    """Whether it holds the figures of a comparison."""
    return _object(file, {"baseline", "candidate", "scoring", "aligned_by", "metrics"})


def examined(file: Path) -> bool:
    """Whether it holds the figures of an examination."""
    return _object(file, {"examined", "verdict", "recommendations", "thresholds"})


def _object(file: Path, keys: set[str]) -> bool:
    with suppress(ValueError, RecursionError), open(file, "rb") as f:
        made = json.loads(f.read(TOO_LONG))
        return isinstance(made, dict) and keys <= made.keys()
    return False


def _head(file: Path) -> bytes:
    with open(file, "rb") as f:
        return f.read(4096)

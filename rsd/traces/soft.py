"""Soft targets: the likeliest tokens of both models in the place of every token of a trace, and their file.

`OUT.logprobs.arrow` is a stream of Arrow (which polars, DuckDB and `datasets.Dataset.from_file` read as it is), a batch
a trace: ids, and log-probs in 16 bits, packed. A batch that a killed job has torn is the end of what is there.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rsd.files import locked
from rsd.outputs import anew
from rsd.settings import called
from rsd.traces.lines import Key
from rsd.traces.tokens import MODELS, top_columns

SIZE = b"rsd.top_logprobs"  # how the file says what K is
END = 8  # bytes of an Arrow stream's end, which a stream that goes on does not have


class SoftTargets(NamedTuple):
    """What both models say in the place of each of a trace's T tokens, of their K likeliest tokens.

    prompt_ids: int32 [P], what the student reads before the trace: the prompt, and what was written and not sampled.
    token_ids: int32 [T], the trace's, the final EOS included. teacher_ids, student_ids:
    int32 [T, K], the student's ids, likeliest first; -1 where fewer are known. teacher_logprobs, student_logprobs:
    float32 [T, K], natural log of the softmax over the full width at temperature 1, before any mask; NaN where there
    is no id.
    """

    prompt_ids: np.ndarray
    token_ids: np.ndarray
    teacher_ids: np.ndarray
    teacher_logprobs: np.ndarray
    student_ids: np.ndarray
    student_logprobs: np.ndarray

    @property
    def k(self) -> int:
        return int(self.teacher_ids.shape[1])


def soft_targets(prompt_ids: Sequence[int], tokens: np.ndarray) -> SoftTargets | None:
    """Those of records [T] of `tokens.record(k)` after a prompt; None where these have none."""
    if "teacher_top_ids" not in (tokens.dtype.names or ()):
        return None
    before = np.array(prompt_ids, dtype=np.int32)
    return SoftTargets(before, tokens["token_ids"], *(np.ascontiguousarray(tokens[name]) for name in top_columns()))


def soft_file(out: str | Path) -> Path:
    """The file of soft targets that belongs to a file of rows."""
    return Path(str(out).removesuffix(".jsonl") + ".logprobs.arrow")


def arrow() -> tuple[Any, Any]:
    """pyarrow, and its module for streams.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError as e:
        raise ValueError(f"soft targets ({called('top_logprobs')}) need pyarrow: pip install 'rsd[parquet]'") from e
    return pyarrow, ipc


def schema_of(k: int) -> Any:
    """The columns of a file with the K likeliest tokens of both models."""
    pa, _ = arrow()
    kinds = [("ids", pa.int32()), ("logprobs", pa.float16())]
    fields = [pa.field("id", pa.string()), pa.field("generation", pa.int64())]
    fields += [pa.field(name, pa.list_(pa.int32())) for name in ("prompt_ids", "token_ids")]
    fields += [pa.field(f"{name}_{of}", pa.list_(pa.list_(kind, k))) for name in MODELS for of, kind in kinds]
    fields.append(pa.field("checksum", pa.binary(8)))
    return pa.schema(fields, {SIZE: str(k)})


def head(schema: Any) -> bytes:
    """What a file begins with."""
    return bytes(schema.serialize())


def is_beginning(file: Path, k: int) -> bool:
    """Whether a file is one of so many tokens a place, or will be: it begins as such a one, is empty, or not there."""
    start = head(schema_of(k))
    there = b""
    with suppress(FileNotFoundError), open(file, "rb") as f:
        there = f.read(len(start))
    return start.startswith(there)


def batch(schema: Any, key: Key, soft: SoftTargets) -> bytes:
    """What a trace adds to a file."""
    pa, ipc = arrow()
    teacher, student = soft.teacher_logprobs.astype(np.float16), soft.student_logprobs.astype(np.float16)
    stored, key = soft._replace(teacher_logprobs=teacher, student_logprobs=student), written(key)
    given = {"id": key[0], "generation": key[1], "checksum": checksum(key, stored)}

    def column(field: Any) -> Any:
        if not pa.types.is_list(field.type):
            return pa.array([given[field.name]], field.type)
        values = getattr(stored, field.name)
        inner = field.type.value_type
        if values.ndim == 1:
            flat = pa.array(values, inner)
        else:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), inner.value_type), values.shape[1])
        return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), flat, type=field.type)

    made = pa.record_batch([column(field) for field in schema], schema=schema)
    sink = io.BytesIO()
    with ipc.new_stream(sink, schema, options=ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_batch(made)
    return sink.getvalue()[len(head(schema)) : -END]


def written(key: Key) -> Key:
    """A trace's key as the file has it: of a lone surrogate, which is no text for Arrow, its escape."""
    return key[0].encode("utf-8", "backslashreplace").decode(), key[1]


def unpacked(made: Any, k: int) -> tuple[Key, SoftTargets]:
    """Which trace a batch is of, and its soft targets, log-probs in 16 bits.

    Raises:
        ValueError: it is not what was written.
    """
    made.validate(full=True)
    if made.num_rows != 1:
        raise ValueError("not one trace")
    lists = [made[name][0].values for name in SoftTargets._fields]
    prompt_ids, token_ids = (of.to_numpy(zero_copy_only=False) for of in lists[:2])
    wide = [of.flatten().to_numpy(zero_copy_only=False).reshape(len(token_ids), k) for of in lists[2:]]
    key, soft = (made["id"][0].as_py(), made["generation"][0].as_py()), SoftTargets(prompt_ids, token_ids, *wide)
    if made["checksum"][0].as_py() != checksum(key, soft):
        raise ValueError("damaged")
    return key, soft


def checksum(key: Key, soft: SoftTargets) -> bytes:
    """By which a batch is known to be what was written: nothing else checks what is in it."""
    made = hashlib.blake2b(json.dumps(key).encode(), digest_size=8)
    for of in soft:
        made.update(of.tobytes() + b"|")
    return made.digest()


class SoftFile:
    """The soft targets of a file by their traces, of which only the places are in memory.

    Of two batches of a trace the last one counts. k: how many tokens each has; order: of each batch the trace and where
    it ends; size: how many bytes are whole.

    Raises:
        ValueError: there is no such file, or it holds no soft targets.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        pa, self._ipc = arrow()
        self._places: dict[Key, tuple[int, int, int]] = {}  # where its batch begins and ends, how many tokens it has
        self.order: list[tuple[Key, int]] = []
        try:
            self._source = pa.memory_map(str(self.file))
            self.schema = self._ipc.read_schema(self._ipc.read_message(self._source))
            self.k = int((self.schema.metadata or {})[SIZE])
            if not 0 < self.k < 1 << 24 or self.schema != schema_of(self.k):
                raise ValueError
        except FileNotFoundError:
            raise ValueError(f"{self.file} is not there: {made_by()}") from None
        except (OSError, EOFError, ValueError, KeyError, pa.ArrowException) as e:
            raise ValueError(f"{self.file} holds no soft targets of rsd: {made_by()}") from e
        self.size = self._source.tell()
        for at, end, key, tokens in self._read():
            self._places[key] = at, end, tokens
            self.order.append((key, end))
            self.size = end

    def _read(self) -> Iterator[tuple[int, int, Key, int]]:
        import pyarrow

        whole = self._source.size()
        while (at := self._source.tell()) < whole:
            try:
                key, soft = self._unpacked(at)
            except (OSError, EOFError, ValueError, TypeError, pyarrow.ArrowException):
                return  # torn, or damaged: as if it ended here
            yield at, self._source.tell(), key, len(soft.token_ids)

    def _unpacked(self, at: int) -> tuple[Key, SoftTargets]:
        self._source.seek(at)
        return unpacked(self._ipc.read_record_batch(self._ipc.read_message(self._source), self.schema), self.k)

    def has(self, key: Key) -> bool:
        """Whether there are a trace's."""
        return written(key) in self._places

    def keys(self) -> Iterable[Key]:
        return self._places.keys()

    def holds_only(self, keys: Collection[Key]) -> bool:
        """Whether it holds these traces, each once, and nothing that is torn behind them."""
        there = len(self.order) == len(keys) and self._places.keys() == set(map(written, keys))
        return there and self.size == self._source.size()

    def tokens(self, key: Key) -> int | None:
        """How many tokens a trace has; None if it is not there."""
        place = self._places.get(written(key))
        return None if place is None else place[2]

    def raw(self, key: Key) -> bytes:
        """A trace's batch, as it stands there."""
        at, end, _ = self._places[written(key)]
        self._source.seek(at)
        return bytes(self._source.read(end - at))

    def get(self, key: Key) -> SoftTargets | None:
        """A trace's; None if there are none."""
        if (place := self._places.get(written(key))) is None:
            return None
        _, soft = self._unpacked(place[0])
        teacher, student = soft.teacher_logprobs.astype(np.float32), soft.student_logprobs.astype(np.float32)
        return soft._replace(teacher_logprobs=teacher, student_logprobs=student)


class SoftLog:
    """The file of soft targets beside rows that are written one after the other, open for appending and locked.

    keep: whether what is there is gone on with.

    Raises:
        ValueError: it is no such file, or another process is writing it.
    """

    def __init__(self, file: Path, k: int, *, keep: bool) -> None:
        self.schema = schema_of(k)
        if not is_beginning(file, k):
            raise ValueError(f"{file} is no file of this command with so many tokens: {anew()}")
        self._file = locked(file)
        self.there: list[tuple[Key, int]] = []
        with suppress(ValueError):
            self.there = SoftFile(file).order if keep else []
        self.kept = 0

    def __enter__(self) -> "SoftLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, key: Key) -> bool:
        """Whether this trace's come next of those that are there; then they are kept."""
        same = self.kept < len(self.there) and self.there[self.kept][0] == written(key)
        self.kept += same
        return same

    def begin(self) -> None:
        """Be ready for appending, with what is kept."""
        start = head(self.schema)
        self._file.truncate(self.there[self.kept - 1][1] if self.kept else 0)
        if not self.kept:
            self._file.write(start)

    def append(self, key: Key, soft: SoftTargets) -> None:
        self._file.write(batch(self.schema, key, soft))
        self._file.flush()


def made_by() -> str:
    return f"rsd generate makes them with {called('top_logprobs')}"

"""Soft targets as trainers read them: the columns of axolotl's KD plugin, and DistillKit's packed bytes.

Written after their layouts: axolotl's `integrations/kd/README.md` ("Target alignment": the targets of a token, which it
counts from the end of its ids, are paired with the place before), DistillKit's `compression` and `signals` (targets lie
in the place before their token; ids and log-probs have the bits that its configuration says).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rsd.dataset.formats import Ids, Row, answer
from rsd.dataset.respelled import sampled, student_of
from rsd.traces.lines import Key, key_of
from rsd.traces.soft import SoftTargets, made_by

if TYPE_CHECKING:
    from rsd.models.source import Source

SOFT = ("axolotl-kd", "axolotl-kd-v1", "distillkit")
PACKED = ("input_ids", "labels", "compressed_logprobs", "bytepacked_indices")  # all that DistillKit's loader may meet
FAR = -40.0  # the log-prob of a token that only fills a place: nothing beside the others, at any usual temperature
LEAST = -80.0  # axolotl takes exp and log again in 32 bits, where less than this becomes -inf, and its loss NaN

Get = Callable[[Key], SoftTargets | None]


class Softened(NamedTuple):
    """What can be exported with soft targets.

    rows: those whose tokens have some. dropped: why how many have not. shaped: makes the columns of a row, which are so
    large that this waits until they are written. compression: DistillKit's compression file.
    """

    rows: Sequence[Row]
    dropped: Mapping[str, int]
    shaped: Callable[[Row], dict[str, Any]]
    compression: str | None


def softened(
    path: str, format: str, rows: Sequence[Row], tokens: Mapping[Key, Ids], soft: Get, manifest: Row
) -> Softened:
    """Rows with the teacher's soft targets, in one of the formats of `SOFT`.

    tokens: as far as a job's sidecar is there, which says where what was written and not sampled begins.

    Raises:
        ValueError: a row has none, or the student's tokenizer, which axolotl will ask, is not at hand.
    """
    student = None if format == "distillkit" else _student(path, format, manifest)
    widths = manifest.get("widths")
    width = widths.get("student") if isinstance(widths, dict) else None
    fit, whole, after = [], {}, {}
    missing, largest, k = 0, 0, 1
    dropped: Counter[str] = Counter()
    for row in rows:
        key = key_of(row)
        if (targets := soft(key)) is None:
            missing += 1
            continue
        t = tokens.get(key) or Ids(targets.prompt_ids, np.empty(0, np.int64), targets.token_ids)
        ids = sampled(t)
        read = ids if student is None else _read(student, row)
        n = len(targets.prompt_ids) + len(targets.token_ids)
        if why := _unfit(targets, ids, read, width if type(width) is int else 2**31):
            dropped[why] += 1
            continue
        fit.append(row)
        whole[key], after[key] = t, np.array(read[n:], np.int64)
        largest, k = max(largest, *ids, _largest(targets)), targets.k
    if missing:
        raise ValueError(
            f"{path}: {format} needs the teacher's soft targets, and {missing} rows have none: {made_by()}"
        )

    d = max(width if type(width) is int else 0, largest + 1, 2)
    length = max((sum(map(len, t)) for t in whole.values()), default=0)

    def shaped(row: Row) -> dict[str, Any]:
        key = key_of(row)
        if (targets := soft(key)) is None:
            raise ValueError(f"{path}: its soft targets were changed while they were read")
        if student is not None:
            return axolotl(row, targets, after[key], format)
        return distillkit(whole[key], targets, d=d, length=length)

    return Softened(fit, dropped, shaped, compression(d=d, k=k) if student is None else None)


def _student(path: str, format: str, manifest: Row) -> "Source":
    try:
        return student_of(manifest)
    except ValueError as e:
        raise ValueError(f"{path}: {format} needs the student's tokenizer, by which axolotl reads texts: {e}") from e


def _read(student: "Source", row: Row) -> list[int]:
    """A row's text as axolotl reads it."""
    try:
        return student.training_ids(row["prompt"], answer(row), {})
    except Exception:  # a template may refuse what another one made
        return []


def _unfit(soft: SoftTargets, ids: list[int], read: list[int], width: int) -> str | None:
    """Why these are no soft targets of a trace of these ids; its last ones, such as an EOS, may have none."""
    told = [*soft.prompt_ids.tolist(), *soft.token_ids.tolist()]
    empty = not len(soft.prompt_ids) or not len(soft.token_ids)
    if empty or told != ids[: len(told)] or min(told) < 0 or _largest(soft) >= width:
        return "with soft targets of other tokens"
    return None if ids == read[: len(ids)] else "with other ids as a text than were sampled"


def _largest(soft: SoftTargets) -> int:
    return int(soft.teacher_ids.max())


def _filled(ids: np.ndarray, logprobs: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft targets, int64 and float32 [T, K], with an id and a number in every place.

    Where fewer than K are known, other tokens fill the places, at `FAR`. Where none is, the token [T] that stands there
    has all of the probability, which is what a plain loss says of it, too.
    """
    known, k = (ids >= 0) & np.isfinite(logprobs), ids.shape[1]
    for at in np.flatnonzero(~known.all(axis=1)):
        there, values = ids[at, known[at]], logprobs[at, known[at]]
        if not len(there):
            there, values = tokens[at : at + 1], np.zeros(1, np.float32)
        others = np.setdiff1d(np.arange(k), there)[: k - len(there)]
        ids[at] = np.concatenate([there, others])
        logprobs[at] = np.concatenate([values, np.full(len(others), min(FAR, float(values.min())), np.float32)])
    return ids, logprobs


def _placed(soft: SoftTargets, at: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's soft targets, filled, with those of a trace's first token in place `at` of tokens [T]."""
    around = [(at, len(tokens) - at - len(soft.token_ids)), (0, 0)]
    ids = np.pad(np.asarray(soft.teacher_ids, np.int64), around, constant_values=-1)
    return _filled(ids, np.pad(np.asarray(soft.teacher_logprobs, np.float32), around), tokens)


def axolotl(row: Row, soft: SoftTargets, after: np.ndarray, format: str) -> dict[str, Any]:
    """The columns of axolotl's KD plugin: targets for each token of the trace, and each `after` it in axolotl's ids,
    where the chat template puts some; the prompt has none. In the first layout, v1, tokens are spelled out.
    """
    ids, logprobs = _placed(soft, 0, np.concatenate([soft.token_ids, after]))
    values = np.round(np.maximum(logprobs, LEAST).astype(np.float64), 6).tolist()
    shaped: dict[str, Any] = {"messages": [*row["prompt"], *row["completion"]]}
    if format == "axolotl-kd":
        return {**shaped, "logprobs": values, "target_token_ids": ids.tolist()}
    places = zip(ids.tolist(), values, strict=True)
    spelled = [[{"token": f"token_id:{i}", "logprob": v} for i, v in zip(*of, strict=True)] for of in places]
    return {**shaped, "logprobs": spelled}


def distillkit(tokens: Ids, soft: SoftTargets, *, d: int, length: int) -> dict[str, Any]:
    """The columns of DistillKit's offline teacher: arrays [length] and [length, bytes].

    Its packed batches are of one length, so the last token is repeated up to that, without a label.
    """
    ids = np.array(sampled(tokens))
    top, logprobs = _placed(soft, len(soft.prompt_ids) - 1, np.append(ids[1:], ids[-1]))
    labels = np.where(np.arange(len(ids)) < len(tokens.prompt_ids), -100, ids)
    bits = (top[..., None] >> np.arange(index_bits(d) - 1, -1, -1)) & 1
    columns = {
        "input_ids": ids,
        "labels": labels,
        "compressed_logprobs": np.ascontiguousarray(logprobs, "<f2").view(np.uint8),
        "bytepacked_indices": np.packbits(bits.astype(np.uint8).reshape(len(ids), -1), axis=1),
    }
    more = length - len(ids)
    padded = {name: np.pad(of, [(0, more)] + [(0, 0)] * (of.ndim - 1), mode="edge") for name, of in columns.items()}
    padded["labels"][len(ids) :] = -100
    return padded


def index_bits(d: int) -> int:
    """In how many bits DistillKit packs an id of d tokens: it takes the logarithm in 32 bits."""
    return int(np.ceil(np.log2(np.float32(d))))


def compression(*, d: int, k: int) -> str:
    """DistillKit's compression file: all K log-probs as they are, in 16 bits, as the file of soft targets has them."""
    return (
        f"{COMPRESSION}d: {d}\nk: {k}\nexact_k: {k}\nexact_dtype: float16\npolynomial_terms: null\n"
        "term_dtype: float32\nresidual_bins: []\ndelta_encoding: false\nerror_diffusion: false\nnormalize_t: false\n"
    )


COMPRESSION = "# How rsd packed the soft targets; belongs under teacher: logprob_compressor:\n"


def packed_schema() -> Any:
    """The columns of `distillkit` in parquet, and by what they are known as ours."""
    import pyarrow as pa

    bytes_ = pa.list_(pa.list_(pa.uint8()))
    kinds = (pa.list_(pa.uint64()), pa.list_(pa.int64()), bytes_, bytes_)
    return pa.schema(zip(PACKED, kinds, strict=True), {"rsd": "distillkit"})


def packed_batch(rows: Sequence[Row]) -> Any:
    """Rows of `distillkit` for parquet, without what else they hold: DistillKit makes tensors of all that is there."""
    import pyarrow as pa

    def column(field: Any) -> Any:
        arrays = [row[field.name] for row in rows]
        ends, whole = np.cumsum([0, *map(len, arrays)], dtype=np.int32), np.concatenate(arrays)
        kind = field.type.value_type
        if whole.ndim == 1:
            return pa.ListArray.from_arrays(ends, pa.array(whole, kind))
        within = np.arange(len(whole) + 1, dtype=np.int32) * whole.shape[1]
        inner = pa.ListArray.from_arrays(within, pa.array(whole.ravel(), kind.value_type))
        return pa.ListArray.from_arrays(ends, inner)

    schema = packed_schema()
    return pa.record_batch([column(field) for field in schema], schema=schema)

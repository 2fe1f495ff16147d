"""Part files of a job's processes joined to what one process would have left: rows, sidecar and manifest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rsd.files import encode
from rsd.generation.session import sessions_of
from rsd.generation.statistics import combined, readable
from rsd.traces.columns import not_ours
from rsd.traces.found import Found, kept, scan
from rsd.traces.lines import Key, files_of, key_of, read_manifest, whole_lines
from rsd.traces.rows import in_memory
from rsd.traces.shards import Shard, part_files
from rsd.traces.soft import SoftFile
from rsd.traces.store import Store


def merge(out: str | Path, *, max_fallback_rate: float = 1.0) -> dict[str, Any]:
    """Join all parts of a job with what is in `out` already, and remove them; returns the manifest.

    Each trace is kept once, and an error only where there is no trace. Killed midway, it can be done again.

    Raises:
        ValueError: there are no parts, they are not one job's, or a process is writing one of them.
    """
    parts = part_files(out)
    if not parts:
        raise ValueError(f"{out} has no parts: nothing is to be merged")
    with ExitStack() as stack:
        before = read_manifest(files_of(out)[1])
        manifests = [read_manifest(files_of(file)[1]) for file in parts.values()]
        known = [m for m in (before, *manifests) if m is not None]
        top = next((m["identity"].get("top_logprobs") or 0 for m in known), 0)
        whole = stack.enter_context(Store(out, top=top))
        stores = [stack.enter_context(Store(file, top=top)) for file in parts.values()]
        if not known or any(m["identity"] != known[0]["identity"] for m in known):
            raise ValueError(f"the parts of {out} are of jobs with other settings: remove those that are not wanted")
        whole.made(
            known[0]["identity"], in_memory([]), overwrite=True
        )  # what is there is a job's, or nothing is replaced
        sources = [whole, *stores]
        found = [scan(store.out, in_memory([]), top=top) for store in sources]
        good = set[Key]().union(*(of.done for of in found))
        merged = {k: v for k, v in known[-1].items() if k != "files"} | {"totals": None}
        merged["settings"] = {**known[-1]["settings"], "output": Path(out).name}
        merged["decoding"] = readable(before.get("decoding")) if before else {}
        for manifest in manifests:
            if manifest and (decoding := readable(manifest.get("decoding"))):
                merged["decoding"] = combined(merged["decoding"], decoding)
        merged["processes"] = [*((before or {}).get("processes") or []), *_processes(parts, stores, manifests)]
        merged["sessions"] = sessions_of([before, *manifests])
        contents = {name: map(encode, _once(sources, found, good, i)) for i, name in enumerate(("tokens", "rows"))}
        soft: dict[Key, SoftFile | None] = {}
        for of in found:
            for key in of.done:
                soft.setdefault(key, of.soft)
        whole.rewrite(merged, contents | {"logprobs": whole.soft_of((file, key) for key, file in soft.items())})
        merged["totals"] = whole.totals(max_fallback_rate=max_fallback_rate)
        whole.end(merged)
        for store in stores:
            store.remove()
    return merged


def discard(out: str | Path) -> None:
    """Remove the parts of a job, to start anew.

    Raises:
        ValueError: a process is writing one of them.
    """
    with ExitStack() as stack:
        for store in [stack.enter_context(Store(file)) for file in part_files(out).values()]:
            store.remove()


def _once(sources: Sequence[Store], found: Sequence[Found], good: set[Key], i: int) -> Iterator[Mapping[str, Any]]:
    """The lines of all sidecars (0) or rows (1), of each trace one; and of the rows errors where there is no trace."""
    left, errors = set(good), set[Key]()
    for store, of in zip(sources, found, strict=True):
        if (file := (store.sidecar, store.out)[i]).exists():
            for line in kept(file, left & of.done.keys(), of.odd[i]):
                left.discard(key_of(line))
                yield line
            for line in whole_lines(file) if i else ():
                key = key_of(line)
                if line.get("error") is not None and key not in good and key not in errors and not_ours(line) is None:
                    errors.add(key)
                    yield line


def _processes(
    parts: Mapping[Shard, Path], stores: Sequence[Store], manifests: Sequence[Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Which process made which rows."""
    made = []
    for shard, store, manifest in zip(parts, stores, manifests, strict=True):
        ids = list(dict.fromkeys(line["id"] for line in whole_lines(store.out) if not_ours(line) is None))
        made.append({"shard": str(shard), **((manifest or {}).get("process") or {}), "ids": ids})
    return made

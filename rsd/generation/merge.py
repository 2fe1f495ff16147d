"""Part files of a job's processes joined to what one process would have left: rows, sidecar and manifest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rsd.files import read_json
from rsd.generation.statistics import combined
from rsd.traces.shards import Shard, part_files
from rsd.traces.store import Key, Store, key_of, whole_lines


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
        whole = stack.enter_context(Store(out))
        stores = [stack.enter_context(Store(file)) for file in parts.values()]
        manifests = [_manifest(store) for store in stores]
        before = _manifest(whole)
        known = [m for m in (before, *manifests) if m is not None]
        if not known or any(m["identity"] != known[0]["identity"] for m in known):
            raise ValueError(f"the parts of {out} are of jobs with other settings: remove those that are not wanted")
        whole.made(known[0]["identity"], [], overwrite=True)  # what is there is a job's, or nothing is replaced
        sources = [whole, *stores]
        good = _made(sources)
        merged = {**known[-1], "totals": None}
        merged["settings"] = {**known[-1]["settings"], "output": Path(out).name}
        merged["decoding"] = dict(before["decoding"]) if before else {}
        for manifest in manifests:
            if manifest and manifest["decoding"].get("left_out"):
                merged["decoding"] = combined(merged["decoding"], manifest["decoding"])
        merged["processes"] = [*(before or {}).get("processes", []), *_processes(parts, stores, manifests)]
        whole.rewrite(merged, _once(sources, good, sidecar=True), _once(sources, good, sidecar=False))
        merged["totals"] = whole.totals(max_fallback_rate=max_fallback_rate)
        whole.end(merged)
        for store in stores:
            for file in (store.out, store.sidecar, store.manifest):
                file.unlink(missing_ok=True)
    return merged


def discard(out: str | Path) -> None:
    """Remove the parts of a job, to start anew.

    Raises:
        ValueError: a process is writing one of them.
    """
    with ExitStack() as stack:
        for store in [stack.enter_context(Store(file)) for file in part_files(out).values()]:
            for file in (store.out, store.sidecar, store.manifest):
                file.unlink(missing_ok=True)


def _manifest(store: Store) -> dict[str, Any] | None:
    made = read_json(store.manifest)
    return made if made and {"identity", "settings", "decoding"} <= made.keys() else None


def _made(sources: Sequence[Store]) -> set[Key]:
    """The traces that are whole in one of the sources: a row without an error, and its tokens."""
    good: set[Key] = set()
    for store in sources:
        tokens = {key_of(line) for line in whole_lines(store.sidecar)}
        good |= {key_of(line) for line in whole_lines(store.out) if line.get("error") is None} & tokens
    return good


def _once(sources: Iterable[Store], good: set[Key], *, sidecar: bool) -> Iterator[Mapping[str, Any]]:
    """The lines of all sources, of each trace one."""
    left, errors = set(good), set[Key]()
    for store in sources:
        for line in whole_lines(store.sidecar if sidecar else store.out):
            key = key_of(line)
            if key in left and (sidecar or line.get("error") is None):
                left.discard(key)
                yield line
            elif key not in good and not sidecar and line.get("error") is not None and key not in errors:
                errors.add(key)
                yield line


def _processes(
    parts: Mapping[Shard, Path], stores: Sequence[Store], manifests: Sequence[Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Which process made which rows."""
    made = []
    for shard, store, manifest in zip(parts, stores, manifests, strict=True):
        ids = list(dict.fromkeys(line["id"] for line in whole_lines(store.out)))
        made.append({"shard": str(shard), **(manifest or {}).get("process", {}), "ids": ids})
    return made

"""The files of one job: rows, the sidecar of tokens, the manifest. Append, resume, never lose a line.

Three files belong together: OUT.jsonl (a line a trace), OUT.tokens.jsonl (its arrays, written before)
and OUT.meta.json (what the job is, and its totals); and where soft targets are asked for OUT.logprobs.arrow, in which
a trace's are written first (`soft`). A trace counts as made when all that is of it is whole, and is what the job would
have written; anything else that a killed job or a damaged disk left behind is dropped and made again.

Every few seconds the manifest notes how long the files are, and a hash of that much of them. Where that still holds
when the job goes on, what is there is known to be right without being looked at token by token (`found`).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rsd.files import encode, locked, rewritten, sweep, synced, write_text
from rsd.strictjson import finite
from rsd.traces.found import Found, Spelled, kept, look
from rsd.traces.lines import Key, files_of, hash_of, key_of, read_manifest, whole_lines
from rsd.traces.rows import Rows
from rsd.traces.soft import SoftFile, batch, head, schema_of, soft_file
from rsd.traces.totals import totals
from rsd.traces.trace import Trace

SYNC = 5.0  # seconds of traces that a power cut may cost


class Store:
    """The files of a job at `out`, locked from entering until leaving: `with Store(out) as store`.

    top: how many likeliest tokens a place has in the file of soft targets; 0: there is no such file.

    What is done is read under the same lock under which it is gone on with. A run that leaves before it has begun
    leaves everything as it was.

    Raises:
        ValueError: on entering, another process is writing these files.
    """

    def __init__(self, out: str | Path, *, top: int = 0) -> None:
        self.out, self.top = Path(out), top
        self.sidecar, self.manifest = files_of(out)
        self.soft = soft_file(out)
        # A row comes after all that belongs to it.
        self.parts = {**({"logprobs": self.soft} if top else {}), "tokens": self.sidecar, "rows": self.out}
        self._schema = schema_of(top) if top else None
        self._files: dict[str, BinaryIO] = {}
        self._new: list[Path] = []  # what is there only since it is locked
        self._synced = time.monotonic()
        self._hashes = {name: hashlib.blake2b() for name in self.parts}  # of the files as they are
        self._manifest: Mapping[str, Any] = {}
        self._session: Callable[[], Mapping[str, Any]] | None = None
        self.found = Found()

    def __enter__(self) -> "Store":
        try:
            for name, file in self.parts.items():
                new = not os.path.lexists(file)
                self._files[name] = locked(file)
                if new:
                    self._new.append(file)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for file in self._new:  # nothing was begun
            file.unlink(missing_ok=True)
        self._new.clear()
        for handle in self._files.values():
            with suppress(OSError):  # a full disk has said so already
                handle.close()
        self._files.clear()

    def made(
        self,
        identity: Mapping[str, Any],
        rows: Rows,
        *,
        overwrite: bool,
        max_fallback_rate: float = 1.0,
        spelled: Spelled | None = None,
    ) -> dict[Key, bool]:
        """The traces that are already there, and whether each is right: see `found.look`. Writes nothing."""
        how: dict[str, Any] = {"max_fallback_rate": max_fallback_rate, "spelled": spelled, "top": self.top}
        self.found = look(self.out, identity, rows, new=self.out in self._new, overwrite=overwrite, **how)
        return dict(self.found.done)

    def stored(self, keys: Collection[Key]) -> dict[Key, tuple[dict[str, Any], dict[str, Any]]]:
        """Rows and sidecar lines of these traces."""
        tokens = {key_of(line): line for line in whole_lines(self.sidecar) if key_of(line) in keys}
        rows = {
            key_of(line): line for line in whole_lines(self.out) if key_of(line) in keys and line.get("error") is None
        }
        return {key: (rows[key], tokens[key]) for key in keys}

    def begin(
        self,
        manifest: Mapping[str, Any],
        done: Collection[Key],
        *,
        overwrite: bool,
        verdicts: Mapping[Key, Mapping[str, Any]] | None = None,
        session: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Be ready for appending, with exactly the traces `done` in both files, and with these columns anew in rows.

        session: what is to be added to the manifest's `sessions`, as often as it is written.
        """
        self._new.clear()
        self._session = session
        if overwrite:
            for handle in self._files.values():
                handle.truncate(0)
        self._manifest = manifest
        self._write_manifest(manifest)
        if self.top:
            soft = self.found.soft
            if soft is None or not soft.holds_only(done):
                self._replace("logprobs", self.soft_of((soft, key) for key in done))
            else:
                (self._hashes["logprobs"],) = hash_of(self.soft)
        for i, (name, file) in enumerate((("tokens", self.sidecar), ("rows", self.out))):
            changed = (verdicts or {}) if file == self.out else {}
            # An interrupted job leaves torn lines, tokens without a row, and rows with errors.
            if changed or self.found.lines[i] != len(done):
                self._replace(name, map(encode, kept(file, done, self.found.odd[i], changed)))
            else:
                self._hashes[name] = self.found.hashes[i]
        self._sync()

    def soft_of(self, places: Iterable[tuple[SoftFile | None, Key]]) -> Iterator[bytes]:
        """A file of soft targets, of these traces in these files."""
        yield head(self._schema)
        for file, key in places:
            if file is not None:
                yield file.raw(key)

    def _replace(self, name: str, parts: Iterable[bytes]) -> None:
        new = rewritten(self.parts[name], parts)
        self._files[name].close()
        self._files[name] = new
        (self._hashes[name],) = hash_of(self.parts[name])

    def rewrite(self, manifest: Mapping[str, Any], contents: Mapping[str, Iterable[bytes]]) -> None:
        """Put other contents into the place of the manifest and of all `parts`, by their names; in this order."""
        self._new.clear()
        self._write_manifest(manifest)
        for name in self.parts:
            self._replace(name, contents[name])

    def remove(self) -> None:
        """Remove the files, and what a killed run left half written of them."""
        for file in (*reversed(self.parts.values()), self.manifest, self.soft):
            file.unlink(missing_ok=True)
            sweep(file)

    def decoding(self) -> dict[str, Any]:
        """The statistics of the rounds (`BlockController.statistics`) that made what is there, as far as runs ended."""
        return dict((read_manifest(self.manifest) or {}).get("decoding") or {})

    def sessions(self) -> list[dict[str, Any]]:
        """The sessions that made what is there."""
        return list((read_manifest(self.manifest) or {}).get("sessions") or ())

    def totals(self, *, max_fallback_rate: float = 1.0) -> dict[str, Any]:
        """What the rows in the file add up to (`traces.totals`)."""
        return totals(whole_lines(self.out), max_fallback_rate=max_fallback_rate)

    def append(self, trace: Trace) -> None:
        """Write one trace, its row last, all flushed; and every few seconds onto the disk."""
        if trace.error is None:
            if (soft := trace.soft_targets) is not None:
                self._append("logprobs", batch(self._schema, trace.key, soft))
            self._append("tokens", encode(trace.sidecar()))
        self._append("rows", encode(trace.row()))
        if time.monotonic() - self._synced > SYNC:
            self._sync()

    def _append(self, name: str, part: bytes) -> None:
        self._files[name].write(part)
        self._files[name].flush()
        self._hashes[name].update(part)

    def _sync(self) -> None:
        """Have what there is on the disk, and noted in the manifest."""
        for handle in self._files.values():
            synced(handle)
        noted = {
            name: {"bytes": os.fstat(handle.fileno()).st_size, "blake2b": self._hashes[name].hexdigest()}
            for name, handle in self._files.items()
        }
        self._write_manifest({**self._manifest, "files": noted})
        self._synced = time.monotonic()

    def end(self, manifest: Mapping[str, Any]) -> None:
        """Store the manifest, when all rows are on the disk."""
        self._manifest = manifest
        self._sync()

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        if self._session is not None:
            manifest = {**manifest, "sessions": [*manifest["sessions"], self._session()]}
        write_text(self.manifest, json.dumps(finite(manifest), indent=2, ensure_ascii=False) + "\n")

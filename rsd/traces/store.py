"""The files of one job: rows, the sidecar of tokens, the manifest. Append, resume, never lose a line.

Three files belong together: OUT.jsonl (a line a trace), OUT.tokens.jsonl (its arrays, written first)
and OUT.meta.json (what the job is, and its totals). A trace counts as made when both of its lines are
whole; anything else that a killed job left behind is dropped and made again.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rsd.files import encode, first_row, locked, rewritten, synced, write_text
from rsd.strictjson import finite
from rsd.traces.columns import oddity
from rsd.traces.filters import flaw, is_right
from rsd.traces.rows import Row, digest
from rsd.traces.trace import Trace

Key = tuple[str, int]
HEAD = b'{\n  "format": 1,'  # of a manifest
SYNC = 5.0  # seconds of traces that a power cut may cost


class Store:
    """The three files of a job at `out`, locked from entering until leaving: `with Store(out) as store`.

    What is done is read under the same lock under which it is gone on with. A run that leaves before it has begun
    leaves everything as it was.

    Raises:
        ValueError: on entering, another process is writing these files.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.sidecar, self.manifest = self.files(out)
        self._files: list[BinaryIO] = []
        self._new: list[Path] = []  # what is there only since it is locked
        self._synced = time.monotonic()
        # By key the rows that have no verdict since the judge failed, and whether the manifest is lost; see `made`.
        self.unjudged: dict[Key, dict[str, Any]] = {}
        self.lost = False

    @staticmethod
    def files(out: str | Path) -> tuple[Path, Path]:
        """The sidecar and the manifest that belong to a file of rows."""
        base = str(out).removesuffix(".jsonl")
        return Path(f"{base}.tokens.jsonl"), Path(f"{base}.meta.json")

    def __enter__(self) -> "Store":
        try:
            for file in (self.sidecar, self.out):
                new = not os.path.lexists(file)
                self._files.append(locked(file))
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
        for handle in self._files:
            with suppress(OSError):  # a full disk has said so already
                handle.close()
        self._files.clear()

    def made(
        self, identity: Mapping[str, Any], rows: Iterable[Row], *, overwrite: bool, max_fallback_rate: float = 1.0
    ) -> dict[Key, bool]:
        """The traces that are already there, and whether each is right (`filters.is_right`). Writes nothing.

        Where the manifest is lost (gone, empty or torn), `lost` says so: their settings are not known then.

        Args:
            identity: what shapes the traces; must be what the manifest holds.
            rows: the job's; their prompts and answers must be the stored ones.
            overwrite: none of them counts; any job's files will do, but never a file that is no job's.

        Raises:
            ValueError: the files are another job's.
        """
        before = self._identity()
        if not self._ours(torn=before is not None):
            which = "has no manifest" if before is None else "is not what its manifest is of"
            raise ValueError(f"{self.out} exists and {which}: it is not this job's; use another -o")
        if overwrite:
            return {}
        differing = (
            [
                f"{k} (there {before.get(k)!r}, now {identity.get(k)!r})"
                for k in dict.fromkeys([*before, *identity])
                if before.get(k) != identity.get(k)
            ]
            if before is not None
            else []
        )
        if differing:
            raise ValueError(
                f"{self.out} was made with other settings: {'; '.join(differing)}; "
                "use another -o, or --overwrite to start anew"
            )
        given = {str(row.id): row for row in rows}
        whole = {key_of(line): line.get("teacher_prompt") for line in whole_lines(self.sidecar)}
        done = {}
        for number, line in enumerate(whole_lines(self.out), 1):
            if (what := oddity(line)) is not None:
                raise ValueError(f"{self.out}, line {number}: {what}; mend it, or use another -o")
            key = key_of(line)
            if (row := given.get(key[0])) is not None and (what := _differing(line, row, whole.get(key))):
                raise ValueError(
                    f"{self.out} holds another {what} for id {key[0]!r} than the input: "
                    "use another -o, or --overwrite to start anew"
                )
            if line.get("error") is None and key in whole:
                done[key] = is_right(line, max_fallback_rate=max_fallback_rate)
                if line.get("verify_error") is not None and isinstance(line.get("completion"), list):
                    self.unjudged[key] = line
        self.lost = before is None and any(f.is_file() and f.stat().st_size for f in (self.out, self.sidecar))
        if self.lost and not given.keys() & {key[0] for key in done}:
            raise ValueError(
                f"{self.manifest} is lost, and with it what {self.out} was made with; no trace of this input is there "
                "to tell by: use another -o, or --overwrite to start anew"
            )
        return done

    def _identity(self) -> dict[str, Any] | None:
        """What the manifest says that shapes the traces; None if it is not there, or lost.

        Raises:
            ValueError: it is another file's, or no manifest.
        """
        try:
            text = self.manifest.read_bytes()
        except FileNotFoundError:
            text = b""
        base = Path(str(self.out).removesuffix(".jsonl"))
        twin = base if base != self.out else Path(f"{base}.jsonl")  # traces and traces.jsonl
        try:
            manifest = json.loads(text)
            identity, settings = dict(manifest["identity"]), dict(manifest["settings"])
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            if text.strip(b"\0 \r\n") and text[: len(HEAD)] != HEAD[: len(text)]:
                raise ValueError(f"{self.manifest} is not a manifest of rsd; use another -o") from e
            return None
        # Manifests of old do not say whose they are: of an output that is not there yet, they are not.
        named = settings.get("output", None if self.out in self._new else self.out.name)
        if twin.is_file() and named != self.out.name:
            raise ValueError(f"{self.manifest} and {self.sidecar} belong to {twin}: use another -o")
        return identity

    def _ours(self, *, torn: bool) -> bool:
        """Whether rows and sidecar begin as a job's do, or are empty, or hold (`torn`) no whole line."""
        kinds = {self.out: ("prompt", "completion", "generation"), self.sidecar: ("generation", "token_ids")}
        return all(
            not f.is_file() or not f.stat().st_size or first_row(f).keys() >= set(columns) or (torn and not _lines(f))
            for f, columns in kinds.items()
        )

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
    ) -> None:
        """Be ready for appending, with exactly the traces `done` in both files, and with these columns anew in rows."""
        self._new.clear()
        if overwrite:
            for handle in self._files:
                handle.truncate(0)
        self._write_manifest(manifest)
        for i, file in enumerate((self.sidecar, self.out)):
            changed = (verdicts or {}) if file == self.out else {}
            # An interrupted job leaves torn lines, tokens without a row, and rows with errors.
            if changed or not _is_exactly(file, done):
                new = rewritten(file, _kept(file, done, changed))
                self._files[i].close()
                self._files[i] = new

    def rewrite(
        self, manifest: Mapping[str, Any], tokens: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Put other contents into the place of all three files: the tokens before the rows, as always."""
        self._new.clear()
        self._write_manifest(manifest)
        for i, (file, lines) in enumerate(((self.sidecar, tokens), (self.out, rows))):
            new = rewritten(file, lines)
            self._files[i].close()
            self._files[i] = new

    def decoding(self) -> dict[str, Any]:
        """The statistics of the rounds (`BlockController.statistics`) that made what is there, as far as runs ended."""
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8"))["decoding"] or {})
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def append(self, trace: Trace) -> None:
        """Write one trace, the sidecar before the row, both flushed; and every few seconds onto the disk."""
        sidecar, rows = self._files
        if trace.error is None:
            sidecar.write(encode(trace.sidecar()))
            sidecar.flush()
        rows.write(encode(trace.row()))
        rows.flush()
        if time.monotonic() - self._synced > SYNC:
            self._sync()

    def _sync(self) -> None:
        for handle in self._files:
            synced(handle)
        self._synced = time.monotonic()

    def totals(self, *, max_fallback_rate: float = 1.0) -> dict[str, Any]:
        """What the rows in the file add up to.

        Each row is one of correct, wrong and not_verified; each problem one of solved (a correct trace that is
        fit for training), unsolved, and unknown (no verdict on any trace).
        """
        reasons: Counter[str] = Counter()
        verdicts: Counter[bool | None] = Counter()
        flaws: Counter[str] = Counter()
        problems: dict[str, set[bool | None]] = defaultdict(set)
        first: dict[str, str | None] = {"error": None, "verify_error": None}
        tokens = verify_errors = 0
        accepted = fallback = 0.0
        for row in whole_lines(self.out):
            correct, count = row.get("is_correct"), row.get("num_tokens") or 0
            verdicts[correct] += 1
            verify_errors += row.get("verify_error") is not None
            for column in first:
                first[column] = first[column] or row.get(column)
            why = flaw(row, max_fallback_rate=max_fallback_rate)
            flaws.update([why] if why else [])
            problems[str(row["id"])].add(correct if correct is not True or not why else False)
            reasons[row.get("finish_reason") or "not known"] += 1
            tokens += count
            accepted += count * (row.get("acceptance_rate") or 0)
            fallback += count * (row.get("fallback_rate") or 0)
        return {
            "rows": reasons.total(),
            "errors": reasons["error"],
            "tokens": tokens,
            "acceptance_rate": round(accepted / tokens, 4) if tokens else None,
            "fallback_rate": round(fallback / tokens, 4) if tokens else None,
            "finish_reasons": dict(sorted(reasons.items())),
            "correct": verdicts[True],
            "wrong": verdicts[False],
            "not_verified": verdicts[None],
            "verify_errors": verify_errors,
            "first_error": first["error"],
            "first_verify_error": first["verify_error"],
            "unfit": dict(sorted(flaws.items())),
            "problems": len(problems),
            "solved": sum(True in of for of in problems.values()),
            "unsolved": sum(True not in of and False in of for of in problems.values()),
            "unknown": sum(of == {None} for of in problems.values()),
        }

    def end(self, manifest: Mapping[str, Any]) -> None:
        """Store the manifest, when all rows are on the disk."""
        self._sync()
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_text(self.manifest, json.dumps(finite(manifest), indent=2, ensure_ascii=False) + "\n")


def _differing(line: Mapping[str, Any], row: Row, teacher_prompt: str | None) -> str | None:
    """What of a stored row is not what its input says now, though it shaped the trace or its verdict."""
    if line.get("prompt") != row.messages:
        return "prompt"
    if line.get("error") is None and teacher_prompt != (digest(row.teacher) if row.teacher else None):
        return "prompt of the teacher"
    if (column := row.answer_column) is not None:
        stored = line.get(f"input_{column}", line.get(column))
        if encode({"": stored}) != encode({"": row.answer}):
            return "answer"
    return None


def _kept(file: Path, keep: Collection[Key], changed: Mapping[Key, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of these traces, each once, with what is changed."""
    left = set(keep)
    for line in whole_lines(file):
        if (key := key_of(line)) in left and not line.get("error"):
            left.discard(key)
            yield {**line, **changed.get(key, {})}


def key_of(line: Mapping[str, Any]) -> Key:
    """Which trace a line of rows, or of the sidecar, is of."""
    return str(line.get("id")), line["generation"]


def whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file that may have been torn by a crash."""
    if not file.exists():
        return
    with open(file, "rb") as f:
        for line in f:
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("generation"), int):
                    yield row


def _lines(file: Path) -> int:
    with open(file, "rb") as f:
        return sum(line.endswith(b"\n") for line in f)


def _is_exactly(file: Path, keys: Collection[Key]) -> bool:
    """Whether a file holds these traces, each once, and nothing else."""
    with open(file, "rb") as f:
        count = sum(1 for _ in f)
    found = [key_of(line) for line in whole_lines(file) if not line.get("error")]
    return count == len(found) == len(keys) and set(found) == set(keys)

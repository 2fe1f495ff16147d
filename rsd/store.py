"""The files of one job: rows, the sidecar of tokens, the manifest. Append, resume, never lose a line.

Three files belong together: OUT.jsonl (a line a trace), OUT.tokens.jsonl (its arrays, written first)
and OUT.meta.json (what the job is, and its totals). A trace counts as made when both of its lines are
whole; anything else that a killed job left behind is dropped and made again.
"""

import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from rsd.columns import oddity
from rsd.data import Row, digest
from rsd.files import encode, locked
from rsd.keep import flaw, is_right
from rsd.strictjson import finite
from rsd.trace import Trace

Key = tuple[str, int]


class Store:
    """The three files of a job at `out`.

    Raises:
        ValueError: the folder cannot be written, or `out` is no place for a file.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.sidecar, self.manifest = self.files(out)
        if self.out.is_dir():
            raise ValueError(f"{out} is a folder: give the output a file name, such as {out}/traces.jsonl")
        try:
            with tempfile.TemporaryFile(dir=self.out.parent):
                pass
        except OSError as e:
            raise ValueError(f"cannot write to the folder {self.out.parent}: {e.strerror}") from e
        self._files: list[BinaryIO] = []

    @staticmethod
    def files(out: str | Path) -> tuple[Path, Path]:
        """The sidecar and the manifest that belong to a file of rows."""
        base = str(out).removesuffix(".jsonl")
        return Path(f"{base}.tokens.jsonl"), Path(f"{base}.meta.json")

    def made(
        self, identity: Mapping[str, Any], rows: Iterable[Row], *, overwrite: bool, max_fallback_rate: float = 1.0
    ) -> dict[Key, bool]:
        """The traces that are already there, and whether each is right (`keep.is_right`). Writes nothing.

        Args:
            identity: what shapes the traces; must be what the manifest holds.
            rows: the job's; their prompts and answers must be the stored ones.
            overwrite: none of them counts; any job's files will do, but never a file that is no job's.

        Raises:
            ValueError: the files are another job's.
        """
        if not self.manifest.exists():
            if any(f.exists() and f.stat().st_size for f in (self.out, self.sidecar)):
                raise ValueError(f"{self.out} exists and has no manifest: it is not this job's; use another -o")
            return {}
        try:
            before = dict(json.loads(self.manifest.read_text(encoding="utf-8"))["identity"])
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{self.manifest} is not a manifest of rsd; use another -o") from e
        if overwrite:
            return {}
        differing = [
            f"{k} (there {before.get(k)!r}, now {identity.get(k)!r})"
            for k in dict.fromkeys([*before, *identity])
            if before.get(k) != identity.get(k)
        ]
        if differing:
            raise ValueError(
                f"{self.out} was made with other settings: {'; '.join(differing)}; "
                "use another -o, or --overwrite to start anew"
            )
        given = {str(row.id): row for row in rows}
        whole = {_key(line): line.get("teacher_prompt") for line in whole_lines(self.sidecar)}
        done = {}
        for number, line in enumerate(whole_lines(self.out), 1):
            if (what := oddity(line)) is not None:
                raise ValueError(f"{self.out}, line {number}: {what}; mend it, or use another -o")
            key = _key(line)
            if (row := given.get(key[0])) is not None and (what := _differing(line, row, whole.get(key))):
                raise ValueError(
                    f"{self.out} holds another {what} for id {key[0]!r} than the input: "
                    "use another -o, or --overwrite to start anew"
                )
            if line.get("error") is None and key in whole:
                done[key] = is_right(line, max_fallback_rate=max_fallback_rate)
        return done

    def begin(self, manifest: Mapping[str, Any], done: Collection[Key], *, overwrite: bool) -> None:
        """Open for appending, with exactly the traces `done` in both files.

        Raises:
            ValueError: another process is writing these files.
        """
        for file in (self.sidecar, self.out):
            self._files.append(locked(file))
        if overwrite:
            for handle in self._files:
                handle.truncate(0)
        self._write_manifest(manifest)
        for i, file in enumerate((self.sidecar, self.out)):
            # An interrupted job leaves torn lines, tokens without a row, and rows with errors.
            if not _is_exactly(file, done):
                _rewrite(file, done)
                self._files[i].close()
                self._files[i] = locked(file)

    def decoding(self) -> dict[str, Any]:
        """The books of the rounds (`Pace.books`) that made what is there, as far as runs came to their end."""
        try:
            return dict(json.loads(self.manifest.read_text(encoding="utf-8"))["decoding"] or {})
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def append(self, trace: Trace) -> None:
        """Write one trace, the sidecar before the row, both flushed."""
        sidecar, rows = self._files
        if trace.error is None:
            sidecar.write(encode(trace.tokens()))
            sidecar.flush()
        rows.write(encode(trace.row()))
        rows.flush()

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

    def end(self, manifest: Mapping[str, Any] | None) -> None:
        """Close the files; with a manifest, store it."""
        for file in self._files:
            file.close()
        self._files.clear()
        if manifest is not None:
            self._write_manifest(manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        temporary = Path(f"{self.manifest}.tmp")
        temporary.write_text(
            json.dumps(finite(manifest), indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace"
        )
        os.replace(temporary, self.manifest)


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


def _rewrite(file: Path, keep: Collection[Key]) -> None:
    left = set(keep)
    temporary = Path(f"{file}.tmp")
    with open(temporary, "wb") as f:
        for line in whole_lines(file):
            if _key(line) in left and not line.get("error"):
                left.discard(_key(line))
                f.write(encode(line))
    os.replace(temporary, file)


def _key(line: Mapping[str, Any]) -> Key:
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


def _is_exactly(file: Path, keys: Collection[Key]) -> bool:
    """Whether a file holds these traces, each once, and nothing else."""
    with open(file, "rb") as f:
        count = sum(1 for _ in f)
    found = [_key(line) for line in whole_lines(file) if not line.get("error")]
    return count == len(found) == len(keys) and set(found) == set(keys)

"""Weighing a file: rows with their weights, in order, resumable, with a progress bar and a summary."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rsd.files import begun, encode
from rsd.outputs import Output, anew, check_outputs
from rsd.scoring.job import progress
from rsd.scoring.responses import Responses, read_responses
from rsd.scoring.scored_rows import lines_before
from rsd.scoring.verdicts import must_judge
from rsd.terminal import BAD, in_lines, joined, paint, say
from rsd.traces import ours
from rsd.traces.columns import is_number
from rsd.traces.given import Given, file_of
from rsd.traces.lines import files_of, made_of, read_manifest
from rsd.weighing.columns import plain
from rsd.weighing.config import WeighConfig
from rsd.weighing.weigher import Weigher

LITTLE, MUCH = 0.4, 0.6  # weights between them say little


class WeighSummary:
    """What a file of weighed rows holds, and what this run added to it: `new_rows` in `seconds`."""

    def __init__(self, weighing: Mapping[str, Any]) -> None:
        self.weighing = weighing
        self.rows = self.errors = self.steps = self.tokens = self.low = self.high = self.new_rows = 0
        self.sum = self.seconds = 0.0
        self._first = ""

    def add(self, columns: Mapping[str, Any]) -> None:
        """The columns of a row more."""
        self.rows += 1
        if columns["weigh_error"] is not None:
            self._first = self._first or str(columns["weigh_error"])
            self.errors += 1
            return
        weights = columns["step_weights"]
        self.tokens += len(columns["token_weights"])
        self.steps += len(weights)
        self.low += sum(w < LITTLE for w in weights)
        self.high += sum(w > MUCH for w in weights)
        self.sum += sum(weights)

    @property
    def mean(self) -> float | None:
        """The mean weight of a step."""
        return self.sum / self.steps if self.steps else None

    def text(self) -> str:
        w = self.weighing
        teacher = f"teacher {w['teacher']}, " if w["teacher"] else ""
        lines: list[str] = [
            f"weighed by   {w['validity']}, {teacher}student {w['student']}, {w['steps']} steps",
            f"rows         {self.rows} ({self.new_rows} new), {self.errors} of them with an error",
        ]
        if self.mean is not None:
            shares = [n / self.steps for n in (self.low, self.steps - self.low - self.high, self.high)]
            said = (f"below {LITTLE}", f"{LITTLE} to {MUCH}", f"above {MUCH}")
            lines.append(f"steps        {self.steps}, their mean weight {self.mean:.3f}")
            lines.append("weights      " + ", ".join(f"{s:.1%} {of}" for s, of in zip(shares, said, strict=True)))
        if self.errors:
            why = f"       {self.errors} rows have `weigh_error`, the first: {self._first}"
            lines.append(joined([paint("errors", BAD), why]))
        lines.append(f"time         {self.seconds:.1f} s, {self.tokens} tokens in all")
        return in_lines(lines)


def weigher_for(source: Given, config: WeighConfig, *, strict: bool = False) -> tuple[Weigher, Responses]:
    """What weighs these rows, and the rows. strict: as of `given.read`.

    Raises:
        ValueError: they cannot be read, or weighed by this pair; or rollouts could not be judged.
    """
    todo, file = read_responses(source, config, strict=strict), file_of(source)
    judging = must_judge(todo, config) if config.validity == "rollout" else None
    manifests = (read_manifest(files_of(name)[1]) for name in made_of(file)) if file is not None else ()
    manifest = next((one for one in manifests if one is not None), None)
    return Weigher(config, manifest=manifest, judging=judging), todo


def weigh_file(weigher: Weigher, todo: Responses, out: str | Path, *, overwrite: bool = False) -> WeighSummary:
    """Write the rows with their weights, in order, as soon as they are weighed; resumes what an earlier run left.

    Where nothing is left to be weighed no weights are loaded.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with these settings left.
    """
    started, out = time.monotonic(), Path(out)
    check_outputs([Output(out, ours.weighed if overwrite else None)])
    summary = WeighSummary(weigher.weighing)
    with closing(begun(out, overwrite=overwrite)) as file:
        done, size = (0, 0) if overwrite else weighed_before(summary, todo, out)
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} weighed rows, {len(todo) - done} to weigh")
        if done < len(todo):
            for line in weigher.notices:
                say(line)
        left = (todo[i] for i in range(done, len(todo)))
        for made in progress(weigher.weigh(left), count=len(todo) - done, initial=done):
            summary.add(made.columns)
            file.write(encode(made.row()))
            file.flush()
    summary.new_rows, summary.seconds = len(todo) - done, time.monotonic() - started
    return summary


def weighed_before(summary: WeighSummary, todo: Responses, out: Path) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take; they are added to the summary."""
    done = size = 0
    for _, line, added in lines_before(todo.rows, out, plain):
        try:
            summary.add(weights_of(added, summary.weighing))
        except ValueError as e:
            raise ValueError(f"{out}, line {done + 1}, {e}: {anew()}") from e
        done, size = done + 1, size + len(line)
    return done, size


def weights_of(line: bytes, weighing: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of a line that holds weights.

    Raises:
        ValueError: they are no weights that were made by these settings.
    """
    try:
        made = json.loads(line)
        there, error = made["weighing"], made["weigh_error"]
        lists = [] if error is not None else [made["step_weights"], made["token_weights"]]
        whole = all(isinstance(ws, list) and all(is_number(w) and 0 <= w <= 1 for w in ws) for ws in lists)
        if there == weighing and whole:
            return dict(made)
        differing = [
            f"{k} (there {there.get(k)!r}, now {weighing.get(k)!r})"
            for k in dict.fromkeys([*there, *weighing])
            if there.get(k) != weighing.get(k)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("holds no weights") from None
    raise ValueError(f"was weighed with other settings: {', '.join(differing)}" if differing else "holds no weights")

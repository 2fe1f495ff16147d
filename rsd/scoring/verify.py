"""Judging a file: its rows with a verdict each, in order, resumable."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rsd.bar import Bar
from rsd.files import begun, encode
from rsd.outputs import Output, anew, check_outputs
from rsd.scoring.responses import Responses
from rsd.scoring.scored_rows import lines_before
from rsd.scoring.verdicts import Judging, judged
from rsd.terminal import BAD, in_lines, joined, paint, say
from rsd.traces import ours
from rsd.traces.totals import answers


class VerifySummary:
    """What a file of judged rows holds, and what this run added to it: `new_rows` in `seconds`."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.rows = self.new_rows = self.changed = self.errors = self.unjudged = 0
        self.seconds = 0.0
        self.verdicts = Counter[bool | None]()
        self._first = ""

    def add(self, before: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """A row more: as it was, and with its verdict."""
        verdict = row["is_correct"]
        self.rows += 1
        self.verdicts[verdict] += 1
        self.changed += isinstance(was := before.get("is_correct"), bool) and was is not verdict
        if (why := row["verify_error"]) is not None:
            self._first = self._first or str(why)
            self.unjudged += 1

    def text(self) -> str:
        lines = [f"verified by  {self.how}", f"rows         {self.rows} ({self.new_rows} new)"]
        lines.append(answers(*map(self.verdicts.get, (True, False, None), (0, 0, 0))))
        if self.changed:
            lines.append(f"changed      {self.changed} rows had another verdict before")
        if self.unjudged:
            said = f"   {self.unjudged} rows have `verify_error` set, the first: {self._first}"
            lines.append(joined([paint("not judged", BAD), said]))
        lines.append(f"time         {self.seconds:.1f} s")
        return in_lines(lines)


def verify_file(todo: Responses, out: str | Path, judging: Judging, *, overwrite: bool = False) -> VerifySummary:
    """Write the rows with their verdicts, in order, each as soon as it is judged; resumes what an earlier run left.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with this judge left; or a user's function
            cannot be imported.
    """
    started, summary = time.monotonic(), VerifySummary(judging.how)
    check_outputs([Output(out, ours.verified if overwrite else None)])
    with closing(begun(Path(out), overwrite=overwrite)) as file:
        done, size = (0, 0) if overwrite else _before(summary, todo, Path(out), judging)
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} judged rows, {len(todo) - done} to judge")
        left = (todo[i] for i in range(done, len(todo)))
        with Bar(len(todo), done) as bar:
            for i, response in enumerate(judged(left, judging), done):
                summary.add(todo.rows[i], response.row)
                summary.errors += response.error is not None
                file.write(encode(response.row))
                file.flush()
                bar.at(i + 1)
    summary.new_rows, summary.seconds = len(todo) - done, time.monotonic() - started
    return summary


def _before(summary: VerifySummary, todo: Responses, out: Path, judging: Judging) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take; they are added to the summary."""
    done = size = 0
    for row, line, added in lines_before(todo.rows, out, judging.plain):
        try:
            verdict = judging.read(json.loads(added))
        except (ValueError, RecursionError) as e:
            why = e if isinstance(e, ValueError) and not isinstance(e, json.JSONDecodeError) else "holds no verdict"
            raise ValueError(f"{out}, line {done + 1}, {why}: {anew()}") from e
        summary.add(row, verdict)
        summary.errors += todo[done].error is not None
        done, size = done + 1, size + len(line)
    return done, size

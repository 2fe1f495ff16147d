"""One job: rows in, files out, resumable, with a progress bar and a summary."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

import rsd
from rsd import data
from rsd.config import FREE_SETTINGS
from rsd.files import check_overwrite, encode, locked, write_rows
from rsd.generator import TraceGenerator
from rsd.keep import keep as keep_rows
from rsd.models import Source
from rsd.responses import Response
from rsd.scoring import COLUMNS, METRICS, Scored, Scorer, named, set_rsr
from rsd.store import Store, whole_lines
from rsd.terminal import say
from rsd.vocabulary import SAME


@dataclass(frozen=True)
class Summary:
    """What a finished job's files hold, and what this run added to them."""

    totals: Mapping[str, Any]
    new_rows: int
    new_tokens: int
    seconds: float
    tokens_per_round: float  # committed to a row in a round, on average
    left_out: float | None = None  # the share of the teacher's mass that is no token of the student's
    kept: int | None = None  # rows in `kept_file`, where one was asked for
    kept_file: Path | None = None

    def text(self) -> str:
        t = self.totals
        reasons = ", ".join(f"{n} {reason}" for reason, n in t["finish_reasons"].items()) or "none"
        lines = [f"rows         {t['rows']} ({self.new_rows} new), finished by: {reasons}"]
        if t["tokens"]:
            lines += [
                f"tokens       {t['tokens']} ({t['tokens'] / t['rows']:.0f} a row)",
                f"acceptance   {t['acceptance_rate']:.1%} (chance that one proposal of the teacher stands)",
                f"fallback     {t['fallback_rate']:.1%} (tokens that are the student's own)",
            ]
        if self.left_out is not None:
            lines.append(f"left out     {self.left_out:.1%} (of the teacher's mass: tokens that the student lacks)")
        if self.new_rows:
            speed = f"{self.new_tokens / self.seconds:.0f} tokens/s, {self.tokens_per_round:.1f} tokens a round"
            lines.append(f"time         {self.seconds:.1f} s ({speed})")
        if t["correct"] or t["wrong"] or t["verify_errors"]:
            solved = f"{t['solved']} solved, {t['unsolved']} unsolved, {t['unknown']} not known"
            lines += [
                f"answers      {t['correct']} correct, {t['wrong']} wrong, {t['not_verified']} not verified",
                f"problems     {t['problems']}: {solved}",
            ]
        if unfit := ", ".join(f"{n} {why}" for why, n in t["unfit"].items() if why != "error"):
            lines.append(f"unfit        {unfit}")
        if self.kept is not None:
            lines.append(f"kept         {self.kept} rows, in {self.kept_file}")
        if t["verify_errors"]:
            said = f"{t['verify_errors']} rows have `verify_error` set, the first: {t['first_verify_error']}"
            lines.append(f"not judged   {said}")
        if t["errors"]:
            said = f"{t['errors']} rows have `error` set, the first: {t['first_error']}"
            lines.append(f"errors       {said}; the same command tries them again")
        return "\n".join(lines)


def run_job(
    generator: TraceGenerator,
    source: str | Path,
    out: str | Path,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    keep: str | None = None,
) -> Summary:
    """Make the traces of a file's rows and store them; resumes what an earlier run left.

    Args:
        keep: write the rows that are kept (`keep.KEEP`) to a file beside `out`, when all are made.

    Raises:
        ValueError: bad input, a pair that does not fit, or an output of another job. Nothing is
            written or lost then.
    """
    if Path(out).exists() and Path(source).exists() and Path(out).samefile(source):
        raise ValueError(f"{out} is the input itself: use another -o")
    rows = generator.prepare(data.read_rows(source)[:limit])
    store = Store(out)
    fallback = generator.config.max_fallback_rate
    manifest = _manifest(generator, source, limit)
    manifest["decoding"] = {} if overwrite else store.decoding()
    done = store.made(manifest["identity"], rows, overwrite=overwrite, max_fallback_rate=fallback)
    for notice in generator.notices:
        say(notice)
    say(generator.memory().text)
    schedule = generator.schedule(rows, done)
    found = sum((str(r.id), g) in done for r in rows for g in range(generator.config.num_generations))
    finished = not schedule.at_most
    if finished:
        say(f"{out} is finished: it holds all {found} traces of this job")
    else:
        if done:
            say(f"resuming {out}: found {len(done)} finished traces, {schedule.at_most} to make at the most")
        generator.load()
    store.begin(manifest, done, overwrite=overwrite)
    if finished:  # a job may have been killed after its last trace and before its totals
        totals = store.totals(max_fallback_rate=fallback)
        store.end(manifest | {"totals": totals})
        return Summary(totals, 0, 0, 0.0, 0.0, _left_out(manifest), *_keep(out, keep, fallback))
    started, count, tokens, accepted, left_out = time.monotonic(), 0, 0, 0.0, 0.0
    try:
        every = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file needs fewer lines
        total = found + schedule.at_most
        with tqdm(total=total, initial=found, unit="trace", dynamic_ncols=True, mininterval=every) as bar:
            for trace in generator.make(schedule):
                store.append(trace)
                count += 1
                tokens += len(trace.token_ids)
                accepted += float(trace.accepted.sum())
                left_out += float(trace.left_out.sum())
                rate = tokens / (time.monotonic() - started)
                shown = [f"{rate:.0f} tok/s", f"acceptance {accepted / max(tokens, 1):.1%}"]
                if generator.pace.row_rounds:
                    shown.append(f"{generator.pace.tokens_per_round:.1f} tokens a round")
                bar.set_postfix_str(", ".join(shown), refresh=False)
                bar.total = max(found + count, min(total, found + count + schedule.at_most))
                bar.update()
    except BaseException:
        store.end(None)
        raise
    seconds = time.monotonic() - started
    totals = store.totals(max_fallback_rate=fallback)
    books = {**generator.pace.books(), "left_out": {"tokens": tokens, "mass": left_out}}
    manifest |= {"totals": totals, "decoding": _decoding(manifest["decoding"], books)}
    store.end(manifest)
    pace = generator.pace.tokens_per_round
    return Summary(totals, count, tokens, seconds, pace, _left_out(manifest), *_keep(out, keep, fallback))


def _left_out(manifest: Mapping[str, Any]) -> float | None:
    """What the pair leaves of the teacher's mass, if its vocabularies are not the same."""
    share = manifest["decoding"].get("left_out", {}).get("share")
    return None if manifest["identity"]["vocabularies"] == SAME else share


def _keep(out: str | Path, how: str | None, max_fallback_rate: float) -> tuple[int | None, Path | None]:
    """Write the rows that are kept to OUT.kept.jsonl, whole or not at all; how many they are."""
    if how is None:
        return None, None
    rows, _ = keep_rows(list(whole_lines(Path(out))), how, max_fallback_rate=max_fallback_rate)
    file = Path(str(out).removesuffix(".jsonl") + ".kept.jsonl")
    write_rows(rows, file)
    return len(rows), file


def score_file(scorer: Scorer, todo: Sequence[Response], out: str | Path, *, overwrite: bool = False) -> "ScoreSummary":
    """Write the rows with their scores, in order, each as soon as it is scored; resumes what an earlier run left.

    Raises:
        ValueError: `out` is not what an earlier run over these rows and with these rules left.
    """
    started = time.monotonic()
    if overwrite:
        check_overwrite(Path(out), "scoring")
    with closing(locked(Path(out))) as file:
        done, size = (0, 0) if overwrite else _scored_before(scorer, todo, Path(out))
        file.truncate(size)
        if done:
            say(f"resuming {out}: found {done} scored rows, {len(todo) - done} to score")
        for scored in progress(scorer, todo[done:], initial=done):
            file.write(encode(_plain(scored.response.row) | scored.columns()))
            file.flush()
    rows = [json.loads(line) for line in Path(out).read_bytes().splitlines()]
    return ScoreSummary(scorer.scoring, rows, len(rows) - done, time.monotonic() - started)


@dataclass(frozen=True)
class ScoreSummary:
    """What a file of scored rows holds, and what this run added to it."""

    scoring: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    new_rows: int
    seconds: float

    @property
    def errors(self) -> int:
        return sum(row["score_error"] is not None for row in self.rows)

    def text(self) -> str:
        scored = [row for row in self.rows if row["score_error"] is None]
        tokens = sum(row["scored_tokens"] for row in scored)
        lines = [
            f"scored by    {named(self.scoring)}",
            f"rows         {len(self.rows)} ({self.new_rows} new), {self.errors} of them with an error",
        ]
        for name in METRICS:
            values = [row[name] for row in scored if row[name] is not None]
            if values:
                few = "" if len(values) == len(scored) else f" ({len(values)} rows)"
                lines.append(f"{name:<20} {sum(values) / len(values):.4g}{few}")
        if (of_set := set_rsr(scored)) is not None:
            lines.append(f"{'rsr of the set':<20} {of_set:.4g}")
        if self.errors:
            first = next(row for row in self.rows if row["score_error"] is not None)
            lines.append(f"errors       {self.errors} rows have `score_error`, the first: {first['score_error']}")
        lines.append(f"time         {self.seconds:.1f} s, {tokens} tokens in all")
        return "\n".join(lines)


def progress(scorer: Scorer, todo: Sequence[Response], *, initial: int = 0) -> Iterator[Scored]:
    """Score responses in order, with a progress bar."""
    every = 0.1 if sys.stderr.isatty() else 10
    tokens, started = 0, time.monotonic()
    with tqdm(
        total=initial + len(todo), initial=initial, unit="trace", dynamic_ncols=True, mininterval=every, disable=None
    ) as bar:
        for response in todo:
            scored = scorer.score(response)
            tokens += len(scored.token_ids)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tok/s", refresh=False)
            bar.update()
            yield scored


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the scores that it may already have."""
    return {k: v for k, v in row.items() if k not in COLUMNS}


def _scored_before(scorer: Scorer, todo: Sequence[Response], out: Path) -> tuple[int, int]:
    """How many of the rows `out` holds, and how many bytes these take."""
    done = size = 0
    with open(out, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # torn by a crash
            try:
                row = json.loads(line)
                same = encode(_plain(row)) == encode(_plain(todo[done].row)) and row["scoring"] == scorer.scoring
            except (ValueError, IndexError, KeyError, AttributeError):
                same = False
            if not same:
                raise ValueError(
                    f"{out}, line {done + 1}, is not what these settings make of the input's row {done + 1}: "
                    "use another -o, or --overwrite to start anew"
                )
            done, size = done + 1, size + len(line)
    return done, size


def _decoding(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The books of several runs added up, and what they come to."""

    def lists(name: str) -> list[int]:
        return [a + b for a, b in zip_longest(before.get(name, []), now[name], fillvalue=0)]

    sizes = Counter(before.get("block_sizes", {})) + Counter(now["block_sizes"])
    judged, survived = lists("drafts_judged"), lists("drafts_survived")
    was = before.get("left_out", {})
    mass = {name: was.get(name, 0) + now["left_out"][name] for name in ("tokens", "mass")}
    made = {name: before.get(name, 0) + now[name] for name in ("rounds", "row_rounds", "tokens")}
    return {
        "tokens_per_round": round(made["tokens"] / made["row_rounds"], 3) if made["row_rounds"] else None,
        "left_out": mass | {"share": round(mass["mass"] / mass["tokens"], 6) if mass["tokens"] else None},
        "survival": [round(s / j, 4) for s, j in zip(survived, judged, strict=True)],
        **made,
        "block_sizes": dict(sorted(sizes.items(), key=lambda item: int(item[0]))),
        "drafts_judged": judged,
        "drafts_survived": survived,
    }


def _manifest(generator: TraceGenerator, source: str | Path, limit: int | None) -> dict[str, Any]:
    teacher, student, _ = generator.find()

    def place(name: str, path: str, revision: str | None) -> dict[str, Any]:
        return {"name": name, "path": str(Path(path).resolve()) if Path(path).exists() else path, "revision": revision}

    def described(model: Source) -> dict[str, Any]:
        made = place(model.base, model.path, model.revision)
        if model.adapter:
            made["adapter"] = place(model.adapter.name, model.adapter.path, model.adapter.revision)
        return made | ({"load_in": model.load_in} if model.load_in else {})

    free = {name: getattr(generator.config, name) for name in FREE_SETTINGS}
    return {
        "format": 1,
        "teacher": described(teacher),
        "student": described(student),
        "widths": {"teacher": teacher.width, "student": student.width},
        "versions": {"rsd": rsd.__version__} | {name: version(name) for name in ("torch", "transformers", "numpy")},
        "identity": generator.identity(),
        "settings": free | {"input": str(source), "limit": limit},
        "totals": None,
        "decoding": {},
    }

"""What a job's files hold, in words and as JSON; and the rows that are kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd.config import ONE_VOCABULARY
from rsd.files import write_rows
from rsd.terminal import BAD, in_lines, joined, paint
from rsd.traces.filters import choose
from rsd.traces.lines import whole_lines
from rsd.traces.totals import answers


@dataclass(frozen=True)
class Summary:
    """What a finished job's files hold, and what this run added to them."""

    totals: Mapping[str, Any]
    new_rows: int
    new_tokens: int
    seconds: float
    tokens_per_round: float  # committed to a row in a round, on average
    left_out: float | None = None  # the share of the teacher's mass that is no token of the student's
    renormalised: float | None = None  # the share of places where a served teacher's q was not known exactly
    kept: int | None = None  # rows in `kept_file`, where one was asked for
    kept_file: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            **self.totals,
            "new_rows": self.new_rows,
            "new_tokens": self.new_tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_round": round(self.tokens_per_round, 3),
            "left_out": self.left_out,
            "kept": self.kept,
        }

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
        if self.renormalised:
            lines.append(
                f"renormalised {self.renormalised:.1%} (of places: the server's likeliest tokens did not settle q)"
            )
        if self.new_rows:
            speed = f"{self.new_tokens / self.seconds:.0f} tokens/s, {self.tokens_per_round:.1f} tokens a round"
            lines.append(f"time         {self.seconds:.1f} s ({speed})")
        if t["correct"] or t["wrong"] or t["verify_errors"]:
            solved = f"{t['solved']} solved, {t['unsolved']} unsolved, {t['unknown']} not known"
            lines += [
                answers(t["correct"], t["wrong"], t["not_verified"]),
                f"problems     {t['problems']}: {solved}",
            ]
        if unfit := ", ".join(f"{n} {why}" for why, n in t["unfit"].items() if why != "error"):
            lines.append(f"unfit        {unfit}")
        if self.kept is not None:
            lines.append(f"kept         {self.kept} rows, in {self.kept_file}")
        if t["verify_errors"]:
            said = f"{t['verify_errors']} rows have `verify_error` set, the first: {t['first_verify_error']}"
            lines.append(joined([paint("not judged", BAD), f"   {said}"]))
        if t["errors"]:
            said = f"{t['errors']} rows have `error` set, the first: {t['first_error']}"
            lines.append(joined([paint("errors", BAD), f"       {said}; the same command tries them again"]))
        return in_lines(lines)


def shares(manifest: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What the pair leaves of the teacher's mass, if its vocabularies are not the same; and of how many places a served
    teacher's distribution was not known."""
    decoding = manifest["decoding"]
    share = decoding.get("left_out", {}).get("share")
    known = decoding.get("known", {})
    unsure = known["renormalised"] / sum(known.values()) if sum(known.values()) else None
    return None if manifest["identity"]["vocabularies"] == ONE_VOCABULARY else share, unsure


def write_kept(out: str | Path, how: str | None, max_fallback_rate: float) -> tuple[int | None, Path | None]:
    """Write the rows that are kept to OUT.kept.jsonl, whole or not at all; how many they are."""
    if how is None:
        return None, None
    places, _ = choose(whole_lines(Path(out)), how, max_fallback_rate=max_fallback_rate)
    wanted = set(places)
    write_rows((row for i, row in enumerate(whole_lines(Path(out))) if i in wanted), kept_file(out))
    return len(places), kept_file(out)


def kept_file(out: str | Path) -> Path:
    return Path(str(out).removesuffix(".jsonl") + ".kept.jsonl")

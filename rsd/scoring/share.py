"""One process's share of a file that is scored: every so many windows (see `scorer`). Its files: `traces.shards`."""

import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from rsd.files import encode, held, locked, replacing
from rsd.outputs import Output, check_outputs
from rsd.scoring.job import Others, Place, score_file
from rsd.scoring.responses import Responses
from rsd.scoring.scored_rows import ScoreSummary, plain
from rsd.scoring.scorer import WINDOW, Scorer
from rsd.scoring.verdicts import COLUMNS, Judging, unjudged
from rsd.strictjson import loads
from rsd.terminal import say
from rsd.traces import ours
from rsd.traces.shards import Lines, Shard, part_files

POLL = 0.3  # seconds


def score_share(
    scorer: Scorer, todo: Responses, out: str | Path, shard: Shard, judging: Judging | None = None
) -> ScoreSummary | None:
    """Score this process's share of the rows, in a part file of its own; when all are there, they are put in order.

    That is done by the main process of a launch, or by the last one that ends. What any number of processes scored
    before by the same rules is taken over.

    Returns:
        What the file holds, or, while shares are missing, the part file; None for a process that prints nothing.

    Raises:
        ValueError: as `score_file`.
        ConnectionError: another process of the launch ended before its share was scored.
    """
    out, part, started = Path(out), shard.part(out), time.monotonic()
    check_outputs([Output(out, ours.scored)])
    if out.exists() and Lines([out]).count() == len(todo):  # it is checked, and nothing is to be done
        return score_file(scorer, todo, out, judging=judging, others=Others(total=len(todo), files=[out], shown=False))
    own = places(shard, len(todo))
    mine = todo.at(own)
    shares = [replace(shard, number=i + 1) for i in range(shard.count)]
    parts = {one: one.part(out) for one in shares}
    wanted = {one: len(places(one, len(todo))) for one in shares}
    others = Others(total=len(todo), files=[*parts.values()], shown=shard.main)
    known: dict[int, Place] = {}
    for of, file in ((Shard(1, 1), out), *part_files(out).items()):
        if file != part and file.exists():
            known |= dict(_scored(todo, file, places(of, len(todo)), scorer, judging))
    known = {i: known[place] for i, place in enumerate(own) if place in known}
    summary = score_file(scorer, mine, part, judging=judging, known=known, others=others)

    def missing() -> list[Shard]:
        lines = {one: Lines([file]).count() for one, file in parts.items()}
        return [one for one in shares if lines[one] < wanted[one] or held(parts[one])]

    if shard.launched:
        if not shard.main:
            return None
        gone: list[Shard] = []
        while waiting := missing():
            ended = [one for one in waiting if parts[one].exists() and not held(parts[one])]
            if both := [one for one in ended if one in gone and one in missing()]:
                raise ConnectionError(f"process {both[0]} ended before its rows were scored")
            gone = ended
            time.sleep(POLL)
    elif waiting := missing():
        say(f"{out} is written when the shares {', '.join(map(str, waiting))} are scored")
        return summary
    _in_order(todo, shares, parts, out)
    made = score_file(scorer, todo, out, judging=judging, others=replace(others, shown=False))
    made.new_rows, made.seconds = summary.new_rows, time.monotonic() - started
    return made


def places(shard: Shard, rows: int) -> Sequence[int]:
    """Which of so many rows are a share's: whole windows, since what is read together is not divided."""
    return array("Q", (i for i in range(rows) if i // WINDOW % shard.count == shard.number - 1))


def _scored(
    todo: Responses, file: Path, of: Sequence[int], scorer: Scorer, judging: Judging | None
) -> Iterator[tuple[int, Place]]:
    """By the places of rows, where a file's lines are that hold their scores by the same rules.

    of: the places of the rows that the file is of.
    """
    offset = 0
    with open(file, "rb") as lines:
        for place, line in zip(of, lines, strict=False):
            with suppress(ValueError):  # what a crash has torn
                row = loads(line) if line.endswith(b"\n") else None
                if isinstance(row, dict) and row.get("scoring") == scorer.scoring and row.get("score_error") is None:
                    same = [row]
                    if judging is not None and row.get("verified_by") == judging.how:  # a verdict of its row, or ours
                        same.append({k: v for k, v in row.items() if k not in COLUMNS})
                    if encode(plain(unjudged(todo.rows[place], judging))) in [encode(plain(one)) for one in same]:
                        yield place, Place(file, offset)
            offset += len(line)


def _in_order(todo: Responses, shares: Sequence[Shard], parts: dict[Shard, Path], out: Path) -> None:
    """Put the lines of all parts into the input's order, and remove these."""
    with closing(locked(out)), ExitStack() as stack:
        if not all(part.exists() for part in parts.values()):  # another process has done it meanwhile
            return
        opened = {one: stack.enter_context(open(part, "rb")) for one, part in parts.items()}
        with replacing(out) as whole:
            for place in range(len(todo)):
                whole.write(opened[shares[place // WINDOW % len(shares)]].readline())
        for part in part_files(out).values():
            part.unlink(missing_ok=True)

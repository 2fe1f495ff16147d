"""A job's rows shared out to processes: by their ids alone, so that any number of them needs to ask nobody.

Each process appends to a part file of its own, `OUT.part-2-of-8.jsonl`, with a sidecar and a manifest as `OUT` has.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd.settings import called

PART = re.compile(r"\.part-([1-9][0-9]{0,5})-of-([1-9][0-9]{0,5})\.jsonl")


@dataclass(frozen=True)
class Shard:
    """One of `count` processes, by its number from 1. launched: by a launcher, together with the others.

    Raises:
        ValueError: there is no such process.
    """

    number: int
    count: int
    launched: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count < 10**6:
            raise ValueError(f"a shard is one of 1/N to N/N, such as 2/8, not {self.number}/{self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def main(self) -> bool:
        """The process that prints, where several are launched together."""
        return not self.launched or self.number == 1

    def has(self, row_id: str | int) -> bool:
        """Whether a row is this process's: a stable hash of its id decides."""
        return number_of(row_id, self.count) == self.number

    def part(self, out: str | Path) -> Path:
        """The file of rows that this process writes of a job at `out`."""
        return Path(str(out).removesuffix(".jsonl") + f".part-{self.number}-of-{self.count}.jsonl")


def number_of(row_id: str | int, count: int) -> int:
    """Which of `count` shares a row is in, from 1; the same for ever, and on every machine."""
    digest = hashlib.blake2b(str(row_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count + 1


def parse(text: str) -> Shard:
    """The shard that a text such as 2/8 names.

    Raises:
        ValueError: it names none.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found:
        raise ValueError(f"a shard is one of 1/N to N/N, such as 2/8, not {text!r}")
    return Shard(int(found[1]), int(found[2]))


def launched(together: int = 1) -> Shard | None:
    """The shard that this process is by its launcher (torchrun, accelerate launch); None if there is no other one.

    Args:
        together: so many neighbouring processes are one, since they hold one teacher.

    Raises:
        ValueError: those that are launched are no multiple of it.
    """
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    several = rank.isdecimal() and world.isdecimal()
    number, count = (int(rank), int(world)) if several else (0, 1)
    if count % together:
        raise ValueError(
            f"{called('tensor_parallel')} {together} is for a launch of so many processes, or a multiple, not of "
            f"{count}: torchrun --nproc-per-node {together} -m rsd generate ..."
        )
    if count == together:
        return None
    return Shard(number // together + 1, count // together, launched=True)


def part_files(out: str | Path) -> dict[Shard, Path]:
    """The part files that are there, in order."""
    base = Path(str(out).removesuffix(".jsonl"))
    found = {}
    if base.parent.is_dir():
        for file in base.parent.iterdir():
            if file.name.startswith(base.name) and (named := PART.fullmatch(file.name[len(base.name) :])):
                number, count = int(named[1]), int(named[2])
                if number <= count:
                    found[Shard(number, count)] = file
    return dict(sorted(found.items(), key=lambda item: (item[0].count, item[0].number)))


class Lines:
    """How many lines files have, which others append to. They may not be there yet."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.sizes, self.lines = dict.fromkeys(files, 0), dict.fromkeys(files, 0)

    def count(self) -> int:
        for file, size in self.sizes.items():
            try:
                with open(file, "rb") as f:
                    if f.seek(0, 2) < size:  # it was written anew
                        size = self.lines[file] = 0
                    f.seek(size)
                    while piece := f.read(1 << 20):
                        self.lines[file] += piece.count(b"\n")
                        size += len(piece)
            except FileNotFoundError:
                size = self.lines[file] = 0
            self.sizes[file] = size
        return sum(self.lines.values())

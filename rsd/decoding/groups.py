"""Rows in groups: while a server judges one group's drafts, the student drafts for another.

Each group is an engine of its own, with a cache of the student's and rounds of its own; what waits and what is learned
they share. One thread runs them in turn, each as far as to where its teacher is away. No trace depends on how rows are
grouped, as none depends on the batch.
"""

from collections.abc import Iterable, Iterator, Sequence

from rsd.decoding.block_size import BlockController
from rsd.decoding.engine import Engine, Watch
from rsd.decoding.sequence import Finished, Request, T
from rsd.decoding.teacher import Teacher
from rsd.decoding.waiting import Waiting


class Groups:
    """Several engines as one.

    Args:
        engines: alike, but for their rows; each with a teacher that nobody else asks.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = list(engines)
        for other in self.engines[1:]:
            other.learn_with(self.engines[0])

    @property
    def blocks(self) -> BlockController:
        return self.engines[0].blocks

    @property
    def teacher(self) -> Teacher:
        """One of those that are asked; they count together."""
        return self.engines[0].teacher

    @property
    def watch(self) -> Watch | None:
        """Who is shown the live rows of each."""
        return self.engines[0].watch

    @watch.setter
    def watch(self, watch: Watch | None) -> None:
        for engine in self.engines:
            engine.watch = watch

    @property
    def rows(self) -> int:
        """How many rows there is room for now."""
        return sum(engine.rows for engine in self.engines)

    def run(self, requests: Iterable[Request[T]]) -> Iterator[Finished[T]]:
        """As `Engine.run`. A group out of memory has fewer rows, or none while others have the memory."""
        for engine in self.engines:
            engine.begin()
        waiting = Waiting(requests)
        first = -(-waiting.known(self.rows) // len(self.engines))  # few rows are shared out, too
        steps = [engine.steps(waiting, first=first) for engine in self.engines]
        going = [True] * len(steps)
        try:
            while any(going):
                for i in range(len(steps)):
                    if not going[i]:
                        continue
                    for step in steps[i]:
                        if step is None:
                            break
                        yield step
                        # There may be something for those who found nothing: what follows from this trace, or memory.
                        for j in range(len(steps)):
                            if not going[j]:
                                steps[j], going[j] = self.engines[j].steps(waiting), True
                    else:
                        going[i] = False
        finally:  # what is under way is not waited for
            for one in steps:
                one.close()


Decoder = Engine | Groups  # what makes traces of requests

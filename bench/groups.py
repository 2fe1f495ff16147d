"""Into how many groups the rows of a served teacher are best divided: tokens per second, against one group.

While the server judges one group the student drafts for another (`rsd.decoding.groups`), but smaller groups are asked
about in smaller requests. Start a server first (vllm_cpu.sh says how), with the bundled teacher as its model. Every
contender makes the same number of tokens for the same prompts, nothing ends a trace early; repeats are interleaved.
With --delay the server is one that is far away: each answer comes so many seconds later, which costs no processor.

    python bench/groups.py --url http://127.0.0.1:8000/v1 --model NAME
"""

import argparse
import asyncio
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import Pair, bundled_pair, interleaved, machine, ratio
from served import contender, engine, found

from rsd.decoding.groups import Groups
from rsd.decoding.served_teacher import ServedTeacher
from rsd.models.source import Source
from rsd.serving.client import Client


class Far(Client):
    """A server whose answers come `delay` seconds later."""

    delay = 0.0

    async def ask(self, *args: Any, **kwargs: Any) -> Any:
        answer = await super().ask(*args, **kwargs)
        await asyncio.sleep(self.delay)
        return answer


def grouped(pair: Pair, of: Source, rows: int, count: int, *, delay: float) -> Groups:
    """Engines of `rows` rows together, which ask the same server."""
    engines = [engine(pair, of, (rows + i) // count, None) for i in range(count)]
    first = engines[0].teacher
    if not isinstance(first, ServedTeacher):
        raise TypeError("the teacher is not served")
    far = Far(of.servers)
    far.delay = delay
    for one in engines:
        teacher = one.teacher
        teacher.client = teacher.api.client = far  # type: ignore[attr-defined]
    return Groups(engines)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--url", required=True, help="up to and with /v1")
    ap.add_argument("--model", required=True, help="the model's name there")
    ap.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    ap.add_argument("--groups", type=int, nargs="+", default=[1, 2, 3, 4])
    ap.add_argument("--context", type=int, default=0, help="tokens of a prompt at the least")
    ap.add_argument("--delay", type=float, default=0.0, help="seconds that every answer takes longer")
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--threads", type=int, default=1, help="the server wants a core, too")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    pair, of = bundled_pair(), found(args)
    print("| rows | groups | tokens/s | tokens a round | against one group |\n|---|---|---|---|---|")
    for rows in args.rows:
        made = {count: grouped(pair, of, rows, count, delay=args.delay) for count in args.groups}
        contenders: dict[str, Callable[[], float]] = {
            str(count): contender(one, pair, 2 * rows, args.context, "g") for count, one in made.items()
        }
        for _ in range(2):  # they learn what pays
            for run in contenders.values():
                run()
        figures = interleaved(contenders, args.repeats)
        for count, one in made.items():
            speed, a_round = figures[str(count)], one.blocks.tokens_per_round
            against = ratio(speed, figures[str(args.groups[0])])
            print(
                f"| {rows} | {count} | {statistics.median(speed):.0f} | {a_round:.1f} | {against} |",
                flush=True,
            )
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

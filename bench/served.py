"""Tokens per second with the bundled teacher behind a server, against other ways to ask it and its own limit.

Start a server of completions first (vllm_cpu.sh says how), with the bundled teacher as its model and --logprobs-mode
processed_logprobs. The bundled student stays here. Every contender makes the same number of tokens for the same
prompts, and nothing ends a trace early; repeats are interleaved.

    published   the published pattern: one request a token, one row after the other
    drafts      the student drafts, and all rows wait for one request about their blocks
    rsd         rows in groups; the teacher goes on by itself where that is found faster
    exact       the same at temperature 0.7 and top-p 0.95 without top-k: what a list leaves open is asked for by ids
    plain       the server's own text, all rows together and without log-probs: its limit

(In the published pattern the student is served, too, at another request a token: here it costs nothing but its steps.)
Then greedy traces with the served teacher and with the same teacher here are compared; and tokens that were drawn at
temperature 0.7 and top-p 0.95 with r as it follows from both models here (chi-square).

    python bench/served.py --url http://127.0.0.1:8000/v1 --model NAME --json bench/served.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import torch
from common import Pair, bundled_pair, interleaved, machine, ratio, write
from scipy.stats import chisquare

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.groups import Decoder, Groups
from rsd.decoding.listed import mode_of
from rsd.decoding.loading import GROUPS
from rsd.decoding.sampling import accept_mask, row_key, target, warp
from rsd.decoding.sequence import Request
from rsd.decoding.served_teacher import ServedTeacher
from rsd.models.bundled import bundled
from rsd.models.source import Source
from rsd.serving.client import Client
from rsd.serving.completions import Completions
from rsd.serving.probe import find_served
from rsd.traces.readers import read_rows

RATIOS = [("rsd", "drafts"), ("rsd", "published"), ("exact", "rsd"), ("rsd", "plain")]
USUAL, OPEN = Sampling(), Sampling(temperature=0.7, top_p=0.95, top_k=0)


def found(args: argparse.Namespace) -> Source:
    tokenizer = str(bundled("teacher"))
    return find_served([args.url], args.model, tokenizer, api="completions", trust_remote_code=False)


def engine(pair: Pair, of: Source, rows: int, block: int | None, sampling: Sampling = USUAL) -> Engine:
    """One group of rows."""
    client, width = Client(of.servers), of.width
    teacher = ServedTeacher(
        client,
        Completions(client, of.name, width=width, by_ids=of.by_ids),
        sampling=sampling,
        mode=mode_of(sampling, pair.acceptance, by_ids=of.by_ids),
        width=width,
        context=of.context,
    )
    return Engine(
        teacher,
        pair.student,
        pair.vocabulary,
        sampling=sampling,
        acceptance=pair.acceptance,
        eos=(),
        rows=rows,
        block=block,
    )


def as_rsd_does(pair: Pair, of: Source, rows: int, sampling: Sampling = USUAL) -> Decoder:
    count = min(GROUPS, rows)
    engines = [engine(pair, of, (rows + i) // count, None, sampling) for i in range(count)]
    return Groups(engines) if count > 1 else engines[0]


def drafting(pair: Pair, of: Source, rows: int) -> Engine:
    """Where the student always drafts."""
    made = engine(pair, of, rows, None)
    made.rounds.turns.plan = lambda rows: 0  # type: ignore[method-assign]
    return made


def requests(pair: Pair, count: int, *, context: int, salt: str) -> list[Request]:
    """Prompts of at least `context` tokens: other problems stand before the one that is asked."""
    made = []
    for i in range(count):
        prompt = list(pair.prompts[i % len(pair.prompts)])
        n = i
        while len(prompt) < context:
            n += 1
            prompt = [*pair.prompts[n % len(pair.prompts)], *prompt]
        made.append(Request(prompt, pair.vocabulary.for_teacher(prompt), row_key(0, f"{salt}{i}", 0), pair.tokens))
    return made


def contender(made: Decoder, pair: Pair, count: int, context: int, salt: str) -> Callable[[], float]:
    def run() -> float:
        todo = requests(pair, count, context=context, salt=salt)
        started = time.perf_counter()
        tokens = sum(len(f.token_ids) for f in made.run(todo))
        return tokens / (time.perf_counter() - started)

    return run


def plain(pair: Pair, of: Source, rows: int, context: int) -> Callable[[], float]:
    """The server alone, rows together."""
    prompts = [list(r.teacher_prompt) for r in requests(pair, rows, context=context, salt="")]
    body = {"model": of.name, "prompt": prompts, "max_tokens": pair.tokens, "ignore_eos": True, "temperature": 0.7}

    def run() -> float:
        started = time.perf_counter()
        answer = httpx.post(f"{of.servers[0]}/completions", json=body, timeout=300)
        answer.raise_for_status()
        return float(answer.json()["usage"]["completion_tokens"]) / (time.perf_counter() - started)

    return run


def measure(pair: Pair, of: Source, args: argparse.Namespace, rows: int, context: int) -> dict[str, Any]:
    count = max(2, 2 * rows)
    rsd, exact = as_rsd_does(pair, of, rows), as_rsd_does(pair, of, rows, OPEN)
    contenders = {
        "published": contender(engine(pair, of, 1, 1), pair, max(2, rows // 8), context, "p"),
        "drafts": contender(drafting(pair, of, rows), pair, count, context, "d"),
        "rsd": contender(rsd, pair, count, context, "d"),
        "exact": contender(exact, pair, count, context, "d"),
        "plain": plain(pair, of, rows, context),
    }
    for name in ("drafts", "rsd", "exact"):  # they learn what pays
        for _ in range(args.warm):
            contenders[name]()
    figures = interleaved(contenders, args.repeats)
    books = rsd.blocks.statistics()
    return {
        "rows": rows,
        "context": context,
        "tokens": pair.tokens,
        "tokens_per_s": figures,
        "tokens_per_round": books["tokens"] / books["row_rounds"],
        "block_sizes": books["block_sizes"],
        "ratios": {f"{a} / {b}": ratio(figures[a], figures[b]) for a, b in RATIOS},
    }


def greedy(args: argparse.Namespace, count: int) -> dict[str, int]:
    """How many greedy traces are the same with the served teacher and with the same one here."""
    rows = read_rows(bundled("problems.jsonl"))[:count]
    asked: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 120, "verify": "none"}
    served = {"teacher": args.url, "teacher_model": args.model, "teacher_tokenizer": str(bundled("teacher"))}
    here = TraceGenerator(GenerateConfig(**asked)).run(rows)
    there = TraceGenerator(GenerateConfig(**asked, **served)).run(rows)
    same = sum(a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(here, there, strict=True))
    return {"traces": len(rows), "same": same}


def drawn(pair: Pair, of: Source, contexts: int, draws: int) -> dict[str, Any]:
    """Tokens drawn with the teacher served, against r: p-values of a chi-square test, one for each context."""
    made = as_rsd_does(pair, of, 64, OPEN)
    teacher, student = pair.plain
    heads = torch.tensor([pieces[0] for pieces in pair.vocabulary.student_to_teacher.values() if len(pieces) > 1])
    values = []
    for i, prompt in enumerate(pair.prompts):
        ids = [*prompt, *pair.prompts[-1 - i][: 5 * (i % 8)]]  # and a few words that nobody expected
        with torch.inference_mode():
            theirs = teacher(torch.tensor([pair.vocabulary.for_teacher(ids)])).logits[0, -1]
            ours = student(torch.tensor([ids])).logits[0, -1]
        q = warp(theirs, OPEN)[: len(pair.vocabulary.shared)].double()
        if q[heads].sum() > 0:  # what is spelled is not this simple
            continue
        q = q * pair.vocabulary.shared[: len(q)]
        p = warp(ours + pair.vocabulary.own, OPEN).double()
        q = torch.nn.functional.pad(q, (0, len(p) - len(q)))
        stands = accept_mask(ours.log_softmax(-1), p, pair.acceptance, OPEN)
        r = target(q / q.sum(), p, stands, pair.acceptance.trials).r.numpy()
        if r.max() > 0.9:  # nothing to see
            continue
        asked = [Request(ids, pair.vocabulary.for_teacher(ids), row_key(0, f"{i} {n}", 0), 1) for n in range(draws)]
        seen = np.bincount([int(f.token_ids[0]) for f in made.run(asked)], minlength=len(r))
        often = r * draws >= 5
        observed, expected = [*seen[often], seen[~often].sum()], [*r[often] * draws, r[~often].sum() * draws]
        if expected[-1] < 1e-6:
            if observed[-1]:
                raise RuntimeError(f"{observed[-1]} tokens were drawn that r does not have")
            observed, expected = observed[:-1], expected[:-1]
        values.append(float(chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue))
        if len(values) == contexts:
            break
    return {"draws": draws, "p_values": values}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--url", required=True, help="up to and with /v1")
    ap.add_argument("--model", required=True, help="the model's name there")
    ap.add_argument("--rows", type=int, nargs="*", default=[1, 16, 64])
    ap.add_argument("--context", type=int, nargs="+", default=[0, 1000], help="tokens of a prompt at the least")
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--greedy", type=int, default=64, help="problems of which greedy traces are compared")
    ap.add_argument("--warm", type=int, default=3, help="runs of each before those that count")
    ap.add_argument("--draws", type=int, default=2000, help="tokens that are drawn after each of eight contexts")
    ap.add_argument("--threads", type=int, default=1, help="the server wants a core, too")
    ap.add_argument("--json", help="also write the figures here")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    pair, of = bundled_pair(), found(args)
    results: list[dict[str, Any]] = []
    names = [f"{a} / {b}" for a, b in RATIOS]
    print("| rows | context | drafts, tokens/s | rsd, tokens/s | tokens a round | " + " | ".join(names) + " |")
    print("|---|---|---|---|---|" + "---|" * len(names))
    for context in args.context:
        for rows in args.rows:
            result = measure(pair, of, args, rows, context)
            results.append(result)
            speeds = [f"{statistics.median(result['tokens_per_s'][n]):.0f}" for n in ("drafts", "rsd")]
            shown = [*speeds, f"{result['tokens_per_round']:.1f}", *(result["ratios"][n] for n in names)]
            print(f"| {rows} | {context or 'the problem'} | " + " | ".join(shown) + " |", flush=True)
            write(args.json, results)
    if args.greedy:
        same = greedy(args, args.greedy)
        results.append({"greedy": same})
        write(args.json, results)
        print(f"\ngreedy traces: {same['same']} of {same['traces']} the same with the teacher served and here")
    if args.draws:
        with_r = drawn(pair, of, 8, args.draws)
        results.append({"drawn": with_r})
        write(args.json, results)
        shown = ", ".join(f"{p:.2f}" for p in with_r["p_values"])
        print(
            f"\n{args.draws} tokens after each of {len(with_r['p_values'])} contexts, chi-square against r: p = {shown}"
        )
    print(f"\n{json.dumps(machine())}")


if __name__ == "__main__":
    main()

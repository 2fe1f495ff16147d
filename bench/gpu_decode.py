"""The parts of `gpu.py` that decode: how fast, in how much memory, and the same as on a CPU."""

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from common import Pair, Planted, bundled_pair
from gpu_parts import Figures, free, wait
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Sampling
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.engine import Engine
from rsd.models.bundled import bundled
from rsd.models.memory import free_bytes, need
from rsd.models.row_pools import capacity
from rsd.traces.readers import read_rows

if TYPE_CHECKING:
    from gpu import Results

FIRST = 4  # tokens of a row before those that are timed
SPARE = 3e9  # bytes beside weights and caches that a round is taken to need
AGREEMENT = 0.75  # b of the pair


def with_graphs(engine: Engine) -> Engine:
    """The student's steps as captured graphs without torch.compile; one by one where there is no GPU."""
    capture = engine.student.device.type == "cuda"
    engine.rounds.loop = DraftLoop(engine.rounds.student.step, engine.student, capture=capture)
    return engine


def weights(model: PreTrainedModel) -> int:
    """Bytes of weights that a pass reads: all but the embedding, of which it reads a row a token."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    return sum(p.nbytes for p in model.parameters() if tied or p is not embedding)


def kept(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Bytes of keys and values a token."""
    c = model.config
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return 2 * c.num_hidden_layers * c.num_key_value_heads * size * dtype.itemsize


def does_not_fit(pair: Pair, rows: int, tokens: int, args: argparse.Namespace, *, teacher_only: bool) -> Figures | None:
    """Why caches of so many tokens a row do not fit beside the weights, which are loaded."""
    models = pair.plain[:1] if teacher_only else pair.plain
    asked = rows * capacity(tokens + 24) * sum(kept(m, args.dtype) for m in models)
    there = free_bytes(args.device) - (SPARE if args.device != "cpu" else 0)
    if asked <= there:
        return None
    return {"skipped": f"needs {asked / 1e9:.0f} GB of caches, and {there / 1e9:.0f} GB are free for them"}


def rates(pair: Pair, prompt: list[int], rows: int, args: argparse.Namespace) -> dict[str, Callable[[], Figures]]:
    """Tokens/s of each contender, by what a run of FIRST + tokens takes more than one of FIRST."""

    def timed(run: Callable[[int], object], warm: int) -> Figures:
        for _ in range(warm):
            run(FIRST + args.tokens)
        took = []
        for _ in range(args.repeats):
            spent = []
            for tokens in (FIRST, FIRST + args.tokens):
                wait(args.device)
                started = time.perf_counter()
                run(tokens)
                wait(args.device)
                spent.append(time.perf_counter() - started)
            took.append(spent[1] - spent[0])
        return {"tokens_per_s": [rows * args.tokens / max(seconds, 1e-9) for seconds in took]}

    def generate() -> Figures:
        teacher, s = pair.teacher, pair.sampling
        ids = torch.tensor([pair.vocabulary.for_teacher(prompt)], device=args.device)
        cache = DynamicCache(config=teacher.config)
        with torch.inference_mode():
            for piece in ids[:, :-1].split(512, 1):
                teacher(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(rows)

        def run(tokens: int) -> object:
            if made := cache.get_seq_length() - (ids.shape[1] - 1):  # by the run before
                cache.crop(-made)
            how = GenerationConfig(do_sample=True, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k)
            how.update(max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
            mask = torch.ones_like(ids).repeat(rows, 1)
            given: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache}
            return teacher.generate(ids.repeat(rows, 1), **given, generation_config=how)

        return timed(run, 1)

    def ours(block: int | None, graphs: bool) -> Figures:
        engine = pair.engine(rows, block)
        if graphs:
            with_graphs(engine)
        made = timed(lambda tokens: list(engine.run(pair.requests(rows, [tokens] * rows))), 1 if block else 3)
        books = engine.blocks.statistics()
        blocks = {int(k): n for k, n in books["block_sizes"].items()}
        made["tokens_per_round"] = books["tokens"] / books["row_rounds"]
        made["mean_block"] = sum(k * n for k, n in blocks.items()) / books["rounds"]
        made["survival"] = sum(books["drafts_survived"]) / sum(books["drafts_judged"])
        if graphs:
            made["captured"] = len(engine.rounds.loop.fixed) if engine.rounds.loop.capture else 0
        return made

    made: dict[str, Callable[[], Figures]] = {"generate": generate}
    for name, block in (("lockstep", 1), ("own", None)):
        for graphs in (False, True):
            made[f"{name}, graphs" if graphs else name] = lambda b=block, g=graphs: ours(b, g)
    return made


def decode(results: "Results", args: argparse.Namespace) -> None:
    planted = Planted(args.shape, device=args.device, dtype=str(args.dtype).split(".")[1], context=max(args.context))
    pair = planted.pair(AGREEMENT, tokens=args.tokens)
    every = pair.prompts[0]
    (wt, ws), (vt, vs) = map(weights, pair.plain), (kept(m, args.dtype) for m in pair.plain)
    bandwidth = results.bandwidth()
    for length in args.context:
        pair.prompts[:] = [every[:length]]
        for rows in args.rows:
            for name, contender in rates(pair, pair.prompts[0], rows, args).items():
                alone = name == "generate"

                def run(rows: int = rows, length: int = length, contender=contender, alone: bool = alone) -> Figures:
                    tokens = length + FIRST + args.tokens
                    if why := does_not_fit(pair, rows, tokens, args, teacher_only=alone):
                        return why
                    made = contender()
                    if bandwidth:
                        k, e = (0, 1) if alone else (made["mean_block"], made["tokens_per_round"])
                        middle = length + FIRST + args.tokens / 2
                        read = wt + rows * middle * vt + k * (ws + rows * middle * vs)
                        made["bound"] = rows * e * bandwidth / read
                    return made

                results.measure(f"{name}, {rows} rows, {length} tokens", run)
                free(args.device)


def memory(results: "Results", args: argparse.Namespace) -> None:
    """What each further row takes, from --rows with blocks of 8: the peak above the weights, or the caches on a CPU."""
    dtype = str(args.dtype).split(".")[1]
    pair = Planted(args.shape, device=args.device, dtype=dtype, context=min(args.context)).pair(AGREEMENT)
    few, many = sorted(args.rows)[-3:-1] if len(args.rows) > 2 else sorted(args.rows)
    tokens = capacity(min(args.context) + args.tokens + 8)  # to which the caches grow

    def peak(rows: int, graphs: bool) -> int:
        engine = pair.engine(rows, 8)
        if graphs:
            with_graphs(engine)
        free(args.device)
        if args.device != "cpu":
            torch.cuda.reset_peak_memory_stats(args.device)
            before = torch.cuda.memory_allocated(args.device)
        held = 0
        for _ in engine.run(pair.requests(rows, [args.tokens] * rows)):
            both = engine.student.cache.held() + engine.teacher.model.cache.held()  # type: ignore[attr-defined]
            held = max(held, sum(both.values()))
        if args.device == "cpu":
            return held
        return torch.cuda.max_memory_allocated(args.device) - before

    def run(graphs: bool) -> Figures:
        peaks = [peak(rows, graphs) for rows in (few, many)]
        needs = [need(m.config, dtype=dtype, place=args.device, tokens=tokens) for m in pair.plain]
        return {
            "rows": [few, many],
            "tokens": tokens,
            "peak_bytes": peaks,
            "bytes_a_row": (peaks[1] - peaks[0]) / (many - few),
            "estimated": sum(n.row for n in needs),
            "caches_alone": sum(kept(m, args.dtype) for m in pair.plain) * tokens,
        }

    results.measure("a row", lambda: run(False))
    results.measure("a row, graphs", lambda: run(True))


def same(results: "Results", args: argparse.Namespace) -> None:
    def traces(device: str) -> dict[str, list[int]]:
        made = TraceGenerator(GenerateConfig(device=device, dtype="float32", verify="none"))
        return {str(t.id): t.token_ids.tolist() for t in made.run(read_rows(bundled("problems.jsonl")))}

    def run() -> Figures:
        want, made = traces("cpu"), traces(args.device)
        differ = [name for name in want if made[name] != want[name]]
        figures: Figures = {"traces": len(want), "tokens": sum(map(len, want.values())), "differ": len(differ)}
        if differ:
            pairs = enumerate(zip(want[differ[0]], made[differ[0]], strict=False))
            at = next((j for j, (a, b) in pairs if a != b), min(len(want[differ[0]]), len(made[differ[0]])))
            figures["first"] = {"id": differ[0], "position": at}
        return figures

    def graphs() -> Figures:
        pair = bundled_pair()
        teacher, student = (model.to(args.device) for model in pair.plain)
        made = []
        for graphs in (False, True):
            engine = Engine(
                teacher,
                student,
                pair.vocabulary,
                sampling=Sampling(),
                acceptance=pair.acceptance,
                eos=(),
                rows=32,
            )
            requests = pair.requests(64, [48] * 64)
            if graphs:
                with_graphs(engine)
            made.append({f.request.key: f.token_ids.tolist() for f in engine.run(requests)})
        return {"traces": len(made[0]), "differ": sum(made[0][key] != made[1][key] for key in made[0])}

    results.measure("the CPU's traces", run)
    results.measure("with graphs and without", graphs)

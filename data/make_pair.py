"""Train the bundled pair: a wordy teacher and a terse student with the shape of the paper's pair.

One byte-level BPE vocabulary for both, padded to different widths, and `<think>`, `</think>` tokens
that only the student has; the teacher is trained on the same words spelled in its own tokens. And a
second teacher of another family: Llama architecture, with a tokenizer of SentencePiece's kind. Fixed
seed; under two hours on 2 CPU cores, and as much again for the second teacher on one.

    python data/make_pair.py --part all
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from problems import FAMILIES, Problem, problems, terse, wordy
from spellers import SEED, SHARED_SPECIALS, STUDENT_SPECIALS, save_llama_tokenizer, save_tokenizer, train_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

HERE = Path(__file__).parent
# Share of teacher examples in the student's style: a real teacher, too, can carry on from a prefix
# that somebody else wrote. It learns both styles first and settles on its own afterwards.
TERSE_SHARE, TERSE_SHARE_AFTER = 0.3, 0.15


class Encoder:
    """Problems and traces to ids, each distinct piece of text tokenized once."""

    def __init__(self, tok: PreTrainedTokenizerFast) -> None:
        self.tok = tok
        self.eos = tok.eos_token_id
        self.open, self.close = self.ids("<think>"), self.ids("</think>")
        mark = "\0"  # the template around a prompt, once
        shell = tok.apply_chat_template([{"role": "user", "content": mark}], add_generation_prompt=True, tokenize=False)
        self.head, self.tail = (self.ids(part) for part in shell.split(mark))

    def ids(self, text: str) -> list[int]:
        return self.tok.encode(text, add_special_tokens=False)

    def prompt(self, p: Problem) -> list[int]:
        return [*self.head, *self.ids(p.text), *self.tail]

    def completion(self, style: tuple[str, str]) -> list[int]:
        return [*self.open, *self.ids(style[0]), *self.close, *self.ids(style[1]), self.eos]


def batches(
    enc: Encoder, seed: str, terse_share: float, size: int, families: Iterable[str] = FAMILIES
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids [size, T], labels [size, T]); examples of like length together, prompts not learnt."""
    r, stream = random.Random(seed), problems(f"{seed} problems", held_out=False, families=families)
    while True:
        pool = []
        for _ in range(size * 16):
            p = next(stream)
            prompt = enc.prompt(p)
            answer = enc.completion(terse(p) if r.random() < terse_share else wordy(p, r))
            pool.append((prompt + answer, len(prompt)))
        pool.sort(key=lambda e: len(e[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        r.shuffle(groups)
        for group in groups:
            ids = torch.zeros(size, max(len(e[0]) for e in group), dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for i, (tokens, start) in enumerate(group):
                ids[i, : len(tokens)] = torch.tensor(tokens)
                labels[i, start : len(tokens)] = ids[i, start : len(tokens)]
            yield ids, labels


def train(
    model: PreTrainedModel,
    data: Iterator,
    steps: int,
    rate: float,
    device: str,
    *,
    tokens: int | None = None,
    mixed: bool = True,
) -> None:
    """Train on completions. A batch's loss is the mean over its tokens, or its sum over `tokens`: batches
    hold examples of like length, so that the mean weighs the tokens of short examples more. mixed: in bfloat16
    where that is enough, which a processor without it computes nine times as slowly.
    """
    model.to(device).train()
    opt = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    warm = min(100, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt,
        lambda i: min(1.0, (i + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps))),
    )
    started, mean = time.time(), 0.0
    for i in range(steps):
        ids, labels = (t.to(device) for t in next(data))
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            learnt = labels[:, 1:] != -100
            logits = model.lm_head(hidden[:, :-1][learnt])
        loss = F.cross_entropy(logits.float(), labels[:, 1:][learnt], reduction="sum") / (tokens or learnt.sum())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        schedule.step()
        mean = 0.95 * mean + 0.05 * loss.item()
        if i % 50 == 0:
            print(f"step {i}/{steps} loss {mean:.4f} {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    model.eval()


@torch.inference_mode()
def accuracy(model: PreTrainedModel, enc: Encoder, count: int) -> dict[str, float]:
    """Greedy share of held-out problems answered right, per family and in all."""
    stream = problems(f"{SEED} held out", held_out=True)
    todo = [next(stream) for _ in range(count)]
    right: dict[str, list[bool]] = {f: [] for f in FAMILIES}
    for i in range(0, count, 50):
        group = todo[i : i + 50]
        prompts = [enc.prompt(p) for p in group]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)
        for p, row in zip(group, out.tolist(), strict=True):
            text = enc.tok.decode(row[width:])
            said = re.findall(r"\\boxed\{(\d+)\}", text)
            right[p.family].append(bool(said) and said[-1] == str(p.answer))
    every = [x for v in right.values() for x in v]
    return {"all": sum(every) / len(every), **{f: sum(v) / len(v) for f, v in right.items() if v}}


def model_of(width: int, *, hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> PreTrainedModel:
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=width,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=32,
            intermediate_size=inner,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def make_llama(args: argparse.Namespace) -> None:
    """The second teacher: in one phase, each token weighing the same."""
    folder = HERE / "llama"
    tok = save_llama_tokenizer(folder)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tok),
            hidden_size=128,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=384,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=tok.bos_token_id,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    enc = Encoder(tok)
    print("llama", sum(p.numel() for p in model.parameters()), "parameters,", len(tok), "tokens", file=sys.stderr)
    data = batches(enc, f"{SEED} llama", TERSE_SHARE_AFTER, 64)
    train(model, data, args.llama_steps, 2e-3, args.device, tokens=64 * 75)
    save(model, tok, enc, folder)
    report("llama", args.llama_steps, enc, folder, args.held_out)


def make(part: str, args: argparse.Namespace) -> None:
    folder = HERE / part
    base = train_tokenizer()
    specials = SHARED_SPECIALS + (STUDENT_SPECIALS if part == "student" else [])
    base.add_special_tokens(SHARED_SPECIALS)
    tok = save_tokenizer(folder, base, specials)
    enc = Encoder(tok)
    if part == "teacher":
        steps, share, rate = args.teacher_steps, TERSE_SHARE, 1.5e-3
        model = model_of(832, hidden=128, layers=10, heads=4, kv_heads=2, inner=384)
    else:
        steps, share, rate = args.student_steps, 1.0, 3e-3
        model = model_of(768, hidden=96, layers=2, heads=3, kv_heads=1, inner=288)
    print(part, sum(p.numel() for p in model.parameters()), "parameters,", len(tok), "tokens", file=sys.stderr)
    train(model, batches(enc, f"{SEED} {part}", share, 64), steps, rate, args.device)
    save(model, tok, enc, folder)
    report(part, steps, enc, folder, args.held_out)


def settle(args: argparse.Namespace) -> None:
    """The saved teacher, trained on with fewer examples in the student's style, each token weighing the same."""
    folder = HERE / "teacher"
    tok = PreTrainedTokenizerFast.from_pretrained(folder)
    enc = Encoder(tok)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    data = batches(enc, f"{SEED} settle", TERSE_SHARE_AFTER, 64)
    train(model, data, args.settle_steps, 5e-4, args.device, tokens=64 * 75)
    save(model, tok, enc, folder)
    report("teacher, settled", args.settle_steps, enc, folder, args.held_out)


def save(model: PreTrainedModel, tok: PreTrainedTokenizerFast, enc: Encoder, folder: Path) -> None:
    model.to("cpu", torch.bfloat16)
    model.config.eos_token_id = enc.eos
    model.config.pad_token_id = tok.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        top_k=20,
        eos_token_id=sorted({enc.eos, tok.convert_tokens_to_ids("<|endoftext|>") or enc.eos} - {tok.unk_token_id}),
        pad_token_id=tok.pad_token_id,
    )
    model.save_pretrained(folder)


def report(model: str, steps: int, enc: Encoder, folder: Path, count: int) -> None:
    right = accuracy(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), enc, count)
    print(json.dumps({"model": model, "steps": steps, "held_out": count, "greedy_accuracy": right}), flush=True)


def write_problems(count: int) -> None:
    stream = problems(f"{SEED} held out", held_out=True)
    with open(HERE / "problems.jsonl", "w", encoding="utf-8") as f:
        for i in range(count):
            p = next(stream)
            f.write(json.dumps({"id": f"{p.family}-{i:03}", "problem": p.text, "answer": str(p.answer)}) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--part", choices=["all", "problems", "student", "teacher", "settle", "llama"], default="all")
    ap.add_argument("--teacher-steps", type=int, default=2600)
    ap.add_argument("--settle-steps", type=int, default=400)
    ap.add_argument("--student-steps", type=int, default=1500)
    ap.add_argument("--llama-steps", type=int, default=2200)
    ap.add_argument("--held-out", type=int, default=700, help="problems for the measured accuracy")
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = ap.parse_args()
    steps = {
        "problems": lambda: write_problems(256),
        "student": lambda: make("student", args),
        "teacher": lambda: make("teacher", args),
        "settle": lambda: settle(args),
        "llama": lambda: make_llama(args),
    }
    for part, run in steps.items():
        if args.part in ("all", part):
            run()


if __name__ == "__main__":
    main()

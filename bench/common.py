"""What the benchmarks share: the two pairs, the figures' machine, interleaved repeats."""

import copy
import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen3Config

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import accept_mask, drafter, row_key, target, warp
from rsd.decoding.sequence import Request
from rsd.models.bundled import bundled
from rsd.models.loading import find, load
from rsd.models.packed import pack
from rsd.pair.meeting import meet
from rsd.pair.vocabulary import Vocabulary
from rsd.traces.readers import read_rows


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models as rsd loads them, how they meet, and prompts whose traces are cut at `tokens` tokens."""

    name: str
    teacher: PreTrainedModel
    student: PreTrainedModel
    plain: tuple[PreTrainedModel, PreTrainedModel]  # the same, as transformers loads them
    vocabulary: Vocabulary
    prompts: list[list[int]]
    tokens: int
    batches: int = 4  # of prompts that a repeat decodes
    sampling: Sampling = field(default_factory=Sampling)
    acceptance: Acceptance = field(default_factory=Acceptance)
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None

    def engine(self, rows: int, block: int | None, **kwargs: Any) -> Engine:
        kwargs = {"sampling": self.sampling, "acceptance": self.acceptance, "loop_check": False} | kwargs
        models = self.plain if kwargs.get("compile") else (self.teacher, self.student)
        return Engine(*models, self.vocabulary, eos=(), rows=rows, block=block, **kwargs)

    def requests(self, count: int, tokens: list[int]) -> list[Request]:
        """`count` traces of these lengths exactly, nothing ending one before."""
        prompts = [self.prompts[i % len(self.prompts)] for i in range(count)]
        return [
            Request(p, self.vocabulary.for_teacher(p), row_key(0, str(i), 0), n)
            for i, (p, n) in enumerate(zip(prompts, tokens, strict=True))
        ]


def bundled_pair(tokens: int = 40) -> Pair:
    """The bundled pair and the bundled problems whose traces have at least so many tokens."""
    config = GenerateConfig()
    sources = [find(role, getattr(config, role), None, trust_remote_code=False) for role in ("teacher", "student")]
    teacher, student = (load(source, config) for source in sources)
    tokenizers = sources[0].tokenizer, sources[1].tokenizer
    widths = {"teacher_width": sources[0].width, "student_width": sources[1].width}
    plain = tuple(AutoModelForCausalLM.from_pretrained(s.path, dtype=torch.float32).eval() for s in sources)
    made = TraceGenerator(config).run(read_rows(bundled("problems.jsonl")))
    prompts = [trace.prompt_ids for trace in made if len(trace.token_ids) >= tokens]
    vocabulary = meet(*tokenizers, **widths)
    return Pair("bundled", teacher, student, plain, vocabulary, prompts, tokens, tokenizers=tokenizers)


def _qwen3(hidden: int, layers: int, heads: int, inner: int, vocab: int = 16384) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        intermediate_size=inner,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )


SHAPES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "tiny": lambda: (_qwen3(192, 3, 4, 256, 1024), _qwen3(160, 1, 2, 128, 1024)),  # shows that a script runs
    # 364M and 27M parameters.
    "planted": lambda: (_qwen3(1024, 28, 16, 2816), _qwen3(512, 6, 8, 576)),
    # Qwen2.5-7B and Qwen3-0.6B.
    "planted-7b": lambda: (
        Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            intermediate_size=18944,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            eos_token_id=None,
            bos_token_id=None,
        ),
        Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
            eos_token_id=None,
            bos_token_id=None,
        ),
    ),
}
RANK, SHARPNESS = 128, 4.0  # of the bigram table's logits


class Planted:
    """A pair of random weights with a realistic ratio of costs, whose next token depends on the last one alone.

    A bigram table E W' is planted through embedding and head, and the layers' outputs are scaled down to
    nothing, so that they cost what they cost and change nothing. The teacher's W is turned by an angle
    against the student's, which sets the agreement b = sum min(d, r), the chance that a draft survives.
    """

    def __init__(self, shape: str, *, device: str = "cpu", dtype: str = "float32", context: int = 16) -> None:
        torch.manual_seed(0)
        self.name, self.context = shape, context
        configs = SHAPES[shape]()
        self.teacher, self.student = (self._model(c, device, dtype) for c in configs)
        self.width = min(c.vocab_size for c in configs)
        self.embedding = torch.nn.functional.normalize(torch.randn(self.width, RANK), dim=-1).to(device)
        self.tables = torch.randn(2, self.width, RANK).to(device)
        self._plant(self.student, self.tables[0])
        student_width = configs[1].vocab_size
        self.vocabulary = Vocabulary(shared=torch.ones(student_width), own=torch.zeros(student_width))

    @staticmethod
    def _model(config: Any, device: str, dtype: str) -> PreTrainedModel:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(1e-3)
                layer.mlp.down_proj.weight.mul_(1e-3)
        return model

    @torch.no_grad()
    def _plant(self, model: PreTrainedModel, table: torch.Tensor) -> None:
        embed, head = model.model.embed_tokens.weight, model.lm_head.weight
        for weight in (embed, head):
            weight.zero_()
        # The final norm gives the embedding, which has length 1, the length sqrt(hidden size).
        embed[: self.width, :RANK] = self.embedding.to(embed)
        head[: self.width, :RANK] = (table * SHARPNESS / embed.shape[1] ** 0.5).to(head)
        head[self.width :, RANK] = -1.0

    def _turned(self, angle: float) -> torch.Tensor:
        return math.cos(angle) * self.tables[0] + math.sin(angle) * self.tables[1]

    def _agreement(self, angle: float, sampling: Sampling, acceptance: Acceptance) -> float:
        last = self.embedding[:: self.width // 256] * SHARPNESS
        ours, theirs = last @ self.tables[0].T, last @ self._turned(angle).T
        p = warp(ours, sampling)
        stands = accept_mask(ours.log_softmax(-1), p, acceptance, sampling)
        goal = target(warp(theirs, sampling), p, stands, acceptance.trials)
        return float(torch.minimum(drafter(p, stands), goal.r).sum(-1).mean())

    def pair(self, b: float, *, tokens: int = 32) -> Pair:
        """The pair with agreement b, over contexts drawn at random."""
        sampling, acceptance = Sampling(), Acceptance()
        low, high = 0.0, 0.4
        for _ in range(12):
            middle = (low + high) / 2
            if self._agreement(middle, sampling, acceptance) > b:
                low = middle
            else:
                high = middle
        self._plant(self.teacher, self._turned(low))
        draws = torch.Generator().manual_seed(1)
        prompts = torch.randint(self.width, (64, self.context), generator=draws).tolist()
        plain = packed = self.teacher, self.student
        if self.teacher.device.type == "cpu":  # nothing is packed elsewhere, where a copy might not even fit
            packed = copy.deepcopy(self.teacher), copy.deepcopy(self.student)
            for model in packed:
                pack(model)
        return Pair(f"{self.name}, b = {b}", *packed, plain, self.vocabulary, prompts, tokens, batches=1)


def interleaved(contenders: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Each contender's figures, its turns taken among the others', after one that only warms up."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            figure = contender()
            if repeat:
                figures[name].append(figure)
    return figures


def ratio(of: list[float], to: list[float]) -> str:
    """Median (minimum .. maximum) of the repeats' ratios."""
    ratios = sorted(a / b for a, b in zip(of, to, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("torch", "transformers", "rsd")},
    }


def write(file: str | None, results: list[dict[str, Any]]) -> None:
    """Write what there is so far, so that a long benchmark can be stopped."""
    if file:
        text = json.dumps({"machine": machine(), "results": results}, indent=1)
        Path(file).write_text(text + "\n", encoding="utf-8")

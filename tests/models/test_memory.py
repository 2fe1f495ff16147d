"""Rows from free memory: the estimate is what the models take, and a real lack of memory is survived."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment
from transformers import AutoConfig, AutoModelForCausalLM

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.models.memory import KEEP_FREE, MOST_ROWS, Need, estimate, free_bytes, need


def test_the_estimate_is_what_a_model_takes():
    generator = TraceGenerator(GenerateConfig(batch_size=3)).load()
    roles = {"teacher": generator._engine.teacher.model, "student": generator._engine.student}
    traces = generator.stream([{"prompt": "Tom has 3 pens and finds 4."}] * 1)
    next(traces)
    held = {role: sum(model.cache.held().values()) for role, model in roles.items()}
    assert list(traces) == []
    for role, model in roles.items():
        small, large = (
            need(AutoConfig.from_pretrained(bundled(role)), dtype="float32", place="cpu", tokens=n) for n in (256, 512)
        )
        loaded = AutoModelForCausalLM.from_pretrained(bundled(role), dtype=torch.float32)
        assert loaded.config.tie_word_embeddings
        assert small.weights == sum(p.nbytes for p in loaded.parameters()) + loaded.lm_head.weight.nbytes
        assert large.row - small.row == held[role]
        assert not model.cache.held()


def test_rows_follow_from_what_is_free():
    free = free_bytes("cpu")
    assert 0 < free < 2**50

    def rows(weights, row, **kwargs):
        made = estimate(Need("cpu", weights, row), Need("cpu", weights, row), tokens=10, **{"rows": None} | kwargs)
        assert f"{made.rows} rows at once" in made.text
        return made.rows

    assert rows(1000, 1000) == MOST_ROWS["cpu"]
    assert rows(1000, 1000, rows=70) == 70
    # Two models, each a tenth of what is free, and rows of a hundredth each: (0.9 - 0.2) / 0.02 of them fit.
    assert rows(free // 10, free // 100) == 32
    assert rows(free // 10, free // 20) == pytest.approx((1 - KEEP_FREE - 0.2) / 0.1, abs=1)
    assert rows(free, free) == 1
    assert "may not fit" in estimate(Need("cpu", free, 1), Need("cpu", 1, 1), tokens=10, rows=None).text


SCRIPT = """
import resource, sys, torch
sys.path.append({tests!r})
from pairs import decode, random_model, requests, twin_vocabulary
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
torch.set_num_threads(1)
from transformers import Qwen3Config, AutoModelForCausalLM
models = []
for seed in (1, 2):
    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=24, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, head_dim=256, intermediate_size=48, max_position_embeddings=2048,
        initializer_range=0.2, tie_word_embeddings=False, eos_token_id=None, bos_token_id=None)
    models.append(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
prompts = [[1 + i % 20, 2 + i % 7] for i in range(64)]
want = decode(*models, prompts[:6], rows=2, max_new_tokens=300)
engine = Engine(*models, twin_vocabulary(24), sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0),
    acceptance=Acceptance(threshold=0.02), eos=(), rows=64)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {spare}, size + {spare}))
made = {{f.request.tag: f for f in engine.run(requests(prompts, max_new_tokens=300, vocabulary=twin_vocabulary(24)))}}
assert len(made) == 64 and all(f.error is None and len(f.token_ids) == 300 for f in made.values())
assert all(made[i].token_ids.tolist() == f.token_ids.tolist() for i, f in want.items())
print("rows", engine.rows)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.slow
def test_a_process_that_may_have_no_more_memory_goes_on():
    # 64 rows of 512 slots take 1 GB in both caches; the process gets 400 MB.
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), spare=400_000_000)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert 1 <= int(result.stdout.split()[1]) <= 32

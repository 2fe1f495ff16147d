"""What `bench/distill.py` trains by, against what it is said to be."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.models.bundled import bundled
from rsd.pair.meeting import meet
from rsd.traces.readers import read_rows

pytest.importorskip("trl")
sys.path.append(str(Path(__file__).parents[2] / "bench"))

from distill_losses import HARD, InStudentsTokens, SoftTrainer, collate

PROBLEMS = list(read_rows(bundled("problems.jsonl")))[:6]


@pytest.fixture(scope="module")
def traces():
    made = TraceGenerator(GenerateConfig(max_new_tokens=64, top_logprobs=8)).run(PROBLEMS)
    return sorted(made, key=lambda trace: str(trace.id))


@pytest.fixture(scope="module")
def pair():
    return [
        AutoModelForCausalLM.from_pretrained(bundled(of), dtype=torch.float32).eval() for of in ("teacher", "student")
    ]


def loss(model, rows):
    return SoftTrainer.compute_loss(SimpleNamespace(), model, collate(rows))


def row(trace, ids, logprobs):
    prompt, completion = trace.prompt_ids, trace.token_ids.tolist()
    return {
        "input_ids": prompt + completion,
        "labels": [-100] * len(prompt) + completion,
        "attention_mask": [1] * (len(prompt) + len(completion)),
        "teacher_ids": [[-1] * ids.shape[1]] * len(prompt) + ids.tolist(),
        "teacher_logprobs": [[0.0] * ids.shape[1]] * len(prompt) + logprobs.tolist(),
    }


def test_a_teacher_that_says_what_the_student_says_leaves_the_plain_loss_alone(traces, pair):
    _, student = pair
    own = [row(t, t.soft_targets.student_ids, t.soft_targets.student_logprobs) for t in traces]
    theirs = [row(t, t.soft_targets.teacher_ids, np.nan_to_num(t.soft_targets.teacher_logprobs)) for t in traces]
    with torch.inference_mode():
        plain = -np.concatenate([t.student_logprobs for t in traces]).mean()
        assert loss(student, own).item() == pytest.approx(HARD * plain, abs=2e-3)
        assert loss(student, theirs).item() > HARD * plain + 0.05


def test_soft_targets_are_learnt(traces, pair):
    student = copy.deepcopy(pair[1])
    rows = [row(t, t.soft_targets.teacher_ids, np.nan_to_num(t.soft_targets.teacher_logprobs)) for t in traces]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    seen = []
    for _ in range(10):
        made = loss(student, rows)
        made.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(made.item())
    assert np.isfinite(seen).all() and seen[-1] < 0.7 * seen[0]


def test_the_teacher_judges_the_students_tokens_as_it_does_in_a_trace(traces, pair):
    teacher, student = pair
    tokenizers = [AutoTokenizer.from_pretrained(bundled(of)) for of in ("teacher", "student")]
    vocabulary = meet(*tokenizers, teacher_width=teacher.config.vocab_size, student_width=student.config.vocab_size)
    judge = InStudentsTokens(teacher, student.config, vocabulary.student_to_teacher)
    batch = collate([row(t, t.soft_targets.teacher_ids, t.soft_targets.teacher_logprobs) for t in traces])
    with torch.inference_mode():
        says = judge(batch["input_ids"], batch["attention_mask"]).logits.log_softmax(-1)
    for i, trace in enumerate(traces):
        start, ids = len(trace.prompt_ids), torch.from_numpy(trace.token_ids).long()
        made = says[i, start - 1 : start - 1 + len(ids)].gather(-1, ids[:, None])[:, 0].numpy()
        assert np.isin(list(vocabulary.student_to_teacher), ids).any()  # that it spells
        soft, own = trace.soft_targets, trace.token_ids[:, None]
        told = np.where(soft.teacher_ids == own, soft.teacher_logprobs, -np.inf).max(1)
        known = told > -np.inf
        assert known.mean() > 0.9 and made[known] == pytest.approx(told[known], abs=0.02)

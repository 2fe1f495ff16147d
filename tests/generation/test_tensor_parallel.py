"""A teacher that several processes hold together makes the traces that it makes in one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import environment, read, write
from jobs import by_key, files, run, same_rows
from pairs import CONFIGS
from transformers import GPT2Config

from rsd.config import BUNDLED_LLAMA, BUNDLED_TEACHER, GenerateConfig
from rsd.generation.generator import TraceGenerator
from rsd.models.bundled import bundled
from rsd.models.tensor_parallel import Broken, together
from rsd.traces.readers import read_rows
from rsd.traces.shards import launched, part_files

ROWS = read_rows(bundled("problems.jsonl"))[:24]


def launch(processes: int, *args: str, together: int = 2, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "rsd", "generate", *args, "--tensor-parallel", str(together)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True, **pipes)


def end(process: subprocess.Popen, *, expect: int | None = 0) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert expect is None or process.returncode == expect, err
    return out, err


def assert_same(out: Path, alone: Path) -> None:
    (rows, tokens, manifest), (want, wanted, one) = files(out), files(alone)
    assert same_rows(rows, want) and manifest["identity"] == one["identity"]
    for key, line in by_key(tokens).items():
        theirs = by_key(wanted)[key]
        for column in ("token_ids", "from_teacher", "teacher_proposals", "prompt_ids"):
            assert line[column] == theirs[column]
        for column in ("student_logprobs", "teacher_logprobs"):
            mine, other = (np.array(v[column], dtype=float) for v in (line, theirs))
            np.testing.assert_allclose(mine, other, atol=1e-4)
    assert not part_files(out)


# The Llama's tokens are others: it reads contexts that branch, and is asked for some of them once more.
@pytest.mark.parametrize(
    ("teacher", "processes"),
    [(BUNDLED_LLAMA, 2), pytest.param(BUNDLED_TEACHER, 4, marks=pytest.mark.slow)],
)
def test_two_processes_that_hold_the_teacher_make_what_one_makes(teacher, processes, tmp_path):
    write(tmp_path / "in.jsonl", ROWS)
    args = ["--teacher", teacher, "--num-generations", "2"]
    run(tmp_path / "in.jsonl", "-o", tmp_path / "want.jsonl", *args)
    out, err = end(launch(processes, "in.jsonl", "-o", "t.jsonl", *args, "--batch-size", "6", folder=tmp_path))
    assert_same(tmp_path / "t.jsonl", tmp_path / "want.jsonl")
    assert out.count("rows         48") == 1 and err.count("vocabularies:") == 1  # one process prints


@pytest.mark.slow
def test_a_job_goes_on_in_one_process_when_one_of_those_that_hold_the_teacher_was_killed(tmp_path):
    write(tmp_path / "in.jsonl", ROWS)
    run(tmp_path / "in.jsonl", "-o", tmp_path / "want.jsonl")
    slow = ["--batch-size", "1", "--block-size", "1"]
    process = launch(2, "in.jsonl", "-o", "t.jsonl", *slow, folder=tmp_path)
    rows = tmp_path / "t.jsonl"
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    follower = next(p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    follower.kill()
    _, err = end(process, expect=None)
    assert process.returncode != 0
    assert "rsd/models" not in err and "rsd/decoding" not in err  # no traceback of ours; torchrun has its own
    assert sum(line.startswith("rsd: ") for line in err.splitlines()) <= 1
    assert 0 < len(read(rows)) < len(ROWS)
    run(tmp_path / "in.jsonl", "-o", tmp_path / "t.jsonl")
    assert_same(rows, tmp_path / "want.jsonl")


@pytest.mark.parametrize(
    ("rank", "world", "together", "want"),
    [(5, 8, 4, "2/2"), (3, 8, 2, "2/4"), (3, 4, 4, None), (0, 1, 1, None), (1, 2, 1, "2/2")],
)
def test_processes_that_hold_one_teacher_are_one_share(rank, world, together, want, monkeypatch):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert (str(share) if (share := launched(together)) else None) == want


def test_what_cannot_be_divided_is_refused_in_one_line(tmp_path, monkeypatch):
    assert "torchrun --nproc-per-node 2" in run("--tensor-parallel", "2", expect=2).output
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "not of 3" in run("--tensor-parallel", "2", expect=2).output
    monkeypatch.setenv("WORLD_SIZE", "")
    for other, said in (
        ({"teacher_load_in": "8bit"}, "quantised"),
        ({"compile": True}, "one device"),
        ({"teacher_device": "cpu"}, "leave teacher_device"),
        ({"device_map": "auto"}, "leave teacher_device"),
        ({"teacher": "http://localhost:1/v1", "teacher_model": "m"}, "served|server"),
    ):
        with pytest.raises(ValueError, match=said):
            GenerateConfig(tensor_parallel=2, **other)
    student = str(bundled("student"))
    with pytest.raises(ValueError, match=r"3 heads \(1 of keys\) are no multiple of tensor_parallel 2"):
        TraceGenerator(GenerateConfig(tensor_parallel=2, teacher=student)).find()
    plain = shutil.copytree(bundled("llama"), tmp_path / "plain")
    GPT2Config(vocab_size=768, n_layer=2, n_embd=32, n_head=4).save_pretrained(plain)
    with pytest.raises(ValueError, match="no plan to divide a gpt2"):
        TraceGenerator(GenerateConfig(tensor_parallel=2, teacher=str(plain))).find()
    with pytest.raises(ValueError, match="for a launch"):
        TraceGenerator(GenerateConfig(tensor_parallel=2)).load()


KINDS = """
import sys
import torch
import transformers
sys.path.append({tests!r})
from pairs import CONFIGS, random_model
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from rsd.models.kv_cache import CachedModel
from rsd.models.selfcheck import check_decoding
from rsd.models.tensor_parallel import Group

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
with Group(2) as group:
    for kind in CONFIGS:
        folder = f"{folder}/{{kind}}"
        if group.leads:
            random_model(kind, vocab=64, seed=1).save_pretrained(folder)
        group._share([None])
        plain, divided = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
            for how in ({{}}, {{"distributed_config": DistributedConfig(tp_size=2)}})
        )
        ids = torch.arange(2, 40)[None]
        with torch.inference_mode():
            apart = (divided(ids).logits - plain(ids).logits).abs().max()
        assert apart < 1e-3, (kind, apart)
        check_decoding(divided, kind)
        read = CachedModel(divided, 1).prefill([[1, 2, 3]]).cache.layers
        whole = CachedModel(plain, 1).prefill([[1, 2, 3]]).cache.layers
        if group.leads:
            mine, theirs = (sum(k.nbytes + v.nbytes for k, v in layers.values()) for layers in (read, whole))
            print(kind, theirs / mine, flush=True)
    if not group.leads:
        group.hear()
"""


@pytest.mark.slow
def test_all_architectures_can_be_divided_and_each_process_keeps_its_share_of_the_cache(tmp_path):
    script = tmp_path / "kinds.py"
    script.write_text(KINDS.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(script)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    shares = {line.split()[0]: float(line.split()[1]) for line in result.stdout.splitlines()}
    assert len(shares) == len(CONFIGS) and set(shares.values()) <= {1.0, 2.0}
    assert shares["llama"] == shares["qwen3"] == 2


def test_a_pass_that_fails_in_one_process_is_no_lack_of_memory_that_fewer_rows_would_mend():
    # The lead alone cannot try again: the others wait in the midst of the pass. So the job ends, and goes on later.
    for raised, said in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: take a smaller batch_size"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:44676."), "one of them is gone"),
    ):
        with pytest.raises(Broken, match=said) as caught, together():
            raise raised
        assert not isinstance(caught.value, RuntimeError | MemoryError)  # what the engine would try to mend

"""`rsd generate` from the outside: the files it leaves, what it says, and what a crash leaves of a job."""

import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import SPECIALS, environment, read, rsd, save_model, write
from jobs import FLAGS, PROBLEMS, by_key, files, pair, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.traces.trace import COLUMNS


def test_the_rows_and_the_sidecar(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2)
    rows, tokens, meta = files(out)
    assert len(rows) == 20 and set(by_key(rows)) == set(by_key(tokens))
    tokenizer = AutoTokenizer.from_pretrained(tiny()["student"])
    model = AutoModelForCausalLM.from_pretrained(tiny()["student"], dtype=torch.float32)
    for key, row in by_key(rows).items():
        assert list(row) == [*COLUMNS, "answer", "level"]
        problem = next(p for p in PROBLEMS if p["id"] == row["id"])
        assert row["prompt"] == [{"role": "user", "content": problem["problem"]}]
        assert (row["answer"], row["level"]) == (problem["answer"], problem["level"])
        assert row["is_correct"] is False and row["verify_error"] is None and row["error"] is None
        arrays = by_key(tokens)[key]
        lengths = {len(arrays[k]) for k in arrays if k not in ("id", "generation", "prompt_ids")}
        assert lengths == {row["num_tokens"]}
        stopped = row["finish_reason"] == "stop"
        assert stopped == (arrays["token_ids"][-1] in (256, 258)) == row["ended_by_eos"]
        shown = arrays["token_ids"][:-1] if stopped else arrays["token_ids"]
        assert row["completion"] == [{"role": "assistant", "content": tokenizer.decode(shown)}]
        assert arrays["prompt_ids"] == tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=False
        )
        assert row["fallback_rate"] == pytest.approx(1 - np.mean(arrays["from_teacher"]), abs=1e-6)
        for token, logprob in zip(arrays["token_ids"], arrays["teacher_logprobs"], strict=True):
            assert (logprob is None) == (token in (259, 260))
        ids = torch.tensor([arrays["prompt_ids"] + arrays["token_ids"]])
        with torch.inference_mode():
            want = model(ids).logits[0].log_softmax(-1)[len(arrays["prompt_ids"]) - 1 : -1]
        want = want.gather(1, ids[0, len(arrays["prompt_ids"]) :, None])[:, 0]
        np.testing.assert_allclose(arrays["student_logprobs"], want, atol=1e-4)
    assert meta["totals"]["rows"] == 20
    assert meta["totals"]["tokens"] == sum(r["num_tokens"] for r in rows)
    assert sum(meta["totals"]["finish_reasons"].values()) == 20
    assert meta["student"] == {"name": tiny()["student"], "path": tiny()["student"], "revision": None}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_architectures_load_from_directories(tiny, tmp_path, kind):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:3]), tmp_path / "out.jsonl"
    result = run(source, "-o", out, *pair(tiny, kind), *FLAGS)
    assert "3 (3 new)" in result.output
    assert "259 shared tokens, 2 only in the student (<think> </think>)" in result.output
    assert len(files(out)[0]) == 3


def test_the_paper_models_are_accepted_as_arguments(tmp_path):
    # They cannot be downloaded here; the error says so, and not that the arguments are wrong.
    result = rsd(
        *(
            "generate",
            "-o",
            tmp_path / "out.jsonl",
            "--teacher",
            "simplescaling/s1.1-7B",
            "--student",
            "Qwen/Qwen3-0.6B",
        ),
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("rsd: --teacher simplescaling/s1.1-7B: cannot be loaded:")
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_what_cannot_change_a_trace_does_not(tiny, tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    run(source, "-o", tmp_path / "a.jsonl", *pair(tiny), *FLAGS)
    shuffled = write(tmp_path / "shuffled.jsonl", random.Random(0).sample(PROBLEMS, 10))
    run(shuffled, "-o", tmp_path / "b.jsonl", *pair(tiny), *FLAGS, "--batch-size", 1)
    run(source, "-o", tmp_path / "c.jsonl", *pair(tiny), *FLAGS, "--limit", 4, "--batch-size", 3)
    a, b, c = (by_key(files(tmp_path / f"{x}.jsonl")[1]) for x in "abc")
    assert set(a) == set(b) and set(c) == {(f"p{i}", 0) for i in range(4)}
    for other in (b, c):
        for key, line in other.items():
            assert line["token_ids"] == a[key]["token_ids"]


def test_blocks_change_no_trace_and_are_counted(tiny, tmp_path):
    source = write(tmp_path / "in.jsonl", PROBLEMS)
    made = {}
    for flags in (["--block-size", 1], ["--block-size", 3, "--batch-size", 2], ["--batch-size", "auto"], []):
        out = tmp_path / f"{len(made)}.jsonl"
        result = run(source, "-o", out, *pair(tiny), *FLAGS, *flags)
        rows, tokens, meta = files(out)
        # Log-probs differ in the last digits where passes have other shapes.
        made[out] = {key: (line["token_ids"], line["from_teacher"]) for key, line in by_key(tokens).items()}
        assert set(made[out]) == set(by_key(rows))
        decoding = meta["decoding"]
        assert decoding["tokens"] == meta["totals"]["tokens"]
        assert decoding["tokens_per_round"] == pytest.approx(decoding["tokens"] / decoding["row_rounds"], abs=1e-3)
        assert f"{decoding['tokens_per_round']:.1f} tokens a round" in result.output
        assert len(decoding["survival"]) == len(decoding["drafts_judged"])
        assert all(0 <= s <= 1 for s in decoding["survival"])
        if flags[:1] == ["--block-size"]:
            assert set(decoding["block_sizes"]) == {str(flags[1])}
        assert re.search(r"memory: weights .+ rows at once \(.+ free on cpu\)", result.output)
    first, *others = made.values()
    assert all(other == first for other in others)
    # The manifest's books go on when the file does.
    out = next(iter(made))
    before = files(out)[2]["decoding"]
    run(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2, "--block-size", 2)
    after, total = files(out)[2]["decoding"], files(out)[2]["totals"]
    assert after["tokens"] == total["tokens"] and set(after["block_sizes"]) == {"1", "2"}
    assert after["drafts_judged"][0] > before["drafts_judged"][0] and len(after["survival"]) == 2
    run(source, "-o", out, *pair(tiny), *FLAGS, "--num-generations", 2)
    assert files(out)[2]["decoding"] == after


def test_more_rows_and_more_generations_extend_a_file(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS, "--limit", 3)
    first = out.read_text()
    result = run(source, "-o", out, *pair(tiny), *FLAGS, "--limit", 5, "--num-generations", 2, "--batch-size", 2)
    assert "found 3 finished traces, 7 to make" in result.output
    assert out.read_text().startswith(first)
    assert len(by_key(files(out)[0])) == 10
    result = run(source, "-o", out, *pair(tiny), *FLAGS, "--limit", 5, "--num-generations", 2)
    assert "is finished: it holds all 10 traces" in result.output
    assert len(files(out)[0]) == 10


def test_other_settings_are_named_and_nothing_is_lost(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    result = run(source, "-o", out, *pair(tiny), *FLAGS, "--seed", 1, "--threshold", 0.5, expect=2)
    assert "threshold (there 0.01, now 0.5); seed (there 0, now 1)" in result.output
    swapped = ["--teacher", tiny()["student"], "--student", tiny()["student"]]
    assert "teacher (there" in run(source, "-o", out, *swapped, *FLAGS, expect=2).output
    other = write(tmp_path / "other.jsonl", [{"id": "p1", "problem": "Another?"}])
    assert "another prompt for id 'p1'" in run(other, "-o", out, *pair(tiny), *FLAGS, expect=2).output
    other.unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    run(source, "-o", out, *pair(tiny), *FLAGS, "--seed", 1, "--overwrite")
    rows, tokens, meta = files(out)
    assert len(rows) == len(tokens) == 10 and meta["identity"]["seed"] == 1
    assert out.read_bytes() != before["out.jsonl"]


@pytest.mark.slow
def test_a_killed_job_goes_on(tiny, tmp_path):
    """`kill -9` at random moments until the job is done equals a run that nothing stopped."""
    flags = ["generate", "in.jsonl", *pair(tiny), *FLAGS, "--max-new-tokens", "200", "--num-generations", "6"]
    flags += ["--batch-size", "4"]
    write(tmp_path / "in.jsonl", PROBLEMS)
    assert rsd(*flags, "-o", "whole.jsonl", cwd=tmp_path).returncode == 0
    rng, killed, out = random.Random(1), 0, tmp_path / "out.jsonl"
    for _ in range(4):
        before = out.stat().st_size if out.exists() else 0
        job = subprocess.Popen(
            [sys.executable, "-m", "rsd", *flags, "-o", "out.jsonl"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while job.poll() is None and (not out.exists() or out.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if job.poll() is None:
            os.kill(job.pid, signal.SIGKILL)
            killed += 1
        if job.wait() == 0:
            break
    assert killed >= 2
    # And a torn line of each kind, whatever the kills left.
    with open(out, "a") as rows, open(tmp_path / "out.tokens.jsonl", "a") as tokens:
        rows.write('{"id": "p1", "gener')
        tokens.write('{"id": "p1", "generation": 0, "token_ids": [1, 2')
    last = rsd(*flags, "-o", "out.jsonl", cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert "finished traces" in last.stderr or "is finished" in last.stderr
    for suffix in ("jsonl", "tokens.jsonl"):
        got, want = read(tmp_path / f"out.{suffix}"), read(tmp_path / f"whole.{suffix}")
        assert len(got) == len(want) == 60
        assert by_key(got).keys() == by_key(want).keys()
        for key, line in by_key(got).items():
            exact = {k: v for k, v in line.items() if not isinstance(v, list | float) or k == "token_ids"}
            assert exact == {k: by_key(want)[key][k] for k in exact}
    assert json.loads((tmp_path / "out.meta.json").read_text())["totals"]["rows"] == 60


def test_an_interrupt_is_one_line(tiny, tmp_path):
    flags = [*pair(tiny), *FLAGS, "--max-new-tokens", "400", "--num-generations", "500", "--batch-size", "2"]
    write(tmp_path / "in.jsonl", PROBLEMS)
    job = subprocess.Popen(
        [sys.executable, "-m", "rsd", "generate", "in.jsonl", *flags],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background may have been told to ignore interrupts.
    )
    while not (tmp_path / "traces.jsonl").exists() or not (tmp_path / "traces.jsonl").stat().st_size:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    said = job.communicate()[1]
    assert job.returncode == 130
    assert said.strip().splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in said
    assert all(json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines())


def test_a_trace_without_its_tokens_is_made_again(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS), tmp_path / "out.jsonl"
    run(source, "-o", out, *pair(tiny), *FLAGS)
    rows, tokens, _ = files(out)
    write(tmp_path / "out.tokens.jsonl", tokens[:4] + tokens[5:7])
    write(out, [*rows[1:], rows[1]])  # one lost, one twice
    run(source, "-o", out, *pair(tiny), *FLAGS)
    again, tokens_again, _ = files(out)
    assert len(again) == len(tokens_again) == 10
    for old, new in ((rows, again), (tokens, tokens_again)):
        assert {k: v.get("token_ids") for k, v in by_key(old).items()} == {
            k: v.get("token_ids") for k, v in by_key(new).items()
        }


def test_the_dry_run_shows_both_prompts(tiny, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"prompt": "use <think> well"}])
    result = run(source, "-o", tmp_path / "out.jsonl", *pair(tiny), "--dry-run", "--system-prompt", "Be brief.")
    shown = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nuse <think> well<|im_end|>\n"
    assert result.output.count(shown) == 2
    assert "the student's prompt, 48 tokens" in result.output and "the teacher's prompt, 54 tokens" in result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_the_teachers_own_template(tiny, tmp_path):
    folder = save_model(tmp_path / "teacher", SPECIALS, width=259, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "Q: {{ messages[0].content }} A:"
    tokenizer.save_pretrained(folder)
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:2]), tmp_path / "out.jsonl"
    models = ["--teacher", folder, "--student", tiny()["student"]]
    assert "Q: 0 plus 0? A:" in run(source, *models, "--teacher-prompt", "own", "--dry-run").output
    run(source, "-o", out, *models, *FLAGS, "--teacher-prompt", "own", "--threshold", 0, "--temperature", 0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for line in files(out)[1]:
        problem = next(p["problem"] for p in PROBLEMS if p["id"] == line["id"])
        ids = tokenizer.encode(f"Q: {problem} A:", return_tensors="pt")
        want = model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :].tolist()
        assert line["token_ids"] == want


def test_sampling_defaults_come_from_the_student(tiny, tmp_path):
    folder = tmp_path / "student"
    student = AutoModelForCausalLM.from_pretrained(tiny()["student"])
    student.generation_config.update(do_sample=True, temperature=0.6, top_k=50, repetition_penalty=1.3)
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny()["student"]).save_pretrained(folder)
    source = write(tmp_path / "in.jsonl", PROBLEMS[:1])
    out = run(source, "--teacher", tiny()["teacher"], "--student", folder, "--dry-run", "--top-p", 0.9).output
    assert "temperature 0.6 (student), top-p 0.9 (asked), top-k 50 (student)" in out
    assert "ignored from the student's generation config: repetition_penalty" in out


def test_the_papers_preset(tiny, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PROBLEMS[:1]), tmp_path / "out.jsonl"
    result = run(source, "-o", out, *pair(tiny), "--preset", "paper", expect=2)
    assert "--max-new-tokens 7168 leaves no room for a prompt in a context of 512" in result.output
    run(source, "-o", out, *pair(tiny), "--preset", "paper", "--max-new-tokens", 20)
    identity = files(out)[2]["identity"]
    want = {"temperature": 0.7, "top_p": 0.95, "top_k": 20, "threshold": 0.01, "trials": "5", "accept_top_k": 20}
    assert {k: identity[k] for k in want} == want and identity["max_new_tokens"] == 20


def test_the_library(tiny):
    config = GenerateConfig(**tiny(), max_new_tokens=20, num_generations=2, temperature=1.0, seed=3)
    generator = pickle.loads(pickle.dumps(TraceGenerator(config)))
    rows = [{"prompt": "b"}, {"prompt": ""}, {"prompt": "a", "id": 4}]
    made = generator.run(rows)
    assert [(t.prompt[0]["content"] if t.prompt else "", t.generation) for t in made] == [
        ("b", 0), ("b", 1), ("", 0), ("", 1), ("a", 0), ("a", 1)
    ]  # fmt: skip
    assert made[2].error and made[4].id == 4
    assert generator.load() is generator.load()
    streamed = {t.key: t for t in generator.stream(rows)}
    for t in made:
        assert streamed[t.key].token_ids.tolist() == t.token_ids.tolist()
    assert pickle.loads(pickle.dumps(generator)).config == config
    columns = generator({"prompt": np.array(["b", "a"], dtype=object), "id": np.array([7, 4])})
    assert columns["id"] == [7, 7, 4, 4] and columns["generation"] == [0, 1, 0, 1]
    assert columns["completion"][2] == [{"role": "assistant", "content": made[4].text}]


def test_the_constructor_does_no_io():
    TraceGenerator(GenerateConfig(teacher="/no/such", student="/no/such"))
    with pytest.raises(ValueError, match="no such directory"):
        TraceGenerator(GenerateConfig(teacher="/no/such", student="/no/such")).load()


@pytest.mark.parametrize("value", [{"trials": math.inf}, {"threshold": 0}, {"temperature": 0}])
def test_edges_of_the_ranges_are_allowed(value):
    GenerateConfig(**value)

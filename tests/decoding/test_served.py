"""A teacher behind a server: the same traces as with the teacher at hand, whatever the server does."""

import json
import threading
import time

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import read as lines
from stub import Refused, Stub
from transformers import AutoTokenizer

from rsd import GenerateConfig, TraceGenerator
from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.serving import client as served
from rsd.serving import completions, probe
from rsd.serving.key import KEY
from rsd.traces.readers import read_rows

ROWS = read_rows(bundled("problems.jsonl"))[:4]
SHORT = {"max_new_tokens": 40, "batch_size": 3, "verify": "none"}


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(served, "DELAYS", (0.02, 0.2))
    monkeypatch.setattr(probe, "STARTING", 0)
    monkeypatch.delenv(KEY, raising=False)
    with Stub(bundled("teacher"), name="teacher") as one:
        yield one


def config(stub, **changed):
    asked = {"teacher": f"{stub.url}/v1", "teacher_model": "teacher", "teacher_tokenizer": str(bundled("teacher"))}
    return GenerateConfig(**asked | SHORT | changed)


def traces(config):
    return TraceGenerator(config).run(ROWS)


@pytest.fixture(scope="module")
def local():
    return {t: traces(GenerateConfig(**SHORT, temperature=t)) for t in (0, 0.7)}


def assert_same(made, want):
    for mine, theirs in zip(made, want, strict=True):
        assert mine.error is None and mine.key == theirs.key
        assert mine.token_ids.tolist() == theirs.token_ids.tolist()
        assert mine.from_teacher.tolist() == theirs.from_teacher.tolist()
        told = np.isfinite(mine.teacher_logprobs)
        np.testing.assert_allclose(mine.teacher_logprobs[told], theirs.teacher_logprobs[told], atol=1e-3)
        known = np.isfinite(theirs.teacher_logprobs)
        assert not (told & ~known).any() and (known & ~told).sum() <= 2  # not among the 20 likeliest
        np.testing.assert_allclose(mine.accepted, theirs.accepted, atol=1e-3)


@pytest.mark.parametrize("block", [1, 6])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_traces_are_those_of_the_teacher_at_hand(stub, local, temperature, block):
    # With top-k 20 (the student's) q is the same; `<think>` and `</think>` are spelled on the server.
    made = traces(config(stub, temperature=temperature, block_size=block))
    assert_same(made, local[temperature])
    assert all(t.text.startswith("<think>") for t in made)


def test_a_block_is_part_of_one_request(stub):
    generator = TraceGenerator(config(stub, batch_size=4, block_size=8))
    generator.run(ROWS)
    books = generator.blocks.statistics()
    # Beside these it is asked what it can tell, and by their ids of tokens that its list left open.
    asked = [body for body in stub.bodies[4:] if "logprob_token_ids" not in body]
    assert all(body["max_tokens"] == 1 and body["logprobs"] == 20 for body in asked)
    assert all(body["return_tokens_as_token_ids"] is True for body in asked)
    # A request a round, and at the most one more for spellings that no draft held.
    assert books["rounds"] <= len(asked) <= 2 * books["rounds"] and books["row_rounds"] > books["rounds"]
    blocks = [body for body in asked if len(body["prompt"]) >= 8]
    assert sum(len(body["prompt"]) for body in blocks) >= 8 * books["row_rounds"]
    for body in blocks:
        first, *others = body["prompt"][:8]
        assert all(other[: len(first)] == first and len(other) > len(first) for other in others)


def test_what_is_under_way_is_bounded(stub, monkeypatch):
    monkeypatch.setattr(completions, "CONTEXTS", 1)  # a request for every row
    for together in (2, 64):
        monkeypatch.setattr(served, "TOGETHER", together)
        stub.peak = 0
        traces(config(stub, batch_size=4))
        assert stub.peak == min(together, 4)


@pytest.mark.parametrize("faults", [[429, 503, 500], ["drop", "close"], ["malformed", "bare"], ["hang", 502]])
def test_a_server_that_fails_now_and_then_changes_nothing(stub, local, monkeypatch, faults):
    monkeypatch.setattr(served, "TIMEOUT", httpx.Timeout(8))  # 64 contexts take the stub 2 s on one thread
    generator = TraceGenerator(config(stub)).load()
    stub.retry_after, stub.hang = 0, 10
    stub.fail(*faults * 2)
    assert_same(generator.run(ROWS), local[0.7])
    assert not stub.faults


def command(stub, tmp_path, *flags):
    source = tmp_path / "problems.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    teacher = [f"--teacher={stub.url}/v1", "--teacher-model=teacher", f"--teacher-tokenizer={bundled('teacher')}"]
    if "--teacher" in flags:  # it may be given several times
        teacher = teacher[1:]
    args = [source, "-o", tmp_path / "t.jsonl", *teacher, "--batch-size", 3, "--max-new-tokens", 40, *flags]
    return CliRunner().invoke(main, ["generate", *map(str, args)])


def test_a_server_that_is_killed_and_comes_back_costs_no_row(stub, local, tmp_path):
    def interrupt():
        for n in (5, 10, 15):
            while len(stub.bodies) < n:
                time.sleep(0.005)
            stub.stop()
            time.sleep(0.3)
            stub.start()

    killer = threading.Thread(target=interrupt)
    killer.start()
    result = command(stub, tmp_path, "--block-size", 4)
    killer.join()
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "t.jsonl")
    assert {row["id"]: row["completion"][0]["content"] for row in rows} == {t.id: t.text for t in local[0.7]}
    assert len(rows) == len(ROWS)


def test_a_server_that_is_gone_for_good_leaves_a_job_to_go_on_with(stub, local, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "PATIENCE", 0.5)

    def stop():
        while len(stub.bodies) < 20:
            time.sleep(0.005)
        stub.stop()

    killer = threading.Thread(target=stop)
    killer.start()
    result = command(stub, tmp_path, "--block-size", 2)
    killer.join()
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    last = result.output.strip().splitlines()[-1]
    assert "has not answered for" in last and "run the same command again" in last
    before = len(lines(tmp_path / "t.jsonl"))
    stub.start()
    result = command(stub, tmp_path, "--block-size", 2)
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "t.jsonl")
    assert before < len(rows) == len(ROWS)
    assert {row["id"]: row["completion"][0]["content"] for row in rows} == {t.id: t.text for t in local[0.7]}


def test_the_manifest_says_what_was_asked(stub, tmp_path):
    result = command(stub, tmp_path)
    assert "its 20 likeliest tokens" in result.output
    made = json.loads((tmp_path / "t.meta.json").read_text(encoding="utf-8"))
    assert made["identity"]["teacher_top_logprobs"] == 20 and made["identity"]["teacher"].startswith("teacher@served")
    assert made["decoding"]["left_out"]["share"] < 0.05
    arrays = lines(tmp_path / "t.tokens.jsonl")
    # The end of thinking is spelled, and what the server did not tell is null.
    assert all(None in a["teacher_logprobs"] for a in arrays)


def test_a_key_comes_from_the_environment_and_goes_nowhere(stub, tmp_path, monkeypatch, caplog):
    stub.key = "s3cret-k3y"
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "401" in result.output and KEY in result.output
    monkeypatch.setenv(KEY, "wr0ng-k3y")
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "401" in result.output and "wr0ng" not in result.output
    monkeypatch.setenv(KEY, "s3cret-k3y")
    with caplog.at_level("DEBUG"):
        result = command(stub, tmp_path)
    assert result.exit_code == 0, result.output
    written = "".join(f.read_text(encoding="utf-8") for f in tmp_path.iterdir())
    assert "k3y" not in written + result.output + caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher-model", "other"], "/v1 has teacher"),
        (["--teacher-tokenizer", "./nowhere"], "--teacher-tokenizer ./nowhere: cannot be loaded"),
        (["--teacher", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--teacher", "http://me:secret@127.0.0.1:9/v1"], "no keys in the address"),
        (["--teacher-device", "cpu"], "leave --teacher-revision, --teacher-device, "),
        (["--teacher", "bundled-teacher"], "are for a teacher behind a server"),
    ],
)
def test_what_cannot_work_is_said_at_once(stub, tmp_path, flags, message):
    result = command(stub, tmp_path, *flags)
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1
    assert "secret" not in result.output and not (tmp_path / "t.jsonl").exists()


def test_a_server_without_v1_and_one_that_names_texts(stub, tmp_path):
    result = command(stub, tmp_path, "--teacher", stub.url)
    assert result.exit_code == 2 and "404" in result.output and "/v1" in result.output
    stub.keys = "text:{}"
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "names tokens by their text" in result.output


def test_a_tokenizer_without_a_model_is_enough(stub, local, tmp_path):
    AutoTokenizer.from_pretrained(bundled("teacher")).save_pretrained(tmp_path / "tokenizer")
    made = traces(config(stub, teacher_tokenizer=str(tmp_path / "tokenizer")))
    assert_same(made, local[0.7])


def test_another_tokenizer_behind_a_server(monkeypatch):
    monkeypatch.setattr(served, "DELAYS", (0.02, 0.2))
    with Stub(bundled("llama"), name="llama") as stub:
        asked = {"teacher_model": "llama", "teacher_tokenizer": "bundled-llama"}
        made = traces(config(stub, **asked))
        assert_same(made, traces(GenerateConfig(teacher="bundled-llama", **SHORT)))


def assert_refused_alone(generator, stub, local, monkeypatch):
    rows, check = generator.prepare(ROWS), stub.check
    first = generator.find().render(rows[0], generator.config).teacher

    def refuse(body):
        if any(ids[: len(first)] == first for ids in body["prompt"]):
            raise Refused("This one I do not like.")
        return check(body)

    monkeypatch.setattr(stub, "check", refuse)
    made = generator.run(ROWS)
    assert "400 This one I do not like." in made[0].error
    assert_same(made[1:], local[0.7][1:])


def test_a_refused_row_is_an_error_and_the_others_go_on(stub, local, monkeypatch):
    generator = TraceGenerator(config(stub, batch_size=4, block_size=4)).load()
    assert_refused_alone(generator, stub, local, monkeypatch)


def assert_full_contexts_end(stub, **changed):
    stub.max_model_len = 90
    made = traces(config(stub, max_new_tokens=80, **changed))
    assert {t.error for t in made} <= {None, made[0].error}
    whole = traces(GenerateConfig(**SHORT | {"max_new_tokens": 80}))
    for mine, theirs in zip(made, whole, strict=True):
        if mine.error is None:
            assert mine.token_ids.tolist() == theirs.token_ids[: len(mine.token_ids)].tolist()
    assert any(t.finish_reason == "length" for t in made if t.error is None)


def test_a_context_that_is_full_ends_a_trace(stub):
    assert_full_contexts_end(stub, block_size=6)

"""A teacher behind an SGLang: the same traces as with the teacher at hand, a chain of drafts by one prompt."""

import asyncio

import pytest
import torch
from sglang_stub import SglangStub
from stub import ODD, Stub
from test_served import ROWS, SHORT, assert_same, command, local  # noqa: F401 (a fixture)

from rsd import GenerateConfig, TraceGenerator
from rsd.acceptance import Sampling
from rsd.decoding.continued import Turns
from rsd.models.bundled import bundled
from rsd.serving import client as served
from rsd.serving import probe
from rsd.serving.client import Client
from rsd.serving.key import KEY
from rsd.serving.sglang import Sglang
from rsd.serving.told import Asked, Chain


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(served, "DELAYS", (0.02, 0.2))
    monkeypatch.setattr(probe, "STARTING", 0)
    monkeypatch.delenv(KEY, raising=False)
    with SglangStub(bundled("teacher"), name="teacher") as one:
        yield one


def config(stub, **changed):
    asked = {"teacher": stub.url, "teacher_tokenizer": str(bundled("teacher"))}
    return GenerateConfig(**asked | SHORT | changed)


def traces(config):
    return TraceGenerator(config).run(ROWS)


@pytest.mark.parametrize("block", [1, 6])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_traces_are_those_of_the_teacher_at_hand(stub, local, temperature, block):
    assert_same(traces(config(stub, temperature=temperature, block_size=block)), local[temperature])
    assert not stub.died


def test_a_teacher_that_goes_on_by_itself(stub, local, monkeypatch):
    monkeypatch.setattr(Turns, "plan", lambda self, rows: 5)
    assert_same(traces(config(stub)), local[0.7])
    assert {body["sampling_params"]["max_new_tokens"] for body in stub.chains} >= {1, 5}


def test_a_chain_is_one_prompt_and_all_rows_one_request(stub):
    generator = TraceGenerator(config(stub, batch_size=4, block_size=8)).load()
    before = len(stub.chains)
    generator.run(ROWS)
    books = generator.blocks.statistics()
    asked = stub.chains[before:]
    # A request a round of a group's two rows, and at the most one more for spellings that no draft held.
    assert books["rounds"] <= len(asked) <= 2 * books["rounds"] and books["row_rounds"] > 1.5 * books["rounds"]
    assert max(len(body["input_ids"]) for body in asked) < 3 * 4  # of 4 rows of 8 contexts, and what is spelled
    places = [
        len(ids) - start for b in asked for ids, start in zip(b["input_ids"], b["logprob_start_len"], strict=True)
    ]
    assert sum(places) >= 8 * books["row_rounds"] and max(places) < 16


def test_what_is_told_of_chains_and_of_named_ids_is_a_forwards(stub):
    ids, api = list(range(20, 60)), Sglang(Client(stub.url), width=stub.model.config.vocab_size)
    with torch.inference_mode():
        want = stub.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    chains = [Chain(ids, [7, 8, 11]), Chain(ids, [40]), Chain(ids, [1, 2])]
    for chain, told in zip(chains, asyncio.run(api.likeliest([chains]))[0], strict=True):
        for end, one in zip(chain.ends, told, strict=True):
            assert one.ids == want[end - 1].topk(20).indices.tolist()
            torch.testing.assert_close(torch.tensor(one.logprobs), want[end - 1, one.ids], atol=1e-4, rtol=0)
    api = Sglang(Client(stub.url), width=api.width)
    asked = [Asked(ids[:9], [3, 700, 5]), Asked(ids[:5], []), Asked(ids, [0])]
    said = asyncio.run(api.of_ids(asked, Sampling(temperature=0.3)))  # which it does not know
    for (context, named), told in zip(asked, said, strict=True):
        assert list(told) == list(named)
        given = torch.tensor(list(told.values()))
        torch.testing.assert_close(given, want[len(context) - 1, list(told)], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "faults", [[429, 503, 500], ["drop", "close", "malformed"], ["bare", "abort"], [*ODD], ["deep"]]
)
def test_a_server_that_fails_now_and_then_changes_nothing(stub, local, faults):
    generator = TraceGenerator(config(stub)).load()
    stub.fail(*faults * 2)
    assert_same(generator.run(ROWS), local[0.7])
    assert not stub.faults


def test_a_refused_row_is_an_error_and_the_others_go_on(stub, local, monkeypatch):
    monkeypatch.setattr("rsd.decoding.loading.GROUPS", 1)  # or the second refusal might meet another group's rows
    generator = TraceGenerator(config(stub, batch_size=4, block_size=4)).load()
    stub.fail(400, 400)  # the request of all rows, and then the one of the first row alone
    made = generator.run(ROWS)
    assert "400 The server was told to refuse this." in made[0].error
    assert_same(made[1:], local[0.7][1:])


def test_a_context_that_is_full_ends_a_trace(stub):
    stub.max_model_len, stub.longest = 120, 90
    made = traces(config(stub, max_new_tokens=80, block_size=6))
    whole = traces(GenerateConfig(**SHORT | {"max_new_tokens": 80}))
    assert {t.error for t in made} <= {None, made[0].error}
    for mine, theirs in zip(made, whole, strict=True):
        if mine.error is None:
            assert mine.token_ids.tolist() == theirs.token_ids[: len(mine.token_ids)].tolist()
    assert any(t.finish_reason == "length" for t in made if t.error is None)


def test_another_tokenizer(monkeypatch):
    with SglangStub(bundled("llama"), name="bundled-llama") as stub:
        generator = TraceGenerator(GenerateConfig(teacher=f"{stub.url}/v1", **SHORT))  # the server names the model
        assert_same(generator.run(ROWS), traces(GenerateConfig(teacher="bundled-llama", **SHORT)))
        assert generator.find().teacher.name == "bundled-llama" and not stub.died


def test_the_kind_of_server_is_found(stub, tmp_path):
    for flags in ([], ["--teacher-api", "sglang"], ["--teacher", stub.url], ["--teacher-model", "/models/it"]):
        result = command(stub, tmp_path, *flags, "--dry-run")
        assert result.exit_code == 0 and "(sglang)" in result.output, result.output
    with Stub(bundled("teacher"), name="teacher") as other:
        assert "(completions)" in command(other, tmp_path, "--dry-run").output
        result = command(other, tmp_path, "--teacher-api", "sglang", "--dry-run")
        assert result.exit_code == 2 and "404" in result.output and len(result.output.splitlines()) == 1
        made = GenerateConfig(teacher=f"{other.url}/v1", teacher_tokenizer=str(bundled("teacher")))
        with pytest.raises(ValueError, match="needs its name there: give teacher_model"):
            TraceGenerator(made).find()


@pytest.mark.parametrize(
    ("flags", "broken", "message"),
    [
        (["--teacher-model", "other"], {}, "has teacher, /models/it"),
        (["--teacher-model", "an-adapter"], {}, "has teacher, /models/it"),
        (["--teacher-tokenizer", "bundled-llama"], {}, "name the served model's own"),
        (["--teacher-api", "completions"], {}, "404"),
        ([], {"key": "k3y"}, f"no key in the environment: {KEY}"),
        ([], {"boost": 9.0}, "without preferred-sampling-params"),
        ([], {"tells": 5}, "5 of the 20 likeliest tokens"),
        (["--teacher", "http://127.0.0.1:9"], {}, "cannot be reached"),
    ],
)
def test_what_cannot_work_is_said_at_once(stub, tmp_path, flags, broken, message):
    for name, value in broken.items():
        setattr(stub, name, value)
    result = command(stub, tmp_path, *flags)
    assert result.exit_code == 2 and message in result.output and len(result.output.splitlines()) == 1
    assert not (tmp_path / "t.jsonl").exists() and not stub.died


def test_a_server_that_takes_no_text_is_taken_at_its_word(stub, tmp_path):
    stub.tokenizer = None
    result = command(stub, tmp_path, "--max-new-tokens", 2)
    assert result.exit_code == 0 and "could not be compared" in result.output


def test_a_server_that_cuts_what_it_reads_is_refused(stub):
    stub.truncates, stub.longest = True, 40
    api = Sglang(Client(stub.url), width=stub.model.config.vocab_size)
    with pytest.raises(ConnectionError, match=r"reads 39 tokens of 40: start it without allow-auto-truncate"):
        asyncio.run(api.likeliest([[Chain(list(range(40)), [38, 39, 40])]]))


def test_a_server_that_always_breaks_off_ends_the_job(stub, monkeypatch):
    monkeypatch.setattr(served, "PATIENCE", 0.1)
    generator = TraceGenerator(config(stub)).load()
    stub.fail(*["abort"] * 50)
    with pytest.raises(ConnectionError, match="it was aborted: Abort in waiting queue"):
        generator.run(ROWS)

"""A teacher behind a server that is broken, starting, or another one: said at once, or waited for; never a burden."""

import resource
import threading
import time

import pytest
from stub import ODD, Stub
from test_served import ROWS, assert_same, command, config, local, stub  # noqa: F401 (fixtures)

from rsd import TraceGenerator
from rsd.models.bundled import bundled
from rsd.serving import client as served
from rsd.serving import probe


@pytest.mark.parametrize("fault", ["flood", "bomb", "deep", *ODD])
def test_answers_that_are_none_are_asked_for_again(stub, local, fault):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator = TraceGenerator(config(stub)).load()
    stub.fail(fault, fault)
    assert_same(generator.run(ROWS), local[0.7])
    assert not stub.faults
    # The stub's own 200 MB, in this process, are some of it; read whole, they would be there three times more.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000


def test_a_server_that_drips_is_given_up(stub, local, monkeypatch):
    generator = TraceGenerator(config(stub, block_size=4)).load()  # few contexts a request, which are soon computed
    monkeypatch.setattr(served, "WHOLE", 4.0)
    stub.fail("drip")
    assert_same(generator.run(ROWS), local[0.7])
    monkeypatch.setattr(served, "PATIENCE", 1.0)
    stub.fail(*["drip"] * 30)
    with pytest.raises(ConnectionError, match="has not answered for"):
        generator.run(ROWS)


def test_a_server_that_drips_from_the_beginning(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "WHOLE", 2.0)
    stub.fail(*["drip"] * 20)
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "cannot be reached" in result.output and len(result.output.splitlines()) == 1


def test_fewer_likeliest_tokens_are_another_distribution(stub, tmp_path):
    stub.tells = 5
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "--max-logprobs 20" in result.output
    stub.tells, stub.max_logprobs = 20, 5
    result = command(stub, tmp_path)
    assert result.exit_code == 2 and "greater than max allowed: 5" in result.output


def test_a_server_that_tells_fewer_midway_ends_the_job(stub, tmp_path):
    def fewer():
        while len(stub.bodies) < 10:
            time.sleep(0.005)
        stub.tells = 5

    meanwhile = threading.Thread(target=fewer)
    meanwhile.start()
    result = command(stub, tmp_path, "--block-size", 2)
    meanwhile.join()
    assert result.exit_code == 1 and "of the 20 likeliest tokens" in result.output.splitlines()[-1]
    stub.tells = 20
    assert command(stub, tmp_path).exit_code == 0


def test_a_tokenizer_that_is_not_the_servers(stub, tmp_path):
    result = command(stub, tmp_path, "--teacher-tokenizer", bundled("llama"))
    assert result.exit_code == 2 and "name the served model's own" in result.output
    stub.tokenizer = None  # a server that does not tell: taken at its word, which is said
    result = command(stub, tmp_path)
    assert result.exit_code == 0 and "could not be compared" in result.output


@pytest.mark.parametrize("faults", [[503, 503], ["close", 502], ["drop"], [429]])
def test_a_server_that_is_starting_is_waited_for(stub, local, monkeypatch, capsys, faults):
    monkeypatch.setattr(probe, "STARTING", 20.0)
    stub.fail(*faults)
    assert_same(TraceGenerator(config(stub)).run(ROWS), local[0.7])
    assert capsys.readouterr().err.count("waiting for the teacher's server http") == 1


def test_a_server_that_is_not_there_yet(stub, local, monkeypatch):
    monkeypatch.setattr(probe, "STARTING", 20.0)
    stub.stop()
    threading.Timer(1.0, stub.start).start()
    assert_same(TraceGenerator(config(stub)).run(ROWS), local[0.7])


def test_what_a_server_says_is_one_harmless_line(monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "STARTING", 0)
    with Stub(bundled("teacher"), name="a\nb\x1b]0;owned\x07" * 100) as one:
        result = command(one, tmp_path)
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1 and len(result.output) < 500
        assert "\x1b" not in result.output

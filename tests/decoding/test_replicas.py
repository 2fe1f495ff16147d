"""Several servers of one teacher: they share the work, die and come back, and no trace depends on it."""

import json
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import read as lines
from stub import Stub
from test_served import ROWS, assert_same, command, config, local, stub  # noqa: F401 (fixtures)
from transformers import AutoModelForCausalLM

from rsd import GenerateConfig, TraceGenerator, WeighConfig
from rsd.cli import main
from rsd.models.bundled import bundled
from rsd.serving import answer, replicas
from rsd.serving import client as served
from rsd.serving.replicas import Homes
from rsd.serving.told import Told


@pytest.fixture
def other(stub):
    with Stub(bundled("teacher"), name="teacher") as two:
        yield two


def both(*stubs):
    return [f"{one.url}/v1" for one in stubs]


def contexts(stub, begun):
    """Those that were asked about, by the row that they belong to."""
    texts = [tuple(prompt) for body in stub.bodies if isinstance(body["prompt"], list) for prompt in body["prompt"]]
    return {row: sum(text[: len(ids)] == ids for text in texts) for row, ids in begun.items()}


@contextmanager
def meanwhile(what):
    thread = threading.Thread(target=what)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def after(stub, count, what):
    """What is done once a server has been asked so often."""

    def wait():
        until = time.monotonic() + 120
        while len(stub.bodies) < count:
            if time.monotonic() > until:
                return  # it was not asked so often, and the test will say so
            time.sleep(0.005)
        what()

    return meanwhile(wait)


def test_servers_share_the_work_and_a_row_stays_with_one(stub, other, local):
    made = TraceGenerator(config(stub, teacher=both(stub, other), batch_size=4, block_size=4)).run(ROWS)
    assert_same(made, local[0.7])
    begun = {t.id: tuple(t.prompt_ids) for t in made}
    by_row = [contexts(one, begun) for one in (stub, other)]
    assert min(sum(rows.values()) for rows in by_row) > 0.2 * sum(sum(rows.values()) for rows in by_row)
    for row in begun:  # the first answer of all is waited for at one server
        mine = sorted(rows[row] for rows in by_row)
        assert mine[0] <= 0.1 * mine[1], by_row


def test_a_server_that_dies_is_left_out_and_comes_back(stub, other, local):
    def interrupt():
        for _ in range(2):
            other.stop()
            time.sleep(0.3)
            other.start()

    generator = TraceGenerator(config(stub, teacher=both(stub, other), batch_size=4, block_size=2)).load()
    with after(other, 8, interrupt):
        made = generator.run(ROWS)
    assert_same(made, local[0.7])
    count = len(other.bodies)
    assert_same(generator.run(ROWS), local[0.7])
    assert len(other.bodies) > count + 5


def test_a_dead_one_costs_no_patience(stub, other, local, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "PATIENCE", 0.5)  # with the only server it would end the job
    with after(other, 8, other.stop):
        result = command(stub, tmp_path, f"--teacher={other.url}/v1", "--block-size", 2)
    assert result.exit_code == 0, result.output
    assert {r["id"]: r["completion"][0]["content"] for r in lines(tmp_path / "t.jsonl")} == {
        t.id: t.text for t in local[0.7]
    }


def test_all_dead_ends_the_job_which_goes_on_with_others(stub, other, local, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "PATIENCE", 0.5)

    def end():
        stub.stop()
        other.stop()

    with after(other, 8, end):
        result = command(stub, tmp_path, f"--teacher={other.url}/v1", "--block-size", 2)
    assert result.exit_code == 1 and "has not answered for" in result.output.splitlines()[-1]
    identity = json.loads((tmp_path / "t.meta.json").read_text())["identity"]
    with Stub(bundled("teacher"), name="teacher") as third:
        result = command(third, tmp_path)
        assert result.exit_code == 0, result.output
        third.bodies.clear()
        assert command(stub, tmp_path, "--quiet").exit_code == 0  # finished: nobody is asked, dead or not
    assert {r["id"]: r["completion"][0]["content"] for r in lines(tmp_path / "t.jsonl")} == {
        t.id: t.text for t in local[0.7]
    }
    made = json.loads((tmp_path / "t.meta.json").read_text())
    assert made["identity"] == identity and "127.0.0.1" not in json.dumps([made["teacher"], made["identity"]])


def test_one_that_is_not_there_at_the_start_is_a_notice(stub, other, local, tmp_path):
    other.stop()
    with after(stub, 12, other.start):
        result = command(stub, tmp_path, f"--teacher={other.url}/v1", "--block-size", 2)
    assert result.exit_code == 0 and f"notice: --teacher {other.url}/v1: cannot be reached" in result.output
    assert {r["id"]: r["completion"][0]["content"] for r in lines(tmp_path / "t.jsonl")} == {
        t.id: t.text for t in local[0.7]
    }
    assert other.bodies  # it came, and took part; nobody waited for that


@pytest.mark.parametrize("fault", [503, 429, "drop", "malformed", "nan"])
def test_faults_of_one_change_nothing(stub, other, local, fault):
    generator = TraceGenerator(config(stub, teacher=both(stub, other))).load()
    other.fail(*[fault] * 5)
    assert_same(generator.run(ROWS), local[0.7])


def another_model(stub):
    """Of the same shape, as another state of its training is."""
    stub.model = AutoModelForCausalLM.from_pretrained(bundled("teacher"), dtype=torch.float32).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in stub.model.parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=noise)


def test_replicas_that_differ_are_refused_before_the_job(stub, other, tmp_path):
    another_model(other)
    result = command(stub, tmp_path, f"--teacher={other.url}/v1")
    assert result.exit_code == 2 and f"{other.url}/v1 has another model than {stub.url}/v1" in result.output
    other.name = "else"
    result = command(stub, tmp_path, f"--teacher={other.url}/v1")
    assert result.exit_code == 2 and f"{other.url}/v1 has else" in result.output
    assert not (tmp_path / "t.jsonl").exists()


def test_a_replica_that_changes_is_left_out(stub, other, local, caplog):
    def change():
        other.stop()
        another_model(other)
        other.start()

    generator = TraceGenerator(config(stub, teacher=both(stub, other), block_size=2)).load()
    with after(other, 8, change):
        assert_same(generator.run(ROWS), local[0.7])
    assert f"{other.url}/v1 is left out from now on" in caplog.text and "another model" in caplog.text


def test_one_that_came_late_with_another_model_never_takes_part(stub, other, local, caplog):
    another_model(other)
    other.stop()
    generator = TraceGenerator(config(stub, teacher=both(other, stub))).load()
    other.start()
    assert_same(generator.run(ROWS), local[0.7])
    assert "is left out from now on" in caplog.text


def test_the_only_server_that_tells_fewer_when_it_is_back_ends_the_job(stub, tmp_path, monkeypatch):
    def change():
        stub.stop()
        stub.tells = 5
        stub.start()

    monkeypatch.setattr(served, "DELAYS", (0.05, 0.1))
    monkeypatch.setattr(served, "PATIENCE", 60)  # not for so long
    with after(stub, 12, change):
        result = command(stub, tmp_path, "--block-size", 2)
    assert result.exit_code == 1
    assert "the teacher's server tells 5 of the 20 likeliest tokens" in result.output.splitlines()[-1]
    assert "has not answered" not in result.output


@pytest.mark.parametrize("how", ["restarted", "swapped", "named"])
def test_the_only_server_that_changes_ends_the_job(stub, local, tmp_path, monkeypatch, how):
    def change():
        if how == "restarted":
            stub.stop()
        if how == "named":
            stub.answers_as = "another"
        else:
            another_model(stub)
        if how == "restarted":
            stub.start()

    if how == "swapped":  # behind a balancer, say: no connection is lost
        monkeypatch.setattr(served, "CHECKED", 0.2)
    model = stub.model
    with after(stub, 12, change):
        result = command(stub, tmp_path, "--block-size", 2)
    assert result.exit_code == 1, result.output
    assert "is another model than" in result.output.splitlines()[-1]
    stub.model, stub.answers_as = model, None
    assert command(stub, tmp_path).exit_code == 0
    if how != "swapped":  # until the next look, some seconds, what it says is taken
        rows = lines(tmp_path / "t.jsonl")
        assert {row["id"]: row["completion"][0]["content"] for row in rows} == {t.id: t.text for t in local[0.7]}


def test_the_shortest_context_counts(stub, other):
    other.max_model_len = 90
    pair = TraceGenerator(config(stub, teacher=both(stub, other), max_new_tokens=None)).find()
    assert pair.teacher.context == 89


def test_a_request_that_hangs_is_given_up_by_what_is_expected(stub, local, monkeypatch):
    monkeypatch.setattr(replicas, "FLOOR", 1.5)
    generator = TraceGenerator(config(stub, block_size=2)).load()
    generator.run(ROWS[:1])  # the stub takes some hundredths of a second
    stub.hang = 60.0  # which the time-outs alone would wait for
    stub.fail(*["hang"] * 2)
    began = time.monotonic()
    assert_same(generator.run(ROWS), local[0.7])
    assert not stub.faults and time.monotonic() - began < 50


def test_a_first_answer_may_take_its_time(stub, local, monkeypatch):
    monkeypatch.setattr(replicas, "FLOOR", 0.1)
    generator = TraceGenerator(config(stub)).load()
    stub.hang = 3.0
    stub.fail("hang")
    count = len(stub.bodies)
    assert_same(generator.run(ROWS[:1]), local[0.7][:1])
    prompts = [body["prompt"] for body in stub.bodies[count:]]
    assert prompts.count(prompts[0]) == 1  # it was not asked again


@pytest.mark.parametrize(
    "told", [0, "0", formatdate(usegmt=True), "Thu, 01 Jan 1970 00:00:00 GMT"], ids=["number", "text", "now", "then"]
)
def test_when_a_server_wants_to_be_asked_again(stub, local, told):
    stub.retry_after = told
    generator = TraceGenerator(config(stub)).load()
    stub.fail(429, 503)
    assert_same(generator.run(ROWS[:2]), local[0.7][:2])


@pytest.mark.parametrize(
    "told",
    [
        "1" * 4000,
        "9" * 400,
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "inf",
        "nan",
        "-5",
        "1e999",
        "soon",
        "\u0663",
        "",
        "Fri, 31 Dec 99999",
    ],
)
def test_a_server_that_wants_to_be_asked_much_later_is_not_obeyed(monkeypatch, told):
    monkeypatch.setattr(answer, "AFTER", 7.0)
    made = answer.Answer(429, "Too Many", b"", told)
    assert made.after is None or 0 <= made.after <= 7.0


def test_several_are_for_servers(tmp_path):
    for teachers in (["bundled-teacher", "bundled-llama"], ["http://127.0.0.1:9/v1", "bundled-teacher"]):
        with pytest.raises(ValueError, match="several are for servers of one model"):
            GenerateConfig(teacher=teachers, teacher_model="teacher")
        for name in ("generate", "weigh"):
            source = tmp_path / "in.jsonl"
            source.write_text('{"prompt": "x", "completion": "y"}\n', encoding="utf-8")
            result = CliRunner().invoke(main, [name, str(source), *[f"--teacher={one}" for one in teachers]])
            assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
            assert "several are for servers" in result.output
    with pytest.raises(ValueError, match="is needed"):
        GenerateConfig(teacher=[])
    with pytest.raises(ValueError, match="named twice"):
        GenerateConfig(teacher=["http://a/v1", "http://a/v1/"], teacher_model="x")
    with pytest.raises(ValueError, match="too few log-probs"):
        WeighConfig(teacher=["http://a/v1", "http://b/v1"])
    assert GenerateConfig(teacher=["bundled-teacher"]).teachers == ("bundled-teacher",)


def test_flags_in_a_file_may_name_several(tmp_path):
    printed = CliRunner().invoke(
        main, ["generate", "x", "--teacher=http://a/v1", "--teacher=http://b/v1", "--print-config"]
    )
    file = tmp_path / "job.yaml"
    for text in (printed.output, "teacher: [http://a/v1, http://b/v1]\n"):
        file.write_text(text, encoding="utf-8")
        again = CliRunner().invoke(main, ["generate", "x", "--config", str(file), "--print-config"])
        assert again.output == printed.output
    file.write_text("teacher: bundled-llama\nsuppress: '</think>'\n", encoding="utf-8")
    again = CliRunner().invoke(main, ["generate", "x", "--config", str(file), "--print-config"]).output
    assert "teacher: bundled-llama\n" in again and "- </think>\n" in again


def test_rows_are_divided_evenly_and_stay_as_they_grow():
    rng = np.random.default_rng(0)
    system = rng.integers(0, 1000, 500).tolist()  # which all rows have
    rows = [system + rng.integers(0, 1000, 40).tolist() for _ in range(16)]
    rows += [rows[0]] * 4  # several generations of one problem
    homes, before = Homes(), None
    for _ in range(30):
        now = homes.share(rows, [len(row) for row in rows], {0: 0, 1: 0, 2: 0})
        assert max(map(now.count, range(3))) <= 1.25 * len(rows) / 3 + 1
        if before is not None:
            assert now[:16] == before[:16]
        before = now
        rows = [row + rng.integers(0, 1000, 8).tolist() for row in rows]
    assert {0, 1, 2} == {*now}
    left = homes.share(rows, [len(row) for row in rows], {0: 0, 2: 0})  # the second is dead
    assert [a for a, b in zip(left, now, strict=True) if b != 1] == [b for b in now if b != 1] and {*left} == {0, 2}
    crowded = homes.share(rows, [len(row) for row in rows], {0: 10**6, 1: 0, 2: 0})
    assert 0 not in crowded


def test_what_two_servers_tell_is_compared_within_rounding():
    told = [Told([*range(20)], [-float(i) for i in range(20)])]
    near = [Told([*range(1, 21)], [-float(i) + 0.07 * (-1) ** i for i in range(1, 21)])]
    far = [Told([*range(20)], [-float(i) * 1.1 for i in range(20)])]
    others = [Told([*range(15, 35)], [-float(i) for i in range(20)])]
    assert replicas.unlike(near, told) is None and replicas.unlike(told, told) is None
    assert "differ by" in replicas.unlike(far, told) and "names 5" in replicas.unlike(others, told)

"""Values on disk: the same as a list's, whatever they are, in any order, and in next to no memory."""

import json
import tracemalloc

import pytest
from conftest import write
from hypothesis import given
from hypothesis import strategies as st

from rsd.scoring.config import ScoreConfig
from rsd.scoring.responses import responses
from rsd.traces import spool
from rsd.traces.rows import prepare
from rsd.traces.sidecar import Sidecar
from rsd.traces.spool import OnDemand, Spool

VALUES = st.lists(st.one_of(st.text(), st.integers(), st.dictionaries(st.text(), st.floats(allow_nan=False))))


@given(VALUES, st.data())
def test_a_spool_is_the_list_of_its_values(values, data):
    made = Spool(iter(values))
    assert list(made) == values and len(made) == len(values) and made[:] == values
    for i in data.draw(st.lists(st.integers(-len(values), len(values) - 1))) if values else ():
        assert made[i] == values[i]
    with pytest.raises(IndexError):
        made[len(values)]


@given(VALUES, st.data())
def test_some_of_a_sequence_are_those_and_no_others(values, data):
    made = OnDemand(list(range(len(values))), values.__getitem__)
    chosen = data.draw(st.sets(st.sampled_from(made.ids))) if values else set()
    some = made.only(chosen.__contains__)
    assert list(some) == [v for i, v in enumerate(values) if i in chosen] and list(some.ids) == sorted(chosen)
    assert list(some.only(lambda i: i % 2 == 0).ids) == [i for i in sorted(chosen) if i % 2 == 0]


def test_values_beyond_a_small_jobs_are_the_same(monkeypatch):
    monkeypatch.setattr(spool, "SMALL", 100)
    values = [{"prompt": "x" * i} for i in range(200)]
    assert list(Spool(values)) == values


def peak(make) -> float:
    """The most MB that Python holds meanwhile and thereafter."""
    tracemalloc.start()
    kept = make()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return most / 1e6


def test_rows_and_responses_take_no_memory_but_for_their_ids(monkeypatch):
    monkeypatch.setattr(spool, "SMALL", 1 << 16)
    count, text = 4000, "word " * 500  # 10 MB of text, and as much again of answers
    problems = ({"id": f"p{i}", "problem": f"{i} {text}", "solution": f"{text} {i}"} for i in range(count))
    assert peak(lambda: prepare(problems)) < 4
    traces = ({"id": f"p{i}", "prompt": f"{i} {text}", "completion": f"{text} {i}"} for i in range(count))
    assert peak(lambda: responses(traces, ScoreConfig())) < 4


@given(st.lists(st.tuples(st.text() | st.integers(), st.integers(0, 3)), unique_by=lambda key: (str(key[0]), key[1])))
def test_a_sidecars_records_are_found_by_their_traces(tmp_path_factory, keys):
    file = tmp_path_factory.mktemp("sidecar") / "t.tokens.jsonl"
    records = [{"id": i, "generation": g, "prompt_ids": [n], "token_ids": [n]} for n, (i, g) in enumerate(keys)]
    write(file, records)
    with open(file, "ab") as f:
        f.write(b'{"id": "torn", "generation": 0, "prompt_ids": [1, 2')
    made = Sidecar(file)
    for record in records:
        assert made.record((str(record["id"]), record["generation"])) == record
    assert made.record(("torn", 0)) is None and made.record(("no such", 9)) is None
    # Written otherwise than by us, it is read nevertheless; of two the last one counts.
    write(file, [dict(reversed(record.items())) for record in records] + [{**r, "token_ids": [7]} for r in records[:1]])
    made = Sidecar(file)
    for n, record in enumerate(records):
        want = record if n else {**record, "token_ids": [7]}
        assert json.dumps(made.record((str(record["id"]), record["generation"])), sort_keys=True) == json.dumps(
            want, sort_keys=True
        )

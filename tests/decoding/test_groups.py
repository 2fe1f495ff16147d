"""Rows in groups, which take turns while their teacher is away: the same traces, and nobody waits for the others."""

import asyncio
import threading
import time
from itertools import pairwise

import pytest
import torch
from pairs import random_model, requests, spelled_vocabulary
from test_served import ROWS, command, config, lines, local, stub  # noqa: F401 (fixtures)

from rsd import TraceGenerator
from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.engine import Engine
from rsd.decoding.groups import Groups
from rsd.decoding.teacher import LocalTeacher
from rsd.models.kv_cache import CachedModel

VOCABULARY = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]})
PROMPTS = [[1 + i % 5, *[2 + i % 7] * (i % 4)] for i in range(30)]
LENGTHS = [1 + 7 * i % 23 for i in range(30)]


class Elsewhere(LocalTeacher):
    """A teacher that is away whenever it reads; it notes that, and when it is back, with how many rows."""

    def __init__(self, model, rows, log):
        super().__init__(CachedModel(model, rows, pooled=True))
        self.log = log

    def read(self, trees):
        self.log.append(("asked", id(self), len(trees)))
        yield
        self.log.append(("answered", id(self), len(trees)))
        return (yield from super().read(trees))


def models():
    return random_model(vocab=22, seed=3), random_model(seed=4)


def grouped(pair, sizes, *, log=None, block=3, temperature=1.0):
    sampling = Sampling(temperature=temperature, top_p=1.0, top_k=0)
    log = [] if log is None else log
    return Groups(
        [
            Engine(
                Elsewhere(pair[0], rows, log),
                pair[1],
                VOCABULARY,
                sampling=sampling,
                acceptance=Acceptance(threshold=0.02),
                eos=(),
                rows=rows,
                block=block,
            )
            for rows in sizes
        ]
    )


def todo(prompts=PROMPTS, lengths=LENGTHS):
    made = requests(prompts, max_new_tokens=30, vocabulary=VOCABULARY)
    return [type(r)(r.student_prompt, r.teacher_prompt, r.key, n, r.tag) for r, n in zip(made, lengths, strict=True)]


def traces(made, asked):
    return {f.request.tag: f for f in made.run(asked)}


def same(made, want):
    assert sorted(made) == sorted(want)
    for i, f in made.items():
        assert f.error is None and f.token_ids.tolist() == want[i].token_ids.tolist()
        assert torch.allclose(*(torch.tensor(x.student_logprobs) for x in (f, want[i])), atol=1e-4)


@pytest.fixture(scope="module", params=[0.0, 1.0])
def alone(request):
    return request.param, traces(grouped(models(), [8], temperature=request.param), todo())


@pytest.mark.parametrize("sizes", [[4, 4], [3, 2], [1, 1, 1], [5, 1, 2, 4]])
@pytest.mark.parametrize("block", [1, 4, None])
def test_traces_are_those_of_one_engine(alone, sizes, block):
    temperature, want = alone
    made = grouped(models(), sizes, block=block, temperature=temperature)
    same(traces(made, todo()), want)
    same(traces(made, iter(todo())), want)  # and again
    assert made.rows == sum(sizes)


def test_one_prompt_many_times():
    asked = todo([[1, 2, 3]] * 40, [9] * 40)
    log = []
    made = grouped(models(), [8, 8], log=log)
    same(traces(made, asked), traces(grouped(models(), [4]), asked))
    assert {n for what, _, n in log[:2]} == {8} and log[0][1] != log[1][1]
    assert made.blocks.most_rows == 16


@pytest.mark.parametrize("count", [2, 5, 16, 17, 40])
def test_all_groups_have_rows_and_one_is_asked_before_another_is_answered(count):
    log = []
    asked = todo([[1 + i % 5, 2] for i in range(count)], [12] * count)
    made = grouped(models(), [8, 8], log=log, block=1)
    traces(made, asked)
    (_, first, rows), (what, second, others) = log[:2]
    assert what == "asked" and first != second and rows + others == min(count, 16) and abs(rows - others) <= 1
    # As long as both have rows, one is asked before the other one answers.
    ends = {who: i for i, (_, who, _) in enumerate(log)}
    both = log[: min(ends.values())]
    for (before, who, _), (after, other, _) in pairwise(both):
        assert (before, after) != ("asked", "answered") or who != other


def test_what_follows_from_a_trace_is_decoded_by_whoever_is_free():
    pair, log = models(), []
    made, waiting, pending = {}, todo()[:2], todo()[2:14]

    class Asked:
        def __iter__(self):
            return self

        def __next__(self):
            if not waiting:
                raise StopIteration
            return waiting.pop(0)

    for f in grouped(pair, [2, 2], log=log).run(Asked()):
        made[f.request.tag] = f
        waiting += pending[:2]
        del pending[:2]
    want = traces(grouped(models(), [8]), todo()[:14])
    same(made, want)
    late = [who for _, who, _ in log[len(log) // 2 :]]
    assert len({*late}) == 2  # both still work when a single one would have been enough at first


def test_the_callers_modes_are_their_own_between_traces():
    for _ in grouped(models(), [2, 2]).run(todo()):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad
    running = grouped(models(), [2, 2]).run(todo())
    next(running)
    running.close()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.no_grad():
        next(grouped(models(), [2, 2]).run(todo()))
        assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("fit", [4, 1, 0])
def test_a_group_without_memory_leaves_its_rows_to_others(fit):
    # The student of the second group has memory for `fit` rows, as long as there is none.
    made = grouped(models(), [8, 8])
    want = traces(grouped(models(), [8]), todo())
    second, hits = made.engines[1].student, []
    step = second.__class__.__call__

    class Short(CachedModel):
        def __call__(self, ids, *args, **kwargs):
            if len(ids) > fit:
                hits.append(len(ids))
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return step(self, ids, *args, **kwargs)

        def prefill(self, prompts):
            return made.engines[0].student.prefill(prompts)

    second.__class__ = Short
    same(traces(made, todo()), want)
    assert hits and made.engines[0].rows == 8 and made.engines[1].rows <= max(fit, 1)


def test_without_memory_for_a_row_alone_it_is_an_error_and_the_job_ends():
    pair = models()
    made = grouped(pair, [2, 2])

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    pair[1].register_forward_pre_hook(never)
    done = list(made.run(todo([[1]] * 6, [9] * 6)))
    assert len(done) == 6 and all(f.error and "with this row alone" in f.error for f in done)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionError])
def test_whatever_ends_a_run_midway_calls_all_teachers_back(error):
    back = []

    class Away(Elsewhere):
        def read(self, trees):
            self.log.append(0)
            if len(self.log) == 9:
                raise error
            try:
                yield
            finally:
                back.append(len(self.log))
            return (yield from LocalTeacher.read(self, trees))

    log = []
    made = grouped(models(), [2, 2], log=log)
    for engine in made.engines:
        engine.teacher.__class__ = Away
    with pytest.raises(error):
        list(made.run(todo()))
    assert len(back) == 8  # each that had left, the other group's too
    for engine in made.engines:
        engine.teacher.__class__ = Elsewhere
    same(traces(made, todo()), traces(grouped(models(), [4]), todo()))


def served(stub, **changed):
    return TraceGenerator(config(stub, batch_size=4, block_size=4, **changed)).load()


def test_a_server_is_asked_of_the_second_group_before_it_has_answered_of_the_first(stub, local, monkeypatch):
    generator = served(stub)
    api, begun = generator._engine.teacher.api, []
    likeliest = api.likeliest

    async def ask(rows):
        # The first one is not answered before another one is asked: one engine that waits would wait for ever.
        begun.append(len(rows))
        while len(begun) < 2:
            await asyncio.sleep(0.002)
        return await likeliest(rows)

    monkeypatch.setattr(api, "likeliest", ask)
    made = generator.run(ROWS)
    assert begun[:2] == [2, 2]
    for mine, theirs in zip(made, local[0.7], strict=True):
        assert mine.token_ids.tolist() == theirs.token_ids.tolist()


def test_nothing_is_under_way_when_a_run_is_left(stub):
    generator = served(stub)
    begun, begin = [], generator._engine.teacher.client.begin

    def noted(work):
        begun.append(begin(work))
        return begun[-1]

    generator._engine.teacher.client.begin = noted
    running = generator.stream(ROWS)
    next(running)
    running.close()
    assert begun and all(future.done() for future in begun)
    assert len(generator.run(ROWS)) == len(ROWS)


def test_a_job_that_lost_its_server_goes_on_with_groups_of_another_size(stub, local, tmp_path, monkeypatch):
    monkeypatch.setattr("rsd.serving.client.PATIENCE", 0.5)

    def stop():
        while len(stub.bodies) < 24:
            time.sleep(0.005)
        stub.stop()

    killer = threading.Thread(target=stop)
    killer.start()
    result = command(stub, tmp_path, "--block-size", 2, "--batch-size", 4)
    killer.join()
    assert result.exit_code == 1, result.output
    stub.start()
    monkeypatch.setattr("rsd.decoding.loading.GROUPS", 3)
    result = command(stub, tmp_path, "--block-size", 2, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "t.jsonl")
    assert {row["id"]: row["completion"][0]["content"] for row in rows} == {t.id: t.text for t in local[0.7]}

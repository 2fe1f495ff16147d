"""A lack of memory, in all the words that it comes in: fewer rows, then as many as before, and the same traces."""

from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from pairs import decode, random_model, requests, spelled_vocabulary

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.engine import Engine

# Id 23 is spelled in three pieces, so that some rows are interrupted in the midst of it.
VOCABULARY = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]})
PROMPTS = [[1 + i % 5, 2 + i % 7] for i in range(60)]
SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


def models():
    return random_model(vocab=22, seed=3), random_model(seed=4)


def engine(teacher, student, *, rows, block=2):
    plain = Sampling(temperature=1.0, top_p=1.0, top_k=0)
    acceptance = Acceptance(threshold=0.02)
    return Engine(teacher, student, VOCABULARY, sampling=plain, acceptance=acceptance, eos=(), rows=rows, block=block)


class Short:
    """A model that runs out of memory with more than `fit` rows; it notes how many rows it is given."""

    def __init__(self, model, error, *, fit):
        self.error, self.fit, self.hits, self.most = error, fit, 0, 0
        model.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, _, __, given):
        rows = len(given["input_ids"])
        if rows > self.fit:
            self.hits += 1
            raise self.error
        self.most = max(self.most, rows)


def same(made, want):
    assert sorted(made) == sorted(want)
    return all(
        f.error is None
        and f.token_ids.tolist() == want[i].token_ids.tolist()
        and torch.allclose(*(torch.tensor(x.student_logprobs) for x in (f, want[i])), atol=1e-4)
        for i, f in made.items()
    )


@pytest.fixture(scope="module")
def undisturbed():
    return decode(*models(), PROMPTS, vocabulary=VOCABULARY, rows=8, max_new_tokens=20)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("error", SAID, ids=lambda e: type(e).__name__)
def test_rows_come_back_once_there_is_memory(error, side, undisturbed):
    pair = models()
    short = Short(pair[side], error, fit=3)
    tight = engine(*pair, rows=8)
    made, fewest = {}, 8
    for f in tight.run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY)):
        made[f.request.tag] = f
        fewest = min(fewest, tight.rows)
        if len(made) == 5:
            assert tight.rows == 2
            short.fit = 100
    assert fewest == 2 and short.hits > 0
    assert tight.rows == 8 and short.most >= 8
    assert same(made, undisturbed)


def test_what_never_fits_is_tried_ever_more_seldom(undisturbed):
    pair = models()
    short = Short(pair[1], SAID[0], fit=2)
    tight = engine(*pair, rows=4)
    made, hits = {}, []
    for f in tight.run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY)):
        made[f.request.tag] = f
        hits.append(short.hits)
    assert same(made, undisturbed) and tight.rows == 2
    tries = [i for i in range(1, len(hits)) if hits[i] > hits[i - 1]]
    assert len(tries) >= 2
    gaps = [b - a for a, b in pairwise([0, *tries])]
    assert all(later >= 1.5 * sooner for sooner, later in pairwise(gaps))


def test_rows_of_a_later_run_grow_too(undisturbed):
    pair = models()
    short = Short(pair[0], SAID[0], fit=3)
    tight = engine(*pair, rows=8)
    first = {f.request.tag: f for f in tight.run(requests(PROMPTS[:6], max_new_tokens=20, vocabulary=VOCABULARY))}
    assert tight.rows == 2 and same(first, {i: undisturbed[i] for i in range(6)})
    short.fit = 100
    made = {f.request.tag: f for f in tight.run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY))}
    assert tight.rows == 8 and same(made, undisturbed)


def test_other_errors_are_raised():
    pair = models()
    Short(pair[0], RuntimeError("CUDA error: device-side assert triggered"), fit=3)
    with pytest.raises(RuntimeError, match="device-side assert"):
        list(engine(*pair, rows=8).run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY)))


@pytest.mark.parametrize("memory", [True, False])
def test_a_capture_that_fails_ends_no_job(memory, undisturbed, monkeypatch):
    # Stands in for a GPU: a step breaks in the capture, and so does the end of the capture, with other words.
    broken = [0]

    class Capture:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            pair[1].register_forward_pre_hook(self.fail, prepend=True)

        def fail(self, *_):
            if not broken[0]:
                broken[0] += 1
                raise torch.OutOfMemoryError("CUDA out of memory") if memory else RuntimeError("not permitted")

        def __exit__(self, *error):
            if error[0]:
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")

    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "device": lambda _: nullcontext(),
        "stream": lambda _: nullcontext(),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "set_stream": lambda _: None,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda _: None,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": Capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    pair = models()
    made_for_gpu = engine(*pair, rows=8)
    loop = made_for_gpu.rounds.loop = DraftLoop(made_for_gpu.rounds.student.step, made_for_gpu.student, capture=True)
    todo = made_for_gpu.run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY))
    if memory:
        # No graph is replayed here, so that what is made is not looked at.
        next(todo)
        assert broken == [1] and made_for_gpu.rows == 4 and loop.capture
    else:
        with pytest.warns(UserWarning, match="cannot be captured and run one by one"):
            made = {f.request.tag: f for f in todo}
        assert broken == [1] and made_for_gpu.rows == 8 and not loop.capture
        assert same(made, undisturbed)


def test_more_rows_wait_for_free_memory(undisturbed, monkeypatch):
    pair = models()
    short = Short(pair[0], SAID[0], fit=3)
    tight = engine(*pair, rows=8)
    made = {}
    for f in tight.run(requests(PROMPTS, max_new_tokens=20, vocabulary=VOCABULARY)):
        made[f.request.tag] = f
        if len(made) == 5:
            short.fit, hits = 100, short.hits
            monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=0))
    assert tight.rows == 2 and short.hits == hits and same(made, undisturbed)

"""What can only go wrong on a GPU: captured graphs at stale addresses, waits in a round, masks of another dtype.

Tests marked `gpu` skip where there is none; what a CPU can show, too, runs there as well.
"""

import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import Devices
from pairs import CONFIGS, PLAIN, decode, full_logprobs, random_model, requests, spelled_vocabulary, twin_vocabulary

from rsd.acceptance import Acceptance, Sampling
from rsd.decoding.cuda_graph import DraftLoop
from rsd.decoding.engine import Engine
from rsd.decoding.sampling import draw
from rsd.models.selfcheck import check_decoding
from rsd.scoring.naturalness import Reader

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[gpu, needs_gpu])]
FEW = Sampling(temperature=1.0, top_p=0.95, top_k=6)
TWINS = twin_vocabulary(24)
PROMPTS = [[1 + i % 5, 2 + i % 7] for i in range(12)]


def models(device, **special):
    return tuple(random_model(seed=seed, **special).to(device) for seed in (1, 2))


def engine(pair, *, rows, block, graphs, sampling=FEW, vocabulary=None, eos=(0,)):
    made = Engine(
        *pair,
        vocabulary or TWINS,
        sampling=sampling,
        acceptance=Acceptance(threshold=0.02),
        eos=eos,
        rows=rows,
        block=block,
    )
    if graphs:
        capture = made.student.device.type == "cuda"
        made.rounds.loop = DraftLoop(made.rounds.student.step, made.student, capture=capture)
    return made


def traces(made, prompts, *, tokens=40, vocabulary=None):
    todo = requests(prompts, max_new_tokens=tokens, vocabulary=vocabulary or TWINS)
    return {f.request.tag: f.token_ids.tolist() for f in made.run(todo)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampling", [FEW, PLAIN], ids=["few candidates", "all tokens"])
@pytest.mark.parametrize("block", [1, 4])
def test_graphs_follow_a_cache_that_grows(block, sampling, device):
    # Traces of unlike lengths: rows change places and numbers, and the cache grows under graphs of several sizes.
    # A prompt of one token is nothing that was read: its rows have no buffers before the first step.
    prompts = [[1], *PROMPTS[:6]]
    lengths = [300, *[5 + 21 * i for i in range(6)]]
    pair = models(device)
    found = []
    for graphs in (False, True):
        made = engine(pair, rows=3, block=block, graphs=graphs, sampling=sampling, eos=())
        todo = requests(prompts, vocabulary=TWINS)
        todo = [replace(r, max_new_tokens=n) for r, n in zip(todo, lengths, strict=True)]
        found.append({f.request.tag: f.token_ids.tolist() for f in made.run(todo)})
        if graphs:
            assert device == "cpu" or made.rounds.loop.capture
            # A second run begins with the caches and graphs of the first.
            assert {f.request.tag: f.token_ids.tolist() for f in made.run(todo[::-1])} == found[0]
    assert found[0] == found[1] and max(map(len, found[0].values())) > 256


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_follow_a_cache_that_is_replaced(device):
    # Out of memory in the midst of the traces: other caches, fewer rows, then as many as before.
    pair = models(device)
    want = traces(engine(pair, rows=8, block=2, graphs=False), PROMPTS * 5)
    made = engine(pair, rows=8, block=2, graphs=True)
    fits, hits, found, fewest = [3], [0], {}, 8

    def short(_, __, given):
        if len(given["input_ids"]) > fits[0]:
            hits[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    pair[0].register_forward_pre_hook(short, with_kwargs=True)
    for f in made.run(requests(PROMPTS * 5, max_new_tokens=40, vocabulary=TWINS)):
        found[f.request.tag] = f.token_ids.tolist()
        fewest = min(fewest, made.rows)
        fits[0] = 3 if len(found) < 8 else 100
    assert hits[0] and fewest == 2 and made.rows == 8
    assert found == want


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("graphs", [False, True])
def test_one_model_in_both_roles(graphs, device):
    model = random_model(seed=1)
    want = traces(engine((model, model), rows=3, block=1, graphs=False), PROMPTS)
    model = model.to(device)
    assert traces(engine((model, model), rows=3, block=4, graphs=graphs), PROMPTS) == want


@gpu
@needs_gpu
@pytest.mark.parametrize("sampling", [FEW, PLAIN], ids=["few candidates", "all tokens"])
@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_makes_what_a_cpu_makes(graphs, spelled, sampling):
    vocabulary = spelled_vocabulary(24, {22: [4], 23: [1, 2, 3]}) if spelled else TWINS
    want = traces(
        engine(models("cpu"), rows=4, block=1, graphs=False, sampling=sampling, vocabulary=vocabulary),
        PROMPTS,
        vocabulary=vocabulary,
    )
    for rows, block in ((4, 1), (12, 3), (1, None), (5, 8)):
        made = engine(models("cuda"), rows=rows, block=block, graphs=graphs, sampling=sampling, vocabulary=vocabulary)
        assert traces(made, PROMPTS, vocabulary=vocabulary) == want


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_decodes_in_its_own_dtype(kind, dtype, device):
    # A mask of another dtype than the queries is refused by some kernels, converted in every layer by others.
    pair = [random_model(kind, seed=seed).to(device, dtype) for seed in (1, 2)]
    check_decoding(pair[1], kind)
    for graphs in (False, True):
        made = engine(pair, rows=3, block=3, graphs=graphs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that looks at what its router chose is not captured
            done = list(made.run(requests(PROMPTS, max_new_tokens=12, vocabulary=TWINS)))
        assert len(done) == len(PROMPTS)
        assert all(f.error is None and np.isfinite(f.student_logprobs).all() for f in done)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("graphs", [False, True])
def test_a_row_that_breaks_breaks_no_other(graphs, device):
    # Token 7 is said by nobody, and breaks the rows whose prompts hold it.
    pair, vocabulary = models(device), twin_vocabulary(24)
    vocabulary.own[7], vocabulary.shared[7] = -torch.inf, 0
    with torch.no_grad():
        pair[1].model.embed_tokens.weight[7] = torch.nan
    prompts = [[1, 2, 3, 4, 5, 6], [2, 3, 1, 7, 7, 7], [4], [7], [5], [7, 3, 7], [6, 6, 6], [1, 2], [3]]
    todo = requests(prompts, vocabulary=vocabulary)
    alone = engine(pair, rows=1, block=1, graphs=False, vocabulary=vocabulary)
    want = {f.request.tag: f for f in alone.run(todo)}
    for f in engine(pair, rows=3, block=3, graphs=graphs, vocabulary=vocabulary).run(todo):
        assert (f.error is None) == (want[f.request.tag].error is None)
        assert f.token_ids.tolist() == want[f.request.tag].token_ids.tolist()
    assert [i for i in sorted(want) if want[i].error] == [1, 3, 5]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [20, 3000, 150_000])
def test_a_token_without_mass_is_never_drawn(width, device):
    # A running sum that is computed in parts may fall by its last digit where nothing is added.
    some = torch.Generator().manual_seed(0)
    probs = torch.rand(8, width, generator=some) * (torch.rand(8, width, generator=some) < 0.1)
    probs[:, width // 2] = 1.0
    probs = probs.to(device)
    for u in (
        *torch.rand(20, 8, dtype=torch.float64, generator=some),
        torch.zeros(8),
        torch.full((8,), 1 - 2**-40, dtype=torch.float64),
    ):
        drawn = draw(probs, u.double().to(device))
        assert (probs.gather(1, drawn[:, None]) > 0).all()


HOST = {"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "is_nonzero"}


class Crossings(Devices):
    """Counts where the host waits for the GPU, or gives something to it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.given: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        before = self.of(args[0]).type if args and isinstance(args[0], torch.Tensor) else "cpu"
        out = super().__torch_function__(func, types, args, kwargs)
        if before == "cuda" and name in HOST:
            self.waits.append(name)
        if (
            before == "cpu"
            and isinstance(out, torch.Tensor)
            and self.of(out).type == "cuda"
            and name in ("to", "tensor")
        ):
            self.given.append(name)
        return out


@pytest.mark.parametrize("sampling", [FEW, PLAIN], ids=["few candidates", "all tokens"])
@pytest.mark.parametrize("block", [1, 4])
def test_the_host_waits_twice_a_round(block, sampling):
    # For the drafts, which the teacher is to read, and for what became of them. On tensors that say they are on a GPU.
    pair = models("cpu")
    with Crossings() as devices:
        for model in pair:
            devices.put(model, "cuda:0")
        made = engine(pair, rows=4, block=block, graphs=False, sampling=sampling)
        running = made.run(requests(PROMPTS[:4], max_new_tokens=64, vocabulary=TWINS))
        rounds, seen = made.rounds.round, []

        def counted(*args):
            devices.waits.clear()
            devices.given.clear()
            ended = yield from rounds(*args)
            seen.append((list(devices.waits), list(devices.given)))
            return ended

        made.rounds.round = counted
        list(running)
    assert len(seen) > 10
    for waits, given in seen:
        assert waits == ["cpu", "cpu"]
        assert len(given) <= 3  # the noise, what the student reads, what the teacher reads


@gpu
@needs_gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_torch_finds_as_few_waits_in_a_round(graphs):
    made = engine(models("cuda"), rows=4, block=4, graphs=graphs)
    traces(made, PROMPTS)  # what is made once has been made
    rounds, seen = made.rounds.round, []

    def counted(*args):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                ended = yield from rounds(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(sum("synchronizing" in str(w.message) for w in said))
        return ended

    made.rounds.round = counted
    traces(made, PROMPTS)
    assert np.median(seen) <= 5  # two to the host, three from its pageable memory


@gpu
@needs_gpu
def test_a_step_that_waits_for_the_gpu_runs_one_by_one_and_leaves_torch_sound():
    pair = models("cuda")
    want = traces(engine(pair, rows=4, block=2, graphs=False), PROMPTS)
    hook = pair[1].register_forward_hook(lambda _, __, out: out.logits.sum().item() and None)
    made = engine(pair, rows=4, block=2, graphs=True)
    with pytest.warns(UserWarning, match="cannot be captured and run one by one"):
        assert traces(made, PROMPTS) == want
    hook.remove()
    assert not made.rounds.loop.capture and torch.cuda.get_sync_debug_mode() == 0
    assert torch.rand(3, device="cuda").isfinite().all()  # its generator is not still in a capture
    torch.empty(1 << 28, device="cuda")
    held = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()  # nor is its memory
    assert torch.cuda.memory_reserved() < held
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@gpu
@needs_gpu
def test_what_another_thread_does_on_the_gpu_breaks_no_capture():
    pair = models("cuda")
    want = traces(engine(pair, rows=4, block=2, graphs=False), PROMPTS)
    stop = threading.Event()

    def busy():
        with torch.cuda.stream(torch.cuda.Stream()):
            while not stop.is_set():  # allocates, frees, waits
                torch.ones(1 << 24, device="cuda").sum().item()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                made = engine(pair, rows=4, block=2, graphs=True)
                assert traces(made, PROMPTS, tokens=40) == want and made.rounds.loop.capture
    finally:
        stop.set()
        thread.join()


@gpu
@needs_gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_stream_of_the_caller_makes_the_same(graphs):
    pair = models("cuda")
    want = traces(engine(pair, rows=4, block=2, graphs=False), PROMPTS)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert traces(engine(pair, rows=4, block=2, graphs=graphs), PROMPTS) == want
        assert torch.cuda.current_stream() == side


@gpu
@needs_gpu
def test_caches_and_graphs_that_are_dropped_leave_nothing_behind():
    pair = models("cuda")
    made = engine(pair, rows=8, block=2, graphs=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        traces(made, PROMPTS)
        assert torch.cuda.memory_allocated() > before
        made.rounds.drop_caches(8)
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() <= before + (1 << 20)


@gpu
@needs_gpu
def test_a_gpu_scores_as_a_cpu():
    model = random_model(seed=3, max_position_embeddings=4096)
    prompt, tokens = [1, 2, 3], np.random.default_rng(0).integers(0, 24, 1500).tolist()
    steps = list(range(0, len(tokens), 20))
    first = [max(0, i - 4) for i in range(len(steps))]
    want = Reader(model).read(prompt, tokens, steps, first)
    np.testing.assert_allclose(want.logprobs, full_logprobs(model, prompt, tokens), atol=1e-3)
    made = Reader(model.cuda()).read(prompt, tokens, steps, first)
    np.testing.assert_allclose(made.logprobs, want.logprobs, atol=1e-3)
    np.testing.assert_allclose(made.local, want.local, atol=1e-3)


@gpu
@needs_gpu
@pytest.mark.parametrize("compile", [False, True])
def test_one_device_by_either_of_its_names(compile):
    teacher, student = models("cuda:0")
    made = [
        decode(teacher.to(a), student.to(b), PROMPTS, rows=3, block=2, compile=compile)
        for a, b in (("cuda:0", "cuda:0"), ("cuda", "cuda:0"))
    ]
    assert [f.token_ids.tolist() for f in made[0].values()] == [f.token_ids.tolist() for f in made[1].values()]

"""bench/weighted.py, a weight for each token in TRL's loss: by hand, against the plain trainer, and from an export."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import read, write
from exports import export
from jobs import run
from test_loss_weights import weighed
from test_train import trainer_of

from rsd.models.bundled import bundled
from rsd.traces.readers import read_rows

sys.path.append(str(Path(__file__).parents[2] / "bench"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighted")
    write(folder / "in.jsonl", read_rows(bundled("problems.jsonl"))[:16])
    run(folder / "in.jsonl", "-o", folder / "traces.jsonl")
    weighed(folder / "traces.jsonl")
    export(folder / "traces.weighed.jsonl", "--keep", "all", "--format", "token-ids", "-o", folder / "out.jsonl")
    return folder / "out.jsonl"


@pytest.fixture
def made(file, tmp_path):
    """A trainer over the exported file with other weights: `weight(place in the row, what is there)`."""
    from weighted import WeightedTrainer

    def trainer(weight, kind=WeightedTrainer, **settings):
        rows = read(file)
        for row in rows:
            learnt = [label >= 0 for label in row["labels"]]
            row["loss_weights"] = [weight(i, w) * learnt[i] for i, w in enumerate(row["loss_weights"])]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return trainer_of(write(folder / "rows.jsonl", rows), bundled("student"), kind=kind, **settings)

    return trainer


def loss_of(trainer, **how):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch, **how)
    loss.backward()
    return float(loss), {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


def one(i, w):
    return 1.0


def test_weights_of_1_give_the_plain_loss(made):
    from trl import SFTTrainer

    plain, weighted = made(one, SFTTrainer), made(one)
    for how in ({}, {"num_items_in_batch": 100}):
        (want, wanted), (loss, grads) = loss_of(plain, **how), loss_of(weighted, **how)
        assert loss == want and want > 0
        assert wanted.keys() == grads.keys() and all(torch.equal(grad, wanted[name]) for name, grad in grads.items())
    plain.train()
    weighted.train()
    trained = zip(plain.model.parameters(), weighted.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in trained)


def test_weights_of_0_give_no_gradient(made):
    trainer = made(lambda i, w: 0.0)
    loss, grads = loss_of(trainer)
    assert loss == 0 and grads and all(not grad.any() for grad in grads.values())


def test_weights_by_hand(made):
    trainer = made(lambda i, w: 0.5 if i % 2 else 1.0)
    batch = next(iter(trainer.get_train_dataloader()))
    total = count = 0.0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        with torch.no_grad():
            logprobs = trainer.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for i in range(1, len(ids)):
            if labels[i] >= 0:
                total -= (0.5 if i % 2 else 1.0) * float(logprobs[i - 1, ids[i]])
                count += 1
    assert loss_of(trainer)[0] == pytest.approx(total / count, rel=1e-4)


def test_an_export_of_weighed_traces_trains_as_it_is(made):
    trainer = made(lambda i, w: w)
    batch = next(iter(trainer.get_train_dataloader()))
    for weights, labels in zip(batch["loss_weights"], batch["labels"], strict=True):
        learnt = labels >= 0
        n = int(learnt.sum())
        torch.testing.assert_close(weights[learnt], torch.arange(1, n + 1) / (n + 1), atol=1e-6, rtol=0)
        assert not weights[~learnt].any()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_row_that_is_cut_loses_the_weights_of_what_is_cut(made):
    trainer = made(one, max_length=60)
    for batch in trainer.get_train_dataloader():
        assert batch["loss_weights"].shape == batch["labels"].shape and batch["labels"].shape[1] <= 60
        assert torch.equal(batch["loss_weights"] == 1, batch["labels"] >= 0)

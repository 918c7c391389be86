"""Data hyper-cleaning: the hypergradient in closed form, and what it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from needsaug_lite import data, models, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import (
    CrossEntropyOnMeta,
    CrossEntropyWithMeta,
)
from needsaug_lite.methods.baselines.hyper_cleaning import HyperCleaning
from needsaug_lite.models import Classifier
from needsaug_lite.training import Optimisation


def load(seed: int = 0, **options: float) -> Splits:
    return data.load("digits", n_max=40, meta_per_class=5, seed=seed, **options)


def make(seed: int = 0, noise: float = 0.4, **settings: float) -> HyperCleaning:
    splits = load(seed, noise=noise).without_true_labels()
    torch.manual_seed(seed)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    optimisation = Optimisation(batch_size=32, **settings)
    return HyperCleaning(model, splits, optimisation=optimisation, seed=seed)


def make_linear(weight_decay: float, momentum: float = 0.9) -> HyperCleaning:
    """A linear model in float64, with h away from zero."""
    splits = load(noise=0.4)
    torch.manual_seed(0)
    model = Classifier(nn.Flatten(), 64, nn.Linear(64, 10)).double()
    settings = Optimisation(
        lr=0.3, batch_size=16, weight_decay=weight_decay, momentum=momentum
    )
    method = HyperCleaning(model, splits, optimisation=settings)
    method.weight_logits = torch.randn(len(splits.train), dtype=torch.float64)
    return method


def batches_of(method: HyperCleaning) -> tuple[Batch, Batch]:
    """A training batch and a meta batch, in the model's precision."""
    like = next(method.model.parameters()).dtype
    pair = next(method.batches.epoch(0)), next(method.meta.batches.epoch(0))
    first, second = (replace(b, images=b.images.to(like)) for b in pair)
    return first, second


def gradient_of_cross_entropy(weight: Tensor, bias: Tensor, batch: Batch) -> Tensor:
    """∇ℓ_i = (softmax - onehot)_i ⊗ (x_i, 1) for every image: (B, 10, 65)."""
    inputs = functional.pad(batch.images.flatten(1), (0, 1), value=1.0)
    logits = inputs @ torch.cat([weight, bias.unsqueeze(1)], 1).T
    error = logits.softmax(1) - functional.one_hot(batch.labels, 10)
    return torch.einsum("bc,bd->bcd", error, inputs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_hypergradient_of_a_linear_model_in_closed_form(weight_decay: float) -> None:
    method = make_linear(weight_decay)
    batch, clean = batches_of(method)
    weight, bias = (p.detach() for p in method.model.parameters())
    h, size, lr = method.weight_logits[batch.index], len(batch), 0.3
    each = gradient_of_cross_entropy(weight, bias, batch)
    both = torch.cat([weight, bias.unsqueeze(1)], 1)
    step = torch.einsum("b,bcd->cd", h.sigmoid(), each) / size + weight_decay * both
    moved = both - lr * step
    v = gradient_of_cross_entropy(moved[:, :-1], moved[:, -1], clean).mean(0)
    slope = h.sigmoid() * (1 - h.sigmoid())
    expected = -lr * slope / size * torch.einsum("bcd,cd->b", each, v)

    found = method.hypergradient(batch, clean)
    torch.testing.assert_close(found["weight_logits"], expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.params["head.weight"], moved[:, :-1])


def test_the_virtual_step_is_the_real_one_without_momentum() -> None:
    method = make_linear(weight_decay=0.1, momentum=0.0)
    method.outer_optimiser = torch.optim.SGD([method.weight_logits], lr=1e-30)
    batch, clean = batches_of(method)
    virtual = method.hypergradient(batch, clean).params
    method.meta = iter([clean])
    method.late_step(batch)
    for name, value in method.model.named_parameters():
        torch.testing.assert_close(value.detach(), virtual[name])


def test_a_look_ahead_changes_neither_network_nor_buffers() -> None:
    method = make()
    method.begin_epoch(0)
    method.model.train()
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    random = torch.get_rng_state()
    method.hypergradient(*batches_of(method))
    after = method.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in method.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_batch_norm_sees_training_images_only_once_a_step() -> None:
    method = make()
    method.begin_epoch(0)
    method.late_step(next(method.batches.epoch(0)))
    counters = [
        int(value)
        for name, value in method.model.state_dict().items()
        if "num_batches_tracked" in name
    ]
    assert set(counters) == {1}


def test_only_the_images_of_the_batch_move_in_the_first_step() -> None:
    method = make()
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    method.late_step(batch)
    moved = method.weight_logits.nonzero().flatten()
    assert set(moved.tolist()) == set(batch.index.tolist())


def test_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    whole, file = make(), tmp_path / "c.ckpt"
    training.fit(whole, 4)
    # The first two epochs of four: stop, then go on with a new object.
    first = make()

    class Stop(Exception):  # noqa: N818
        pass

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == 2:
            raise Stop
        return {}

    with pytest.raises(Stop):
        training.fit(first, 4, checkpoint=file, on_epoch=stop)
    second = make()
    history = training.fit(second, 4, checkpoint=file, resume=True)
    assert len(history.rows) == 4
    one, other = whole.state_dict(), second.state_dict()
    assert one["weight_logits"].abs().min() > 0
    assert torch.equal(one["weight_logits"], other["weight_logits"])
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for key, value in one["outer_optimiser"]["state"][0].items():
        assert torch.equal(value, other["outer_optimiser"]["state"][0][key]), key


def test_wrong_labels_lose_weight() -> None:
    """Two well separated clouds of pixels, 3 of 10 labels flipped."""
    draw = data.generator(5)
    true = torch.arange(240) % 2
    grain = 60 * torch.rand(240, 1, 8, 8, generator=draw)
    pixels = (grain + 150 * true.view(-1, 1, 1, 1)).to(torch.uint8)
    everything = data.Examples(data.InMemory(pixels), true)
    parts = [everything.subset(torch.arange(a, a + 40)) for a in (0, 40, 80)]
    train = everything.subset(torch.arange(120, 240))
    splits = data.label_noise(Splits(train, *parts, ("dark", "bright")), 0.3, "flip")
    wrong = splits.train.mislabelled
    assert wrong is not None
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 2, width=4)
    method = HyperCleaning(
        model,
        splits.without_true_labels(),
        outer_lr=0.1,
        optimisation=Optimisation(batch_size=20),
    )
    assert method.suspicion().unique().tolist() == [0.5]
    training.fit(method, 10)
    suspicion = method.suspicion()
    assert 0 <= float(suspicion.min()) <= float(suspicion.max()) <= 1
    assert float(suspicion[wrong].min()) > float(suspicion[~wrong].max())


def test_meta_images_repeat_with_the_epoch_only() -> None:
    method = make()

    def labels(epoch: int) -> list[int]:
        method.meta.begin_epoch(epoch)
        return torch.cat([next(method.meta).index for _ in range(4)]).tolist()

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)
    # 50 meta images in batches of 32: every two batches hold each of them once.
    assert sorted(labels(1)[:50]) == sorted(labels(1)[50:]) == list(range(50))


@pytest.mark.parametrize(
    "method", [HyperCleaning, CrossEntropyWithMeta, CrossEntropyOnMeta]
)
def test_missing_meta_images_are_named(method: type) -> None:
    splits = data.load("digits", n_max=20)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    with pytest.raises(UserError, match="meta_per_class"):
        method(model, splits)


def test_the_baselines_see_the_meta_images() -> None:
    splits = load()
    model = models.build("convnet", splits.image_shape, 10, width=4)
    both = CrossEntropyWithMeta(model, splits)
    alone = CrossEntropyOnMeta(model, splits)
    assert len(both.batches.examples) == len(splits.train) + 50
    assert both.counts.tolist() == (splits.class_counts + 5).tolist()
    assert alone.counts.tolist() == [5] * 10
    seen = torch.cat([batch.labels for batch in alone.batches.epoch(0)])
    assert seen.sort().values.equal(splits.meta.labels.sort().values)

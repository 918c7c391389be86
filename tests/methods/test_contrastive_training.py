"""The first phase: its loss by hand, its two views, its seeds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting
from helpers.shared_phases import (
    CROP,
    SOURCES,
    changed,
    literal_contrast,
    make,
    parts,
    same,
    tail,
)
from torch import nn
from torch.nn.functional import cross_entropy

from needsaug_lite import models, training
from needsaug_lite.augment import AutoAugmentCutout, SimAugment, StandardAugmentation
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.training import Optimisation

NAME = "facog_phase1"
PLAIN = StandardAugmentation()


def begun(epoch: int = 0, epochs: int = 10, **settings: Any) -> tuple[Any, Any]:
    """A method at the start of an epoch of the first phase, and its first batch."""
    method = make(NAME, **settings)
    method.stages(epochs)
    method.begin_contrastive_epoch(epoch)
    return method, next(method.batches.epoch(epoch))


@pytest.mark.parametrize("reweight", [False, True])
def test_loss_of_a_step_by_a_second_route(reweight: bool) -> None:
    settings = {
        "lambda_ce": 0.7,
        "lambda_sc": 0.3,
        "temperature": 0.2,
        "reweight": reweight,
        "late": 0.0,
    }
    method, batch = begun(phase1=settings, optimisation={"batch_size": 24})
    second = next(method.second_view.epoch(0)).images
    model, projection = map(copy.deepcopy, (method.model, method.projection))
    logged = method.contrastive_step(batch)

    model.train()
    features = model.features(torch.cat([batch.images, second]))
    logits = model.head(features[:24])
    # Cui et al. 2019: in proportion to 1 / (1 - β^n), and a weighted mean.
    weight = (1 / (1 - 0.9999 ** method.counts.double())).float()[batch.labels]
    weight = weight if reweight else torch.ones(24)
    each = cross_entropy(logits, batch.labels, reduction="none")
    classification = (each * weight).sum() / weight.sum()
    labels = batch.labels.repeat(2)
    none = projection(features)[:0]
    contrast = literal_contrast(projection(features), none, labels, labels[:0], 0.2)
    torch.testing.assert_close(logged["contrast"], contrast.detach())
    expected = 0.7 * classification + 0.3 * contrast
    torch.testing.assert_close(logged["loss"], expected.detach())
    right = (logits.argmax(1) == batch.labels).float().mean()
    assert float(logged["accuracy"]) == pytest.approx(float(right))


def test_a_step_is_one_of_sgd_on_that_loss() -> None:
    settings = {"batch_size": 24, "warmup": 0.0}
    method, batch = begun(optimisation=settings)
    twin, _ = begun(optimisation=settings)
    networks = twin.networks().train()
    optimiser = Optimisation(lr=0.1).optimiser(networks)
    features = twin.model.features(torch.cat([batch.images, next(twin.others).images]))
    labels = batch.labels.repeat(2)
    projected = twin.projection(features)
    loss = cross_entropy(twin.model.head(features[:24]), batch.labels)
    loss += 0.1 * literal_contrast(projected, projected[:0], labels, labels[:0], 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    method.contrastive_step(batch)
    pairs = zip(method.networks().parameters(), networks.parameters(), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def plain(backbone: str, augment: StandardAugmentation) -> Any:
    splits = tail()
    torch.manual_seed(0)
    model = models.build(
        backbone, splits.image_shape, splits.num_classes, width=4, head="two_layers"
    )
    settings = Optimisation(batch_size=64, lr=0.1)
    return CrossEntropy(model, splits, optimisation=settings, augment=augment, seed=0)


@pytest.mark.parametrize(
    ("backbone", "augment"), [("linear", CROP), ("convnet", PLAIN)]
)
def test_without_contrast_it_is_cross_entropy(
    backbone: str, augment: StandardAugmentation
) -> None:
    """Batch norm sees both views: without it, or with equal views, nothing is left."""
    phase1 = {"share": 1.0, "lambda_sc": 0.0}
    method = make(NAME, backbone=backbone, augment=augment, phase1=phase1)
    other = plain(backbone, augment)
    training.fit(method, 2)
    training.fit(other, 2)
    pairs = zip(method.model.parameters(), other.model.parameters(), strict=True)
    for mine, expected in pairs:
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_sees_both_views() -> None:
    phase1 = {"share": 1.0, "lambda_sc": 0.0}
    method, other = make(NAME, phase1=phase1), plain("convnet", CROP)
    training.fit(method, 1)
    training.fit(other, 1)
    buffers = zip(method.model.buffers(), other.model.buffers(), strict=True)
    assert not all(torch.allclose(a, b, rtol=1e-3) for a, b in buffers)


def test_contrast_alone_leaves_the_classifier() -> None:
    method, batch = begun(phase1={"lambda_ce": 0.0}, optimisation={"weight_decay": 0.0})
    before = parts(method)
    method.contrastive_step(batch)
    assert changed(before, parts(method)) == {"backbone", "projection"}


def test_both_views_show_the_same_images() -> None:
    method = make(NAME)
    unaugmented = make(NAME, augment=PLAIN)
    for epoch in (0, 3):
        views = method.batches.epoch(epoch), method.second_view.epoch(epoch)
        for one, other in zip(*views, strict=True):
            assert torch.equal(one.index, other.index)
            assert not torch.equal(one.images, other.images)
        views = unaugmented.batches.epoch(epoch), unaugmented.second_view.epoch(epoch)
        for one, other in zip(*views, strict=True):
            assert torch.equal(one.images, other.images)


def test_strong_views_follow_the_augmentation_of_the_run() -> None:
    run = StandardAugmentation(crop=2, flip=True, cutout=3)
    method = make(NAME, augment=run, phase1={"strong_views": True})
    assert method.batches.augment == AutoAugmentCutout(crop=2, flip=True, cutout=3)
    assert method.second_view.augment == SimAugment(flip=True)
    weak = make(NAME, augment=run)
    assert weak.batches.augment == weak.second_view.augment == run


def test_an_automatic_policy_is_for_the_weak_views_only() -> None:
    run = StandardAugmentation(policy="randaugment")
    assert make(NAME, augment=run).second_view.augment == run
    with pytest.raises(UserError, match="leave one of the two out"):
        make(NAME, augment=run, phase1={"strong_views": True})


def test_class_weights_come_late() -> None:
    phase1 = {"share": 0.5, "late": 0.6, "reweight": True}
    method = make(NAME, phase1=phase1)
    method.stages(20)
    assert method.first_epochs == 10
    on = []
    for epoch in range(10):
        method.begin_contrastive_epoch(epoch)
        on.append(method.class_weight is not None)
    assert on == [False] * 6 + [True] * 4
    never = make(NAME, phase1={**phase1, "reweight": False})
    never.stages(20)
    never.begin_contrastive_epoch(9)
    assert never.class_weight is None


def test_the_schedule_is_stretched_over_the_phase() -> None:
    method = make(NAME, phase1={"share": 0.5}, optimisation={"warmup": 0.0})
    rates = training.fit(method, 20).column("lr")
    assert rates == pytest.approx([0.1] * 8 + [1e-3] + [1e-5])


def test_a_seed_repeats_and_another_does_not() -> None:
    runs = [make(NAME, seed=seed) for seed in (0, 0, 1)]
    for run in runs:
        training.fit(run, 2)
    assert not changed(parts(runs[0]), parts(runs[1]))
    assert changed(parts(runs[0]), parts(runs[2])) == {
        "backbone",
        "head",
        "projection",
    }


@pytest.mark.parametrize("name", [*SOURCES, "hybrid_contrastive"])
def test_what_a_subclass_draws_leaves_the_first_phase(name: str) -> None:
    method, alone = make(name), make(NAME)
    for network in ("backbone", "head", "projection"):
        assert same(parts(method)[network], parts(alone)[network])


def test_projection_and_classifier_begin_apart() -> None:
    method = make(NAME, backbone="linear")
    head, projection = method.model.head[0], method.projection[0]
    assert head.weight.shape == projection.weight.shape
    assert not torch.isclose(head.weight, projection.weight).any(1).all()


def test_resumed_in_the_first_phase_gives_the_same_bits(tmp_path: Path) -> None:
    whole = make(NAME, phase1={"share": 1.0})
    rows = training.fit(whole, 4).rows
    file = tmp_path / "c.ckpt"
    cut = make(NAME, phase1={"share": 1.0})
    stop = StopError(2)
    with pytest.raises(StopError):
        training.fit(cut, 4, checkpoint=file, on_epoch=stop.at)
    resumed = make(NAME, phase1={"share": 1.0})
    again = training.fit(resumed, 4, checkpoint=file, resume=True).rows
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]
    assert not changed(parts(whole), parts(resumed))


class StopError(Exception):
    """What interrupts a run after an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def at(self, epoch: int, method: Any) -> dict[str, float]:
        if epoch == self.epoch:
            raise self
        return {}


def test_a_step_does_not_wait_for_the_device() -> None:
    method, batch = begun()
    method.others = iter([next(method.second_view.epoch(0))])
    with NoWaiting():
        method.contrastive_step(batch)


def test_projection_is_like_the_classifier_but_for_its_length() -> None:
    method = make(NAME, phase1={"projection_dim": 7})
    shapes = [
        [tuple(p.shape) for p in network.parameters()]
        for network in (method.model.head, method.projection)
    ]
    assert shapes[0] == [(8, 8), (8,), (10, 8), (10,)]
    assert shapes[1] == [(8, 8), (8,), (7, 8), (7,)]
    assert isinstance(method.projection[1], nn.ReLU)

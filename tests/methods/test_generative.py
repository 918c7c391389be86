"""Generated images as data, for a second head, and as a nudge to the features."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import only_train
from helpers.meta_methods import assert_same, fit_in_two, load
from helpers.synthetic import Scene, make, painter, scene, smooth_model
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from torch.testing import assert_close

from needsaug_lite import training
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.generative import (
    GDA,
    GDASSL,
    PCR,
    GDAMultiHead,
)
from needsaug_lite.methods.mgr import MGR, SampledGDA
from needsaug_lite.methods.sampling_strategies import HardSampling, TunedGenerator

BASELINES: list[Any] = [GDA, GDAMultiHead, GDASSL, PCR]
SEARCHED: list[Any] = [MGR, SampledGDA, TunedGenerator, HardSampling]
NEED_CLASSES: list[Any] = [GDA, GDAMultiHead, SampledGDA, HardSampling]


def second_head(seen: Scene, theta: dict[str, Tensor], images: Tensor) -> Tensor:
    plain, _ = seen.both(images)
    logits = seen.method.second_head(seen.features(theta, plain))
    return cross_entropy(logits, seen.labels)


def sharpened(seen: Scene, theta: dict[str, Tensor], images: Tensor) -> Tensor:
    plain, changed = seen.both(images)
    with torch.no_grad():
        logits = seen.logits(theta, plain)
    gap = kl_div(
        seen.logits(theta, changed).log_softmax(1),
        (logits / 0.4).softmax(1),
        reduction="none",
    )
    sure = logits.softmax(1).amax(1) >= seen.method.confidence
    assert 0 < int(sure.sum()) < len(sure)
    found: Tensor = (gap.sum(1) * sure).mean()
    return found


LOSSES: dict[Any, Any] = {
    GDA: Scene.supervision,
    GDAMultiHead: second_head,
    GDASSL: sharpened,
    PCR: Scene.consistency,
}


@pytest.mark.parametrize("kind", BASELINES)
def test_a_step_follows_the_joined_loss(kind: Any) -> None:
    """∇_θ( L + λ ℓ_p ) at the old weights, both in training mode."""
    method = make(kind, model=smooth_model(), synthetic={"strength": 0.7})
    seen = scene(method, smooth=False)
    if kind is GDAMultiHead:
        method.second_head.double()
    theta = seen.theta()
    images = method.generator.sample(seen.latents, seen.labels)
    if kind is GDASSL:
        with torch.no_grad():
            plain = seen.logits(theta, seen.both(images)[0])
        method.confidence = float(plain.softmax(1).amax(1).median()) + 1e-9
    real = cross_entropy(seen.logits(theta, seen.batch.images), seen.batch.labels)
    made = LOSSES[kind](seen, theta, images)
    truth = torch.autograd.grad(real + 0.7 * made, list(theta.values()))
    logged = method.step(seen.batch)
    found = [p.grad for p in method.model.parameters()]
    assert_close(found, list(truth), rtol=1e-10, atol=1e-12)
    assert_close(logged["loss"], real.detach())
    assert_close(logged["synthetic_loss"], made.detach())
    assert float(made.detach()) > 0


def test_the_head_is_only_taught_by_who_should_teach_it() -> None:
    """ℓ_p alone moves ω in GDA and GDA+SSL, and neither in PCR nor in GDA+MH."""
    taught = {}
    for kind in BASELINES:
        extra: dict[str, Any] = {"confidence": 0.0} if kind is GDASSL else {}
        method = make(kind, model=smooth_model(), **extra)
        seen = scene(method)
        if kind is GDAMultiHead:
            method.second_head.double()
        images = method.generator.sample(seen.latents, seen.labels)
        plain, changed = seen.both(images)
        views = {"plain": plain, "changed": changed}
        method.add_synthetic_gradient(views, seen.labels)
        slope = method.model.head.weight.grad
        taught[kind] = slope is not None and bool(slope.any())
        body = next(iter(method.model.backbone.parameters())).grad
        assert body is not None
        assert bool(body.any())
    assert taught == {GDA: True, GDASSL: True, GDAMultiHead: False, PCR: False}


def test_the_second_head_learns() -> None:
    method = make(GDAMultiHead)
    before = copy.deepcopy(method.second_head.state_dict())
    training.fit(method, 1)
    after = method.second_head.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(g["weight_decay"] == 2e-4 for g in method.optimiser.param_groups)
    assert all(g["momentum"] == 0.9 for g in method.optimiser.param_groups)


@pytest.mark.parametrize("kind", [*BASELINES, *SEARCHED])
def test_running_moments_are_those_of_real_images(kind: Any) -> None:
    method = make(kind)
    method.stages(2)
    method.begin_epoch(0)
    other = copy.deepcopy(method.model).train()
    batch = next(method.batches.epoch(0))
    method.step(batch)
    other(batch.images)
    for (name, found), truth in zip(
        method.model.named_buffers(), other.buffers(), strict=True
    ):
        assert torch.equal(found, truth), name


@pytest.mark.parametrize("kind", BASELINES)
def test_only_training_images_are_looked_at(kind: Any) -> None:
    splits = load().without_true_labels()
    guarded, plain = make(kind, only_train(splits)), make(kind, splits)
    training.fit(guarded, 1)
    training.fit(plain, 1)
    assert_same(guarded, plain)


@pytest.mark.parametrize("kind", [PCR, GDAMultiHead])
def test_a_killed_run_ends_like_one_that_was_never_interrupted(
    kind: Any, tmp_path: Path
) -> None:
    whole = make(kind)
    training.fit(whole, 3)
    split = fit_in_two(lambda: make(kind), 3, 2, tmp_path / "run")
    assert_same(whole, split)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_seed_repeats_and_another_does_not(kind: Any) -> None:
    runs: list[Any] = [make(kind, seed=seed) for seed in (0, 0, 1)]
    for number, run in enumerate(runs):
        training.fit(run, 1)
        torch.manual_seed(number)  # nothing but the construction may depend on it
    assert_same(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same(runs[0], runs[2])


def test_latents_are_new_in_every_step_and_epoch() -> None:
    method = make(PCR)
    method.stages(2)
    found = []
    for epoch in (0, 1, 0):
        method.begin_epoch(epoch)
        found += [method.latents()[0] for _ in range(2)]
    assert torch.equal(torch.stack(found[:2]), torch.stack(found[4:]))
    assert len({tuple(z.flatten().tolist()) for z in found}) == 4


def test_without_strength_generated_images_change_nothing() -> None:
    results = []
    for strength in (0.0, 0.0, 1.0):
        method = make(PCR, synthetic={"strength": strength, "batch_size": 8})
        training.fit(method, 1)
        results.append(method)
    other = make(PCR, synthetic={"strength": 0.0, "batch_size": 16})
    training.fit(other, 1)
    assert_same(results[0], other)
    with pytest.raises(AssertionError):
        assert_same(results[0], results[2])


def test_colour_images_go_through() -> None:
    splits = load(channels=3).without_true_labels()
    for kind in (PCR, MGR):
        method = make(kind, splits)
        rows = training.fit(method, 1).rows
        assert rows[0]["synthetic_loss"] > 0


# --- which generator fits -----------------------------------------------------


@pytest.mark.parametrize("kind", NEED_CLASSES)
def test_classes_need_a_conditional_generator(kind: Any) -> None:
    with pytest.raises(UserError, match=r"unconditional generator has none.*pcr"):
        make(kind, source=painter(conditional=False))


@pytest.mark.parametrize("kind", [GDASSL, PCR, MGR, TunedGenerator])
def test_others_take_an_unconditional_one(kind: Any) -> None:
    """Whatever number of classes it claims to have."""
    method = make(kind, source=painter(classes=1, conditional=False))
    training.fit(method, 1)


def test_hard_images_by_consistency_need_no_classes() -> None:
    source = painter(classes=1, conditional=False)
    training.fit(make(HardSampling, source=source, aim="consistency"), 1)


def test_other_classes_and_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="makes 7 classes, the data have 10"):
        make(PCR, source=painter(classes=7))
    with pytest.raises(UserError, match=r"\(1, 12, 12\), the data are \(1, 8, 8\)"):
        make(PCR, source=painter(side=12))


@pytest.mark.parametrize("kind", [*BASELINES, *SEARCHED])
def test_the_weights_of_the_callers_generator_stay(kind: Any) -> None:
    source = painter()
    before = copy.deepcopy(source.state_dict())
    training.fit(make(kind, source=source, search=None), 1)
    after = source.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.grad is None for value in source.parameters())


@pytest.mark.parametrize("kind", [PCR, MGR])
def test_pcr_logs_how_much_its_features_still_vary(kind: Any) -> None:
    method = make(kind)
    method.stages(1)
    method.begin_epoch(0)
    batch = next(iter(method.batches.epoch(0)))
    assert float(method.step(batch)["feature_variance"]) > 0
    for module in method.model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.zeros_(module.weight)  # features that tell nothing apart
    assert float(method.step(batch)["feature_variance"]) == 0

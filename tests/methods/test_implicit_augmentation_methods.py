"""ISDA, the meta-learned covariance, Meta-Weight-Net; two phases as one training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import literal_iada as literal
from helpers.meta_methods import (
    assert_same,
    batches_of,
    fit_in_two,
    flat,
    in_float64,
    linear,
    load,
    make,
    meta_after_step,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from needsaug_lite import data, models, training
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Batch
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.implicit_augmentation import ISDA, MetaCovariance
from needsaug_lite.methods.baselines.meta_weight_net import MetaWeightNet, weighted
from needsaug_lite.methods.baselines.two_phase import TwoPhase
from needsaug_lite.methods.meta_iada import MetaIADA
from needsaug_lite.statistics import nearest_positive_semidefinite
from needsaug_lite.training import Optimisation

META = [MetaIADA, MetaCovariance, MetaWeightNet]


def started(method: Any) -> Any:
    """At the first epoch of a run of one epoch."""
    method.stages(1)
    method.begin_epoch(0)
    return method


def same_model(one: Any, other: Any, tolerance: float) -> None:
    first, second = flat(one.model.state_dict()), flat(other.model.state_dict())
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance)


# ISDA


def test_isda_at_strength_zero_is_cross_entropy() -> None:
    method, plain = make(ISDA, alpha=0.0), make(CrossEntropy)
    training.fit(method, 2)
    training.fit(plain, 2)
    same_model(method, plain, 1e-6)


def test_isda_grows_stronger_with_the_epochs() -> None:
    history = training.fit(make(ISDA, alpha=0.8), 4)
    assert history.column("strength") == pytest.approx([0.0, 0.2, 0.4, 0.6])


@pytest.mark.parametrize("diagonal", [False, True])
def test_an_isda_step_descends_its_loss(diagonal: bool) -> None:
    """Eq. 6 at ε = β = 0 with the covariances of this batch, in their literal form."""
    method = started(make(ISDA, diagonal=diagonal))
    plain = make(ISDA)
    method.strength = 0.7
    batch = next(method.batches.epoch(0))
    plain.model.train()
    features = plain.model.features(batch.images)
    sigma = torch.zeros(10, 8, 8)
    for label in range(10):
        own = features.detach()[batch.labels == label]
        sigma[label] = torch.cov(own.T, correction=0) if len(own) else 0
    weight, bias = plain.linear.weight, plain.linear.bias
    problem = literal.Problem(
        features,
        batch.labels,
        weight,
        bias,
        sigma.diagonal(dim1=1, dim2=2) if diagonal else sigma,
        torch.zeros(len(batch)),
        torch.ones(10) / 10,
    )
    loss = literal.iada(problem, alpha=0.7, beta=0.0).mean()
    logged = method.step(batch)
    torch.testing.assert_close(logged["loss"], loss.detach())
    right = (plain.linear(features).argmax(1) == batch.labels).float().mean()
    torch.testing.assert_close(logged["accuracy"], right)
    plain.optimiser.param_groups[0]["lr"] = method.optimiser.param_groups[0]["lr"]
    loss.backward()
    plain.optimiser.step()
    same_model(method, plain, 1e-5)


# The covariance that takes a step


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (1.5, 0.7)])
def test_covariance_hypergradient_equals_one_graph(
    diagonal: bool, alpha: float, beta: float
) -> None:
    method = linear(MetaCovariance, diagonal=diagonal, alpha=alpha, beta=beta)
    batch, clean = batches_of(method)
    sigma = method.moments.covariance.clone().requires_grad_()
    weight, bias = (
        p.detach().clone().requires_grad_() for p in method.model.parameters()
    )
    problem = literal.Problem(
        batch.images.flatten(1),
        batch.labels,
        weight,
        bias,
        sigma,
        torch.zeros(len(batch), dtype=torch.float64),
        method.class_prior,
    )
    inner = literal.iada(problem, alpha=alpha, beta=beta).mean()
    outer = meta_after_step(inner, weight, bias, clean)
    (expected,) = torch.autograd.grad(outer, sigma)
    estimate = method.hypergradient(batch, clean)
    torch.testing.assert_close(estimate.outer_loss, outer.detach())
    found = estimate["covariance"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    # Only the classes of the batch move.
    moved = found.flatten(1).any(1)
    assert torch.equal(moved, batch.labels.bincount(minlength=10) > 0)


def test_at_rate_zero_it_is_isda_of_constant_strength() -> None:
    method = make(MetaCovariance, covariance_lr=0.0, alpha=0.6, start=0.0)
    constant = make(ISDA)
    for epoch in range(2):
        for one in (method, constant):
            one.stages(2)
            one.begin_epoch(epoch)
        constant.strength = 0.6
        for batch in method.batches.epoch(epoch):
            method.late_step(batch)
            constant.step(batch)
    same_model(method, constant, 2e-5)
    for name, value in method.moments.state_dict().items():
        seen = constant.moments.state_dict()[name]
        torch.testing.assert_close(seen, value, rtol=1e-4, atol=1e-5)


def test_a_step_uses_the_moved_covariance_and_forgets_it() -> None:
    settings = {"covariance_lr": 50.0, "start": 0.0}
    method, other = (linear(MetaCovariance, **settings) for _ in range(2))
    batch, clean = batches_of(method)
    method.meta = iter([clean])
    other.moments.update(batch.images.flatten(1), batch.labels)
    estimate = other.hypergradient(batch, clean)
    moved = other.moments.covariance - 50.0 * estimate["covariance"]
    assert torch.linalg.eigvalsh(moved).min() < -1e-3  # the clip matters
    sigma = nearest_positive_semidefinite(moved)
    own = dict(other.model.named_parameters())
    loss = other.loss_with(batch.images.flatten(1), batch.labels, own, sigma)
    logits = other.model(batch.images)
    other.descend(loss)
    logged = method.late_step(batch)
    same_model(method, other, 1e-12)
    torch.testing.assert_close(logged["loss"], loss.detach())
    torch.testing.assert_close(method.moments.covariance, other.moments.covariance)
    right = (logits.argmax(1) == batch.labels).float().mean()
    torch.testing.assert_close(logged["accuracy"], right)


# Meta-Weight-Net


def weights_of(values: Tensor, network: list[Tensor]) -> Tensor:
    first, bias, last, constant = network
    hidden = (values[:, None] @ first.T + bias).relu()
    return (hidden @ last[0] + constant).sigmoid()


def test_weight_net_hypergradient_equals_one_graph() -> None:
    method = linear(MetaWeightNet)
    batch, clean = batches_of(method)
    network = [p.detach().clone().requires_grad_() for p in method.network.parameters()]
    weight, bias = (
        p.detach().clone().requires_grad_() for p in method.model.parameters()
    )
    logits = batch.images.flatten(1) @ weight.T + bias
    each = cross_entropy(logits, batch.labels, reduction="none")
    weights = weights_of(each.detach(), network)
    inner = (weights / weights.sum() * each).sum()
    outer = meta_after_step(inner, weight, bias, clean)
    expected = torch.autograd.grad(outer, network)
    estimate = method.hypergradient(batch, clean, each.detach())
    torch.testing.assert_close(estimate.outer_loss, outer.detach())
    for value, exact in zip(estimate.values(), expected, strict=True):
        assert exact.abs().max() > 0
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-15)


def test_a_weight_net_step_by_hand() -> None:
    """V first, then the network with the new weights at the same losses."""
    method, other = linear(MetaWeightNet), linear(MetaWeightNet)
    batch, clean = batches_of(method)
    method.meta = iter([clean])
    logits = other.model(batch.images)
    each = cross_entropy(logits, batch.labels, reduction="none")
    estimate = other.hypergradient(batch, clean, each.detach())
    logged = method.late_step(batch)
    network = []
    for name, parameter in other.network.named_parameters():
        value = parameter.detach()
        # The first step of Adam, with weight decay in its gradient.
        slope = estimate[name] + 1e-4 * value
        value = value - 1e-3 * slope / (slope.abs() + 1e-8)
        seen = method.network.get_parameter(name).detach()
        torch.testing.assert_close(seen, value, rtol=0, atol=1e-9)
        network.append(seen)
    weights = weights_of(each.detach(), network)
    loss = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(logged["loss"], loss.detach())
    torch.testing.assert_close(logged["weight"], weights.mean())
    other.descend(loss)
    same_model(method, other, 1e-12)


def test_weights_are_relative() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    plain = cross_entropy(logits, labels)
    torch.testing.assert_close(weighted(logits, labels, torch.full((6,), 0.2)), plain)
    weights = torch.tensor([1.0, 0, 0, 0, 0, 3])
    each = cross_entropy(logits, labels, reduction="none")
    expected = (each[0] + 3 * each[5]) / 4
    torch.testing.assert_close(weighted(logits, labels, weights), expected)
    torch.testing.assert_close(weighted(logits, labels, 7 * weights), expected)


def test_the_weight_net_has_no_first_phase_and_takes_any_head() -> None:
    splits = load()
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4, head="cosine")
    method = MetaWeightNet(model, splits)
    assert [stage.epochs for stage in method.stages(7)] == [0, 7]
    history = training.fit(method, 1)
    assert history.column("stage") == ["MetaWeightNet"]
    # V learns: the weights leave their common value.
    assert 0 < history.column("weight")[0] < 1


# What the methods of two phases share


@pytest.mark.parametrize("kind", META)
def test_resumed_gives_the_same_bits(kind: type, tmp_path: Path) -> None:
    settings = {} if kind is MetaWeightNet else {"start": 0.5}

    def one() -> Any:
        return make(kind, **settings)

    whole = one()
    training.fit(whole, 4)
    assert_same(whole, fit_in_two(one, 4, 3, tmp_path / "c.ckpt"))


@pytest.mark.parametrize("kind", [ISDA, *META])
def test_a_state_in_the_middle_of_an_epoch_is_whole(kind: type) -> None:
    """All that one object holds, another one holds after loading it."""
    settings = {} if kind in (ISDA, MetaWeightNet) else {"start": 0.0}
    method, other = (started(make(kind, **settings)) for _ in range(2))
    step = method.step if kind is ISDA else method.late_step
    batches = method.batches.epoch(0)
    for _ in range(2):
        step(next(batches))
    state = copy.deepcopy(method.state_dict())
    other.load_state_dict(state)
    assert_same(method, other)
    if kind is MetaIADA:
        assert other.epsilon.any()


def test_isda_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    whole = make(ISDA)
    training.fit(whole, 4)
    assert_same(whole, fit_in_two(lambda: make(ISDA), 4, 2, tmp_path / "c.ckpt"))


@pytest.mark.parametrize("kind", META)
def test_the_look_ahead_is_a_plain_step_of_the_whole_network(kind: type) -> None:
    """θ' of Eq. 7 moves every weight along its gradient, those of the backbone too."""
    method = make(kind)
    started(in_float64(method, getattr(method, "network", None)))
    batch, clean = batches_of(method)
    own = dict(method.model.named_parameters())
    extra: list[Tensor] = []
    if kind is MetaWeightNet:
        logits = method.model(batch.images)
        each = cross_entropy(logits, batch.labels, reduction="none").detach()
        extra = [each]
        weights = method.network(each[:, None]).squeeze(1).detach()
        loss = weighted(logits, batch.labels, weights)
    else:
        features = method.model.features(batch.images)
        given = [features, batch.labels, own, method.moments.covariance]
        if kind is MetaIADA:
            extra = [torch.randn(len(batch), 15, dtype=torch.float64)]
            given.append(method.network(extra[0]).detach())
        loss = method.loss_with(*given)
    slopes = torch.autograd.grad(loss, list(own.values()))
    estimate = method.hypergradient(batch, clean, *extra)
    torch.testing.assert_close(estimate.inner_loss, loss.detach())
    assert list(estimate.params) == list(own)
    for (name, value), slope in zip(own.items(), slopes, strict=True):
        assert slope.any(), name
        expected = value.detach() - method.rate * slope
        torch.testing.assert_close(estimate.params[name], expected, rtol=0, atol=1e-14)
    logits = functional_call(method.model, estimate.params, (clean.images,))
    outer = cross_entropy(logits, clean.labels)
    torch.testing.assert_close(estimate.outer_loss, outer.detach())


@pytest.mark.parametrize("kind", META)
def test_without_meta_images(kind: type) -> None:
    splits = data.load("digits", n_max=20)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    with pytest.raises(UserError, match=f"{kind.__name__} learns .* meta_per_class"):
        kind(model, splits)


@pytest.mark.parametrize("kind", [ISDA, MetaIADA, MetaCovariance])
def test_a_cosine_head_is_refused(kind: type) -> None:
    splits = load()
    model = models.build("convnet", splits.image_shape, 10, width=4, head="cosine")
    with pytest.raises(UserError, match=f"{kind.__name__} needs a linear head"):
        kind(model, splits)


class Watched(TwoPhase):
    """Notes what each of its steps is given."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[tuple[str, float, list[int], float]] = []

    def note(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        pixels = float(batch.images.sum())
        self.seen.append((phase, self.rate, batch.index.tolist(), pixels))
        return {"loss": torch.zeros(())}

    def early_step(self, batch: Batch) -> dict[str, Tensor]:
        return self.note("early", batch)

    def late_step(self, batch: Batch) -> dict[str, Tensor]:
        return self.note("late", batch)


def watched(start: float, epochs: int = 5) -> Watched:
    splits = load()
    torch.manual_seed(0)
    method = Watched(
        models.build("convnet", splits.image_shape, 10, width=4),
        splits,
        start=start,
        augment=StandardAugmentation(crop=1),
        optimisation=Optimisation(batch_size=32, warmup=0.4, milestones=(0.6, 0.8)),
    )
    training.fit(method, epochs)
    return method


def test_the_second_phase_goes_on_with_data_and_schedule() -> None:
    """Order, augmentation and rate of an epoch don't depend on where it starts."""
    whole, split = watched(1.0), watched(0.4)
    assert [one[1:] for one in whole.seen] == [one[1:] for one in split.seen]
    steps = len(whole.batches)
    phases = ["early"] * 2 * steps + ["late"] * 3 * steps
    assert [one[0] for one in split.seen] == phases
    assert split.seen[2 * steps][2] != split.seen[0][2]
    rates = [split.seen[epoch * steps][1] for epoch in range(5)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 1e-3, 1e-5])


def test_history_counts_epochs_of_the_whole_run() -> None:
    method = make(MetaCovariance, start=0.5)
    history = training.fit(method, 4)
    assert history.column("epoch") == [0, 1, 2, 3]
    assert history.column("stage") == ["CrossEntropy"] * 2 + ["MetaCovariance"] * 2


@pytest.mark.parametrize(("start", "epochs"), [(0.0, [0, 5]), (1.0, [5, 0])])
def test_one_phase_alone(start: float, epochs: list[int]) -> None:
    method = make(MetaIADA, start=start)
    assert [stage.epochs for stage in method.stages(5)] == epochs
    assert len(training.fit(method, 1).rows) == 1


def test_a_second_seed_is_another_run() -> None:
    one, other = (make(MetaCovariance, seed=seed, start=0.0) for seed in (0, 1))
    for method in (one, other):
        training.fit(method, 1)
    assert not torch.equal(one.model.head.weight, other.model.head.weight)

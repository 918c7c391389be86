"""Meta-IADA: the hypergradient three ways, limits, signs, memories, resuming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import literal_iada as literal
from helpers.meta_methods import (
    LR,
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from needsaug_lite import data, models, statistics, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.implicit_augmentation import MetaCovariance
from needsaug_lite.methods.baselines.logit_adjustment import LogitAdjustment
from needsaug_lite.methods.meta_iada import MetaIADA
from needsaug_lite.models import Classifier
from needsaug_lite.statistics import ClassCovariance
from needsaug_lite.training import Optimisation


def frozen(method: MetaIADA) -> MetaIADA:
    """Its perturbation network stays where it is, at ε = 0."""
    parameters = method.network.parameters()
    method.outer_optimiser = torch.optim.SGD(parameters, lr=0.0)
    return method


def characteristics_of(method: MetaIADA, batch: Batch) -> Tensor:
    features = method.model.features(batch.images)
    return method.characteristics(batch, features, method.linear(features)).double()


def literal_meta_loss(
    method: MetaIADA,
    batch: Batch,
    clean: Batch,
    found: Tensor,
    omega: list[Tensor],
    sigma: Tensor,
    *,
    graph: bool,
) -> Tensor:
    """Eq. 7 and the meta loss, written out for a linear model."""
    first, bias, last, constant = omega
    epsilon = torch.tanh((found @ first.T + bias).relu() @ last[0] + constant)
    weight, shift = (p.detach().clone() for p in method.model.parameters())
    weight.requires_grad_()
    shift.requires_grad_()
    problem = literal.Problem(
        batch.images.flatten(1),
        batch.labels,
        weight,
        shift,
        sigma,
        epsilon,
        method.class_prior,
    )
    inner = literal.iada(problem, alpha=method.alpha, beta=method.beta).mean()
    return meta_after_step(inner, weight, shift, clean, graph=graph)


def point_of(method: MetaIADA) -> tuple[list[Tensor], Tensor]:
    omega = [p.detach().clone() for p in method.network.parameters()]
    return omega, method.moments.covariance.clone()


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (1.5, 0.3)])
def test_hypergradient_equals_one_graph(
    diagonal: bool, alpha: float, beta: float
) -> None:
    method = linear(MetaIADA, alpha=alpha, beta=beta, diagonal=diagonal)
    batch, clean = batches_of(method)
    found = characteristics_of(method, batch)
    omega, sigma = point_of(method)
    for leaf in (*omega, sigma):
        leaf.requires_grad_()
    outer = literal_meta_loss(method, batch, clean, found, omega, sigma, graph=True)
    expected = torch.autograd.grad(outer, [*omega, sigma])

    estimate = method.hypergradient(batch, clean, found)
    names = [name for name, _ in method.network.named_parameters()]
    assert list(estimate) == [*names, "covariance"]
    torch.testing.assert_close(estimate.outer_loss, outer.detach())
    for value, exact in zip(estimate.values(), expected, strict=True):
        assert exact.abs().max() > 0
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-15)


def test_hypergradient_equals_finite_differences() -> None:
    """One entry of every layer of Ω, and one pair of entries of Σ."""
    method = linear(MetaIADA)
    batch, clean = batches_of(method)
    found = characteristics_of(method, batch)
    estimate = method.hypergradient(batch, clean, found)
    radius = 1e-4

    def slope(change: Mapping[int, Tensor]) -> Tensor:
        """Along a change of the arrays with these numbers; 4 is Σ."""
        ends = []
        for sign in (1, -1):
            omega, sigma = point_of(method)
            arrays = [*omega, sigma]
            for place, direction in change.items():
                arrays[place] += sign * radius * direction
            ends.append(
                literal_meta_loss(
                    method, batch, clean, found, arrays[:4], arrays[4], graph=False
                )
            )
        return ((ends[0] - ends[1]) / (2 * radius)).detach()

    arrays = [*point_of(method)[0], method.moments.covariance]
    for place, (value, like) in enumerate(zip(estimate.values(), arrays, strict=True)):
        largest = int(value.abs().argmax())
        direction = torch.zeros_like(like)
        direction.view(-1)[largest] = 1
        exact = value.flatten()[largest]
        if place == 4:  # Σ stays symmetric: both entries move
            label, row, column = torch.unravel_index(torch.tensor(largest), like.shape)
            if row == column:
                column = (column + 1) % 64
            direction.zero_()
            direction[label, row, column] = direction[label, column, row] = 1
            exact = 2 * value[label, row, column]
        torch.testing.assert_close(
            slope({place: direction}), exact, rtol=1e-5, atol=1e-11
        )


def test_hypergradient_through_a_network_with_batch_norm() -> None:
    """Along a random direction of Ω; δ is that of the weights before the step."""
    method = make(MetaIADA)
    in_float64(method, method.network)
    method.stages(1)
    method.begin_epoch(0)
    batch, clean = batches_of(method)
    found = torch.randn(len(batch), 15, dtype=torch.float64)
    estimate = method.hypergradient(batch, clean, found)
    names = [name for name, _ in method.network.named_parameters()]
    direction = {name: torch.randn_like(estimate[name]) for name in names}

    def outer(size: float) -> Tensor:
        with torch.no_grad():
            for name, p in method.network.named_parameters():
                p += size * direction[name]
        value = method.hypergradient(batch, clean, found).outer_loss
        with torch.no_grad():
            for name, p in method.network.named_parameters():
                p -= size * direction[name]
        return value

    slope = (outer(1e-3) - outer(-1e-3)) / 2e-3
    exact = torch.stack([(estimate[n] * direction[n]).sum() for n in names]).sum()
    assert exact.abs() > 1e-6
    torch.testing.assert_close(slope, exact, rtol=1e-3, atol=0)


class Free(nn.Module):
    """One ε for each sample of a batch, whatever its characteristics."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return 1 * self.epsilon


def error_of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1) - one_hot(labels, logits.shape[1])


def test_derivative_by_epsilon_in_closed_form() -> None:
    """At ε = α = β = 0, with s = sign(Wᵀ(q - e_y)) and v the meta gradient at θ':

    dℓ_meta/dε_i = -lr/B (⟨Q_i W s_i h_iᵀ + (q_i - e_i) s_iᵀ, v_W⟩ + ⟨Q_i W s_i, v_b⟩),
    Q = diag(q) - q qᵀ.
    """
    method = linear(MetaIADA, alpha=0.0, beta=0.0)
    batch, clean = batches_of(method)
    method.network = Free(len(batch))
    weight, bias = (p.detach() for p in method.model.parameters())
    h = batch.images.flatten(1)
    error = error_of(h @ weight.T + bias, batch.labels)
    q = error + one_hot(batch.labels, 10)
    sign = (error @ weight).sign()
    moved = weight - LR * error.T @ h / len(h), bias - LR * error.mean(0)
    held = clean.images.flatten(1)
    against = error_of(held @ moved[0].T + moved[1], clean.labels) / len(held)
    v_weight, v_bias = against.T @ held, against.sum(0)
    curved = q[:, :, None] * (torch.eye(10) - q[:, None, :])
    bent = torch.einsum("bcd,bd->bc", curved, sign @ weight.T)
    expected = torch.einsum("bc,bd,cd->b", bent, h, v_weight) + bent @ v_bias
    expected += torch.einsum("bc,bd,cd->b", error, sign, v_weight)
    expected *= -LR / len(h)

    estimate = method.hypergradient(batch, clean, torch.zeros(len(batch), 15))
    torch.testing.assert_close(estimate["epsilon"], expected, rtol=1e-9, atol=1e-15)


def two_clouds(wrong: Tensor) -> Splits:
    """Dark and bright images of two classes, the labels of some exchanged."""
    draw = data.generator(5)
    true = torch.arange(len(wrong) + 80) % 2
    grain = 60 * torch.rand(len(true), 1, 8, 8, generator=draw)
    pixels = (grain + 150 * true.view(-1, 1, 1, 1)).to(torch.uint8)
    given = true.clone()
    given[80:] = torch.where(wrong, 1 - true[80:], true[80:])
    images = data.InMemory(pixels)
    test, meta, train = (slice(0, 40), slice(40, 80), slice(80, None))
    parts = [
        data.Examples(data.InMemory(images.pixels[part]), labels[part])
        for part, labels in ((train, given), (test, true), (test, true), (meta, true))
    ]
    return Splits(*parts, ("dark", "bright"))


@pytest.mark.parametrize("scale", [0.002, 0.02])
def test_wrong_labels_are_made_easier_whatever_the_head(scale: float) -> None:
    """A sample that opposes the meta gradient gets ε < 0, so that it pulls less.

    One that agrees gets ε > 0 if that makes its step larger. The step of the head is
    (q - e)(h + ε s)ᵀ. A right sample's s points to the other class, against h: the
    error grows by p_y (1 - p_y) |Δw|₁ ε, and the feature shrinks from 1 to 1 - ε. So
    it is made harder where p_y |Δw|₁ > 1, and easier under a head with small weights.
    A wrong sample's s points away from the boundary, and both factors grow with ε.
    """
    wrong = torch.arange(40) % 4 == 0
    model = Classifier(nn.Flatten(), 64, nn.Linear(64, 2))
    with torch.no_grad():
        model.head.weight.copy_(scale * torch.tensor([[-1.0], [1.0]]).expand(2, 64))
        model.head.bias.zero_()
    method = MetaIADA(
        model,
        two_clouds(wrong),
        alpha=0.0,
        beta=0.0,
        optimisation=Optimisation(lr=1e-3, batch_size=40),
    )
    in_float64(method)
    method.network = Free(40)
    method.outer_optimiser = torch.optim.SGD([method.network.epsilon], lr=1.0)
    batch, clean = batches_of(method)
    method.meta = iter([clean])
    method.late_step(batch)
    assert (method.epsilon[wrong] < 0).all()
    gap = 2 * 64 * scale
    if gap * torch.tensor(gap).sigmoid() > 1:
        assert (method.epsilon[~wrong] > 0).all()
    else:
        assert (method.epsilon[~wrong] < 0).all()


def run(kind: Any, epochs: int = 2, seed: int = 0, **settings: Any) -> Any:
    method = make(kind, seed=seed, **settings)
    training.fit(method, epochs)
    return method


def close(one: training.Method, other: training.Method, tolerance: float) -> None:
    first, second = flat(one.state_dict()["model"]), flat(other.state_dict()["model"])
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("beta", "plain"), [(0.0, CrossEntropy), (1.0, LogitAdjustment)]
)
def test_without_perturbation_and_covariance(beta: float, plain: type) -> None:
    """ε = α = 0 is cross-entropy, with the prior logit adjustment."""
    method = frozen(make(MetaIADA, alpha=0.0, beta=beta, start=0.0))
    training.fit(method, 2)
    assert not method.epsilon.any()
    close(method, run(plain), 1e-6)


def test_without_perturbation_it_is_the_method_of_covariances() -> None:
    method = frozen(make(MetaIADA, alpha=0.7, beta=0.0, start=0.5))
    training.fit(method, 2)
    assert_same(run(MetaCovariance, alpha=0.7, start=0.5), method)


@pytest.mark.parametrize("kind", [MetaIADA, MetaCovariance])
def test_the_first_phase_is_cross_entropy_bit_by_bit(kind: type) -> None:
    plain = run(CrossEntropy, 3)
    assert_same(plain, run(kind, 3, start=1.0))
    # And until the second phase starts, in which it differs.
    seen: list[dict[str, Tensor]] = []

    def keep(epoch: int, method: training.Method) -> dict[str, float]:
        state = flat(method.state_dict()["model"])
        seen.append({name: value.clone() for name, value in state.items()})
        return {}

    for method in (make(CrossEntropy), make(kind, start=0.6)):
        training.fit(method, 3, on_epoch=keep)
    plainly, late = seen[:3], seen[3:]
    for epoch in range(3):
        same = all(torch.equal(v, late[epoch][n]) for n, v in plainly[epoch].items())
        assert same == (epoch < 2)


def test_the_step_moves_each_thing_as_algorithm_1_says() -> None:
    """Lines 11 to 15 by hand: Σ' and Ω' of the same look-ahead, θ from both."""
    method, other = linear(MetaIADA), linear(MetaIADA)
    batch, clean = batches_of(method)
    method.meta = other.meta = iter([clean, clean])
    before = method.moments.covariance.clone()
    method.late_step(batch)

    features = batch.images.flatten(1)
    other.moments.update(features, batch.labels)
    assert not torch.equal(other.moments.covariance, before)
    found = other.characteristics(batch, features, other.model(batch.images))
    estimate = other.hypergradient(batch, clean, found.double())
    for name, parameter in other.network.named_parameters():
        # The first step of Adam: its rate times the sign.
        change = 1e-3 * estimate[name].sign()
        expected = parameter.detach() - change
        seen = method.network.get_parameter(name).detach()
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-7)
    # Line 14 is forgotten after the step: the moments are those of the features.
    torch.testing.assert_close(method.moments.covariance, other.moments.covariance)
    moved = other.moments.covariance - 0.1 * estimate["covariance"]
    values, vectors = torch.linalg.eigh(moved)
    sigma = vectors @ torch.diag_embed(values.clamp(min=0)) @ vectors.mT
    with torch.no_grad():
        epsilon = method.network(found.double())
    torch.testing.assert_close(method.epsilon[batch.index], epsilon)
    weight, bias = other.model.parameters()
    problem = literal.Problem(
        features, batch.labels, weight, bias, sigma, epsilon, other.class_prior
    )
    loss = literal.iada(problem).mean()
    slopes = torch.autograd.grad(loss, [weight, bias])
    decay = Optimisation().weight_decay
    for seen, start, slope in zip(
        method.model.parameters(), (weight, bias), slopes, strict=True
    ):
        expected = start - LR * (slope + decay * start)
        torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_the_moments_are_those_of_the_features_alone(rate: float) -> None:
    """Whatever the covariance step does, no trace of it stays."""
    method = make(MetaIADA, covariance_lr=rate, start=0.0)
    method.stages(1)
    method.begin_epoch(0)
    seen = ClassCovariance(10, 8)
    for batch in method.batches.epoch(0):
        images = batch.images
        method.model.train()
        kept = {n: v.clone() for n, v in method.model.state_dict().items()}
        seen.update(method.model.features(images), batch.labels)
        method.model.load_state_dict(kept)
        method.late_step(batch)
    for name, value in seen.state_dict().items():
        assert torch.equal(value, method.moments.state_dict()[name]), name


def test_a_look_ahead_changes_nothing() -> None:
    method = make(MetaIADA)
    method.stages(1)
    method.begin_epoch(0)
    batch, clean = next(method.batches.epoch(0)), next(method.meta)
    method.model.train()
    before = {name: v.clone() for name, v in flat(method.state_dict()).items()}
    assert any("running_mean" in name for name in before)
    random = torch.get_rng_state()
    method.hypergradient(batch, clean, torch.ones(len(batch), 15))
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in flat(method.state_dict()).items():
        torch.testing.assert_close(
            value, before[name], rtol=0, atol=0, equal_nan=True, msg=name
        )
    parameters = [*method.model.parameters(), *method.network.parameters()]
    assert all(p.grad is None for p in parameters)


def test_batch_norm_sees_training_images_only_once_a_step() -> None:
    method, plain = make(MetaIADA, start=0.0), make(CrossEntropy)
    batch = next(method.batches.epoch(0))
    for one in (method, plain):
        one.stages(1)
        one.begin_epoch(0)
    method.late_step(batch)
    plain.step(batch)
    expected = plain.model.state_dict()
    for name, value in method.model.state_dict().items():
        if "running" in name or "num_batches" in name:
            torch.testing.assert_close(value, expected[name])


def test_no_gradient_reaches_the_perturbation_network_from_the_training_loss() -> None:
    """Ω moves along the meta images alone: its gradient is the hypergradient's."""
    method = make(MetaIADA, start=0.0)
    method.stages(1)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    kept: dict[str, Tensor] = {}
    hypergradient = method.hypergradient

    def watched(*arguments: Any) -> Any:
        estimate = hypergradient(*arguments)
        kept.update({name: value.clone() for name, value in estimate.items()})
        return estimate

    method.hypergradient = watched
    method.late_step(batch)
    for name, parameter in method.network.named_parameters():
        assert torch.equal(parameter.grad, kept[name]), name
    assert not method.moments.covariance.requires_grad


def test_epsilon_is_kept_for_the_samples_of_the_batch() -> None:
    method = make(MetaIADA, start=0.0)
    method.stages(1)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    logged = method.late_step(batch)
    seen = method.epsilon.nonzero().flatten()
    assert set(seen.tolist()) == set(batch.index.tolist())
    own = method.epsilon[batch.index]
    torch.testing.assert_close(logged["epsilon"], own.mean())
    torch.testing.assert_close(logged["epsilon_size"], own.abs().mean())
    torch.testing.assert_close(logged["adversarial"], (own > 0).float().mean())
    assert own.abs().max() < 1
    assert torch.equal(method.suspicion(), -method.epsilon)
    assert isinstance(method, training.Suspicious)
    remembered = (~method.memory.loss.isnan()).nonzero().flatten()
    assert torch.equal(remembered, batch.index.sort().values)


def test_the_memory_is_filled_in_the_first_phase() -> None:
    method = make(MetaIADA, start=0.5)
    seen: list[Tensor] = []

    def look(epoch: int, method: training.Method) -> dict[str, float]:
        assert isinstance(method, MetaIADA)
        seen.append(method.memory.class_loss.clone())
        return {}

    training.fit(method, 2, on_epoch=look)
    assert not seen[0].any()  # the means of an epoch come from the one before
    assert (seen[1] > 0).all()
    assert not method.memory.loss.isnan().any()


def test_characteristics_see_the_epoch_before_not_this_step() -> None:
    """The loss of a step is stored after its characteristics were taken."""
    method = make(MetaIADA, start=0.0)
    method.stages(2)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    found: list[Tensor] = []
    characteristics = method.characteristics

    def watched(*arguments: Any) -> Tensor:
        found.append(characteristics(*arguments))
        return found[-1]

    method.characteristics = watched
    method.late_step(batch)
    method.late_step(batch)
    change = [one[:, -1] for one in found]
    assert not change[0].any()  # first sight
    assert change[1].std() > 0.5  # standardised


def test_characteristics_are_of_this_head_prior_and_memory() -> None:
    splits = load()
    method = make(MetaIADA, splits)
    batch = next(method.batches.epoch(0))
    features = method.model.features(batch.images)
    logits = method.model.head(features)
    method.memory.remember(batch.index, 0.5 * logits, batch.labels)
    method.memory.begin_epoch()
    expected = statistics.training_characteristics(
        features, logits, batch.labels, batch.index, method.model.head.weight,
        splits.class_counts / len(splits.train), method.memory,
    )  # fmt: skip
    found = method.characteristics(batch, features, logits)
    torch.testing.assert_close(found, statistics.standardised(expected))
    assert found.any(0).all()


def test_true_labels_are_not_looked_at() -> None:
    splits = load(noise=0.4, imbalance=1)
    assert splits.train.mislabelled is not None
    seeing, blind = (
        make(MetaIADA, given, start=0.5)
        for given in (splits, splits.without_true_labels())
    )
    training.fit(seeing, 2)
    training.fit(blind, 2)
    assert_same(seeing, blind)


def test_a_seed_repeats_and_another_differs() -> None:
    one = run(MetaIADA, start=0.5)
    assert_same(one, run(MetaIADA, start=0.5))
    other = run(MetaIADA, seed=1, start=0.5)
    assert not torch.equal(one.linear.weight, other.linear.weight)


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("diagonal", [False, True])
def test_resumed_gives_the_same_bits(
    after: int, diagonal: bool, tmp_path: Path
) -> None:
    """Killed in the last epoch of the first phase, and within the second."""

    def one() -> MetaIADA:
        return make(MetaIADA, start=0.4, diagonal=diagonal)

    whole = one()
    training.fit(whole, 5)
    second = fit_in_two(one, 5, after, tmp_path / "c.ckpt")
    assert whole.epsilon.any()
    assert_same(whole, second)


def test_no_meta_images() -> None:
    splits = data.load("digits", n_max=20)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    with pytest.raises(UserError, match="MetaIADA learns .* meta_per_class"):
        MetaIADA(model, splits)


def test_a_cosine_head() -> None:
    splits = load()
    model = models.build("convnet", splits.image_shape, 10, width=4, head="cosine")
    with pytest.raises(UserError, match=r"MetaIADA needs a linear head.*head='linear'"):
        MetaIADA(model, splits)


def test_meta_loss_is_plain_cross_entropy_of_given_weights() -> None:
    method = linear(MetaIADA)
    _, clean = batches_of(method)
    weight, bias = (torch.randn_like(p) for p in method.model.parameters())
    params = {"head.weight": weight, "head.bias": bias}
    expected = cross_entropy(clean.images.flatten(1) @ weight.T + bias, clean.labels)
    torch.testing.assert_close(method.meta_loss(params, clean), expected)

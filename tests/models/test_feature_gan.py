"""Generators of weights and features, and what mixing does to mean and spread."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear, relu
from torch.testing import assert_close

from needsaug_lite.data import generator
from needsaug_lite.models import (
    ConditionalDiscriminator,
    ConvexGenerator,
    CopyWeights,
    DirichletWeights,
    FeatureGenerator,
    InstanceGenerator,
    Mixer,
    SeeingGenerator,
    make_head,
    mix,
    two_layers,
)
from needsaug_lite.statistics import FeatureDictionary

CLASSES, SLOTS, DIM, ROWS = 3, 4, 6, 10
F64 = torch.float64
MIXERS: dict[str, Callable[[], Mixer]] = {
    "blind": lambda: ConvexGenerator(CLASSES, SLOTS),
    "seeing": lambda: SeeingGenerator(CLASSES, DIM),
    "dirichlet": lambda: DirichletWeights(SLOTS),
    "copy": lambda: CopyWeights(SLOTS),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    found: Mixer = MIXERS[request.param]()
    sharpened(found)
    return found


def sharpened(network: nn.Module, factor: float = 3.0) -> None:
    """Weights as after a training: outputs that depend on the inputs."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)


def inputs(count: int = ROWS, slots: int = SLOTS) -> tuple[Tensor, Tensor]:
    return torch.arange(count) % CLASSES, torch.randn(count, slots, DIM)


# --- weights ------------------------------------------------------------------


def test_weights_are_convex(mixer: Mixer) -> None:
    labels, features = inputs(200)
    weights = mixer(mixer.noise(200, generator(1)), labels, features)
    assert weights.shape == (200, SLOTS)
    assert weights.dtype == features.dtype
    assert bool((weights >= 0).all())
    assert_close(weights.sum(1), torch.ones(200))


def test_noise_repeats_for_one_seed(mixer: Mixer) -> None:
    one, two, other = (mixer.noise(5, generator(seed)) for seed in (1, 1, 2))
    assert one.equal(two)
    assert len(one) == 5
    assert one.numel() == 0 or not one.equal(other)


def test_rows_do_not_see_each_other(mixer: Mixer) -> None:
    labels, features = inputs()
    noise = mixer.noise(ROWS, generator(1))
    order = torch.randperm(ROWS)
    weights = mixer(noise, labels, features)
    found = mixer(noise[order], labels[order], features[order])
    assert_close(found, weights[order])


def test_the_blind_generator_sees_noise_and_label_alone() -> None:
    mixer = ConvexGenerator(CLASSES, SLOTS)
    labels, features = inputs()
    noise = mixer.noise(ROWS, generator(1))
    weights = mixer(noise, labels, features)
    assert mixer(noise, labels, 100 * torch.randn(ROWS, SLOTS, DIM)).equal(weights)
    assert not mixer(noise, (labels + 1) % CLASSES, features).isclose(weights).any()
    assert not mixer(-noise, labels, features).isclose(weights).any()


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(SLOTS)))
def test_the_seeing_generator_follows_the_order_of_the_slots(order: list[int]) -> None:
    mixer = SeeingGenerator(CLASSES, DIM)
    sharpened(mixer)
    labels, features = inputs()
    noise = mixer.noise(ROWS, generator(1))
    weights = mixer(noise, labels, features)
    found = mixer(noise, labels, features[:, order])
    assert_close(found, weights[:, order])
    assert_close(mix(found, features[:, order]), mix(weights, features))
    assert bool((weights.std(1) > 0).all())


def test_the_seeing_generator_sees_everything() -> None:
    mixer = SeeingGenerator(CLASSES, DIM)
    labels, features = inputs()
    noise = mixer.noise(ROWS, generator(1))
    weights = mixer(noise, labels, features)
    for changed in (
        mixer(noise, labels, 2 * features),
        mixer(noise, (labels + 1) % CLASSES, features),
        mixer(-noise, labels, features),
    ):
        assert bool((changed - weights).abs().amax(1).gt(1e-5).all())
    more = torch.cat([features, features[:, :1]], 1)  # any number of slots
    again = mixer(noise, labels, more)
    assert_close(again[:, 0], again[:, -1])


def test_instance_weights_stay_in_the_class() -> None:
    counts = torch.tensor([4, 1, 7])
    mixer = InstanceGenerator(counts)
    sharpened(mixer)
    labels = torch.arange(30) % 3
    weights = mixer(mixer.noise(30, generator(1)), labels)
    owner = torch.arange(3).repeat_interleave(counts)
    assert weights.shape == (30, 12)
    assert not weights[owner != labels[:, None]].any()
    assert bool((weights[owner == labels[:, None]] > 0).all())
    assert_close(weights.sum(1), torch.ones(30))
    weights.square().sum().backward()
    for parameter in mixer.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool(parameter.grad.any())


def test_copies_are_the_first_slot() -> None:
    labels, features = inputs()
    mixer = CopyWeights(SLOTS)
    weights = mixer(mixer.noise(ROWS, generator(0)), labels, features)
    assert mix(weights, features).equal(features[:, 0])


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_dirichlet_weights_are_even_over_all_mixtures(slots: int) -> None:
    """E w = 1/S, E‖w‖² = 2/(S + 1) and P(w_1 > t) = (1 - t)^(S-1)."""
    count = 40_000
    mixer = DirichletWeights(slots)
    labels, features = torch.zeros(count).long(), torch.empty(count, slots, 0)
    weights = mixer(mixer.noise(count, generator(5)), labels, features)
    norm = weights.square().sum(1)

    def near(values: Tensor, expected: float) -> bool:
        error = float(values.std()) / count**0.5
        return bool(abs(float(values.mean()) - expected) < 5 * error + 1e-6)

    assert near(norm, 2 / (slots + 1))
    for slot in range(slots):
        assert near(weights[:, slot], 1 / slots)
        if slots > 1:
            for t in (0.1, 0.5):
                above = (weights[:, slot] > t).float()
                assert near(above, (1 - t) ** (slots - 1))


# --- mixtures -----------------------------------------------------------------


def test_mixtures_are_weighted_sums_row_by_row() -> None:
    weights, features = torch.rand(5, 4, dtype=F64), torch.randn(5, 4, 3, dtype=F64)
    rows = [
        sum((w * f for w, f in zip(*row, strict=True)), torch.zeros(3, dtype=F64))
        for row in zip(weights, features, strict=True)
    ]
    assert_close(mix(weights, features), torch.stack(rows))
    square = torch.rand(4, 4, dtype=F64)  # slots and features can't be confused
    assert_close(mix(square, torch.eye(4, dtype=F64).expand(4, 4, 4)), square)


def moments(points: Tensor) -> tuple[Tensor, Tensor]:
    mean = points.mean(0)
    return mean, (points - mean).T @ (points - mean) / len(points)


WEIGHTS = {
    "even": [0.2, 0.2, 0.2, 0.2, 0.2],
    "uneven": [0.5, 0.1, 0.1, 0.3, 0.0],
    "copy": [0.0, 1.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_mixtures_of_independent_features_shrink(kind: str) -> None:
    """Cov f̃ = ‖w‖² Σ and E f̃ = μ (errata F4), over all n^S equally likely draws."""
    points, weights = (
        torch.randn(4, 2, dtype=F64),
        torch.tensor(WEIGHTS[kind], dtype=F64),
    )
    draws = torch.tensor(list(itertools.product(range(4), repeat=5)))
    mean, covariance = moments(points)
    found = moments(mix(weights.expand(len(draws), 5), points[draws]))
    assert_close(found[0], mean)
    assert_close(found[1], weights.square().sum() * covariance)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("size", [5, 6, 8])
def test_mixtures_of_distinct_features_shrink_more(kind: str, size: int) -> None:
    """Cov f̃ = (‖w‖² - (1 - ‖w‖²)/(n - 1)) Σ, over all ordered draws of S = 5."""
    points, weights = (
        torch.randn(size, 2, dtype=F64),
        torch.tensor(WEIGHTS[kind], dtype=F64),
    )
    draws = torch.tensor(list(itertools.permutations(range(size), 5)))
    mean, covariance = moments(points)
    found = moments(mix(weights.expand(len(draws), 5), points[draws]))
    norm = weights.square().sum()
    factor = norm - (1 - norm) / (size - 1)
    assert_close(found[0], mean)
    assert_close(found[1], factor * covariance, atol=1e-12, rtol=1e-9)
    if kind == "even" and size == 5:
        assert float(factor.abs()) < 1e-12  # every draw is the mean itself


@pytest.mark.parametrize("kind", ["blind", "dirichlet"])
def test_mixtures_out_of_a_dictionary_shrink_as_said(kind: str) -> None:
    """The same with random weights and the draws of the dictionary, n = 7."""
    count, size = 40_000, 7
    points = torch.randn(size, 2)
    dictionary = FeatureDictionary(points, torch.zeros(size).long(), 1)
    mixer = ConvexGenerator(1, SLOTS) if kind == "blind" else DirichletWeights(SLOTS)
    sharpened(mixer)
    labels = torch.zeros(count).long()
    features = dictionary.sample(labels, SLOTS, generator(3))
    with torch.no_grad():
        weights = mixer(mixer.noise(count, generator(4)), labels, features)
    norm = float(weights.square().sum(1).mean())
    factor = norm - (1 - norm) / (size - 1)
    mean, covariance = moments(points)
    found = moments(mix(weights, features))
    assert_close(found[0], mean, atol=0.02, rtol=0)
    assert_close(found[1], factor * covariance, atol=0.02, rtol=0)


# --- features and their judge -------------------------------------------------


@pytest.mark.parametrize("build", [FeatureGenerator, ConditionalDiscriminator])
def test_a_row_depends_on_its_input_and_its_label(
    build: type[FeatureGenerator | ConditionalDiscriminator],
) -> None:
    network = build(CLASSES, DIM)
    width = network.noise_dim if isinstance(network, FeatureGenerator) else DIM
    given_, labels = torch.randn(ROWS, width), torch.arange(ROWS) % CLASSES
    found = network(given_, labels)
    shape = (ROWS, DIM) if build is FeatureGenerator else (ROWS,)
    assert found.shape == shape
    order = torch.randperm(ROWS)
    assert_close(network(given_[order], labels[order]), found[order])
    assert not network(given_, (labels + 1) % CLASSES).isclose(found).any()
    assert not network(-given_, labels).isclose(found).all()


def test_scores_have_no_bounds() -> None:
    judge = ConditionalDiscriminator(CLASSES, DIM)
    scores = judge(1e4 * torch.randn(500, DIM), torch.zeros(500).long())
    assert float(scores.amin()) < -1
    assert float(scores.amax()) > 2


def test_two_layers_with_a_rectifier_between() -> None:
    network = two_layers(DIM, 5)
    features = torch.randn(ROWS, DIM)
    first, _, second = network
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert first.weight.shape == (DIM, DIM)
    expected = linear(
        relu(linear(features, first.weight, first.bias)), second.weight, second.bias
    )
    assert_close(network(features), expected)
    assert bool((network(features) < 0).any())  # none after the second layer
    head = make_head("two_layers", DIM, 5)
    assert [p.shape for p in head.parameters()] == [
        p.shape for p in network.parameters()
    ]


def test_no_step_waits_for_the_device() -> None:
    """A "meta" tensor has no values: reading one, as `.item()` does, raises."""
    labels = torch.zeros(ROWS, dtype=torch.int64, device="meta")
    noise = torch.ones(ROWS, 100, device="meta")
    features = torch.ones(ROWS, SLOTS, DIM, device="meta")
    for name in ("blind", "seeing", "copy"):
        mixer = MIXERS[name]().to("meta")
        mix(mixer(noise, labels, features), features)
    InstanceGenerator(torch.tensor([3, 1, 5])).to("meta")(noise, labels)
    FeatureGenerator(CLASSES, DIM).to("meta")(noise, labels)
    ConditionalDiscriminator(CLASSES, DIM).to("meta")(features[:, 0], labels)

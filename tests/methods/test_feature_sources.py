"""Other sources of features: SMOTE, copies, even mixtures, a GAN, and GAMO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.shared_phases import at_second_phase, changed, make, parts, restarted, tail
from torch import Tensor

from needsaug_lite import losses, training
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.feature_sources import smote
from needsaug_lite.statistics import FeatureDictionary

LABELS = torch.arange(10).repeat(8)
HALF = {"share": 0.5}


def clouds(sizes: list[int], seed: int = 0) -> FeatureDictionary:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    features = torch.randn(len(labels), 3, generator=draw) + 10 * labels[:, None]
    order = torch.randperm(len(labels), generator=draw)
    return FeatureDictionary(features[order], labels[order], len(sizes))


def of_class(dictionary: FeatureDictionary, label: int) -> Tensor:
    return dictionary.features[dictionary.labels == label]


# --- SMOTE ------------------------------------------------------------------------


def test_smote_grows_every_class_to_the_largest() -> None:
    table = clouds([30, 12, 4, 2, 1])
    grown = smote(table, 5, 0)
    assert grown.counts.tolist() == [30] * 5
    for label in range(5):  # nothing real is lost
        for feature in of_class(table, label):
            assert (of_class(grown, label) == feature).all(1).any()
    assert bool((of_class(grown, 4) == of_class(table, 4)).all())


def test_smote_of_single_images_is_possible() -> None:
    grown = smote(clouds([1, 1]), 5, 0)
    assert grown.counts.unique().numel() == 1


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_smote_lies_between_a_feature_and_a_near_one(neighbours: int) -> None:
    table = clouds([60, 25, 5, 3, 1])
    grown = smote(table, neighbours, 0)
    ranks = []
    for label in range(1, 4):
        real = of_class(table, label)
        nearest = torch.cdist(real, real).argsort(1)
        for point in of_class(grown, label):
            if (real == point).all(1).any():
                continue
            found = segment(real, point)
            assert found, "no two features have this point between them"
            ranks.append(
                min(int((nearest[i] == j).nonzero()) for i, j in found)  # 0 is itself
            )
    assert max(ranks) <= neighbours
    # The smallest class has no neighbour; that takes none from the others.
    assert max(ranks) == neighbours


def segment(real: Tensor, point: Tensor) -> list[tuple[int, int]]:
    """Pairs i, j of features with the point on the way from i to j."""
    away = point - real
    step = real[None] - real[:, None]
    length = step.square().sum(2)
    share = (step * away[:, None]).sum(2) / length
    miss = (away[:, None] - share[..., None] * step).norm(dim=2)
    on = (miss < 1e-4) & (share > -1e-4) & (share < 1 + 1e-4) & (length > 0)
    return [(int(i), int(j)) for i, j in on.nonzero()]


def test_smote_repeats_with_its_seed() -> None:
    table = clouds([20, 6, 3])
    one, two, other = (smote(table, 5, seed).features for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_smote_is_made_once_unless_features_are_rebuilt() -> None:
    method = at_second_phase("feature_smote")
    once = method.grown
    method.begin_oversampling_epoch(1)
    assert method.grown is once
    rebuilt = at_second_phase("feature_smote", phase2={"rebuild": True})
    first = rebuilt.grown
    rebuilt.begin_oversampling_epoch(1)
    assert not torch.equal(rebuilt.grown.features, first.features)


def test_added_features_are_of_the_class_that_was_asked_for() -> None:
    method = at_second_phase("feature_smote")
    made = method.made(LABELS)
    for label, feature in zip(LABELS.tolist(), made, strict=True):
        assert (of_class(method.grown, label) == feature).all(1).any()


# --- fixed mixtures ---------------------------------------------------------------


def test_copies_are_real_features() -> None:
    method = at_second_phase("feature_copy")
    for label, feature in zip(LABELS.tolist(), method.made(LABELS), strict=True):
        assert (of_class(method.dictionary, label) == feature).all(1).any()


def test_every_image_of_a_class_is_copied_as_often() -> None:
    method = at_second_phase("feature_copy")
    count = int(method.counts[5])
    labels = torch.full((100 * count,), 5)
    made = method.made(labels)
    own = of_class(method.dictionary, 5)
    found = (made[:, None] == own).all(2).float().sum(0)
    assert found.min() > 50
    assert found.max() < 150


def test_even_mixtures_have_the_variance_of_their_weights() -> None:
    method = at_second_phase("feature_dirichlet", slots=5)
    weights = method.mixture(torch.zeros(20_000, dtype=torch.long))[1]
    # E‖w‖² = 2 / (S + 1)
    assert float(weights.square().sum(1).mean()) == pytest.approx(1 / 3, rel=0.02)


@pytest.mark.parametrize("name", ["feature_copy", "feature_dirichlet", "feature_smote"])
def test_what_is_fixed_has_nothing_to_save(name: str) -> None:
    assert make(name).state_dict()["sources"] == {}


# --- a GAN of features ------------------------------------------------------------


def test_gan_steps_are_their_own() -> None:
    method = at_second_phase("feature_gan")
    before = parts(method)
    method.train_discriminator(method.made(LABELS), method.made(LABELS), LABELS)
    assert changed(before, parts(method)) == {"discriminator"}
    before = parts(method)
    fake = method.made(LABELS)
    score = losses.least_squares_generator(method.discriminator(fake, LABELS))
    method.train_generator(score)
    assert changed(before, parts(method)) == {"source"}


def test_a_gan_is_told_the_class_it_is_asked_for() -> None:
    method = restarted(at_second_phase("feature_gan"))
    made = method.made(LABELS)
    noise = method.generator.noise(80, restarted(method).draw)
    assert torch.equal(made, method.generator(noise, LABELS))
    assert not torch.equal(made, method.generator(noise, LABELS.roll(1)))


def test_a_gan_step_raises_what_the_discriminator_gives() -> None:
    method = make("feature_gan", phase1=HALF)
    training.fit(method, 4)

    def score() -> Tensor:
        fake = restarted(method).made(LABELS)
        found: Tensor = method.discriminator(fake, LABELS)
        return found

    before = score()
    method.train_discriminator = lambda *_: torch.zeros(())
    restarted(method).play(LABELS, torch.zeros(80, method.model.feature_dim))
    assert score().mean() > before.mean()


# --- GAMO -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gamo", "gamo_without_d"])
def test_gamo_mixes_all_images_of_the_class_and_no_other(name: str) -> None:
    method = at_second_phase(name)
    made, weights = method.mixture(LABELS)
    assert weights.shape == (80, len(method.dictionary))
    foreign = method.dictionary.labels != LABELS[:, None]
    assert bool((weights[foreign] == 0).all())
    assert bool((weights[~foreign] > 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(80))
    torch.testing.assert_close(made, weights @ method.dictionary.features)


def generator_gradient(name: str) -> list[Tensor]:
    method = at_second_phase(name)
    method.train_discriminator = lambda *_: torch.zeros(())
    assert method.dictionary is not None
    restarted(method).play(LABELS, torch.zeros(80, method.model.feature_dim))
    return [parameter.grad for parameter in method.source.parameters()]


def test_the_judge_adds_its_own_gradient_to_gamo() -> None:
    method = restarted(at_second_phase("gamo"))
    fake = method.mixture(LABELS)[0]
    p = method.model.head(fake).softmax(1)[torch.arange(80), LABELS]
    hard = -(1 - p).log().mean()
    taken = 0.5 * (method.discriminator(fake, LABELS) - 1).square().mean()
    weights = list(method.source.parameters())
    first = torch.autograd.grad(hard, weights, retain_graph=True)
    second = torch.autograd.grad(taken, weights)
    assert all(float(part.abs().max()) > 0 for part in second)
    for name, share in (("gamo", 1), ("gamo_without_d", 0)):
        found = generator_gradient(name)
        for mine, a, b in zip(found, first, second, strict=True):
            torch.testing.assert_close(mine, a + share * b, rtol=1e-3, atol=1e-8)


def test_gamo_with_and_without_a_judge_part() -> None:
    """They begin alike, and the judge alone tells them apart."""
    runs = [make(name, phase1=HALF) for name in ("gamo", "gamo_without_d")]
    assert not changed(parts(runs[0]), parts(runs[1]))
    for method in runs:
        training.fit(method, 4)
    found = changed(parts(runs[0]), parts(runs[1]))
    assert {"source", "discriminator"} <= found <= {"source", "discriminator", "head"}


def test_a_gamo_step_makes_mixtures_harder() -> None:
    method = make("gamo_without_d", phase1=HALF)
    training.fit(method, 4)
    method.source_optimiser = torch.optim.SGD(method.source.parameters(), lr=1.0)

    def share_of_label() -> Tensor:
        fake = restarted(method).made(LABELS)
        found: Tensor = method.model.head(fake).softmax(1)[torch.arange(80), LABELS]
        return found.mean()

    before = share_of_label()
    restarted(method).play(LABELS, torch.zeros(80, method.model.feature_dim))
    assert share_of_label() < before


# --- few images -------------------------------------------------------------------


def with_one_image(splits: Splits) -> Splits:
    """The same data with one image of the smallest class."""
    labels = splits.train.labels
    rare = int(splits.class_counts.argmin())
    own = (labels == rare).nonzero().flatten()
    keep = torch.cat([(labels != rare).nonzero().flatten(), own[:1]])
    return replace(splits, train=splits.train.subset(keep.sort().values))


@pytest.mark.parametrize(
    "name", ["facog", "feature_copy", "feature_smote", "feature_gan", "gamo"]
)
def test_a_class_of_one_image_will_do(name: str) -> None:
    splits = with_one_image(tail())
    assert int(splits.class_counts.min()) == 1
    method: Any = make(name, splits=splits, phase1=HALF)
    rows = training.fit(method, 2).rows
    assert rows[-1]["stage"] == "phase 2"
    rare = torch.full((4,), int(splits.class_counts.argmin()))
    made = restarted(method).made(rare)
    if name != "feature_gan":  # the only one that invents
        own = of_class(method.dictionary, int(rare[0]))
        torch.testing.assert_close(made, own.expand(4, -1))

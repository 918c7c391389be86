"""FACoG: who is updated by what, and where the mixtures lie."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.shared_phases import (
    at_second_phase,
    changed,
    literal_contrast,
    make,
    parts,
    restarted,
    tail,
)
from torch import Tensor

from needsaug_lite import losses, training

LABELS = torch.arange(10).repeat(8)


def real(method: Any) -> Tensor:
    features: Tensor = method.dictionary.sample(LABELS, 1, method.draw).squeeze(1)
    return features


def drawn(method: Any, number: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mixtures, weights and mixed features; the same draws for the same number."""
    found: tuple[Tensor, Tensor, Tensor] = restarted(method, number).mixture(LABELS)
    return found


def adversarial(method: Any) -> Tensor:
    return losses.least_squares_generator(
        method.discriminator(drawn(method)[0], LABELS)
    )


def contrast(method: Any) -> Tensor:
    mixtures, _, mixed = drawn(method)
    found: Tensor = method.contrast(mixtures, LABELS, mixed)
    return found


def gradient(method: Any, loss: Callable[[Any], Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss(method), list(method.source.parameters())))


def played_gradient(**settings: Any) -> list[Tensor]:
    """What the generator's step follows, with a discriminator that stands still."""
    method = at_second_phase("facog", **settings)
    method.train_discriminator = lambda *_: torch.zeros(())
    drawn(method)  # builds the dictionary
    restarted(method).play(LABELS, real(at_second_phase("facog")))
    return [parameter.grad for parameter in method.source.parameters()]


def test_mixtures_are_convex_and_of_their_class() -> None:
    method = at_second_phase("facog", slots=4)
    mixtures, weights, mixed = drawn(method)
    assert mixed.shape == (80, 4, method.model.feature_dim)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(80))
    torch.testing.assert_close(
        mixtures, torch.stack([w @ f for w, f in zip(weights, mixed, strict=True)])
    )
    assert bool((mixtures <= mixed.amax(1) + 1e-5).all())
    assert bool((mixtures >= mixed.amin(1) - 1e-5).all())
    table = method.dictionary
    for label, features in zip(LABELS.tolist(), mixed, strict=True):
        own = table.features[table.labels == label]
        assert (features[:, None] == own).all(2).any(1).all()


def test_slots_are_different_images_where_the_class_has_enough() -> None:
    splits = tail(100)  # the smallest class has one or two images
    method = at_second_phase("facog", splits=splits, slots=4)
    assert int(splits.class_counts.min()) < 4
    mixtures, _, mixed = drawn(method)
    assert bool(mixtures.isfinite().all())
    # Two images may look alike to an untrained network, so rows are compared.
    rows = method.dictionary.rows(LABELS, 4, method.draw)
    counts = splits.class_counts[LABELS]
    different = torch.tensor([len(set(row)) for row in rows.tolist()])
    assert bool((different[counts >= 4] == 4).all())
    assert bool((different <= counts.clamp(max=4)).all())
    training.fit(make("facog", splits=splits, slots=4, phase1={"share": 0.5}), 2)


@pytest.mark.parametrize("name", ["facog", "feature_dirichlet", "feature_copy"])
def test_a_mixture_of_one_feature_is_the_feature(name: str) -> None:
    method = at_second_phase(name, slots=1)
    mixtures, weights, mixed = drawn(method)
    assert torch.equal(weights, torch.ones(80, 1))
    assert torch.equal(mixtures, mixed.squeeze(1))


def test_a_generator_that_only_copies_cannot_learn() -> None:
    method = at_second_phase("facog", slots=1, phase2={"weight_decay": 0.0})
    before = parts(method)
    method.train_source()
    assert changed(before, parts(method)) == {"discriminator"}


def test_the_discriminator_step_is_its_own() -> None:
    method = at_second_phase("facog")
    truth = real(method)
    mixtures = drawn(method)[0]
    before = parts(method)
    method.train_discriminator(truth, mixtures, LABELS)
    assert changed(before, parts(method)) == {"discriminator"}
    assert all(parameter.grad is None for parameter in method.source.parameters())


def test_the_discriminator_step_by_a_second_route() -> None:
    method = trained()
    truth, mixtures = real(method), drawn(method)[0].detach()
    score, weights = method.discriminator, list(method.discriminator.parameters())
    first = (score(truth, LABELS) - 1).square().mean()
    loss = (first + score(mixtures, LABELS).square().mean()) / 2
    expected = torch.autograd.grad(loss, weights)
    found = method.train_discriminator(truth, mixtures, LABELS)
    torch.testing.assert_close(found, loss.detach())
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_the_generator_step_is_its_own() -> None:
    method = at_second_phase("facog")
    drawn(method)
    before = parts(method)
    method.train_generator(adversarial(method) + contrast(method))
    assert changed(before, parts(method)) == {"source"}
    for network in (method.discriminator, method.model, method.projection):
        assert all(parameter.grad is None for parameter in network.parameters())


def test_the_discriminator_learns_to_tell_them_apart() -> None:
    method = at_second_phase("facog", phase2={"lr": 0.05})
    training.fit(method, 3)  # features that differ from each other
    truth, mixtures = real(method), drawn(method)[0].detach() + 0.5
    found = [method.train_discriminator(truth, mixtures, LABELS) for _ in range(200)]
    # What cannot be told apart costs 1/4: D = 1/2 everywhere.
    assert found[-1] < 0.1 < found[0]
    with torch.no_grad():
        assert method.discriminator(truth, LABELS).mean() > 0.6
        assert method.discriminator(mixtures, LABELS).mean() < 0.4


def trained(**settings: Any) -> Any:
    """FACoG whose features and discriminator mean something."""
    method = make("facog", phase1={"share": 0.5}, **settings)
    training.fit(method, 8)
    return method


@pytest.mark.parametrize("sight", ["blind", "seeing"])
def test_a_generator_step_raises_what_the_discriminator_gives(sight: str) -> None:
    method = trained(lambda_asc=0.0, sight=sight)
    method.source_optimiser = torch.optim.SGD(method.source.parameters(), lr=0.1)
    before, score = adversarial(method), method.discriminator
    average = score(drawn(method)[0], LABELS).mean()
    method.train_generator(before)
    assert adversarial(method) < before
    assert score(drawn(method)[0], LABELS).mean() > average


def test_a_generator_step_lowers_the_contrast() -> None:
    method = trained()
    method.source_optimiser = torch.optim.SGD(method.source.parameters(), lr=0.1)
    before = contrast(method)
    method.train_generator(before)
    assert contrast(method) < before


def test_contrast_by_a_second_route() -> None:
    method = trained()
    mixtures, _, mixed = drawn(method)
    few = slice(0, 30)
    mixtures, mixed, labels = mixtures[few].detach(), mixed[few], LABELS[few]
    found = method.contrast(mixtures, labels, mixed)
    others = method.projection(mixed.reshape(150, -1))
    names = labels[:, None].expand(30, 5).reshape(-1)
    expected = literal_contrast(method.projection(mixtures), others, labels, names, 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("adv", "asc"), [(1.0, 0.0), (0.0, 0.1), (2.0, 0.3), (0, 0)])
def test_the_generator_follows_the_weighted_sum(adv: float, asc: float) -> None:
    found = played_gradient(lambda_adv=adv, lambda_asc=asc)
    method = at_second_phase("facog")
    drawn(method)
    pairs = zip(gradient(method, adversarial), gradient(method, contrast), strict=True)
    expected = [adv * first + asc * second for first, second in pairs]
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-9)


def test_the_generator_meets_all_classes_alike() -> None:
    method = at_second_phase("facog", phase2={"batch_size": 50_000})
    asked: list[Tensor] = []
    method.play = lambda chosen, truth: asked.append(chosen)
    method.train_source()
    share = torch.bincount(asked[0], minlength=10) / 50_000
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.007)


def test_the_discriminator_is_shown_real_features_of_the_same_labels() -> None:
    method = at_second_phase("facog")
    shown: list[tuple[Tensor, ...]] = []
    method.play = lambda *pair: shown.append(pair)
    method.train_source()
    ((chosen, truth),) = shown
    table = method.dictionary
    for label, feature in zip(chosen.tolist(), truth, strict=True):
        assert (table.features[table.labels == label] == feature).all(1).any()


def test_a_seeing_generator_does_not_mind_the_order_of_the_slots() -> None:
    method = at_second_phase("facog", sight="seeing")
    _, weights, mixed = drawn(method)
    noise = method.mixer.noise(80, torch.Generator().manual_seed(0))
    turned = mixed.roll(1, 1)
    first, second = (method.mixer(noise, LABELS, f) for f in (mixed, turned))
    torch.testing.assert_close(first.roll(1, 1), second)
    assert not torch.allclose(first, second)
    blind = at_second_phase("facog")
    first, second = (blind.mixer(noise, LABELS, f) for f in (mixed, turned))
    assert torch.equal(first, second)


def test_the_history_tells_how_far_mixtures_are_from_copies() -> None:
    method = at_second_phase("facog")
    twin = copy.deepcopy(method.source)
    logged = method.train_source()
    assert 0.2 <= float(logged["weight_norm"]) <= 1
    assert float(logged["near_copies"]) == 0
    sharp = at_second_phase("facog")
    with torch.no_grad():
        sharp.source.layers[-1].bias.copy_(torch.tensor([50.0, 0, 0, 0, 0]))
    logged = sharp.train_source()
    assert float(logged["weight_norm"]) == pytest.approx(1)
    assert float(logged["near_copies"]) == 1
    assert changed({"source": twin.state_dict()}, parts(method)) == {"source"}

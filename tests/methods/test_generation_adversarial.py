"""Training of GANs: resuming, seeds, averages, and the two aids."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.testing import assert_close

from needsaug_lite import data, training
from needsaug_lite.data import Splits, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.generation import adversarial_frame
from needsaug_lite.methods.generation.adversarial import (
    ACGAN,
    BigGAN,
    ConditionalGAN,
    UnconditionalGAN,
)
from needsaug_lite.methods.generation.aids import (
    core_set,
    mode_seeking,
    projected,
    top_k_count,
    top_k_scores,
)

KINDS = (ConditionalGAN, UnconditionalGAN, ACGAN, BigGAN)
F64 = torch.float64


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial_frame, "STEPS_PER_EPOCH", 3)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return data.load("digits", seed=0)


def make(kind: Any, splits: Splits, *, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    given = {"width": 8, "latent_dim": 6, "batch_size": 16, **settings}
    return kind(splits, seed=seed, **given)


def weights(method: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.equal(other[name]) for name, tensor in one.items()
    )


# --- training -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{}, {"discriminator_steps": 2, "core_set": 2, "top_k": 0.5}]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    kind: Any, settings: dict[str, Any], digits: Splits, tmp_path: Path
) -> None:
    whole = make(kind, digits, **settings)
    training.fit(whole, 3)
    file = tmp_path / "gan.pt"
    first = make(kind, digits, **settings)

    class KilledError(Exception):
        pass

    def kill(epoch: int, method: Any) -> dict[str, float]:
        if epoch == 1:
            raise KilledError
        return {}

    with pytest.raises(KilledError):
        training.fit(first, 3, on_epoch=kill, checkpoint=file)
    torch.manual_seed(99)  # what the resumed one is built from doesn't matter
    second = kind(digits, seed=0, **{**SMALL, **settings})
    training.fit(second, 3, checkpoint=file, resume=True)
    assert same(weights(whole), weights(second))
    assert not same(weights(whole), weights(make(kind, digits, **settings)))


SMALL = {"width": 8, "latent_dim": 6, "batch_size": 16}


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_weights(kind: Any, digits: Splits) -> None:
    found = []
    for seed in (0, 0, 1):
        method = make(kind, digits, seed=seed)
        training.fit(method, 1)
        found.append(weights(method))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_using_the_generator_does_not_change_the_training(
    kind: Any, digits: Splits
) -> None:
    alone, watched = make(kind, digits), make(kind, digits)
    training.fit(alone, 2)

    def look(epoch: int, method: Any) -> dict[str, float]:
        maker = method.generator
        assert not maker.training
        draw = generator(epoch)
        with torch.no_grad():
            images = maker.sample(maker.noise(4, draw), maker.labels(4, draw))
        assert images.shape == (4, 1, 8, 8)
        return {"mean": float(images.mean())}

    training.fit(watched, 2, on_epoch=look)
    assert same(weights(alone), weights(watched))


@pytest.mark.parametrize("kind", KINDS)
def test_each_player_changes_only_itself(kind: Any, digits: Splits) -> None:
    method = make(kind, digits, discriminator_steps=2)
    batch = next(method.batches.epoch(0))
    for stays, moves in (
        ("discriminator", "generator"),
        ("generator", "discriminator"),
    ):
        optimiser = getattr(method, f"{stays}_optimiser")
        method.begin_epoch(0)
        for group in optimiser.param_groups:
            group["lr"] = 0.0
        before = {
            name: [p.clone() for p in method.model[name].parameters()]
            for name in (stays, moves)
        }
        method.step(batch)
        after = {name: list(method.model[name].parameters()) for name in (stays, moves)}
        assert all(map(torch.equal, before[stays], after[stays]))
        assert not all(map(torch.equal, before[moves], after[moves]))
        for group in optimiser.param_groups:
            group["lr"] = 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_player_moves_the_scores_its_way(kind: Any, digits: Splits) -> None:
    """The judge parts real from fake; the generator then raises the fakes' scores."""
    method = make(kind, digits, diversity=0.0, discriminator_lr=2e-3)
    batch = next(method.batches.epoch(0))
    latents = method.model["generator"].noise(len(batch), generator(1))

    def fakes() -> Tensor:
        found: Tensor = method.model["generator"].symmetric(latents, batch.labels)
        return found

    def mean_score(images: Tensor) -> float:
        with torch.no_grad():
            return float(method.discriminator(images, batch.labels).mean())

    judge, maker = method.discriminator_optimiser, method.generator_optimiser
    before = mean_score(batch.images) - mean_score(fakes())
    for _ in range(20):
        judge.zero_grad()
        method.discriminator_loss(
            batch.images, fakes().detach(), batch.labels
        ).backward()
        judge.step()
    apart = mean_score(batch.images) - mean_score(fakes())
    assert apart > before + 0.5
    low = mean_score(fakes())
    for _ in range(20):
        maker.zero_grad()
        method.generator_loss(fakes(), batch.labels, len(batch)).backward()
        maker.step()
    assert mean_score(fakes()) > low + 0.1


@pytest.mark.parametrize("kind", [ConditionalGAN, ACGAN, BigGAN])
def test_every_class_gets_its_own_look(kind: Any, digits: Splits) -> None:
    """Class 0 is dark and class 1 bright: labels of fakes and reals must agree."""
    pixels = torch.tensor([60, 200] * 16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    images = data.InMemory(pixels.to(torch.uint8).contiguous())
    part = data.Examples(images, torch.arange(32) % 2)
    splits = Splits(part, part, part, part, digits.class_names[:2])
    rates: dict[str, Any] = {"lr": 1e-3, "discriminator_lr": 1e-3}
    method = make(kind, splits, width=16, diversity=0.0, ema=0.9, **rates)
    training.fit(method, 30)
    maker = method.generator
    with torch.no_grad():
        made = maker(maker.noise(20, generator(0)), torch.arange(20) % 2)
    dark, bright = made[::2].mean(), made[1::2].mean()
    assert float(dark) == pytest.approx(60 / 255, abs=0.2)
    assert float(bright) == pytest.approx(200 / 255, abs=0.2)


def test_the_generator_learns_through_no_image_of_the_judges_step(
    digits: Splits,
) -> None:
    """The judge sees fakes that are cut off from the generator."""
    method = make(ConditionalGAN, digits)
    loss, seen = method.discriminator_loss, []

    def watch(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        seen.append((real.requires_grad, fake.requires_grad))
        found: Tensor = loss(real, fake, labels)
        return found

    method.discriminator_loss = watch
    method.step(next(method.batches.epoch(0)))
    assert seen == [(False, False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_batch_may_leave_one_image(kind: Any, digits: Splits) -> None:
    """18 images, drawn 16 at a time and halved to a core set: 8 and then 1."""
    few = digits.train.subset(torch.arange(18))
    splits = dataclasses.replace(digits, train=few)
    method = make(kind, splits, batch_size=8, core_set=2)
    assert [len(batch) for batch in method.batches.epoch(0)] == [16, 2, 16]
    history = training.fit(method, 1)
    assert math.isfinite(history.column("loss")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_lags(kind: Any, digits: Splits) -> None:
    """After a first copy: w̄ ← d w̄ + (1 - d) w, of weights and statistics."""
    decay = 0.75
    method = make(kind, digits, ema=decay)
    batches = list(method.batches.epoch(0))
    method.step(batches[0])

    def state(network: nn.Module) -> dict[str, Tensor]:
        return {
            name: tensor.clone()
            for name, tensor in network.state_dict().items()
            if tensor.is_floating_point() and not name.endswith(("._u", "._v"))
        }

    lagging = state(method.generator)
    own = state(method.model["generator"])
    assert all(lagging[name].equal(own[name]) for name in own)
    method.step(batches[1])
    own, now = state(method.model["generator"]), state(method.generator)
    for name in own:
        expected = decay * lagging[name] + (1 - decay) * own[name]
        assert_close(now[name], expected)
    assert any(not now[name].equal(own[name]) for name in own)


def test_averaged_power_iterations_keep_unit_vectors(digits: Splits) -> None:
    """An average of different unit vectors would be shorter."""
    method = make(BigGAN, digits, ema=0.9, lr=1e-2)
    training.fit(method, 3)
    vectors = [
        tensor
        for name, tensor in method.generator.named_buffers()
        if name.endswith(("._u", "._v"))
    ]
    assert vectors
    for vector in vectors:
        assert float(vector.norm()) == pytest.approx(1, abs=1e-5)


def test_averaged_layers_have_spectral_norm_one(digits: Splits) -> None:
    method = make(BigGAN, digits, ema=0.9)
    training.fit(method, 10)
    layers = [
        layer
        for layer in method.generator.modules()
        if is_parametrized(layer, "weight")
    ]
    assert layers
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_matter_where_they_should(kind: Any, digits: Splits) -> None:
    method = make(kind, digits)
    training.fit(method, 1)
    maker = method.generator
    latents = maker.noise(3, generator(0))
    one, other = (maker(latents, torch.full((3,), label)) for label in (0, 1))
    assert one.equal(other) == (kind is UnconditionalGAN)
    assert maker.conditional == (kind is not UnconditionalGAN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_does_not_wait_for_the_device(kind: Any, digits: Splits) -> None:
    method = make(kind, digits, core_set=2, top_k=0.5)
    batches = list(method.batches.epoch(0))
    method.step(batches[0])
    with NoWaiting():
        method.discriminator_loss(
            batches[1].images[:16], batches[1].images[16:32], batches[1].labels[:16]
        )
        method.generator_loss(batches[1].images[:16], batches[1].labels[:16], 8)
        core_set(projected(batches[1].images), 16)


def test_no_update_sees_the_latent_vectors_of_another(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(ConditionalGAN, digits, discriminator_steps=2)
    maker: Any = method.model["generator"]
    seen: list[Tensor] = []
    noise = maker.noise

    def watch(count: int, draw: torch.Generator) -> Tensor:
        seen.append(noise(count, draw))
        return seen[-1]

    monkeypatch.setattr(maker, "noise", watch)
    training.fit(method, 2)
    drawn = torch.cat(seen)
    assert drawn.shape == (2 * 3 * 2 * 16, 6)
    assert len(drawn.unique(dim=0)) == len(drawn)


def test_only_training_images_are_used(digits: Splits) -> None:
    method = make(ConditionalGAN, digits)
    for batch in method.batches.epoch(0):
        assert float(batch.images.min()) >= -1
        assert float(batch.images.max()) <= 1
        assert len(batch) == 16
    assert len(list(method.batches.epoch(5))) == 3


def test_features_and_odd_sizes_are_refused(digits: Splits) -> None:
    features = data.splits.InMemory(torch.rand(20, 1, 8, 8))
    examples = data.Examples(features, torch.arange(20) % 10)
    names = digits.class_names
    splits = Splits(examples, examples, examples, examples, names)
    with pytest.raises(UserError, match="features"):
        make(BigGAN, splits)
    images = data.splits.InMemory(torch.zeros(20, 1, 9, 8, dtype=torch.uint8))
    examples = data.Examples(images, torch.arange(20) % 10)
    splits = Splits(examples, examples, examples, examples, names)
    with pytest.raises(UserError, match="square"):
        make(BigGAN, splits)


def test_the_kinds_have_the_same_settings() -> None:
    names = {tuple(inspect.signature(kind).parameters) for kind in KINDS}
    assert len(names) == 1


def test_first_moments_are_those_of_the_sources(digits: Splits) -> None:
    for kind, expected in ((ConditionalGAN, 0.5), (BigGAN, 0.0)):
        method = make(kind, digits)
        for name in ("generator_optimiser", "discriminator_optimiser"):
            (group,) = getattr(method, name).param_groups
            assert group["betas"] == (expected, 0.999)


# --- top-k --------------------------------------------------------------------


@settings(deadline=None)
@given(st.permutations(range(7)), st.integers(1, 9))
def test_only_the_best_fakes_get_a_gradient(order: list[int], k: int) -> None:
    scores = torch.tensor(order, dtype=F64, requires_grad=True)
    kept = top_k_scores(scores, k)
    (slope,) = torch.autograd.grad(kept.sum(), scores)
    expected = torch.tensor([float(rank >= 7 - k) for rank in order], dtype=F64)
    assert_close(slope, expected)
    assert len(kept) == min(k, 7)


def test_k_falls_from_the_batch_to_its_share() -> None:
    counts = [top_k_count(64, 0.5, epoch) for epoch in range(200)]
    assert counts[0] == 64
    assert counts[-1] == 32
    assert counts == sorted(counts, reverse=True)
    assert counts[1] == math.ceil(64 * 0.99)
    assert {top_k_count(64, 1.0, epoch) for epoch in (0, 50, 500)} == {64}
    assert top_k_count(2, 0.01, 10_000) == 1


def test_the_generator_learns_from_k_images(digits: Splits) -> None:
    method = make(BigGAN, digits)  # no batch norm that would tie images together
    fake = torch.randn(6, 1, 8, 8, requires_grad=True)
    labels = torch.arange(6)
    (slope,) = torch.autograd.grad(method.generator_loss(fake, labels, 2), fake)
    method.discriminator.eval()
    touched = slope.flatten(1).any(1)
    best = method.discriminator(fake, labels).topk(2).indices
    assert sorted(best.tolist()) == touched.nonzero().flatten().tolist()


# --- core sets ----------------------------------------------------------------


def radius(points: Tensor, chosen: list[int]) -> float:
    """Largest distance from a point to the nearest chosen one."""
    return float(torch.cdist(points, points[chosen]).amin(1).max())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 8), st.data())
def test_greedy_covers_at_most_twice_as_far_as_the_best(
    seed: int, count: int, drawn: st.DataObject
) -> None:
    k = drawn.draw(st.integers(1, count))
    source = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 2, generator=source, dtype=F64)
    found = core_set(points, k).tolist()
    assert len(set(found)) == k
    best = min(
        radius(points, list(some)) for some in itertools.combinations(range(count), k)
    )
    assert radius(points, found) <= 2 * best + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_nothing_is_picked_twice_even_where_points_coincide(
    count: int, places: int, drawn: st.DataObject
) -> None:
    k = drawn.draw(st.integers(1, count))
    points = (torch.arange(count) % places)[:, None].double()
    found = core_set(points, k).tolist()
    assert len(set(found)) == k
    # As many places as can be are covered before any is seen again.
    seen = {number % places for number in found}
    assert len(seen) == min(k, places, count)


def test_each_pick_is_the_farthest_left() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [3.0], [6.0]])
    assert core_set(points, 4).tolist() == [0, 2, 4, 3]


def test_a_projection_keeps_distances_about() -> None:
    images = torch.rand(20, 3, 8, 8)
    one = torch.pdist(images.flatten(1))
    other = torch.pdist(projected(images))
    assert abs(float((other / one).square().mean()) - 1) < 0.3
    assert projected(images).equal(projected(images))


def test_a_core_set_uses_as_many_images_as_the_batch_size(digits: Splits) -> None:
    method = make(ConditionalGAN, digits, core_set=3)
    seen: list[int] = []
    loss = method.discriminator_loss

    def watch(real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(real))
        assert len(fake) == len(labels) == len(real)
        # Every image is one of those drawn, with its own label.
        found_in = (real[:, None] == batch.images[None]).flatten(2).all(2)
        agrees = labels[:, None] == batch.labels[None]
        assert bool((found_in & agrees).any(1).all())
        found: Tensor = loss(real, fake, labels)
        return found

    method.discriminator_loss = watch
    for batch in method.batches.epoch(0):
        assert len(batch) == 48
        method.step(batch)
    assert seen == [16, 16, 16]


# --- diversity ----------------------------------------------------------------


def test_mode_seeking_compares_images_of_one_class() -> None:
    """Pairs (0, 2), (2, 4) and (1, 3): mean distances 3 of z and 0.5 of images."""
    labels = torch.tensor([0, 1, 0, 1, 0])
    latents = torch.tensor([[0.0], [5.0], [2.0], [9.0], [5.0]], dtype=F64)
    levels = torch.tensor([0.0, 0.7, 0.5, 0.2, 1.0], dtype=F64)
    images = levels.view(5, 1, 1, 1).expand(5, 1, 2, 2)
    found = mode_seeking(latents, images, labels)
    assert float(found) == pytest.approx(1 / (0.5 / 3 + 1e-5))
    # Larger differences cost less; a batch without a pair costs nothing.
    assert float(mode_seeking(latents, 2 * images, labels)) < float(found)
    assert float(mode_seeking(latents, images, torch.arange(5))) == 0
    assert float(mode_seeking(latents[:1], images[:1], labels[:1])) == 0
    order = torch.tensor([1, 0, 3, 2, 4])  # classes moved apart, pairs the same
    moved = mode_seeking(latents[order], images[order], labels[order])
    assert_close(moved, found)


def test_mode_seeking_pulls_images_apart() -> None:
    latents = torch.randn(6, 3, dtype=F64)
    images = (0.1 * torch.randn(6, 1, 2, 2, dtype=F64)).requires_grad_()
    labels = torch.zeros(6, dtype=torch.int64)
    (slope,) = torch.autograd.grad(mode_seeking(latents, images, labels), images)
    after = (images - 1e-4 * slope).detach()

    def spread(x: Tensor) -> Tensor:
        return (x[1:] - x[:-1]).abs().mean()

    assert spread(after) > spread(images.detach())


@pytest.mark.parametrize("kind", [ConditionalGAN, BigGAN])
def test_diversity_makes_images_of_a_class_differ_more(
    kind: Any, digits: Splits
) -> None:
    spreads = []
    for weight in (0.0, 10.0):
        method = make(kind, digits, diversity=weight, ema=0.0)
        training.fit(method, 5)
        maker = method.generator
        with torch.no_grad():
            images = maker(maker.noise(40, generator(0)), torch.zeros(40).long())
        spreads.append(float(images.std(0).mean()))
    assert spreads[1] > spreads[0]

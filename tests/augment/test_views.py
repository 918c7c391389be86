"""The strong views: what they draw, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor

from needsaug_lite.augment import (
    AutoAugmentCutout,
    SimAugment,
    StandardAugmentation,
    published_policy,
)
from needsaug_lite.errors import UserError

View = Callable[[Tensor, torch.Generator], Tensor]
VIEWS = [
    AutoAugmentCutout(cutout=8),
    AutoAugmentCutout(crop=0, flip=False, cutout=0, policy="svhn"),
    SimAugment(),
    SimAugment(flip=False),
]
STILL = SimAugment(smallest_crop=1, flip=False, jitter_share=0, grey_share=0)
each_view = pytest.mark.parametrize("view", VIEWS, ids=repr)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_bytes(
    count: int, channels: int = 3, height: int = 32, width: int = 32
) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(256, shape, generator=seeded(0), dtype=torch.uint8)


def same(one: Tensor, two: Tensor) -> Tensor:
    return (one == two).flatten(1).all(1)


def near(share: float, expected: float, count: int) -> bool:
    """Within five standard errors."""
    return abs(share - expected) < 5 * sqrt(expected * (1 - expected) / count)


@each_view
@pytest.mark.parametrize("shape", [(9, 3), (9, 1, 28, 20), (1, 1, 8, 8), (2, 3, 9, 8)])
def test_a_view_is_a_batch_of_bytes_that_the_seed_fixes(
    view: View, shape: tuple[int, ...]
) -> None:
    images = some_bytes(*shape)
    before = images.clone()
    result = view(images, seeded(4))
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(result, view(images, seeded(4)))
    assert torch.equal(images, before)
    others = [view(images, seeded(seed)) for seed in range(5, 25)]
    assert not all(torch.equal(result, other) for other in others)


@each_view
def test_a_generator_moves_on(view: View) -> None:
    images, draw = some_bytes(9), seeded(4)
    assert not torch.equal(view(images, draw), view(images, draw))


@each_view
def test_the_global_generator_neither_moves_nor_matters(view: View) -> None:
    images = some_bytes(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = view(images, seeded(4))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        assert torch.equal(view(images, seeded(4)), one)


@each_view
def test_no_device_s_generator_is_seeded(
    monkeypatch: pytest.MonkeyPatch, view: View
) -> None:
    """torch.manual_seed seeds every GPU, and fork_rng would not put them back."""

    def refuse(_: int) -> None:
        raise AssertionError("a generator of every device was seeded")

    for module in (torch, torch.random):
        monkeypatch.setattr(module, "manual_seed", refuse)
    view(some_bytes(3), seeded(4))


@each_view
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_react_to_its_neighbours(view: View, channels: int) -> None:
    images = some_bytes(40, channels)
    changed = images.clone()
    changed[::2] = 255 - images[::2].flip(2)
    one, two = view(images, seeded(4)), view(changed, seeded(4))
    assert torch.equal(one[1::2], two[1::2])
    assert not bool(same(one[::2], two[::2]).any())


@each_view
def test_images_of_one_batch_get_their_own_draws(view: View) -> None:
    images = some_bytes(1).expand(20, -1, -1, -1)
    distinct = {tuple(x.flatten().tolist()) for x in view(images, seeded(4))}
    assert len(distinct) > 10


@each_view
def test_features_are_refused(view: View) -> None:
    with pytest.raises(UserError, match="features"):
        view(torch.rand(4, 16, 1, 1), seeded(0))


# AutoAugmentCutout


def test_it_is_crop_flip_policy_cutout_in_this_order() -> None:
    images, draw = some_bytes(30), seeded(4)
    found = AutoAugmentCutout(crop=3, cutout=10)(images, seeded(4))
    moved = StandardAugmentation(crop=3, flip=True)(images, draw)
    policy = published_policy("cifar10", 3)
    draws = policy.draw(30, draw)
    changed = policy.sample(moved.float() / 255, torch.zeros(30).long(), draws)
    expected = StandardAugmentation(cutout=10)((255 * changed).round().byte(), draw)
    assert torch.equal(found, expected)


def test_without_a_policy_that_acts_a_grey_image_keeps_its_colours() -> None:
    """Equal channels stay equal: nothing colours a grey image."""
    images = some_bytes(200, 1).expand(-1, 3, -1, -1)
    result = AutoAugmentCutout()(images, seeded(4)).int()
    assert int((result.amax(1) - result.amin(1)).max()) <= 1


def test_an_erased_square_larger_than_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="cutout=4"):
        AutoAugmentCutout()(some_bytes(2, 1, 8, 8), seeded(0))
    AutoAugmentCutout(cutout=4)(some_bytes(2, 1, 8, 8), seeded(0))


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UserError, match="choose one of imagenet, cifar10, svhn"):
        AutoAugmentCutout(policy="mnist")(some_bytes(2), seeded(0))


# SimAugment


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_nothing_asked_for_changes_nothing(channels: int) -> None:
    images = some_bytes(20, channels, 28, 28)
    assert torch.equal(STILL(images, seeded(4)), images)


def test_a_crop_shows_a_part_of_the_image_between_its_limits() -> None:
    """On ramps, the range of a crop is its size; sizes are rounded to pixels."""
    count, side = 2000, 32
    ramp = torch.arange(side, dtype=torch.uint8).expand(1, 1, side, side)
    images = 8 * torch.cat([ramp, ramp.mT, 0 * ramp], 1).expand(count, -1, -1, -1)
    result = replace(STILL, smallest_crop=0.2)(images, seeded(4)).float() / 8
    low, high = result.amin((2, 3)), result.amax((2, 3))
    width, height = (high - low + 1).round()[:, :2].unbind(1)
    assert float(low.min()) == 0
    assert float(high.max()) == side - 1
    # In the last column of the crop, x is the same in all rows; so is y in columns.
    assert float((result[:, 0] - result[:, 0, :1]).abs().max()) < 0.2
    assert float((result[:, 1] - result[:, 1, :, :1]).abs().max()) < 0.2
    area, rounding = width * height / side**2, 0.06
    assert 0.2 - rounding < float(area.min()) < 0.25
    assert float(area.max()) > 0.95
    # Large crops fit only if nearly square, hence less than (0.2 + 1)/2.
    assert 0.5 < float(area.mean()) < 0.6
    shape = (width + 0.5) / (height - 0.5)
    assert float(shape.min()) > 3 / 4
    assert float(((width - 0.5) / (height + 0.5)).max()) < 4 / 3
    assert float((width > height).float().mean()) > 0.4


def test_no_crop_has_a_border() -> None:
    images = torch.full((500, 3, 32, 32), 200, dtype=torch.uint8)
    view = replace(STILL, smallest_crop=0.2, flip=True)
    assert torch.equal(view(images, seeded(4)), images)


def test_a_flip_is_a_fair_coin() -> None:
    images = some_bytes(3000, 1, 6, 6)
    result = replace(STILL, flip=True)(images, seeded(4))
    kept, mirrored = same(result, images), same(result, images.flip(3))
    assert bool((kept ^ mirrored).all())
    assert near(float(kept.float().mean()), 0.5, 3000)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_jitter_happens_as_often_as_asked(channels: int) -> None:
    images = some_bytes(2000, channels, 6, 6)
    result = replace(STILL, jitter_share=0.8)(images, seeded(4))
    assert near(float(same(result, images).float().mean()), 0.2, 2000)


def test_brightness_is_scaled_by_at_most_its_jitter() -> None:
    """Contrast keeps an even image, so that only the brightness is seen."""
    images = torch.full((2000, 1, 4, 4), 150, dtype=torch.uint8)
    factors = replace(STILL, jitter_share=1)(images, seeded(4)).double() / 150
    # Half a grey level for the rounding.
    assert 0.6 - 1 / 300 <= float(factors.min()) < 0.61
    assert 1.39 < float(factors.max()) <= 1.4 + 1 / 300


def test_grey_happens_as_often_as_asked_and_leaves_no_colour() -> None:
    images = some_bytes(3000, 3, 6, 6)
    result = replace(STILL, grey_share=0.2)(images, seeded(4))
    grey = (result == result[:, :1]).flatten(1).all(1)
    assert bool((grey ^ same(result, images)).all())
    assert near(float(grey.float().mean()), 0.2, 3000)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luminance = (weights * images[grey]).sum(1)
    assert float((result[grey][:, 0] - luminance).abs().max()) <= 0.51


def test_each_part_of_the_jitter_reaches_the_image() -> None:
    images = some_bytes(10, 3, 6, 6)
    for jitter in ((0.4, 0, 0, 0), (0, 0.4, 0, 0), (0, 0, 0.4, 0), (0, 0, 0, 0.1)):
        view = replace(STILL, jitter_share=1, jitter=jitter)
        assert float(same(view(images, seeded(4)), images).float().mean()) < 0.3
    none = replace(STILL, jitter_share=1, jitter=(0, 0, 0, 0))
    assert torch.equal(none(images, seeded(4)), images)

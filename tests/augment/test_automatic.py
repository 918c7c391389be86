"""AugMix, RandAugment, TrivialAugment: what is drawn, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from needsaug_lite import _torchvision
from needsaug_lite.augment import (
    StandardAugmentation,
    automatic,
    cutout,
    random_crop,
    random_flip,
)
from needsaug_lite.augment.automatic import (
    AUGMIX_SPACE,
    POLICIES,
    RANDAUGMENT_SPACE,
    TRIVIALAUGMENT_SPACE,
    PolicyName,
    Space,
    augmix,
    mixing_weights,
    randaugment,
    trivialaugment,
)
from needsaug_lite.augment.pixels import as_bytes, as_floats
from needsaug_lite.augment.strong import perform
from needsaug_lite.errors import UserError

_torchvision.ensure()

from torchvision.transforms import InterpolationMode, v2  # noqa: E402

each_policy = pytest.mark.parametrize("name", POLICIES)
each_kind = pytest.mark.parametrize("channels", [1, 3])
SIGNED = ("rotate", "shear_", "translate_", "contrast", "bright", "sharp", "color")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_bytes(
    count: int, channels: int = 3, height: int = 12, width: int = 12
) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(256, shape, generator=seeded(0), dtype=torch.uint8)


def near(shares: Tensor, expected: float, count: int) -> bool:
    """All within five standard errors."""
    error = sqrt(expected * (1 - expected) / count)
    return bool(((shares - expected).abs() < 5 * error).all())


def performed(name: str, images: Tensor, strength: float, sign: int) -> Tensor:
    strengths = torch.full((len(images),), strength)
    signs = torch.full((len(images),), float(sign))
    return as_bytes(perform(name, as_floats(images), strengths, signs))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Largest difference of a pixel for each image, in bytes."""
    return (one.int() - other.int()).abs().flatten(1).amax(1)


def halves(name: str, images: Tensor, strength: Tensor, signs: Tensor) -> Tensor:
    return images if name == "identity" else images / 2


# What all share


@each_policy
@pytest.mark.parametrize("shape", [(9, 3), (9, 1, 28, 20), (1, 1, 8, 8), (5, 2, 9, 8)])
def test_a_batch_of_bytes_that_the_generator_fixes(
    name: PolicyName, shape: tuple[int, ...]
) -> None:
    images = some_bytes(*shape)
    before, default = images.clone(), torch.get_rng_state()
    draw = seeded(4)
    result = POLICIES[name](images, draw)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)
    torch.manual_seed(99)
    assert torch.equal(POLICIES[name](images, seeded(4)), result)
    torch.set_rng_state(default)
    POLICIES[name](images, seeded(4))
    assert torch.equal(torch.get_rng_state(), default)
    # The next batch is changed differently.
    many = images.repeat(8, 1, 1, 1)
    assert not torch.equal(POLICIES[name](many, draw), POLICIES[name](many, draw))


@each_policy
def test_it_stands_between_flip_and_cutout(name: PolicyName) -> None:
    images, draw = some_bytes(6), seeded(4)
    found = StandardAugmentation(2, True, 5, name)(images, seeded(4))
    changed = POLICIES[name](random_flip(random_crop(images, 2, draw), draw), draw)
    assert torch.equal(found, cutout(changed, 5, draw))


def test_an_unknown_policy_is_named() -> None:
    wrong: Any = "autoaugment"
    with pytest.raises(UserError, match="'autoaugment' is unknown: give augmix, rand"):
        StandardAugmentation(policy=wrong)


# Which operation an image gets


def outcomes(images: Tensor, space: Space, level: float) -> dict[str, Tensor]:
    """What each operation makes of every image, by its name and its sign."""
    found = {}
    for name, (first, last) in space.items():
        if name == "color" and images.shape[1] != 3:
            continue
        for sign in (1, -1) if name.startswith(SIGNED) else (1,):
            strength = first + (last - first) * level
            found[f"{name} {sign}"] = performed(name, images, strength, sign)
    return found


@each_kind
def test_each_image_gets_an_operation_and_a_sign_of_its_own(channels: int) -> None:
    # 17 x 17: enough pixels that equalize changes something.
    images = some_bytes(2000, channels, 17, 17)
    images = (images.float() ** 2 / 400 + 20).byte()
    result = randaugment(images, seeded(1), operations=1, level=0.5)
    made = outcomes(images, RANDAUGMENT_SPACE, 0.5)
    hits = torch.stack([distance(result, one) <= 1 for one in made.values()])
    assert torch.equal(hits.sum(0), torch.ones(2000, dtype=torch.int64))
    names = [name.split()[0] for name in made]
    count = 13 if channels == 1 else 14
    assert len(set(names)) == count
    shares = hits.float().mean(1)
    both = torch.tensor([names.count(name) == 2 for name in names])
    assert near(shares[both], 1 / count / 2, 2000)
    assert near(shares[~both], 1 / count, 2000)
    # Neighbours are drawn independently.
    alike = hits[:, 1:] & hits[:, :-1]
    assert near(alike.sum(0).float().mean(), float((shares**2).sum()), 1999)


def test_operations_follow_each_other() -> None:
    images = some_bytes(300, 1, 17, 17)
    images = (images.float() ** 2 / 400 + 20).byte()
    result = randaugment(images, seeded(1), operations=2, level=0.5)
    found = torch.zeros(300, dtype=torch.bool)
    for once in outcomes(images, RANDAUGMENT_SPACE, 0.5).values():
        for twice in outcomes(once, RANDAUGMENT_SPACE, 0.5).values():
            # Between the two nothing is rounded to bytes, but here it is.
            gap = (result.int() - twice.int()).abs().float().flatten(1)
            found |= gap.median(1).values <= 2
    assert found.all()


def test_as_many_operations_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "perform", halves)
    images = torch.full((3000, 1, 2, 2), 128, dtype=torch.uint8)
    for asked in (1, 2, 3):
        result = randaugment(images, seeded(0), operations=asked)[:, 0, 0, 0]
        # One of 13 is the identity.
        most = (result == 128 // 2**asked).float().mean()
        assert near(most, (12 / 13) ** asked, 3000)


def test_level_zero_keeps_what_can_be_kept() -> None:
    # Equalize keeps so few pixels; auto_contrast keeps black to white.
    images = some_bytes(200, 3, 8, 8)
    images[:, :, 0, 0], images[:, :, 7, 7] = 0, 255
    assert torch.equal(randaugment(images, seeded(0), level=0), images)
    assert not torch.equal(randaugment(images, seeded(0), level=0.1), images)


def test_levels_of_trivialaugment_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "TRIVIALAUGMENT_SPACE", {"brightness": (0.0, 1.0)})
    images = torch.full((6200, 1, 2, 2), 120, dtype=torch.uint8)
    result = trivialaugment(images, seeded(0))[:, 0, 0, 0]
    steps = torch.arange(-30, 31)
    expected = as_bytes(120 / 255 * (1 + 0.9 * steps / 30))
    assert len(set(expected.tolist())) == 61
    shares = (result == expected.view(-1, 1)).float().mean(1)
    assert shares.sum() == pytest.approx(1)
    assert near(shares[steps != 0], 1 / 62, 6200)
    assert near(shares[steps == 0], 1 / 31, 6200)


def test_trivialaugment_is_one_wide_operation() -> None:
    images = some_bytes(150, 1, 17, 17)
    images = (images.float() ** 2 / 400 + 20).byte()
    result = trivialaugment(images, seeded(3))
    found = torch.zeros(150, dtype=torch.bool)
    for level in range(31):
        made = outcomes(images, TRIVIALAUGMENT_SPACE, level / 30)
        for one in made.values():
            found |= distance(result, one) <= 1
    assert found.all()


# How far an operation goes


@pytest.mark.parametrize(
    ("theirs", "space", "bins", "levels", "side"),
    [
        # Sides and levels for which shifts are whole numbers of pixels.
        (v2.RandAugment, RANDAUGMENT_SPACE, 31, (0, 10, 20, 30), 20),
        (v2.TrivialAugmentWide, TRIVIALAUGMENT_SPACE, 31, (0, 15, 30), 32),
        (v2.AugMix, AUGMIX_SPACE, 10, (0, 1, 2), 27),
    ],
)
def test_operations_reach_as_far_as_in_torchvision(
    theirs: Callable[..., Any],
    space: Space,
    bins: int,
    levels: tuple[int, ...],
    side: int,
) -> None:
    coarse = torch.rand(4, 3, 4, 4, generator=seeded(0))
    smooth = interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    images = as_bytes(smooth.clamp(0, 254 / 255))
    reference = theirs(interpolation=InterpolationMode.BILINEAR)
    for name, (first, last) in space.items():
        title = "".join(word.capitalize() for word in name.split("_"))
        sizes, signed = reference._AUGMENTATION_SPACE[title]
        values = sizes(bins, side, side)
        for level in levels:
            value = 0.0 if values is None else float(values[level])
            if name.startswith("translate"):
                value = float(round(value))  # they truncate 15.99
            for sign in (1, -1) if signed else (1,):
                strength = first + (last - first) * level / (bins - 1)
                # A shear to the right is theirs to the left.
                other = -sign if name.startswith("shear") else sign
                expected = reference._apply_image_or_video_transform(
                    images,
                    title,
                    other * value,
                    interpolation=InterpolationMode.BILINEAR,
                    fill={},
                )
                found = performed(name, images, strength, sign)
                gap = (found.int() - expected.int()).abs().float()
                if name.startswith("shear"):
                    # They shear about the corner, we about the first pixel's centre.
                    assert gap.mean() <= 10 * value
                elif name == "solarize":
                    # Their threshold is a share of 255, PIL's and ours of 256.
                    assert (gap > 0).float().mean() < 0.02
                else:
                    assert gap.max() <= 2


def test_images_that_wait_stay() -> None:
    images = as_floats(some_bytes(40))
    wanted = torch.arange(40) % 2 == 0
    space = {"brightness": (1.0, 1.0)}
    levels = torch.ones(40)
    result = automatic._operate(images, space, levels, seeded(0), wanted)
    assert torch.equal(result[~wanted], images[~wanted])
    assert bool((result[wanted] != images[wanted]).flatten(1).any(1).all())


# AugMix


def test_mixing_weights_are_those_of_beta_and_dirichlet() -> None:
    weights = mixing_weights(20_000, 3, seeded(0)).double()
    assert weights.shape == (4, 20_000)
    assert weights.min() >= 0
    ones = torch.ones(20_000, dtype=torch.float64)
    torch.testing.assert_close(weights.sum(0), ones, atol=1e-6, rtol=0)
    kept = weights[0]
    # Uniform: mean 1/2, variance 1/12. A part of Dirichlet(1, 1, 1): 1/3 and 1/18.
    assert abs(kept.mean() - 1 / 2) < 5 * sqrt(1 / 12 / 20_000)
    assert float(kept.var()) == pytest.approx(1 / 12, rel=0.05)
    chains = weights[1:] / (1 - kept)
    assert bool(((chains.mean(1) - 1 / 3).abs() < 5 * sqrt(1 / 18 / 20_000)).all())
    for variance in chains.var(1):
        assert float(variance) == pytest.approx(1 / 18, rel=0.05)
    assert abs(torch.corrcoef(torch.stack([kept, chains[0]]))[0, 1]) < 0.04


@each_kind
def test_a_mixture_of_what_all_operations_keep_keeps_it(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep 128, and no warp reaches the middle of the image."""
    # These two would stretch 128 as soon as a warp has uncovered black.
    stretched = ("auto_contrast", "equalize")
    space = {name: s for name, s in AUGMIX_SPACE.items() if name not in stretched}
    monkeypatch.setattr(automatic, "AUGMIX_SPACE", space)
    images = torch.full((300, channels, 32, 32), 128, dtype=torch.uint8)
    result = augmix(images, seeded(0))
    assert torch.equal(result[:, :, 15:18, 15:18], images[:, :, 15:18, 15:18])
    assert bool((result != images).flatten(1).any(1).any())


def test_chains_have_every_depth_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "perform", halves)
    only_chain = torch.tensor([[0.0], [1.0]])
    monkeypatch.setattr(
        automatic, "mixing_weights", lambda count, *_: only_chain.repeat(1, count)
    )
    images = torch.full((3000, 1, 2, 2), 128, dtype=torch.uint8)
    result = augmix(images, seeded(0), chains=1)[:, 0, 0, 0]
    shares = (result == torch.tensor([[64], [32], [16]])).float().mean(1)
    assert shares.sum() == pytest.approx(1)
    assert near(shares, 1 / 3, 3000)


def test_augmix_mixes_each_image_with_its_own_chains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(automatic, "perform", halves)
    images = torch.arange(256).view(-1, 1, 1, 1).byte().repeat(1, 1, 2, 2)
    result = augmix(images, seeded(5), depth=1)
    kept = mixing_weights(256, 3, seeded(5))[0]
    expected = torch.arange(256) * (kept + (1 - kept) / 2)
    assert bool(((result[:, 0, 0, 0] - expected).abs() <= 0.501).all())


def test_severity_bounds_the_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}

    def record(name: str, images: Tensor, strength: Tensor, signs: Tensor) -> Tensor:
        seen.setdefault(name, []).append(strength)
        return images

    monkeypatch.setattr(automatic, "perform", record)
    augmix(some_bytes(2000, 3, 2, 2), seeded(0))
    assert set(seen) == {*AUGMIX_SPACE, "identity"}
    rotate, posterize = torch.cat(seen["rotate"]), torch.cat(seen["posterize"])
    assert 0.01 <= float(rotate.min()) < 0.012 < 0.298 < float(rotate.max()) <= 0.3
    assert abs(rotate.mean() - 0.155) < 5 * 0.29 / sqrt(12 * len(rotate))
    assert 1.01 <= float(posterize.min()) < 1.012 < 1.298 < float(posterize.max())
    # 1.3 times 4 bits less than 8: 3 bits at least.
    assert float(posterize.max()) <= 1.3

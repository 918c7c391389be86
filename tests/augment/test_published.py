"""The published policies have torchvision's table and change images as it does."""

from __future__ import annotations

from collections import Counter
from math import atan, ceil, degrees
from typing import Any

import pytest
import torch
from torch import Tensor

from needsaug_lite import _torchvision  # noqa: F401
from needsaug_lite.augment import OPERATIONS, PolicyDraws, published_policy
from needsaug_lite.errors import UserError

from torchvision.transforms import (  # isort: skip
    AutoAugment,
    AutoAugmentPolicy,
    InterpolationMode,
    autoaugment,
    functional,
)

NAMES = [policy.value for policy in AutoAugmentPolicy]
BLENDS = ("brightness", "color", "contrast", "sharpness")
# Torchvision's unit per unit of m: a slope, and degrees.
WARPS = {"shear_x": 0.3, "shear_y": 0.3, "rotate": 30.0}
SKIPPED = (None, 0.0, None)
SIDE = 32


def snake(name: str) -> str:
    return "".join("_" * c.isupper() + c.lower() for c in name).removeprefix("_")


def torchvision_s(name: str) -> AutoAugment:
    return AutoAugment(AutoAugmentPolicy(name))


def magnitude(operation: str, level: int | None) -> tuple[float, bool]:
    """What torchvision makes of a bin, and whether it takes a sign."""
    space = torchvision_s("cifar10")._augmentation_space(10, (SIDE, SIDE))
    magnitudes, signed = space[operation]
    return (0.0 if level is None else float(magnitudes[level])), signed


def in_torchvision_s_unit(operation: str, m: float) -> float | None:
    if not OPERATIONS[operation].has_magnitude:
        return None
    if operation in WARPS:
        return round(WARPS[operation] * m, 4)
    if operation.startswith("translate"):
        return int(0.45 * SIDE * m)
    if operation == "posterize":
        return round(4 + 4 * m)
    if operation == "solarize":
        return ceil(256 * m)  # the lowest byte that is inverted
    return round(0.1 + 1.8 * m, 4)


def entry(line: tuple[str, float, int | None], sign: int, colour: bool) -> Any:
    """(operation, p, magnitude) as torchvision would do it."""
    operation, p, level = line
    name = snake(operation)
    if p == 0 or (OPERATIONS[name].needs_colour and not colour):
        return SKIPPED
    value, signed = magnitude(operation, level)
    if level is None:
        return (name, p, None)
    if name in BLENDS:
        return (name, p, round(1 + sign * value, 4))
    # Torchvision draws a sign exactly where the operation of ours takes one.
    assert signed == OPERATIONS[name].signed
    if name.startswith("translate"):
        return (name, p, int(value))
    return (name, p, ceil(value) if name == "solarize" else round(value, 4))


def written(name: str, channels: int) -> Counter[Any]:
    """(operation, p, magnitude) of both stages, read off the parameters."""
    policy = published_policy(name, channels)
    weights = (policy.operation_logits[0] / 0.05).softmax(2)
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    chosen = weights.argmax(2, keepdim=True)
    p = policy.probability_logits[0].gather(2, chosen).sigmoid()
    m = policy.magnitude_logits[0].gather(2, chosen).sigmoid()
    found: Counter[Any] = Counter()
    for row in torch.cat([chosen.float(), p, m], 2).tolist():
        stages = []
        for number, share, m_here in row:
            operation = policy.operation_names[int(number)]
            value = in_torchvision_s_unit(operation, m_here)
            known = (operation, round(share, 5), value)
            stages.append(known if share else SKIPPED)
        found[tuple(stages)] += 1
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_parameters_are_the_table(name: str, channels: int) -> None:
    expected: Counter[Any] = Counter()
    for pair in torchvision_s(name).policies:
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            both = zip(pair, signs, strict=True)
            stages = [entry(line, sign, channels == 3) for line, sign in both]
            expected[tuple(stages)] += 1
    assert expected.total() == 100
    assert written(name, channels) == expected


def lines() -> list[tuple[str, int | None]]:
    """Every (operation, bin) of the three tables."""
    tables = [torchvision_s(name).policies for name in NAMES]
    found = {(o, level) for table in tables for pair in table for o, _, level in pair}
    return sorted(found, key=str)


def changed(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, line: Any, sign: int
) -> Any:
    """255 times what a policy of one certain operation makes of the images."""
    table = [((line[0], 1.0, line[1]), ("Invert", 0.0, None))]
    monkeypatch.setattr(AutoAugment, "_get_policies", lambda *_: table)
    count, channels = images.shape[:2]
    policy = published_policy("cifar10", channels)
    shape = (count, 2, len(policy.operation_names))
    draws = PolicyDraws(
        # The first two of the four sub-policies have the sign +.
        sub_policy=torch.full((count,), 0 if sign > 0 else 2),
        application=torch.full(shape, 0.5),
        selection=torch.zeros(count, 2),
        signs=torch.full(shape, float(sign)),
        centres=torch.zeros(count, 2, 2),
    )
    floats = images.float() / 255
    return 255 * policy.sample(floats, torch.zeros(count).long(), draws)


def some_bytes(channels: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    shape = (3, channels, SIDE, SIDE)
    return torch.randint(20, 236, shape, generator=draw, dtype=torch.uint8)


def changed_by_torchvision(images: Tensor, operation: str, value: float) -> Tensor:
    if operation.startswith("Shear"):
        angle = degrees(atan(-value))
        both = [angle, 0.0] if operation == "ShearX" else [0.0, angle]
        bilinear, centre = InterpolationMode.BILINEAR, [0.5, 0.5]
        result: Tensor = functional.affine(
            images, 0.0, [0, 0], 1.0, both, bilinear, center=centre
        )
        return result
    if operation == "Color" and images.shape[1] == 1:
        return images
    arguments = (operation, value, InterpolationMode.BILINEAR, None)
    other: Tensor = autoaugment._apply_op(images, *arguments)
    return other


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("line", [x for x in lines() if "Translate" not in x[0]])
def test_a_line_changes_images_as_torchvision_does(
    monkeypatch: pytest.MonkeyPatch,
    line: tuple[str, int | None],
    sign: int,
    channels: int,
) -> None:
    """Within two grey levels: torchvision rounds the smoothed image, then cuts off.

    A shear is torchvision's of the other sign, and about the centre of the first pixel
    where torchvision's is about its corner.
    """
    images = some_bytes(channels)
    value, signed = magnitude(*line)
    expected = changed_by_torchvision(
        images, line[0], sign * value if signed else value
    )
    found = changed(images, monkeypatch, line, sign)
    assert float((found - expected).abs().max()) < 2


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("operation", "level"), [x for x in lines() if "Translate" in x[0]]
)
def test_a_translation_is_torchvision_s_before_the_cut_to_pixels(
    monkeypatch: pytest.MonkeyPatch, operation: str, level: int, sign: int
) -> None:
    """On a ramp of 4 grey levels a pixel; 0.45 of the side instead of 150/331."""
    place = torch.arange(SIDE).float()
    axes = (1, SIDE) if operation == "TranslateX" else (SIDE, 1)
    ramp = (4 * place).view(axes).expand(SIDE, SIDE)
    images = ramp.expand(1, 1, SIDE, SIDE).to(torch.uint8)
    found = changed(images, monkeypatch, (operation, level), sign)
    expected = ramp - 4 * sign * magnitude(operation, level)[0]
    # What no shift, of 14.5 pixels at most, uncovers in the middle.
    middle = (found[0, 0] - expected)[15:-15, 15:-15]
    assert float(middle.abs().max()) <= 4 * (150 / 331 - 0.45) * SIDE + 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_images_stay_as_often_as_the_table_says(name: str, channels: int) -> None:
    """P(x̂ = x) = 1/25 Σ (1 - p_1)(1 - p_2), p = 0 for what keeps an image."""
    keeps = 0.0
    for pair in torchvision_s(name).policies:
        both = 1.0
        for operation, p, level in pair:
            value, _ = magnitude(operation, level)
            neutral = snake(operation) in BLENDS and value == 0
            colourless = operation == "Color" and channels == 1
            eight_bits = operation == "Posterize" and value == 8
            both *= 1 if neutral or colourless or eight_bits else 1 - p
        keeps += both / 25
    count, policy = 4000, published_policy(name, channels)
    draw = torch.Generator().manual_seed(5)
    images = some_bytes(channels)[:1].float().expand(count, -1, -1, -1) / 255
    draws = policy.draw(count, draw)
    found = policy.sample(images, torch.zeros(count).long(), draws)
    same = ((found - images).abs() < 1e-3).flatten(1).all(1).float().mean()
    # Five standard errors.
    assert abs(float(same) - keeps) < 5 * (keeps * (1 - keeps) / count) ** 0.5


def test_a_published_policy_is_fixed() -> None:
    policy = published_policy("cifar10", 3)
    assert not any(p.requires_grad for p in policy.parameters())
    assert "shear_x" not in policy.operation_names
    assert "color" not in published_policy("cifar10", 1).operation_names


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UserError, match="choose one of imagenet, cifar10, svhn"):
        published_policy("mnist", 3)

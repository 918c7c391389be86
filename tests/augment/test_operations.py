"""The operations agree with PIL and closed forms, and have the derivatives they say."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from needsaug_lite.augment import OPERATIONS, Operation
from needsaug_lite.augment import operations as ops
from needsaug_lite.errors import UserError

SMOOTH = [
    n for n, o in OPERATIONS.items() if o.has_magnitude and not o.straight_through
]
GREY = [name for name, o in OPERATIONS.items() if not o.needs_colour]


def some_bytes(channels: int, count: int = 4, size: int = 12) -> Tensor:
    draw = torch.Generator().manual_seed(channels)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=draw).double() / 255


def magnitudes(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def apply(name: str, images: Tensor, magnitude: Tensor) -> Tensor:
    """The operation with alternating signs and fixed centres."""
    count = len(images)
    sign = 1 - 2.0 * (torch.arange(count) % 2).to(images)
    places = torch.linspace(0.31, 0.83, 2 * count).to(images).view(count, 2)
    return OPERATIONS[name](images, magnitude, sign, places)


def through_pil(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    results = []
    for image in images:
        bytes_ = (255 * image).round().byte().permute(1, 2, 0).squeeze(2).numpy()
        changed = np.atleast_3d(np.asarray(change(Image.fromarray(bytes_))))
        results.append(torch.from_numpy(changed.copy()).permute(2, 0, 1))
    return torch.stack(results).double() / 255


def through_enhancer(enhancer: Any, factor: float, image: Image.Image) -> Any:
    return enhancer(image).enhance(factor)


def in_bytes(images: Tensor) -> Tensor:
    return 255 * images


@pytest.mark.parametrize("name", GREY)
def test_grey_images_keep_shape_type_and_range(name: str) -> None:
    images = some_bytes(1).float()
    result = apply(name, images, torch.tensor([0.0, 0.3, 0.8, 1.0]))
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert -1e-6 <= float(result.min()) <= float(result.max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_changes_as_it_would_alone(name: str) -> None:
    images, m = some_bytes(3), magnitudes(0.1, 0.4, 0.7, 0.9)
    sign, places = magnitudes(1, -1, 1, -1), magnitudes(*[0.4] * 8).view(4, 2)
    together = OPERATIONS[name](images, m, sign, places)
    alone = [
        OPERATIONS[name](images[[i]], m[[i]], sign[[i]], places[[i]]) for i in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("name", "enhancer", "channels"),
    [
        ("brightness", ImageEnhance.Brightness, 1),
        ("brightness", ImageEnhance.Brightness, 3),
        ("contrast", ImageEnhance.Contrast, 1),
        ("contrast", ImageEnhance.Contrast, 3),
        ("sharpness", ImageEnhance.Sharpness, 1),
        ("sharpness", ImageEnhance.Sharpness, 3),
        ("color", ImageEnhance.Color, 3),
    ],
)
def test_enhancers_are_those_of_pil(name: str, enhancer: Any, channels: int) -> None:
    images = some_bytes(channels)
    for m in (0.0, 0.25, 0.5, 0.8, 1.0):
        ours = in_bytes(apply(name, images, magnitudes(*[m] * 4)))
        enhanced = partial(through_enhancer, enhancer, 0.1 + 1.8 * m)
        theirs = in_bytes(through_pil(images, enhanced))
        # PIL rounds the degenerate image and then the blend to bytes.
        assert float((ours - theirs).abs().max()) <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_discrete_operations_are_those_of_pil(channels: int) -> None:
    images = some_bytes(channels)
    for bits in (4, 5, 6, 7, 8):
        ours = apply("posterize", images, magnitudes(*[(bits - 4) / 4] * 4))
        theirs = through_pil(images, partial(ImageOps.posterize, bits=bits))
        torch.testing.assert_close(ours, theirs)
    for threshold in (0, 64, 128, 200, 256):
        ours = apply("solarize", images, magnitudes(*[threshold / 256] * 4))
        theirs = through_pil(images, partial(ImageOps.solarize, threshold=threshold))
        torch.testing.assert_close(ours, theirs)
    # Enough pixels that a step of the histogram isn't 0.
    large = some_bytes(channels, size=40) ** 2
    ours = apply("equalize", large, magnitudes(*[0.0] * 4))
    theirs = through_pil(large, ImageOps.equalize)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    narrow = (51 + 127 * images).round() / 255
    ours = apply("auto_contrast", narrow, magnitudes(*[0.0] * 4))
    theirs = through_pil(narrow, ImageOps.autocontrast)
    # PIL truncates the result to a byte.
    assert float(in_bytes(ours - theirs).abs().max()) <= 1


def test_bytes_in_float32_lose_no_level() -> None:
    levels = torch.arange(256).float().view(1, 1, 16, 16) / 255
    kept = apply("posterize", levels, torch.tensor([0.0]))
    assert torch.equal((255 * kept).round().long().flatten(), torch.arange(256) & 0xF0)
    # Every byte occurs once: the histogram is flat already.
    torch.testing.assert_close(
        apply("equalize", levels, torch.tensor([0.0])), levels, atol=1e-5, rtol=0
    )


def test_posterize_sees_the_nearest_byte_and_keeps_all_at_eight_bits() -> None:
    images = some_bytes(1)
    for noise in (-1e-6, 1e-6):
        kept = apply("posterize", images + noise, magnitudes(*[0.0] * 4))
        assert torch.equal(kept, apply("posterize", images, magnitudes(*[0.0] * 4)))
    between = images * 0.77
    assert torch.equal(apply("posterize", between, magnitudes(*[1.0] * 4)), between)


def test_a_flat_image_survives_auto_contrast_and_equalize() -> None:
    flat = torch.full((2, 1, 6, 6), 0.4, dtype=torch.float64, requires_grad=True)
    for name in ("auto_contrast", "equalize"):
        result = apply(name, flat, magnitudes(0, 0))
        torch.testing.assert_close(result, flat, atol=1e-5, rtol=0)
        (slope,) = torch.autograd.grad(result.sum(), flat)
        assert bool(slope.isfinite().all())


def test_inverting_twice_and_translating_by_whole_pixels() -> None:
    images = some_bytes(3, size=20)
    torch.testing.assert_close(ops.invert(ops.invert(images)), images)
    torch.testing.assert_close(ops.invert(images), 1 - images)
    # 0.45 · 20 m pixels: m = 1/3 moves by 3.
    right = ops.translate_x(images, magnitudes(*[1 / 3] * 4))
    down = ops.translate_y(images, magnitudes(*[-1 / 3] * 4))
    expected = torch.zeros_like(images)
    expected[..., 3:] = images[..., :-3]
    torch.testing.assert_close(right, expected)
    expected = torch.zeros_like(images)
    expected[..., :-3, :] = images[..., 3:, :]
    torch.testing.assert_close(down, expected)


def test_rotation_by_a_right_angle_is_exact_and_anticlockwise() -> None:
    images = some_bytes(1)
    # Three quarter turns of 30 degrees make a right angle: beyond the range, m = 3.
    turned = ops.rotate(images, magnitudes(*[3.0] * 4))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)))


def test_shear_moves_each_row_in_proportion() -> None:
    images = some_bytes(1, size=11)
    # 0.3 m y: m = 1 moves row 10 by 3 pixels.
    x = ops.shear_x(images, magnitudes(*[1.0] * 4))
    torch.testing.assert_close(x[:, :, 10, 3:], images[:, :, 10, :-3])
    torch.testing.assert_close(x[:, :, 0], images[:, :, 0])
    y = ops.shear_y(images.mT, magnitudes(*[1.0] * 4))
    torch.testing.assert_close(y.mT, x)


def test_cutout_covers_the_area_of_its_square() -> None:
    images = torch.ones(2, 1, 331, 331, dtype=torch.float64)
    centres = magnitudes(0.5, 0.5, 0.25, 0.6).view(2, 2)
    m = magnitudes(1.0, 0.37)
    hole = (1 - ops.cutout(images, m, centres)) / 0.5
    torch.testing.assert_close(hole.sum((1, 2, 3)), (60 * m) ** 2)
    rows = torch.arange(331) + 0.5
    middle = (hole[1, 0].sum(1) * rows).sum() / hole[1].sum()
    assert abs(float(middle) - 0.25 * 331) < 0.01


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_operations_have_the_derivative_of_finite_differences(name: str) -> None:
    images = 0.45 + 0.1 * some_bytes(3)  # far from the clamp
    m = magnitudes(0.23, 0.41, 0.62, 0.81)
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))

    def value(m: Tensor) -> Tensor:
        return (weights * apply(name, images, m)).sum((1, 2, 3))

    m.requires_grad_()
    (found,) = torch.autograd.grad(value(m).sum(), m)
    step = 1e-6
    expected = (value(m.detach() + step) - value(m.detach() - step)) / (2 * step)
    assert float(expected.abs().min()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n, o in OPERATIONS.items() if o.straight_through]
)
def test_straight_through_derivatives_are_one(name: str) -> None:
    images = some_bytes(3).requires_grad_()
    m = magnitudes(0.23, 0.41, 0.62, 0.81).requires_grad_()
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(9))
    total = (weights * apply(name, images, m)).sum()
    by_image, by_m = torch.autograd.grad(total, [images, m], allow_unused=True)
    expected = weights.double()
    if name == "solarize":
        threshold = 256 / 255 * m.detach().view(-1, 1, 1, 1)
        expected = torch.where(images < threshold, expected, -expected)
    torch.testing.assert_close(by_image, expected)
    if OPERATIONS[name].has_magnitude:
        torch.testing.assert_close(by_m, weights.double().sum((1, 2, 3)))
    else:
        assert by_m is None


def test_a_blend_keeps_its_derivative_where_it_is_clamped() -> None:
    images = torch.full((1, 1, 4, 4), 0.9, dtype=torch.float64)
    m = magnitudes(1.0).requires_grad_()
    bright = ops.brightness(images, m)
    assert torch.equal(bright.detach(), torch.ones_like(images))
    (found,) = torch.autograd.grad(bright.mean(), m)
    torch.testing.assert_close(found, magnitudes(1.8 * 0.9))


def test_five_of_fifteen_magnitudes_have_no_true_derivative() -> None:
    images = some_bytes(3)
    m = magnitudes(0.2301, 0.4101, 0.6201, 0.8101)
    still = [
        name
        for name in OPERATIONS
        if torch.equal(apply(name, images, m), apply(name, images, m + 1e-7))
    ]
    expected = ["auto_contrast", "invert", "equalize", "solarize", "posterize"]
    assert still == expected
    no_estimate = [n for n in still if not OPERATIONS[n].has_magnitude]
    assert no_estimate == ["auto_contrast", "invert", "equalize"]


def test_colour_asks_for_three_channels() -> None:
    with pytest.raises(UserError, match="3 channels"):
        ops.color(some_bytes(1), magnitudes(*[0.5] * 4))


def test_a_missing_kornia_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "kornia":
            raise ImportError("No module named 'kornia'")
        return plain_import(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "kornia", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install kornia"):
        ops.rotate(some_bytes(1), magnitudes(*[0.5] * 4))


def test_an_operation_uses_only_what_it_says() -> None:
    signed = Operation(lambda images, m: images * m.view(-1, 1, 1, 1), signed=True)
    images = torch.ones(2, 1, 1, 1)
    result = signed(images, torch.tensor([0.2, 0.4]), torch.tensor([1, -1]), images)
    torch.testing.assert_close(result.flatten(), torch.tensor([0.2, -0.4]))

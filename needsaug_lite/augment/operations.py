"""The operations of AutoAugment on batches of floats, each with a derivative.

Images are floats in [0, 1] of shape (B, C, H, W), magnitudes m lie in [0, 1], one for
each image. m runs linearly from the lower to the upper end of the range that
AutoAugment prints; a signed operation takes ±m. What a warp uncovers is black.

    operation       range                     derivative by m     by the image
    shear_x, _y     ±0.3                      exact               exact
    translate_x,_y  ±0.45 of the side         exact               exact
    rotate          ±30 degrees               exact               exact
    cutout          0 to 0.18 of the side     exact               exact
    contrast        factor 0.1 to 1.9         that of the blend, before the clamp
    color           factor 0.1 to 1.9         that of the blend, before the clamp
    brightness      factor 0.1 to 1.9         that of the blend, before the clamp
    sharpness       factor 0.1 to 1.9         that of the blend, before the clamp
    posterize       4 to 8 bits               1, truly 0          1, truly 0
    solarize        threshold 0 to 256        1, truly 0          exact, ±1
    equalize        -                         -                   1, truly 0
    auto_contrast   -                         -                   1, truly 1/(max - min)
    invert          -                         -                   exact, -1

Almost everywhere the value of posterize and solarize does not move with m, and
equalize, auto_contrast and invert have no m: 5 of 15 operations (5 of 14 for grey
images) give m no derivative. The straight-through estimator, f̂ = stop(f) + m - stop(m),
gives the first two the derivative 1, whose sign is right for posterize on average: more
bits make a truncated image lighter. The same estimator by the image lets a gradient
pass to what came before the operation.

Source: AutoAugment (Cubuk et al. 2019) Table 6, for an image of 331 pixels; Faster
AutoAugment (Hataya et al. 2020) Sec. 3 for the straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from needsaug_lite.augment.straight_through import (
    clamp_to_unit,
    only_derivative_of,
    with_derivative_of,
)
from needsaug_lite.errors import UserError

_SHEAR, _SHIFT, _DEGREES = 0.3, 0.45, 30.0
_HOLE = 60 / 331  # of the shorter side
_FACTOR = (0.1, 1.9)
_BITS = (4.0, 8.0)
_GREY = 0.5  # what cutout leaves


@dataclass(frozen=True)
class Operation:
    """One operation, and what it needs.

    Attributes:
        function: called with (images, m, centres), as far as the operation uses them.
        has_magnitude: the function takes a magnitude.
        signed: the magnitude is multiplied by a sign that is drawn for each image.
        needs_colour: only for images of 3 channels.
        straight_through: a derivative that is zero or unbounded is replaced by 1.
        placed: the function takes centres, shape (B, 2).
    """

    function: Callable[..., Tensor]
    has_magnitude: bool = True
    signed: bool = False
    needs_colour: bool = False
    straight_through: bool = False
    placed: bool = False

    def __call__(
        self, images: Tensor, magnitude: Tensor, sign: Tensor, centres: Tensor
    ) -> Tensor:
        """Change every image.

        Args:
            images: floats in [0, 1], shape (B, C, H, W).
            magnitude: in [0, 1], shape (B,); unused without `has_magnitude`.
            sign: 1 or -1, shape (B,); unused without `signed`.
            centres: (down, right) as shares of the image, shape (B, 2); unused without
                `placed`.

        Returns:
            Floats in [0, 1], shape (B, C, H, W).
        """
        arguments = [images]
        if self.has_magnitude:
            arguments.append(sign * magnitude if self.signed else magnitude)
        if self.placed:
            arguments.append(centres)
        return self.function(*arguments)


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move row y to the right by 0.3 m y pixels, bilinear; m in [-1, 1], shape (B,)."""
    factors = torch.stack([_SHEAR * magnitude, torch.zeros_like(magnitude)], 1)
    return _shear(images, factors)


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move column x down by 0.3 m x pixels, bilinear; m in [-1, 1], shape (B,)."""
    factors = torch.stack([torch.zeros_like(magnitude), _SHEAR * magnitude], 1)
    return _shear(images, factors)


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move to the right by 0.45 m of the width, bilinear; m in [-1, 1], shape (B,)."""
    pixels = _SHIFT * images.shape[3] * magnitude
    return _translate(images, torch.stack([pixels, torch.zeros_like(pixels)], 1))


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Move down by 0.45 m of the height, bilinear; m in [-1, 1], shape (B,)."""
    pixels = _SHIFT * images.shape[2] * magnitude
    return _translate(images, torch.stack([torch.zeros_like(pixels), pixels], 1))


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Turn by 30 m degrees against the clock, bilinear; m in [-1, 1], shape (B,)."""
    turned: Tensor = _kornia().geometry.transform.rotate(images, _DEGREES * magnitude)
    return turned


def cutout(images: Tensor, magnitude: Tensor, centres: Tensor) -> Tensor:
    """Make a square grey whose side is 0.18 m of the shorter side of the image.

    x̂ = x + a_row a_column (1/2 - x),  a the share of the pixel that the square covers

    The shares follow the side, so that the derivative is exact and only the border of
    the square has one.

    Args:
        images: shape (B, C, H, W).
        magnitude: m in [0, 1], shape (B,).
        centres: (down, right) as shares of height and width, shape (B, 2).
    """
    height, width = images.shape[2:]
    half = _HOLE / 2 * min(height, width) * magnitude
    rows = _covered(height, centres[:, 0] * height, half)
    columns = _covered(width, centres[:, 1] * width, half)
    hole = rows.unsqueeze(2) * columns.unsqueeze(1)
    return images + hole.unsqueeze(1) * (_GREY - images)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the mean grey of the image: factor f = 0.1 + 1.8 m keeps x at f = 1.

    x̂ = clamp( g + f (x - g) ),  g the mean of the image in grey
    """
    grey = _in_grey(images) if images.shape[1] == 3 else images
    return _blend(grey.mean((1, 2, 3), keepdim=True), images, magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with the image in grey: factor f = 0.1 + 1.8 m, for 3 channels only."""
    if images.shape[1] != 3:
        raise UserError(
            f"color changes images of 3 channels, not of {images.shape[1]}; leave it "
            "out of the operations"
        )
    return _blend(_in_grey(images), images, magnitude)


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with black: x̂ = clamp(f x), f = 0.1 + 1.8 m."""
    return _blend(torch.zeros_like(images), images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend with a smoothed image, f = 0.1 + 1.8 m; pixels at the border stay."""
    channels = images.shape[1]
    kernel = images.new_full((channels, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = conv2d(images, kernel, groups=channels)
    inside = pad(torch.ones_like(smooth, dtype=torch.bool), [1] * 4)
    smooth = torch.where(inside, pad(smooth, [1] * 4), images)
    return _blend(smooth, images, magnitude)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the upper round(4 + 4 m) bits of each byte; 8 bits keep the image."""
    low, high = _BITS
    bits = (low + (high - low) * _each(magnitude.detach())).round()
    step = 2 ** (8 - bits)
    bytes_ = (255 * images.detach()).round()
    kept = (bytes_ - bytes_.remainder(step)) / 255
    value = torch.where(bits == 8, images.detach(), kept)
    return with_derivative_of(value, images, _each(magnitude))


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the pixels of at least 256 m / 255; m = 1 keeps all."""
    dark = images < 256 / 255 * _each(magnitude)
    value = torch.where(dark, images, 1 - images)
    return value + only_derivative_of(_each(magnitude))


def equalize(images: Tensor) -> Tensor:
    """Spread the histogram of bytes evenly, for each image and channel."""
    # The look-up truncates to a byte: a hair above each byte it can't miss it.
    bytes_ = (255 * images.detach()).round() + 1e-3
    value = _kornia().enhance.equalize(bytes_ / 255).clamp(0, 1)
    return with_derivative_of(value, images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each image and channel to [0, 1]; a channel of one value stays."""
    fixed = images.detach()
    low = fixed.amin((2, 3), keepdim=True)
    width = fixed.amax((2, 3), keepdim=True) - low
    flat = width == 0
    value = torch.where(flat, fixed, (fixed - low) / torch.where(flat, 1, width))
    return with_derivative_of(value, images)


def invert(images: Tensor) -> Tensor:
    """x̂ = 1 - x."""
    return 1 - images


#: Every operation by name.
OPERATIONS: dict[str, Operation] = {
    "shear_x": Operation(shear_x, signed=True),
    "shear_y": Operation(shear_y, signed=True),
    "translate_x": Operation(translate_x, signed=True),
    "translate_y": Operation(translate_y, signed=True),
    "rotate": Operation(rotate, signed=True),
    "auto_contrast": Operation(
        auto_contrast, has_magnitude=False, straight_through=True
    ),
    "invert": Operation(invert, has_magnitude=False),
    "equalize": Operation(equalize, has_magnitude=False, straight_through=True),
    "solarize": Operation(solarize, straight_through=True),
    "posterize": Operation(posterize, straight_through=True),
    "contrast": Operation(contrast),
    "color": Operation(color, needs_colour=True),
    "brightness": Operation(brightness),
    "sharpness": Operation(sharpness),
    "cutout": Operation(cutout, placed=True),
}


def _blend(degenerate: Tensor, images: Tensor, magnitude: Tensor) -> Tensor:
    """clamp( d + f (x - d) ), f = 0.1 + 1.8 m; not kornia's, whose clamp stops f."""
    low, high = _FACTOR
    factor = low + (high - low) * _each(magnitude)
    return clamp_to_unit(degenerate + factor * (images - degenerate))


def _covered(length: int, centre: Tensor, half: Tensor) -> Tensor:
    """Share of each pixel inside centre ± half, shape (B, length)."""
    start = torch.arange(length, device=centre.device, dtype=centre.dtype)
    left = torch.maximum(start, (centre - half).unsqueeze(1))
    right = torch.minimum(start + 1, (centre + half).unsqueeze(1))
    return (right - left).clamp(min=0)


def _each(magnitude: Tensor) -> Tensor:
    return magnitude.view(-1, 1, 1, 1)


def _shear(images: Tensor, factors: Tensor) -> Tensor:
    sheared: Tensor = _kornia().geometry.transform.shear(
        images, factors, align_corners=True
    )
    return sheared


def _translate(images: Tensor, pixels: Tensor) -> Tensor:
    moved: Tensor = _kornia().geometry.transform.translate(images, pixels)
    return moved


def _in_grey(images: Tensor) -> Tensor:
    grey: Tensor = _kornia().color.rgb_to_grayscale(images)
    return grey


def _kornia() -> Any:
    """Imported at the first use: the command line starts without it."""
    try:
        import kornia
    except ImportError as error:
        raise UserError(
            "learned augmentation needs the package kornia, which can't be imported "
            f"({error}); install it with `pip install kornia`"
        ) from error
    return kornia

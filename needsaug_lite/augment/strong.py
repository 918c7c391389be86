"""The strong transformation T of mgr: RandAugment, differentiable in the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from needsaug_lite.augment.operations import OPERATIONS
from needsaug_lite.augment.straight_through import clamp_to_unit
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError

# RandAugment's fourteen operations without `color`, which grey images can't take.
GREY_OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "rotate",
    "solarize",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
_BLENDS = ("brightness", "color", "contrast", "sharpness")
_WEAKER_WHEN_LARGER = ("posterize", "solarize")
_KORNIA_LEVELS = 30


@dataclass(frozen=True)
class GreyDraws:
    """All that is random in one pass of B grey images through n operations.

    Attributes:
        names: the operations in their order, from `GREY_OPERATIONS`.
        signs: 1 or -1 for each operation and image, shape (n, B), on the CPU.
    """

    names: tuple[str, ...]
    signs: Tensor

    def __len__(self) -> int:
        return self.signs.shape[1]


@dataclass(frozen=True)
class ColourDraws:
    """All that is random in one pass of B colour images.

    Attributes:
        count: B.
        settings: kornia's operations with their sizes and signs, for a replay.
    """

    count: int
    settings: Sequence[Any]

    def __len__(self) -> int:
        return self.count


#: All that is random in one call of `StrongAugmentation`.
StrongDraws = GreyDraws | ColourDraws


@dataclass(frozen=True)
class StrongAugmentation:
    """T of PCR: n different operations of RandAugment, all of strength s = M/30.

    ℓ_PCR = ‖ g_ψ(T(x_p)) - g_ψ(x_p) ‖²                                    (mgr Eq. 5)

    As in kornia, the operations are drawn once for a batch and the signs for each
    image. With given draws T is a fixed function of the images: every evaluation
    inside a finite difference sees the same one. Colour images go through kornia's
    RandAugment with its own list and ranges. kornia refuses grey images; they go
    through `GREY_OPERATIONS`, with the ranges of `operations`:

        operation                grey, this library         colour, kornia
        rotate                   ±30 s degrees              ±30 s degrees
        shear_x, _y              slope ±0.3 s               ±54 s degrees
        translate_x, _y          ±0.45 s of the side        ±0.1 s of the side
        contrast, brightness,    factor 1 ± 0.9 s           factor 0.1 + 1.8 s
            sharpness
        posterize                round(8 - 4 s) bits        ⌊8 - 4 s⌋ bits
        solarize                 threshold 1 - s            threshold s
        auto_contrast, equalize  without strength           without strength
        only in one list         identity                   invert, solarize_add, color

    In kornia, the strength of blends and solarize is not monotonous: s = 1/2 keeps
    contrast and sharpness, and solarize is stronger for small s. kornia's brightness
    adds the factor less 1. For grey images s = 0 keeps all but what auto_contrast and
    equalize change; equalize keeps images of up to 255 pixels.

    The derivative by the images is exact for warps, and for blends until they clamp.
    For grey images posterize, equalize, auto_contrast and the clamps have derivative
    1 (see `operations`), so that every draw hands a gradient on; kornia's posterize
    and equalize have derivative 0, see `zero_gradient_share`. A warp has no second
    derivative by the images; what the look-ahead of mgr needs, ∂/∂x of ∂/∂θ, works.

    Attributes:
        operations: n, how many different operations follow each other.
        magnitude: s in [0, 1]; for colour, kornia needs it strictly between.

    Raises:
        UserError: for values outside these ranges.

    Source: mgr Sec. 4.1, "RandAugment by following UDA, with the differentiable
    transformations of Kornia", whose n and M are unpublished; 2 and 10 of 30 are the
    choice of errata M9. RandAugment (Cubuk et al. 2020) Sec. 3 for the list.
    """

    operations: Annotated[int, Ge(1), Le(len(GREY_OPERATIONS))] = 2
    magnitude: Annotated[float, Ge(0), Le(1)] = 10 / 30

    def __post_init__(self) -> None:
        if not 1 <= self.operations <= len(GREY_OPERATIONS):
            raise UserError(
                f"operations is {self.operations}; give how many of the "
                f"{len(GREY_OPERATIONS)} follow each other, at least 1"
            )
        if not 0 <= self.magnitude <= 1:
            raise UserError(
                f"magnitude is {self.magnitude}; give a strength between 0 and 1"
            )

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> StrongDraws:
        """All random numbers of one pass, from a CPU generator.

        Args:
            shape: of the images, (B, C, H, W).
            generator: it alone is advanced; the default one stays as it is.

        Raises:
            UserError: for images of another number of channels than 1 or 3.
        """
        _check_shape(shape)
        if shape[1] == 3:
            return self._draw_colour(shape, generator)
        order = torch.randperm(len(GREY_OPERATIONS), generator=generator)
        names = [GREY_OPERATIONS[i] for i in order[: self.operations].tolist()]
        size = (self.operations, shape[0])
        signs = 1 - 2 * torch.randint(2, size, generator=generator)
        return GreyDraws(tuple(names), signs)

    def __call__(self, images: Tensor, draws: StrongDraws) -> Tensor:
        """T(x), differentiable in x.

        Args:
            images: floats in [0, 1], shape (B, C, H, W), C 1 or 3.
            draws: from `draw` for images of this shape.

        Returns:
            Floats in [0, 1], shape (B, C, H, W).

        Raises:
            UserError: for bytes, other channels, or draws for other images.
        """
        _check_images(images, draws)
        if isinstance(draws, ColourDraws):
            policy = _kornia_policy(self.operations, self.magnitude)
            changed = policy(images, params=draws.settings)
        else:
            changed = self._grey(images, draws)
        # Interpolation may leave [0, 1] by a rounding error.
        return clamp_to_unit(changed)

    def _grey(self, images: Tensor, draws: GreyDraws) -> Tensor:
        all_signs = on_device(draws.signs, images.device).to(images.dtype)
        for name, signs in zip(draws.names, all_signs, strict=True):
            strength = torch.full_like(signs, self.magnitude)
            images = perform(name, images, strength, signs)
        return images

    def _draw_colour(
        self, shape: Sequence[int], generator: torch.Generator
    ) -> ColourDraws:
        policy = _kornia_policy(self.operations, self.magnitude)
        seed = int(torch.randint(2**62, (), generator=generator))
        # As in `SimAugment`: kornia draws from the CPU's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return ColourDraws(shape[0], policy.forward_parameters(torch.Size(shape)))


def perform(name: str, images: Tensor, strength: Tensor, signs: Tensor) -> Tensor:
    """Change each image by one operation of RandAugment; s = 0 keeps what it can.

    Args:
        name: from `GREY_OPERATIONS`, or "color" for 3 channels.
        images: floats in [0, 1], shape (B, C, H, W).
        strength: s, shape (B,), as for grey images in `StrongAugmentation`; larger
            than 1 goes on beyond RandAugment's range.
        signs: 1 or -1, shape (B,).
    """
    if name == "identity":
        return images
    magnitude = _library_magnitude(name, strength, signs)
    # None of these operations has a place, so that centres aren't looked at.
    return OPERATIONS[name](images, magnitude, signs, signs)


def zero_gradient_share(
    augmentation: StrongAugmentation,
    images: Tensor,
    draws_count: int,
    generator: torch.Generator,
) -> float:
    """Share of draws of T that let no gradient through to any pixel of the batch.

    For each draw a random vector v is pulled back, vᵀ ∂T(x)/∂x; the draw counts if
    the result is exactly 0 everywhere.

    It is 0 for grey images. With their true derivatives it would be the share of draws
    with posterize or equalize, 1 - C(11, n)/C(13, n) of the thirteen operations: 15%
    for one operation, 29% for two. kornia's have the true ones, and it is
    1 - C(13, n)/C(15, n): 13% and 26%.

    Args:
        augmentation: T.
        images: floats in [0, 1], shape (B, C, H, W).
        draws_count: how many draws to try, at least 1.
        generator: of the draws and of v, on the CPU.

    Returns:
        The share, between 0 and 1.

    Raises:
        UserError: as T, or if there is no draw.
    """
    if draws_count < 1:
        raise UserError(f"draws_count is {draws_count}; try at least 1 draw")
    pixels = images.detach().requires_grad_()
    arrived = []
    for _ in range(draws_count):
        changed = augmentation(pixels, augmentation.draw(images.shape, generator))
        vector = torch.randn(images.shape, generator=generator)
        upstream = on_device(vector, images.device).to(images.dtype)
        (gradient,) = torch.autograd.grad(changed, pixels, upstream)
        arrived.append((gradient != 0).any())
    return float((~torch.stack(arrived)).float().mean())


def _library_magnitude(name: str, strength: Tensor, signs: Tensor) -> Tensor:
    """The m of `operations`, of which larger is not always stronger, shape (B,)."""
    if name in _BLENDS:
        return (1 + signs * strength) / 2
    return 1 - strength if name in _WEAKER_WHEN_LARGER else strength


@cache
def _kornia_policy(operations: int, magnitude: float) -> Any:
    """RandAugment of kornia, built once."""
    from kornia.augmentation.auto import RandAugment

    if not 0 < magnitude < 1:
        raise UserError(
            f"magnitude is {magnitude}; for colour images it must lie between 0 and 1, "
            "without the two ends"
        )
    # Declared as a whole number, but only divided by 30.
    level: Any = _KORNIA_LEVELS * magnitude
    policy = RandAugment(operations, level, transformation_matrix_mode="skip")
    return policy.requires_grad_(False)


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise UserError(
            f"the strong augmentation changes images of shape (B, C, H, W) with 1 or 3 "
            f"channels, not of shape {tuple(shape)}"
        )


def _check_images(images: Tensor, draws: StrongDraws) -> None:
    _check_shape(images.shape)
    if not images.is_floating_point():
        raise UserError(
            "the strong augmentation needs floats between 0 and 1, which have a "
            f"derivative, not {images.dtype}; divide bytes by 255"
        )
    colour = images.shape[1] == 3
    if len(draws) != len(images) or isinstance(draws, ColourDraws) != colour:
        kind = "colour" if isinstance(draws, ColourDraws) else "grey"
        raise UserError(
            f"these draws are for {len(draws)} {kind} images, not for images of shape "
            f"{tuple(images.shape)}; draw with draw(images.shape, generator)"
        )

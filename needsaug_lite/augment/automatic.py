"""AugMix, RandAugment and TrivialAugment, with an own operation for every image.

Each draws operations of `operations` evenly, with a level l in [0, 1] and, where it
has one, a sign. A space says which strength s an operation has at l = 0 and at l = 1;
between them s is linear, and `strong.perform` says what s means:

    operation              RandAugment     TrivialAugment (Wide)    AugMix
    rotate                 ±30 l degrees   ±135 l degrees           ±30 l degrees
    shear_x, _y            slope ±0.3 l    ±0.99 l                  ±0.3 l
    translate_x, _y        ±0.45 l of the  ±l of the side           ±l/3 of the side
                           side
    contrast, brightness,  factor          factor 1 ± 0.99 l        -
        sharpness, color   1 ± 0.9 l
    posterize              8 - 4 l bits    8 - 6 l bits             4 - 4 l bits
    solarize               threshold 1 - l in all three
    auto_contrast,         without level in all three
        equalize
    identity               yes             yes                      -

`color` is for 3 channels only. Warps are bilinear and uncover black. Between the
operations of an image nothing is rounded to bytes.

torchvision has all three, but draws from the global generator and takes one operation
and magnitude for a whole batch. Image by image its AugMix needs 40 to 56 ms for 64
small images on one thread of a CPU, where this module needs 6 to 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from needsaug_lite.augment.pixels import as_bytes, as_floats
from needsaug_lite.augment.strong import GREY_OPERATIONS, perform
from needsaug_lite.data.splits import on_device

PolicyName = Literal["augmix", "randaugment", "trivialaugment"]
Space = Mapping[str, tuple[float, float]]

LEVELS = 30  # and level 0
# What an operation reaches at level 1, over what RandAugment's reaches.
_WIDE = {
    "rotate": 135 / 30,
    "shear_x": 0.99 / 0.3,
    "shear_y": 0.99 / 0.3,
    "translate_x": 1 / 0.45,
    "translate_y": 1 / 0.45,
    "brightness": 0.99 / 0.9,
    "color": 0.99 / 0.9,
    "contrast": 0.99 / 0.9,
    "sharpness": 0.99 / 0.9,
    "posterize": 6 / 4,
}

RANDAUGMENT_SPACE: Space = dict.fromkeys((*GREY_OPERATIONS, "color"), (0.0, 1.0))
TRIVIALAUGMENT_SPACE: Space = {
    name: (0.0, _WIDE.get(name, 1.0)) for name in RANDAUGMENT_SPACE
}
# What its authors test on (contrast, brightness, ...) isn't trained on.
AUGMIX_SPACE: Space = {
    "auto_contrast": (0.0, 1.0),
    "equalize": (0.0, 1.0),
    "posterize": (1.0, 2.0),
    "rotate": (0.0, 1.0),
    "solarize": (0.0, 1.0),
    "shear_x": (0.0, 1.0),
    "shear_y": (0.0, 1.0),
    "translate_x": (0.0, 1 / 3 / 0.45),
    "translate_y": (0.0, 1 / 3 / 0.45),
}


@torch.no_grad()
def randaugment(
    images: Tensor,
    draw: torch.Generator,
    *,
    operations: int = 2,
    level: float = 10 / 30,
) -> Tensor:
    """N operations one after the other, each drawn evenly, all of level l = M / 30.

    Args:
        images: uint8, shape (B, C, H, W).
        draw: CPU generator; the default one stays as it is.
        operations: N; the same operation may come twice.
        level: l in [0, 1]; 0 leaves only auto_contrast and equalize.

    Returns:
        uint8, shape (B, C, H, W).

    Source: RandAugment (Cubuk et al. 2020) Sec. 3, where N and M are tuned for each
    data set; 2 and 10 are those of mgr's T, see `StrongAugmentation`.
    """
    levels = torch.full((len(images),), float(level))
    changed = as_floats(images)
    for _ in range(operations):
        changed = _operate(changed, RANDAUGMENT_SPACE, levels, draw)
    return as_bytes(changed)


@torch.no_grad()
def trivialaugment(images: Tensor, draw: torch.Generator) -> Tensor:
    """One operation for each image, drawn evenly, its level evenly from 0, 1/30, ... 1.

    Args:
        images: uint8, shape (B, C, H, W).
        draw: CPU generator; the default one stays as it is.

    Returns:
        uint8, shape (B, C, H, W).

    Source: TrivialAugment (Müller & Hutter 2021) Algorithm 1 with the Wide space, made
    for photographs of 32 pixels: its largest shift leaves nothing of an image.
    """
    levels = torch.randint(LEVELS + 1, (len(images),), generator=draw) / LEVELS
    return as_bytes(_operate(as_floats(images), TRIVIALAUGMENT_SPACE, levels, draw))


@torch.no_grad()
def augmix(
    images: Tensor,
    draw: torch.Generator,
    *,
    chains: int = 3,
    depth: int = 3,
    severity: float = 3,
) -> Tensor:
    """A mixture of the image and of K chains of operations that start from it.

    x̂ = μ x + (1 - μ) Σ_k w_k (o_{k,d_k} ∘ ... ∘ o_{k,1})(x)

    w ~ Dirichlet(1, ..., 1), μ ~ Beta(1, 1), d_k even on 1..depth, and the level of
    every operation even on [0.01, severity / 10]. AugMix's second part, a loss that
    asks for consistent predictions (Jensen-Shannon), isn't part of this.

    Args:
        images: uint8, shape (B, C, H, W).
        draw: CPU generator; the default one stays as it is.
        chains: K.
        depth: most operations of a chain.
        severity: from 1 to 10.

    Returns:
        uint8, shape (B, C, H, W).

    Source: AugMix (Hendrycks et al. 2020) Algorithm 1 and Appendix C; the levels and
    posterize from at most 4 bits are those of its code.
    """
    start = as_floats(images)
    weights = mixing_weights(len(images), chains, draw)
    lengths = torch.randint(1, depth + 1, (chains * len(images),), generator=draw)
    ends = start.repeat(chains, 1, 1, 1)
    for position in range(depth):
        levels = torch.rand(len(ends), generator=draw)
        levels = 0.01 + (severity / 10 - 0.01) * levels
        ends = _operate(ends, AUGMIX_SPACE, levels, draw, lengths > position)
    parts = torch.cat([start.unsqueeze(0), ends.unflatten(0, (chains, -1))])
    shares = on_device(weights, images.device).view(chains + 1, -1, 1, 1, 1)
    return as_bytes((shares * parts).sum(0))


def mixing_weights(count: int, chains: int, draw: torch.Generator) -> Tensor:
    """AugMix's μ and (1 - μ) w_1, ..., (1 - μ) w_K, shape (K + 1, B)."""
    kept = torch.rand(1, count, generator=draw)
    # Exponential variables over their sum are Dirichlet(1, ..., 1).
    waits = torch.empty(chains, count).exponential_(generator=draw)
    return torch.cat([kept, (1 - kept) * waits / waits.sum(0)])


POLICIES: dict[PolicyName, Callable[[Tensor, torch.Generator], Tensor]] = {
    "augmix": augmix,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
}


def _operate(
    images: Tensor,
    space: Space,
    levels: Tensor,
    draw: torch.Generator,
    wanted: Tensor | None = None,
) -> Tensor:
    """Each image through an operation of its own.

    Args:
        images: floats in [0, 1], shape (B, C, H, W).
        levels: in [0, 1], shape (B,), on the CPU.
        wanted: images to change, bool, shape (B,), on the CPU; all if None.
    """
    colour = images.shape[1] == 3
    names = [name for name in space if colour or name != "color"]
    chosen = torch.randint(len(names), levels.shape, generator=draw)
    signs = 1.0 - 2 * torch.randint(2, levels.shape, generator=draw)
    first, last = torch.tensor([space[name] for name in names]).T
    strengths = torch.lerp(first[chosen], last[chosen], levels)
    if wanted is not None:
        names.append("identity")
        chosen = torch.where(wanted, chosen, len(names) - 1)
    return _grouped(images, names, chosen, torch.stack([strengths, signs]))


def _grouped(
    images: Tensor, names: list[str], chosen: Tensor, settings: Tensor
) -> Tensor:
    """The images of each operation together, which the host knows without waiting."""
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(names)).tolist()
    place = on_device(order, images.device)
    settings = on_device(settings[:, order], images.device)
    rows, settings_of = images[place].split(counts), settings.split(counts, 1)
    changed = [
        perform(name, some, *how)
        for name, some, how in zip(names, rows, settings_of, strict=True)
        if len(some)
    ]
    return torch.empty_like(images).index_copy_(0, place, torch.cat(changed))

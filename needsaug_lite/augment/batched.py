"""Random crop, flip, automatic policy and cutout of a whole batch at once.

Every function takes a CPU generator, so that the draws are the same on every
device; the pixels stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import pad

from needsaug_lite.augment.automatic import POLICIES, PolicyName
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError


def random_crop(images: Tensor, padding: int, draw: torch.Generator) -> Tensor:
    """Pad with zeros on every side and cut a window of the old size at random.

    Args:
        images: shape (B, C, H, W), any type.
        padding: pixels added on every side; offsets are uniform on 0..2*padding.
        draw: of the offsets, on the CPU.

    Returns:
        Shape (B, C, H, W), same type.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=draw)
    top, left = on_device(offsets, images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    padded = pad(images, [padding] * 4).permute(0, 2, 3, 1)
    batch = torch.arange(count, device=images.device).view(-1, 1, 1)
    windows = padded[batch, rows.unsqueeze(2), columns.unsqueeze(1)]
    return windows.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, draw: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: shape (B, C, H, W), any type.
        draw: decides which, on the CPU.

    Returns:
        Shape (B, C, H, W), same type.
    """
    coin = torch.rand(len(images), generator=draw) < 0.5
    coin = on_device(coin, images.device).view(-1, 1, 1, 1)
    return torch.where(coin, images.flip(3), images)


def cutout(images: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Set one square of each image to zero; its centre is uniform over the image.

    Args:
        images: shape (B, C, H, W).
        size: side of the square, pixels; parts outside the image are cut off.
        draw: of the centres, on the CPU.

    Returns:
        Shape (B, C, H, W), same type.
    """
    count, _, height, width = images.shape
    centres = on_device(torch.rand(2, count, 1, generator=draw), images.device)
    inside = []
    for centre, length in zip(centres, (height, width), strict=True):
        start = (centre * length).floor() - size // 2
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + size))
    hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
    return images.masked_fill(hole.unsqueeze(1), 0)


@dataclass(frozen=True)
class StandardAugmentation:
    """Crop, then flip, then an automatic policy, then cutout, each if asked for.

    Attributes:
        crop: padding of the random crop in pixels, 0 for none.
        flip: mirror at random; leave it off where left and right differ (digits).
        cutout: side of the erased square in pixels, 0 for none.
        policy: "augmix", "randaugment" or "trivialaugment", see `augment.automatic`.
            All three turn, shear and shift, but never mirror.

    Raises:
        UserError: if there is no such policy.
    """

    crop: Annotated[int, Ge(0)] = 0
    flip: bool = False
    cutout: Annotated[int, Ge(0)] = 0
    policy: PolicyName | None = None

    def __post_init__(self) -> None:
        if self.policy is not None and self.policy not in POLICIES:
            raise UserError(
                f"policy {self.policy!r} is unknown: give {', '.join(POLICIES)} or None"
            )

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Change a uint8 batch (B, C, H, W).

        Raises:
            UserError: if something is asked for and the batch holds features.
        """
        if self != StandardAugmentation() and images.is_floating_point():
            raise UserError(
                f"crop={self.crop}, flip={self.flip}, cutout={self.cutout}, "
                f"policy={self.policy}: these are changes of pixels, and here are "
                "features, which have no place in an image; leave crop, flip, cutout "
                "and policy out"
            )
        if self.crop:
            images = random_crop(images, self.crop, draw)
        if self.flip:
            images = random_flip(images, draw)
        if self.policy is not None:
            images = POLICIES[self.policy](images, draw)
        return cutout(images, self.cutout, draw) if self.cutout else images

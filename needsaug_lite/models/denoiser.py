"""The small U-Net that a diffusion model asks for the image behind the noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# From this height on, the network sees patches of 2 x 2 pixels as one.
PATCHED_FROM = 16
FREQUENCIES = 16


class NoiseConditionalUNet(nn.Module):
    """F(x; c, y): two resolutions, and in every block a shift and scale by c and y.

    Its last layer starts at 0, so that D(x; σ) starts as c_skip(σ) x.

    Args:
        channels: of the images.
        size: height and width of the images.
        num_classes: C.
        width: channels at the finer resolution; the coarser one has twice as many.

    Source: our own, small enough for a CPU; Karras et al. 2022 use networks of more
    than 50 million weights.
    """

    frequencies: Tensor

    def __init__(self, channels: int, size: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.patch = 2 if size >= PATCHED_FROM else 1
        embedding, inner = 4 * width, 2 * width
        powers = torch.linspace(0, math.log(FREQUENCIES), FREQUENCIES).exp()
        self.register_buffer("frequencies", math.pi / 2 * powers, persistent=False)
        self.noise = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.classes = nn.Embedding(num_classes, embedding)
        self.stem = nn.Conv2d(channels * self.patch**2, width, 3, padding=1)
        self.before = _Block(width, width, embedding)
        self.down = nn.Conv2d(width, inner, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(_Block(inner, inner, embedding) for _ in range(2))
        self.after = _Block(inner + width, width, embedding)
        self.last = nn.Sequential(
            _norm(width),
            nn.SiLU(),
            _silent(nn.Conv2d(width, channels * self.patch**2, 3, padding=1)),
        )

    def forward(self, images: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """Numbers like the images from images (B, ...), c (B,) and labels (B,)."""
        angles = noise[:, None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        given = functional.silu(self.noise(waves) + self.classes(labels))
        height, breadth = images.shape[2:]
        # An odd row or column gets a neighbour that is cut off again.
        padded = functional.pad(
            images, (0, breadth % self.patch, 0, height % self.patch)
        )
        fine = self.before(
            self.stem(functional.pixel_unshuffle(padded, self.patch)), given
        )
        coarse = self.down(fine)
        for block in self.middle:
            coarse = block(coarse, given)
        back = functional.interpolate(coarse, fine.shape[2:])
        joined = self.after(torch.cat([back, fine], 1), given)
        found = functional.pixel_shuffle(self.last(joined), self.patch)
        return found[:, :, :height, :breadth]


class _Block(nn.Module):
    """x + conv(silu(a norm(conv(silu(norm(x)))) + b)), a and b from noise and class."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(before), _norm(after, affine=False)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * after)
        self.conv2 = _silent(nn.Conv2d(after, after, 3, padding=1))
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scale, shift = self.film(given)[:, :, None, None].chunk(2, 1)
        inner = self.norm2(self.conv1(functional.silu(self.norm1(x))))
        changed: Tensor = self.conv2(functional.silu((1 + scale) * inner + shift))
        kept: Tensor = self.short(x)
        return changed + kept


def _norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels, affine=affine)


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights 0: what it belongs to starts without effect."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

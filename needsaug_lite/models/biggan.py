"""A small BigGAN: residual blocks, spectral norm, classes through batch norm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, relu
from torch.nn.utils.parametrizations import spectral_norm

from needsaug_lite.models.gan import start_and_doublings, widths_down
from needsaug_lite.models.generators import Generator


def _convolution(before: int, after: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the side, of spectral norm 1."""
    layer = nn.Conv2d(before, after, size, padding=size // 2)
    nn.init.orthogonal_(layer.weight)
    spectral_norm(layer)
    return layer


def _linear(before: int, after: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer of spectral norm 1."""
    layer = nn.Linear(before, after, bias=bias)
    nn.init.orthogonal_(layer.weight)
    spectral_norm(layer)
    return layer


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and offset depend on a condition.

    x ↦ (1 + A c) ⊙ (x - μ) / σ + B c

    Args:
        channels: of the maps.
        condition_dim: length of c.

    Source: Brock et al. 2019, Sec. 3 and App. B, with c = (part of z, embedding of y).
    """

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = _linear(condition_dim, channels, bias=False)
        self.offset = _linear(condition_dim, channels, bias=False)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Maps (B, channels, H, W) under conditions (B, condition_dim)."""
        gain = 1 + self.gain(condition)
        offset: Tensor = self.offset(condition)
        normed: Tensor = self.norm(maps) * gain[:, :, None, None]
        return normed + offset[:, :, None, None]


class UpBlock(nn.Module):
    """A residual block that doubles the side.

    Args:
        before, after: channels.
        condition_dim: length of the condition of its two batch norms.

    Source: Brock et al. 2019, Fig. 15b.
    """

    def __init__(self, before: int, after: int, condition_dim: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(before, condition_dim)
        self.conv1 = _convolution(before, after)
        self.norm2 = ConditionalBatchNorm(after, condition_dim)
        self.conv2 = _convolution(after, after)
        self.short = _convolution(before, after, 1)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Maps (B, after, 2H, 2W) of maps (B, before, H, W)."""
        found = interpolate(relu(self.norm1(maps, condition)), scale_factor=2.0)
        found = self.conv2(relu(self.norm2(self.conv1(found), condition)))
        # A 1 x 1 convolution and a doubling commute; this order is cheaper.
        total: Tensor = found + interpolate(self.short(maps), scale_factor=2.0)
        return total


class DownBlock(nn.Module):
    """A residual block of a discriminator.

    Args:
        before, after: channels.
        halve: average neighbours to half the side.
        first: the block sees the image itself, which no ReLU may cut.

    Source: Brock et al. 2019, Fig. 15c.
    """

    def __init__(
        self, before: int, after: int, *, halve: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1 = _convolution(before, after)
        self.conv2 = _convolution(after, after)
        self.short = _convolution(before, after, 1) if before != after else None

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, after, H or H/2, W or W/2) of maps (B, before, H, W)."""
        found = self.conv2(relu(self.conv1(maps if self.first else relu(maps))))
        short = maps
        if self.halve:
            found, short = avg_pool2d(found, 2), avg_pool2d(maps, 2)
        # A 1 x 1 convolution and an average commute; this order is cheaper.
        total: Tensor = found + (short if self.short is None else self.short(short))
        return total


class BigGANGenerator(Generator):
    """Images from z, which enters at every block, and a shared embedding of y.

    z = (z_0, ..., z_n);  block b sees (z_b, e_y) through its batch norms

    Args:
        image_shape: channels, height and width.
        num_classes: C.
        latent_dim: length of z, at least one number for the start and each block.
        width: channels of the smallest map; each doubling halves them.
        embedding_dim: length of e_y.

    Source: Brock et al. 2019, App. B; fewer and narrower blocks, no self-attention.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        latent_dim: int,
        width: int,
        embedding_dim: int = 32,
    ) -> None:
        super().__init__(latent_dim, num_classes)
        self.start, doublings = start_and_doublings(image_shape)
        self.parts = doublings + 1
        widths = widths_down(width, doublings)
        self.width = widths[0]
        first, *sizes = [
            len(part) for part in torch.arange(latent_dim).tensor_split(self.parts)
        ]
        self.embedding = nn.Embedding(num_classes, embedding_dim)
        self.first = _linear(first, self.width * self.start**2)
        self.blocks = nn.ModuleList(
            UpBlock(before, after, size + embedding_dim)
            for (before, after), size in zip(pairwise(widths), sizes, strict=True)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.last = _convolution(widths[-1], image_shape[0])

    def symmetric(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images in [-1, 1], as the networks of a GAN see them."""
        first, *rest = latents.tensor_split(self.parts, 1)
        embedded = self.embedding(labels).to(latents.dtype)
        maps = self.first(first).view(-1, self.width, self.start, self.start)
        for block, part in zip(self.blocks, rest, strict=True):
            maps = block(maps, torch.cat([part, embedded], 1))
        images: Tensor = self.last(relu(self.norm(maps))).tanh()
        return images

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return (self.symmetric(latents, labels) + 1) / 2


class Projecting(nn.Module, ABC):
    """How real an image looks for its label, by the projection on its class.

    D(x, y) = wᵀh(x) + b + v_yᵀh(x)

    A subclass says what h is, and calls `add_scores` after making its layers.

    Attributes:
        feature_dim: D.
        projection: v, weight of shape (C, D), as that of a classifier's last layer.

    Source: Miyato and Koyama 2018, Sec. 3; used by needs_aware (errata N16).
    """

    def add_scores(self, feature_dim: int, num_classes: int) -> None:
        """Draw w, b and v, of spectral norm 1.

        Args:
            feature_dim: D.
            num_classes: C.
        """
        self.feature_dim = feature_dim
        self.head = _linear(feature_dim, 1)
        embedding = nn.Embedding(num_classes, feature_dim)
        nn.init.orthogonal_(embedding.weight)
        self.projection = spectral_norm(embedding)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """h, shape (B, D), of images in [-1, 1] (B, channels, H, W)."""

    def scores(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,) from h."""
        projections = (self.projection(labels) * features).sum(1)
        scores: Tensor = self.head(features).squeeze(1) + projections
        return scores

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,), higher for an image that looks real for its label."""
        return self.scores(self.features(images), labels)


class ProjectionDiscriminator(Projecting):
    """A projection discriminator with residual blocks.

    Args:
        image_shape: channels, height and width.
        num_classes: C.
        width: channels of the smallest map; halved towards the image.

    Attributes:
        feature_dim: D, equal to `width`.

    Source: Miyato and Koyama 2018; Brock et al. 2019, Fig. 15c.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int
    ) -> None:
        super().__init__()
        _, doublings = start_and_doublings(image_shape)
        widths = widths_down(width, doublings)[::-1]
        blocks = [DownBlock(image_shape[0], widths[1], halve=True, first=True)]
        blocks += [DownBlock(*pair, halve=True) for pair in pairwise(widths[1:])]
        blocks.append(DownBlock(widths[-1], widths[-1], halve=False))
        self.blocks = nn.Sequential(*blocks)
        self.add_scores(widths[-1], num_classes)

    def features(self, images: Tensor) -> Tensor:
        """h: sums over all places, (B, D), of images in [-1, 1] (B, channels, H, W)."""
        maps: Tensor = relu(self.blocks(images))
        return maps.sum((2, 3))

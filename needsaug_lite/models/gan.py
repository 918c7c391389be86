"""Small convolutional generators and discriminators, with and without labels."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

from needsaug_lite.errors import UserError
from needsaug_lite.models.generators import Generator

SMALLEST, LARGEST = 8, 32
# The first map of a generator has 4 to 7 pixels a side.
LARGEST_START = 7
SLOPE = 0.2  # of leaky ReLU: Radford et al. 2016, Sec. 4


def start_and_doublings(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Side s of the first map and number of doublings up to the image, H = s · 2^n.

    Args:
        image_shape: channels, height and width.

    Raises:
        UserError: if images of this shape can't be made here.
    """
    channels, height, width = image_shape
    start, doublings = height, 0
    while start > LARGEST_START and start % 2 == 0:
        start, doublings = start // 2, doublings + 1
    fits = (
        channels in (1, 3)
        and height == width
        and SMALLEST <= height <= LARGEST
        and start <= LARGEST_START
    )
    if not fits:
        raise UserError(
            f"images of {height} x {width} pixels with {channels} channel(s) can't be "
            "generated here; they need 1 or 3 channels and be square, with 8, 10, 12, "
            "14, 16, 20, 24, 28 or 32 pixels a side. Features are no images"
        )
    return start, doublings


def widths_down(width: int, doublings: int) -> list[int]:
    """Channels from the smallest map to the largest: halved each time, at least 8."""
    return [max(8, width >> step) for step in range(doublings + 1)]


class ConvGenerator(Generator):
    """Images from a latent vector and a label by transposed convolutions.

    (z, e_y) → linear → s x s → [convolution, batch norm, ReLU, doubling each time]
    → convolution → tanh

    Args:
        image_shape: channels, height and width.
        num_classes: C.
        latent_dim: length of z.
        width: channels of the smallest map; each doubling halves them.
        conditional: False leaves the label out.

    Source: Radford et al. 2016 (architecture); the label beside z as in Mirza and
    Osindero 2014.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        latent_dim: int,
        width: int,
        conditional: bool = True,
    ) -> None:
        super().__init__(latent_dim, num_classes)
        self.conditional = conditional
        self.start, doublings = start_and_doublings(image_shape)
        widths = widths_down(width, doublings)
        self.width = widths[0]
        # As many numbers for the label as for the noise: neither drowns the other.
        self.embedding = nn.Embedding(num_classes, latent_dim) if conditional else None
        given = latent_dim * (1 + conditional)
        self.first = nn.Linear(given, self.width * self.start**2, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(self.width), nn.ReLU()]
        for before, after in pairwise(widths):
            layers += [
                # 4 is a multiple of the stride: every pixel sums equally many terms.
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [nn.Conv2d(widths[-1], image_shape[0], 3, 1, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_draw_weights)

    def symmetric(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images in [-1, 1], as the networks of a GAN see them."""
        given = latents
        if self.embedding is not None:
            given = torch.cat([latents, self.embedding(labels).to(latents.dtype)], 1)
        first = self.first(given).view(-1, self.width, self.start, self.start)
        images: Tensor = self.layers(first)
        return images

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images in [0, 1]."""
        return (self.symmetric(latents, labels) + 1) / 2


class ConvDiscriminator(nn.Module):
    """Features of an image by strided convolutions; a subclass scores them.

    image → convolution → [convolution with stride 2, batch norm, leaky ReLU] → flat

    Real and fake images go through in separate batches, as is usual with batch norm,
    through which the scores of a batch depend on one another.

    Args:
        image_shape: channels, height and width.
        width: channels of the smallest map; halved towards the image.
        planes: channels that come beside those of the image.

    Attributes:
        feature_dim: D.

    Source: Radford et al. 2016, Sec. 3.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], width: int, planes: int = 0
    ) -> None:
        super().__init__()
        start, doublings = start_and_doublings(image_shape)
        widths = widths_down(width, doublings)[::-1]
        layers: list[nn.Module] = [
            nn.Conv2d(image_shape[0] + planes, widths[0], 3, 1, 1),
            nn.LeakyReLU(SLOPE),
        ]
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.feature_dim = widths[-1] * start**2

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of images in [-1, 1], shape (B, channels + planes, H, W)."""
        features: Tensor = self.layers(images)
        return features

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,), higher for an image that looks real."""


class UnconditionalDiscriminator(ConvDiscriminator):
    """How real an image looks, whatever its label: D(x) = wᵀh(x) + b."""

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__(image_shape, width)
        self.head = nn.Linear(self.feature_dim, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,)."""
        scores: Tensor = self.head(self.features(images))
        return scores.squeeze(1)


class LabelDiscriminator(ConvDiscriminator):
    """How real an image looks for its label, which is a second picture beside it.

    D(x, y) = wᵀh(x, e_y) + b,   e_y a learned plane of H x W numbers

    Args:
        image_shape: channels, height and width.
        num_classes: C.
        width: channels of the smallest map.

    Source: Mirza and Osindero 2014 (both are inputs of the discriminator), with a
    plane in place of a unit vector because the layers are convolutions.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int
    ) -> None:
        super().__init__(image_shape, width, planes=1)
        self.sides = image_shape[1:]
        self.embedding = nn.Embedding(num_classes, self.sides[0] * self.sides[1])
        self.head = nn.Linear(self.feature_dim, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,)."""
        plane = self.embedding(labels).view(-1, 1, *self.sides)
        scores: Tensor = self.head(self.features(torch.cat([images, plane], 1)))
        return scores.squeeze(1)


class AuxiliaryDiscriminator(UnconditionalDiscriminator):
    """How real an image looks, and which class it shows.

    D(x) = wᵀh(x) + b,   P(y | x) = softmax(V h(x) + c)

    Args:
        image_shape: channels, height and width.
        num_classes: C.
        width: channels of the smallest map.

    Source: Odena et al. 2017.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int
    ) -> None:
        super().__init__(image_shape, width)
        self.classes = nn.Linear(self.feature_dim, num_classes)

    def scores_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) and logits (B, C)."""
        features = self.features(images)
        return self.head(features).squeeze(1), self.classes(features)


def _draw_weights(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, as Radford et al. 2016, Sec. 4."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)

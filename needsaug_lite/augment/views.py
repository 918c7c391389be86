"""The two strong views of an image that contrastive long-tail methods train on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from needsaug_lite.augment.batched import cutout, random_crop, random_flip
from needsaug_lite.augment.pixels import as_bytes, as_floats
from needsaug_lite.augment.policies import AugmentationPolicy
from needsaug_lite.augment.published import published_policy
from needsaug_lite.errors import UserError


@dataclass(frozen=True)
class AutoAugmentCutout:
    """Crop, flip, a published policy of AutoAugment, cutout: the classifier's view.

    Defaults are for photographs of 32 pixels.

    Attributes:
        crop: padding of the random crop in pixels, 0 for none.
        flip: mirror at random; turn it off where left and right differ (digits).
        cutout: side of the erased square in pixels, 0 for none.
        policy: "cifar10", "svhn" or "imagenet", see `published_policy`.

    Source: FACoG Sec. 4.2, "AutoAugment and Cutout for training of f_cls", following
    PaCo (Cui et al. 2021), whose code fixes the order, padding 4 and side 16.
    """

    crop: Annotated[int, Ge(0)] = 4
    flip: bool = True
    cutout: Annotated[int, Ge(0)] = 16
    policy: str = "cifar10"

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Change a uint8 batch (B, C, H, W).

        Raises:
            UserError: if the batch holds features, if the images are smaller than
                the erased square, or if there is no such policy.
        """
        _refuse_features(images, "AutoAugmentCutout")
        self._refuse_small(images)
        if self.crop:
            images = random_crop(images, self.crop, draw)
        if self.flip:
            images = random_flip(images, draw)
        policy = _policy(self.policy, images.shape[1], images.device)
        cluster = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        draws = policy.draw(len(images), draw)
        images = as_bytes(policy.sample(as_floats(images), cluster, draws))
        return cutout(images, self.cutout, draw) if self.cutout else images

    def _refuse_small(self, images: Tensor) -> None:
        height, width = images.shape[2:]
        if self.cutout > min(height, width):
            raise UserError(
                f"cutout={self.cutout} erases too much of images of {height} x {width} "
                f"pixels; PaCo's half of the side is cutout={min(height, width) // 2}"
            )


@dataclass(frozen=True)
class SimAugment:
    """Resized crop, flip, colour jitter, grey: the view for contrastive learning.

    A crop of random area and shape (3:4 to 4:3) is stretched to the size of the image,
    bilinear. Images without 3 channels have only brightness and contrast jittered. The
    order of the four jitters is drawn once for a batch, all else for each image.

    Attributes:
        smallest_crop: smallest area of the crop as a share of the image.
        flip: mirror at random; turn it off where left and right differ (digits).
        jitter: largest change of the factors of brightness, contrast and saturation,
            and of the hue in turns.
        jitter_share: probability of the jitter.
        grey_share: probability of the change to grey.

    Source: FACoG Sec. 4.2, "SimAugment for training of f_proj", which is the view of
    SimCLR and MoCo v2 with PaCo's constants. As SimCLR (Chen et al. 2020) does for
    CIFAR-10 we leave out the blur, which PaCo's code has with probability 1/2.
    """

    smallest_crop: Annotated[float, Gt(0), Le(1)] = 0.2
    flip: bool = True
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: Annotated[float, Ge(0), Le(1)] = 0.8
    grey_share: Annotated[float, Ge(0), Le(1)] = 0.2

    def __call__(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Change a uint8 batch (B, C, H, W).

        Raises:
            UserError: if the batch holds features.
        """
        _refuse_features(images, "SimAugment")
        _, channels, height, width = images.shape
        seed = int(torch.randint(2**62, (), generator=draw))
        change = _sim_steps(self, channels, height, width)
        # kornia draws from the CPU's global generator. torch.manual_seed would seed
        # those of the GPUs as well, which nothing puts back.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            return as_bytes(change(as_floats(images)))


@cache
def _policy(name: str, channels: int, device: torch.device) -> AugmentationPolicy:
    return published_policy(name, channels).to(device)


@cache
def _sim_steps(
    settings: SimAugment, channels: int, height: int, width: int
) -> nn.Sequential:
    """The modules of kornia in PaCo's order, built once."""
    from kornia import augmentation

    # "slice" would go through the images one by one.
    crop = augmentation.RandomResizedCrop(
        (height, width), scale=(settings.smallest_crop, 1.0), cropping_mode="resample"
    )
    colour = channels == 3
    brightness, contrast, saturation, hue = settings.jitter
    jitter = augmentation.ColorJitter(
        brightness,
        contrast,
        saturation if colour else 0.0,
        hue if colour else 0.0,
        p=settings.jitter_share,
    )
    steps = [crop]
    if settings.flip:
        steps.append(augmentation.RandomHorizontalFlip(p=0.5))
    steps.append(jitter)
    if colour:
        steps.append(augmentation.RandomGrayscale(p=settings.grey_share))
    return nn.Sequential(*steps)


def _refuse_features(images: Tensor, view: str) -> None:
    if images.is_floating_point():
        raise UserError(
            f"{view} changes pixels, and here are features, which have no place in an "
            "image; leave it out, or load the images"
        )

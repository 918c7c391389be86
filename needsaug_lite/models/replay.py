"""A generator that makes nothing: it shows the training images again."""

from __future__ import annotations

import torch
from torch import Tensor

from needsaug_lite.data import Examples
from needsaug_lite.errors import UserError
from needsaug_lite.models.generators import Generator


class Replay(Generator):
    """Training images of the class that is asked for, each equally likely.

    x_p = x_{y, ⌊n_y Φ(z_1)⌋},   Φ the distribution function of the standard normal

    A control: what a method gains with it, it gains without any new image. The images
    don't change with z by degrees, so that nothing can be searched for.

    Args:
        examples: images in memory, as bytes.
        num_classes: C, each with at least one image.

    Raises:
        UserError: for features in place of images, or a class without images.
    """

    images: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, examples: Examples, num_classes: int) -> None:
        super().__init__(1, num_classes)
        order = examples.labels.cpu().argsort(stable=True)
        pixels = torch.cat(list(examples.images.stream(order.split(500))))
        if pixels.is_floating_point():
            raise UserError(
                "only images can be shown again as images, and these are features; "
                "leave features out"
            )
        counts = examples.counts(num_classes)
        if bool((counts == 0).any()):
            missing = counts.tolist().index(0)
            raise UserError(
                f"class {missing} has no training image that could be shown again"
            )
        self.register_buffer("images", pixels.to(counts.device))
        self.register_buffer("counts", counts)
        self.register_buffer("starts", counts.cumsum(0) - counts)

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images, whose derivative by the latent vectors is zero."""
        share = torch.special.ndtr(latents[:, 0])
        place = (share * self.counts[labels]).long()
        place = torch.minimum(place, self.counts[labels] - 1)
        found = self.images[self.starts[labels] + place].to(latents.dtype) / 255
        # Zero, but part of the graph: a search gets a derivative, and stands still.
        return found + 0 * latents[:, :, None, None].sum(1, keepdim=True)

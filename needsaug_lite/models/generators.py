"""What makes images from latent vectors, behind one interface."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError

Call = Callable[..., Tensor]


class Generator(nn.Module):
    """Images of given classes from standard normal latent vectors.

    x_p = G(z, y),   z ~ N(0, I)                                      (mgr Sec. 2.1)

    Attributes:
        latent_dim: length of z.
        num_classes: C.
        conditional: whether an image depends on its label.
    """

    conditional = True

    def __init__(self, latent_dim: int, num_classes: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.num_classes = num_classes

    @abstractmethod
    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images, with a derivative by the latent vectors.

        Args:
            latents: z, shape (B, latent_dim).
            labels: y, int64, shape (B,); an unconditional generator doesn't use them.

        Returns:
            Floats in [0, 1], shape (B, channels, H, W).
        """

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """What `sample` returns."""
        return self.sample(latents, labels)

    def noise(self, count: int, draw: torch.Generator) -> Tensor:
        """Standard normal z from a CPU generator, shape (count, latent_dim)."""
        found = torch.randn(count, self.latent_dim, generator=draw)
        parameter = next(self.parameters(), None)
        return found if parameter is None else on_device(found, parameter.device)

    def labels(self, count: int, draw: torch.Generator) -> Tensor:
        """Labels drawn evenly from all classes by a CPU generator, shape (count,)."""
        found = torch.randint(self.num_classes, (count,), generator=draw)
        parameter = next(self.parameters(), None)
        return found if parameter is None else on_device(found, parameter.device)


class Adapted(Generator):
    """A generator of the user's own, of any make.

    Args:
        network: called as `call` says.
        latent_dim: length of z.
        num_classes: C.
        value_range: smallest and largest pixel of what it makes, such as (-1, 1).
        call: called with (network, latents, labels); default network(latents, labels).
        conditional: whether `network` looks at the labels.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        num_classes: int,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
        call: Call | None = None,
        conditional: bool = True,
    ) -> None:
        super().__init__(latent_dim, num_classes)
        low, high = value_range
        if not low < high:
            raise UserError(
                f"value_range is {value_range}; give the smallest and then the largest "
                "pixel of the generator's images, such as (-1, 1)"
            )
        self.network = network
        self.low, self.high = low, high
        self.conditional = conditional
        self._call = call or _plain_call

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images of the network, moved from its range to [0, 1]."""
        images = self._call(self.network, latents, labels)
        if images.ndim != 4 or len(images) != len(latents):
            raise UserError(
                f"the generator made a tensor of shape {tuple(images.shape)} from "
                f"{len(latents)} latent vectors; images of shape (B, channels, H, W) "
                "are needed. Say with `call` how to get them"
            )
        return ((images - self.low) / (self.high - self.low)).clamp(0, 1)


def stylegan2(network: Any, **settings: Any) -> Adapted:
    """A generator that is called like StyleGAN2-ADA's: G(z, c, **settings).

    Args:
        network: has `z_dim` and `c_dim`; takes z (B, z_dim) and labels one-hot,
            float32 (B, c_dim); makes images in [-1, 1]. c_dim 0 is unconditional.
        settings: such as truncation_psi=1, noise_mode="const".

    Returns:
        The generator, which takes class numbers.

    Raises:
        UserError: if it lacks these attributes.
    """
    if not (hasattr(network, "z_dim") and hasattr(network, "c_dim")):
        raise UserError(
            f"a {type(network).__name__} has no z_dim and c_dim, as StyleGAN2-ADA's "
            "generators have; use Adapted(network, latent_dim, num_classes, call=...)"
        )
    classes = int(network.c_dim)

    def call(network: nn.Module, latents: Tensor, labels: Tensor) -> Tensor:
        chosen = (
            one_hot(labels, classes).to(latents.dtype)
            if classes
            else latents.new_zeros(len(latents), 0)
        )
        images: Tensor = network(latents, chosen, **settings)
        return images

    return Adapted(
        network, int(network.z_dim), max(1, classes), call=call, conditional=classes > 0
    )


def _plain_call(network: nn.Module, latents: Tensor, labels: Tensor) -> Tensor:
    images: Tensor = network(latents, labels)
    return images

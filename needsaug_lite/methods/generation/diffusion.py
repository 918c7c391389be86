"""Training a diffusion model: denoise at every level of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from needsaug_lite.data import Batch, Batches, Normalisation, Splits, generator
from needsaug_lite.data.splits import on_device
from needsaug_lite.methods.endless import FixedSteps
from needsaug_lite.methods.generation.averages import MovingAverage
from needsaug_lite.methods.generation.lengths import STEPS_PER_EPOCH
from needsaug_lite.models.diffusion import EDM, SIGMA_DATA
from needsaug_lite.models.generators import Generator
from needsaug_lite.training import Stage

# Mean and deviation of ln σ in training: Karras et al. 2022, Table 1.
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2
_NOISE = 721


class Diffusion:
    """EDM: a network that learns to remove noise of every level.

    L = E λ(σ) ‖D(x + σ n; σ, y) - x‖² / d,   λ(σ) = (σ² + σ_d²) / (σ σ_d)²
    ln σ ~ N(-1.2, 1.2²),   n ~ N(0, I),   x in [-1, 1] with d pixels, σ_d = 0.5

    λ = 1 / c_out² makes the loss that of the inner network F, about 1 at the start for
    every σ. A moving average of the weights makes the samples.

    Source: Karras et al. 2022, Eq. 2 and 8, Table 1; mgr App. B.3 trains it on a tenth
    of CIFAR-10 and gives no settings.
    """

    version = 1

    def __init__(
        self,
        splits: Splits,
        *,
        width: Annotated[int, Gt(0)] = 32,
        sampling_steps: Annotated[int, Gt(0)] = 8,
        lr: Annotated[float, Gt(0)] = 2e-3,
        batch_size: Annotated[int, Gt(1)] = 64,
        ema: Annotated[float, Ge(0), Lt(1)] = 0.995,
        seed: int = 0,
    ) -> None:
        """Build the networks on the device of `splits`.

        Args:
            splits: images and labels of `train` are learned from.
            width: of the network; see `EDM`.
            sampling_steps: of the sampler; see `EDM`.
            lr: of Adam (β 0.9 and 0.999); the published 1e-3 is for batches of 512
                and a far longer training.
            batch_size: images of a step.
            ema: share of the average that stays in a step; 0 is no average.
            seed: order of the images, and noise.

        Raises:
            UserError: if the images are no squares of 8 to 32 pixels.
        """
        device = splits.train.labels.device
        network = EDM(
            splits.image_shape,
            splits.num_classes,
            width=width,
            sampling_steps=sampling_steps,
        ).to(device)
        averaged = MovingAverage(network, ema)
        self.network, self.averaged = network, averaged
        self.model: nn.Module = nn.ModuleDict(
            {"network": network, "averaged": averaged}
        )
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr)
        halves = (0.5,) * splits.image_shape[0]
        self.batches = FixedSteps(
            Batches(splits.train, batch_size, Normalisation(halves, halves), seed=seed),
            STEPS_PER_EPOCH,
        )
        self.seed = seed
        self._epoch = self._steps = 0

    @property
    def generator(self) -> Generator:
        """The averaged network in eval mode."""
        found = self.averaged.module
        assert isinstance(found, EDM)
        return found

    def stages(self, epochs: int) -> Sequence[Stage]:
        """One stage."""
        return [Stage("diffusion", epochs, self.batches, self.step, self.begin_epoch)]

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the draws of the epoch."""
        self._epoch, self._steps = epoch, 0
        return {}

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the network and of its average."""
        draw = generator(self.seed, _NOISE, self._epoch, self._steps)
        self._steps += 1
        device = batch.images.device
        size = len(batch)
        normal = on_device(torch.randn(size, generator=draw), device)
        sigma = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * normal).exp()
        noise = on_device(torch.randn(batch.images.shape, generator=draw), device)
        self.network.train()
        loss = denoising_loss(self.network, batch.images, batch.labels, sigma, noise)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.averaged.update_parameters(self.network)
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Both networks and the optimiser."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put networks and optimiser back."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


def denoising_loss(
    network: EDM, images: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor
) -> Tensor:
    """Weighted squared error of the denoised images, averaged over pixels and images.

    λ(σ) ‖D(x + σ n; σ, y) - x‖² / d,   λ(σ) = (σ² + σ_d²) / (σ σ_d)²

    Args:
        network: D.
        images: x in [-1, 1], shape (B, channels, H, W).
        labels: y, int64, shape (B,).
        sigma: σ, shape (B,).
        noise: n, standard normal, like `images`.

    Returns:
        A scalar.

    Source: Karras et al. 2022, Eq. 2 with the weight of Table 1.
    """
    noisy = images + sigma[:, None, None, None] * noise
    miss = network.denoise(noisy, sigma, labels) - images
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return (weight * miss.square().mean((1, 2, 3))).mean()

"""EDM: a diffusion model whose latent vector is the noise of its first step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.models.denoiser import NoiseConditionalUNet
from needsaug_lite.models.generators import Generator

# Karras et al. 2022, Table 1, last column.
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, RHO = 0.5, 0.002, 80.0, 7.0
SMALLEST, LARGEST = 8, 32

Denoiser = Callable[[Tensor, Tensor], Tensor]


class EDM(Generator):
    """A class-conditional diffusion model and its deterministic sampler.

    D(x; σ, y) = c_skip(σ) x + c_out(σ) F(c_in(σ) x; ln(σ) / 4, y)

    c_skip = σ_d² / (σ² + σ_d²)      c_out = σ σ_d / sqrt(σ² + σ_d²)
    c_in   = 1 / sqrt(σ² + σ_d²)

    An image is the end of the path of dx/dσ = (x - D(x; σ, y)) / σ that starts at
    x = σ_max z, followed by `sampling_steps` steps of Heun's method.

    Attributes:
        image_shape: channels, height, width.
        network: F.
        levels: σ_0 = σ_max > ... > σ_N = 0, shape (N + 1,).

    Source: Karras et al. 2022, Eq. 7, Table 1 and Algorithm 1, with σ_d = 0.5; that the
    first noise is the latent vector: mgr App. B.3. The network is our own.
    """

    levels: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int = 32,
        sampling_steps: int = 8,
    ) -> None:
        """Build the network from torch's global generator.

        Args:
            image_shape: channels (1 or 3), height and width (equal, 8 to 32).
            num_classes: C.
            width: channels of F at its finest resolution.
            sampling_steps: N; an image costs 2 N - 1 passes through F.

        Raises:
            UserError: for images of another shape, or fewer than one step.
        """
        channels, height, breadth = image_shape
        square = height == breadth and SMALLEST <= height <= LARGEST
        if channels not in (1, 3) or not square:
            raise UserError(
                f"the training data are {channels} x {height} x {breadth} (channels, "
                "height, width); a diffusion model here makes square grey or colour "
                f"images of {SMALLEST} x {SMALLEST} to {LARGEST} x {LARGEST} pixels, "
                "and no features"
            )
        super().__init__(channels * height * breadth, num_classes)
        self.image_shape = image_shape
        self.network = NoiseConditionalUNet(channels, height, num_classes, width)
        levels = noise_levels(sampling_steps).to(torch.get_default_dtype())
        self.register_buffer("levels", levels, persistent=False)

    @property
    def sampling_steps(self) -> int:
        """N."""
        return len(self.levels) - 1

    def denoise(self, noisy: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """D, the expected image behind a noisy one.

        Args:
            noisy: image in [-1, 1] plus σ times standard normal noise, shape
                (B, channels, H, W).
            sigma: σ > 0, shape (B,), or () if all have the same.
            labels: y, int64, shape (B,).

        Returns:
            Shape (B, channels, H, W), not clipped.
        """
        each = sigma.expand(len(noisy))
        skip, out, into = preconditioning(each[:, None, None, None])
        raw: Tensor = self.network(into * noisy, each.log() / 4, labels)
        return skip * noisy + out * raw

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images of the path that starts at σ_max z; see `Generator.sample`."""
        start = SIGMA_MAX * latents.unflatten(1, self.image_shape)
        images = heun(
            lambda noisy, sigma: self.denoise(noisy, sigma, labels), start, self.levels
        )
        return ((images + 1) / 2).clamp(0, 1)


def preconditioning(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in, each of the shape of `sigma`.

    For data of variance σ_d² they give F inputs and targets of variance 1, and among
    all c_skip that allow this, the one with the smallest c_out.

    Source: Karras et al. 2022, Table 1 and App. B.6.
    """
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()


def noise_levels(
    steps: int,
    *,
    smallest: float = SIGMA_MIN,
    largest: float = SIGMA_MAX,
    rho: float = RHO,
) -> Tensor:
    """Noise levels that the sampler visits, denser where there is little noise.

    σ_i = (σ_max^(1/ρ) + i / (N - 1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ,   σ_N = 0

    Args:
        steps: N, at least 1.
        smallest, largest: σ_min and σ_max.
        rho: ρ.

    Returns:
        Float64, shape (N + 1,).

    Raises:
        UserError: if N is below 1.

    Source: Karras et al. 2022, Eq. 5.
    """
    if steps < 1:
        raise UserError(f"sampling_steps is {steps}; it must be at least 1")
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    visited = torch.linspace(*ends, steps, dtype=torch.float64) ** rho
    return torch.cat([visited, visited.new_zeros(1)])


def heun(denoiser: Denoiser, start: Tensor, levels: Tensor) -> Tensor:
    """Follow dx/dσ = (x - D(x; σ)) / σ from the first level to the last, 0.

    x' = x + h d(x, σ_i),   x ← x + h/2 (d(x, σ_i) + d(x', σ_{i+1}))

    with d the right-hand side and h = σ_{i+1} - σ_i.

    The last step, whose second slope doesn't exist at σ = 0, is Euler's: x ← x'.
    The result has a derivative by `start`.

    Args:
        denoiser: D, called with x (B, ...) and σ of shape ().
        start: x at the first level, shape (B, ...).
        levels: σ_0 > ... > σ_{N-1} > σ_N = 0, shape (N + 1,).

    Returns:
        x at σ = 0, shape (B, ...).

    Source: Karras et al. 2022, Algorithm 1.
    """
    x, steps = start, len(levels) - 1
    for number in range(steps):
        now, following = levels[number], levels[number + 1]
        slope = (x - denoiser(x, now)) / now
        proposal = x + (following - now) * slope
        if number + 1 < steps:
            ahead = (proposal - denoiser(proposal, following)) / following
            proposal = x + (following - now) * (slope + ahead) / 2
        x = proposal
    return x

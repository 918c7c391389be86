"""The generated images of an epoch: exactly as many as the budget allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from needsaug_lite.allocation import (
    enumerated_weights,
    gumbel_noise,
    relaxed_bernoulli,
    score_ratio,
    split_budget,
    straight_through,
)
from needsaug_lite.data import generator
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError

Weighting = Literal["score_ratio", "enumerate", "c_way", "literal"]
WARMEST, COLDEST = 1.0, 0.1
_CLASSES, _LATENTS, _NOISE = 731, 732, 733


@dataclass(frozen=True)
class Portion:
    """What of the budget one step uses.

    Attributes:
        latents: z, shape (B, d).
        labels: o, int64, shape (B,).
        noise: Gumbel draws for a relaxed weight, or None.
    """

    latents: Tensor
    labels: Tensor
    noise: Tensor | None = None


class Budget:
    """M generated images in every epoch, spread evenly over its steps.

    Their classes are decided when the epoch begins, by `share` or by `draw`. What an
    epoch holds depends on the seed, the epoch and the shares.

    Attributes:
        images: M.
        counts: images of each class so far, int64, shape (C,).
        last_counts: those of the latest epoch.
    """

    def __init__(
        self,
        images: int,
        steps: int,
        num_classes: int,
        latent_dim: int,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """Describe the budget.

        Args:
            images: M of an epoch.
            steps: of an epoch.
            num_classes: C.
            latent_dim: length of z.
            seed: of classes and latent vectors.
            device: where the portions are needed.

        Raises:
            UserError: if a step would get fewer than two images.
        """
        if images < 2 * steps:
            raise UserError(
                f"a budget of {images} images is less than two for each of the "
                f"{steps} steps of an epoch; generate at least {2 * steps}, or train "
                "with larger batches"
            )
        self.images, self.steps = images, steps
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.seed, self.device = seed, device
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.last_counts = torch.zeros_like(self.counts)
        self._coming: Iterator[Portion] = iter(())

    def share(self, epoch: int, shares: Tensor) -> None:
        """Begin an epoch with M p_c images of every class, rounded, in random order.

        Args:
            epoch: its number.
            shares: p, shape (C,), adding to 1.
        """
        counts = split_budget(shares.detach().cpu(), self.images)
        labels = torch.arange(self.num_classes).repeat_interleave(counts)
        draw = generator(self.seed, _CLASSES, epoch)
        self._begin(epoch, labels[torch.randperm(self.images, generator=draw)])

    def draw(self, epoch: int, shares: Tensor, weighting: Weighting) -> None:
        """Begin an epoch with classes drawn from p, and what its weights need.

        o_m ~ p, m = 1 ... M; for "enumerate" o_m is spread evenly instead.

        Args:
            epoch: its number.
            shares: p, shape (C,), adding to 1.
            weighting: see `weights`.
        """
        if weighting == "enumerate":
            self.share(epoch, torch.full((self.num_classes,), 1 / self.num_classes))
            return
        p = shares.detach().double().cpu()
        noise = None
        if weighting == "c_way":
            shape = (self.images, self.num_classes)
            noise = gumbel_noise(shape, generator(self.seed, _NOISE, epoch))
            labels = (p.log() + noise).argmax(1)
        else:
            draw = generator(self.seed, _CLASSES, epoch)
            labels = p.multinomial(self.images, replacement=True, generator=draw)
        if weighting == "literal":
            shape = (self.images, 2)
            noise = gumbel_noise(shape, generator(self.seed, _NOISE, epoch))
        self._begin(epoch, labels, noise)

    def _begin(self, epoch: int, labels: Tensor, noise: Tensor | None = None) -> None:
        draw = generator(self.seed, _LATENTS, epoch)
        latents = torch.randn(self.images, self.latent_dim, generator=draw)
        self.last_counts = labels.bincount(minlength=self.num_classes)
        self.counts = self.counts + self.last_counts
        placed = [on_device(one, self.device) for one in (latents, labels)]
        parts = [one.tensor_split(self.steps) for one in placed]
        noises: Any = (None,) * self.steps
        if noise is not None:
            noises = on_device(noise, self.device).tensor_split(self.steps)
        self._coming = map(Portion, *parts, noises)

    def __next__(self) -> Portion:
        return next(self._coming)


def weights(
    weighting: Weighting,
    probabilities: Tensor,
    drawn_from: Tensor,
    portion: Portion,
    temperature: float,
) -> Tensor:
    """How much each image of a portion counts, and how that depends on p.

    L_a = 1/B Σ_m b_m ℓ_m

    "score_ratio": b_m = r_m / r̄ with r_m = p(o_m) / q(o_m), r̄ the mean of r. Its
    gradient, where p = q, is that of r_m less the batch mean of it: a baseline, which
    takes away what all images share, and on average a share 1/B of the gradient. The
    weights add to B, whatever p has become.
    "enumerate", "c_way", "literal": `allocation.enumerated_weights`,
    `straight_through`, `relaxed_bernoulli`.

    Args:
        weighting: one of these four.
        probabilities: p, now, shape (C,), may require a gradient.
        drawn_from: q, from which the classes were drawn, shape (C,).
        portion: B images.
        temperature: T of the two that are relaxed.

    Returns:
        b, shape (B,).

    Source: needs_aware Eq. 4 and errata N3.
    """
    labels = portion.labels
    if weighting == "score_ratio":
        ratios = score_ratio(probabilities, drawn_from, labels)
        return ratios / ratios.mean()
    if weighting == "enumerate":
        return enumerated_weights(probabilities, labels)
    assert portion.noise is not None  # `Budget.draw` made it for the other two
    relaxed = straight_through if weighting == "c_way" else relaxed_bernoulli
    return relaxed(probabilities, labels, portion.noise, temperature)


def temperature(epoch: int, epochs: int) -> float:
    """T of an epoch: from 1 to 0.1, by the same factor every epoch.

    Args:
        epoch: from 0.
        epochs: of the run.

    Source: the paper anneals and gives no schedule; this one is errata N7's.
    """
    done = epoch / max(1, epochs - 1)
    return float(WARMEST * (COLDEST / WARMEST) ** done)

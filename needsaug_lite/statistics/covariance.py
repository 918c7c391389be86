"""Mean and covariance of the features of every class, batch after batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

# Outer products that are alive at once, in numbers: 16 MiB in float32.
_OUTER_NUMBERS = 2**22


class ClassCovariance:
    """Running moments of each class that equal those of all features seen so far.

    With n, μ_b, Σ_b the moments of a class in the batch, N, μ, Σ the running ones and
    w = n / (n + N):

        Σ <- (1 - w) Σ + w Σ_b + w (1 - w) (μ - μ_b)(μ - μ_b)ᵀ
        μ <- (1 - w) μ + w μ_b,   N <- N + n

    Covariances divide by the number of samples, not by that number less one. Nothing
    is forgotten, although features change in training.

    Attributes:
        counts: samples seen of each class, shape (C,).
        mean: μ, shape (C, D); zero for a class not yet seen.
        covariance: Σ, shape (C, D, D), or its diagonal, (C, D); zero for a class not
            yet seen, which switches augmentation off for it.

    Source: the estimator of the code published with ISDA and MetaSAug.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        diagonal: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Nothing seen yet.

        Args:
            num_classes: C.
            feature_dim: D.
            diagonal: keep the variances alone: C D numbers instead of C D².
            device, dtype: of the moments.
        """
        shape = (num_classes, feature_dim)
        self.diagonal = diagonal
        self.counts = torch.zeros(num_classes, device=device, dtype=dtype)
        self.mean = torch.zeros(shape, device=device, dtype=dtype)
        square = shape if diagonal else (*shape, feature_dim)
        self.covariance = torch.zeros(square, device=device, dtype=dtype)

    @torch.no_grad()
    def update(
        self, features: Tensor, labels: Tensor, *, across_ranks: bool = False
    ) -> None:
        """Take in a batch.

        Args:
            features: shape (N, D); no gradient flows.
            labels: int64, shape (N,).
            across_ranks: pool the batches of all processes of torch.distributed, so
                that each of them holds the same moments afterwards.

        Raises:
            ValueError: if the features are not (N, D) for the D stated at the start.
        """
        if features.shape != (len(labels), self.mean.shape[1]):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; expected "
                f"({len(labels)}, {self.mean.shape[1]})"
            )
        features = features.detach().to(self.mean.dtype)
        new, total = torch.zeros_like(self.counts), torch.zeros_like(self.mean)
        new.index_add_(0, labels, torch.ones_like(features[:, 0]))
        total.index_add_(0, labels, features)
        if across_ranks:
            distributed.all_reduce(new)
            distributed.all_reduce(total)
        batch_mean = total / _at_least_one(new)[:, None]
        scatter = self._scatter(features - batch_mean[labels], labels)
        if across_ranks:
            distributed.all_reduce(scatter)
        self._merge(new, batch_mean, scatter / self._like(_at_least_one(new)))

    def _scatter(self, centred: Tensor, labels: Tensor) -> Tensor:
        """Sum of squares, or of outer products, of every class."""
        found = torch.zeros_like(self.covariance)
        if self.diagonal:
            return found.index_add_(0, labels, centred.square())
        size = max(1, _OUTER_NUMBERS // self.mean.shape[1] ** 2)
        for part, label in zip(centred.split(size), labels.split(size), strict=True):
            found.index_add_(0, label, part[:, :, None] * part[:, None, :])
        return found

    def _merge(self, new: Tensor, mean: Tensor, covariance: Tensor) -> None:
        weight = new / _at_least_one(self.counts + new)
        gap = self.mean - mean
        between = gap**2 if self.diagonal else gap[:, :, None] * gap[:, None, :]
        share = self._like(weight)
        self.covariance = torch.lerp(self.covariance, covariance, share)
        self.covariance += share * (1 - share) * between
        self.mean = torch.lerp(self.mean, mean, weight[:, None])
        self.counts = self.counts + new

    def _like(self, by_class: Tensor) -> Tensor:
        """Numbers of shape (C,) with the axes of the covariance."""
        return by_class.view(-1, *[1] * (self.covariance.ndim - 1))

    def state_dict(self) -> dict[str, Any]:
        """The moments."""
        names = ("counts", "mean", "covariance")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the moments back."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def nearest_positive_semidefinite(covariance: Tensor) -> Tensor:
    """The nearest matrix without a negative eigenvalue, in the Frobenius norm.

    V max(Λ, 0) Vᵀ of the symmetric part V Λ Vᵀ; for a diagonal, max(σ, 0).

    Args:
        covariance: shape (C, D, D), or diagonals of shape (C, D).

    Returns:
        The same shape.
    """
    if covariance.ndim == 2:
        return covariance.clamp(min=0)
    symmetric = 0.5 * (covariance + covariance.mT)
    values, vectors = torch.linalg.eigh(symmetric)
    nearest: Tensor = (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT
    return nearest


def _at_least_one(counts: Tensor) -> Tensor:
    return counts.clamp(min=1)

"""The IADA losses as their formulas stand: one difference for each sample and class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class Problem(NamedTuple):
    """The arguments that the losses share, in their order."""

    features: Tensor
    labels: Tensor
    head_weight: Tensor
    head_bias: Tensor
    covariance: Tensor
    epsilon: Tensor
    class_prior: Tensor


def draw(
    samples: int,
    classes: int,
    size: int,
    *,
    full: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Random features, labels with repetitions, head, positive Σ, ε in (-1, 1), π."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=dtype)

    if full:
        factor = normal(classes, size, size) / size**0.5
        covariance = factor @ factor.mT
    else:
        covariance = normal(classes, size).square()
    return Problem(
        features=normal(samples, size),
        labels=torch.randint(classes, (samples,), generator=source),
        head_weight=2 * normal(classes, size) / size**0.5,
        head_bias=normal(classes),
        covariance=covariance,
        epsilon=normal(samples).tanh(),
        class_prior=normal(classes).softmax(0),
    )


def half_variance(labels: Tensor, head_weight: Tensor, covariance: Tensor) -> Tensor:
    """ρ from the differences w_j - w_y, an array of shape (N, C, D)."""
    difference = head_weight[None] - head_weight[labels][:, None]
    own = covariance[labels]
    if covariance.ndim == 2:
        return 0.5 * (difference * own[:, None] * difference).sum(2)
    return 0.5 * (torch.bmm(difference, own) * difference).sum(2)


def direction(problem: Problem) -> Tensor:
    """sign(∇_h ℓ) by automatic differentiation, shape (N, D)."""
    h = problem.features.detach().requires_grad_()
    weight, bias = problem.head_weight.detach(), problem.head_bias.detach()
    loss = cross_entropy(h @ weight.T + bias, problem.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, h)
    return gradient.sign()


def iada(problem: Problem, alpha: float = 0.5, beta: float = 1.0) -> Tensor:
    """meta_iada Eq. 6, one loss per sample."""
    h, y, weight, bias, covariance, epsilon, prior = problem
    moved = h + epsilon[:, None] * direction(problem)
    rho = half_variance(y, weight, covariance)
    logits = moved @ weight.T + bias + alpha * rho + beta * prior.log()
    return cross_entropy(logits, y, reduction="none")

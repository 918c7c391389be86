"""Augmentation of features without drawing any: the IADA losses.

A sample's feature h is augmented to h̃ ~ N(h + δ, α Σ_y), with δ = ε sign(∇_h ℓ) and
Σ_y the covariance of its class. Jensen's inequality bounds the mean cross-entropy of
infinitely many such h̃ by a cross-entropy of changed logits (meta_iada Eq. 2 to 5).

Notation: N samples, C classes, D features; W, b are the weights of a linear head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, one_hot

from needsaug_lite.losses.classification import Reduction


class FirstOrderTerms(NamedTuple):
    """What the IADA loss adds to cross-entropy, to first order; each of shape (N,)."""

    generalisation: Tensor
    robustness: Tensor
    fairness: Tensor


def iada(
    features: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    covariance: Tensor,
    epsilon: Tensor,
    class_prior: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of shifted, spread and prior-adjusted logits.

    L_i = -log softmax_y( Z ),   Z_j = w_jᵀ(h_i + δ_i) + b_j + α ρ_ij + β log π_j

    ε = α = β = 0 is cross-entropy, α alone is ISDA, β alone is logit adjustment. With
    β ≠ 0 it bounds nothing; the true bound is `iada_weighted`.

    Args:
        features: h, shape (N, D).
        labels: y, int64, shape (N,).
        head_weight: W, shape (C, D).
        head_bias: b, shape (C,), or None.
        covariance: Σ of every class, symmetric, shape (C, D, D), or its diagonal,
            shape (C, D). The gradient to it is that of ρ; see `half_variance`.
        epsilon: strength and direction of the shift, in (-1, 1), shape (N,); above 0
            it makes a sample harder, below 0 easier. Its gradient is kept.
        class_prior: π, shares of the training images, positive, shape (C,).
        alpha: share of the covariance that is used.
        beta: strength of the adjustment by the prior.
        reduction: mean over samples, sum, or none.

    Returns:
        Nats; scalar, or shape (N,) for reduction "none".

    Raises:
        ValueError: if shapes don't fit.

    Source: meta_iada Eq. 6; a mean over samples where the paper prints a sum.
    """
    _require_prior(class_prior, head_weight)
    logits = _augmented_logits(
        features, labels, head_weight, head_bias, covariance, epsilon, alpha
    )
    adjusted = logits + beta * class_prior.log()
    return cross_entropy(adjusted, labels, reduction=reduction)


def iada_weighted(
    features: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    covariance: Tensor,
    epsilon: Tensor,
    class_prior: Tensor,
    *,
    alpha: float = 0.5,
    reduction: Reduction = "mean",
) -> Tensor:
    """Upper bound of the mean cross-entropy of infinitely many augmented copies.

    L_i = -1/(C π_y) log softmax_y( Z ),   Z_j = w_jᵀ(h_i + δ_i) + b_j + α ρ_ij

    1/N Σ_i L_i ≥ 1/N Σ_i 1/(C π_y) E[-log softmax_y(W h̃_i + b)]

    Args:
        features, labels, head_weight, head_bias, covariance, epsilon, class_prior,
            alpha: see `iada`.
        reduction: mean over samples (not over weights), sum, or none.

    Returns:
        Nats; scalar, or shape (N,) for reduction "none".

    Raises:
        ValueError: if shapes don't fit.

    Source: meta_iada Eq. 5 with the normaliser 1/(N C) that Eq. 2 drops.
    """
    _require_prior(class_prior, head_weight)
    logits = _augmented_logits(
        features, labels, head_weight, head_bias, covariance, epsilon, alpha
    )
    weight = 1 / (len(class_prior) * class_prior)
    loss = weight[labels] * cross_entropy(logits, labels, reduction="none")
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def half_variance(labels: Tensor, head_weight: Tensor, covariance: Tensor) -> Tensor:
    """Half the variance of every logit, less the label's, under the augmentation.

    ρ_ij = ½ (w_j - w_y)ᵀ Σ_y (w_j - w_y),   ρ_iy = 0

    It depends on a sample through its label alone: the two products with Σ in
    ½ w_jᵀΣw_j - w_jᵀΣw_y + ½ w_yᵀΣw_y are made once per distinct label.

    Args:
        labels: y, int64, shape (N,).
        head_weight: W, shape (C, D).
        covariance: Σ, shape (C, D, D), or its diagonal, shape (C, D). The gradient to
            a full Σ is ½ (w_j - w_y)(w_j - w_y)ᵀ, symmetric.

    Returns:
        ρ for α = 1, shape (N, C); not negative, but for rounding, if every Σ is
        positive semi-definite.

    Raises:
        ValueError: if shapes don't fit.

    On a GPU the search for distinct labels makes the host wait; it takes place there
    only if there are more classes than samples.

    Source: meta_iada Eq. 5.
    """
    weight = _centred(head_weight)
    product, square = _moments(labels, weight, covariance)
    constant = (0.5 * product * weight[labels]).sum(1, keepdim=True)
    rho = square + constant - product @ weight.T
    # Zero for the label itself, whatever rounding left of the three terms.
    return rho.masked_fill(one_hot(labels, len(weight)).bool(), 0.0)


def _centred(head_weight: Tensor) -> Tensor:
    """W less its mean row: ρ and softmax see differences, which then keep digits."""
    return head_weight - head_weight.mean(0)


def _moments(
    labels: Tensor, weight: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_y w_y, shape (N, D), and ½ w_jᵀ Σ_y w_j, shape (N, C), label by label."""
    shapes = (weight.shape, (*weight.shape, weight.shape[1]))
    if tuple(covariance.shape) not in shapes:
        raise ValueError(
            f"covariance has shape {tuple(covariance.shape)}; for a head of shape "
            f"{tuple(weight.shape)} it must be {tuple(shapes[1])} or, if only "
            f"the diagonal is kept, {tuple(shapes[0])}"
        )
    own, row = weight, labels
    if len(weight) > len(labels) or not labels.is_cuda:
        distinct, row = labels.unique(return_inverse=True)
        own, covariance = weight[distinct], covariance[distinct]
    if covariance.ndim == 2:
        product = covariance * own
        square = covariance @ weight.square().T
    else:
        # Half of Σ and half of Σᵀ, for a symmetric gradient.
        line = own[:, None, :]
        product = torch.bmm(line, covariance) + torch.bmm(line, covariance.mT)
        product = 0.5 * product.squeeze(1)
        # As matrix products, whose backward pass makes no other array of their size.
        outer = torch.bmm(weight[:, :, None], weight[:, None, :])
        square = covariance.flatten(1) @ outer.flatten(1).T
    return product[row], 0.5 * square[row]


@torch.no_grad()
def perturbation_direction(
    features: Tensor, labels: Tensor, head_weight: Tensor, head_bias: Tensor | None
) -> Tensor:
    """The direction in which every coordinate of a feature raises cross-entropy.

    sign(∇_h ℓ),   ∇_h ℓ = Wᵀ(q - e_y),   q = softmax(W h + b),   sign(0) = 0

    Args:
        features: h, shape (N, D).
        labels: y, int64, shape (N,).
        head_weight: W, shape (C, D).
        head_bias: b, shape (C,), or None.

    Returns:
        -1, 0 or 1, shape (N, D), without a graph: the sign is constant in pieces.

    Source: meta_iada Sec. 3.1; taken at the clean logits, before ρ and log π.
    """
    error = linear(features, head_weight, head_bias).softmax(1)
    error = error - one_hot(labels, len(head_weight)).to(error.dtype)
    return (error @ head_weight).sign()


def first_order_terms(
    features: Tensor,
    labels: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    covariance: Tensor,
    epsilon: Tensor,
    class_prior: Tensor,
) -> FirstOrderTerms:
    """The three terms by which the IADA loss differs from cross-entropy.

    L_i = ℓ_i + α G_i + R_i + β F_i + terms of second order, with

    G = Σ_{j≠y} q_j ρ_j,  R = Σ_{j≠y} q_j (w_j - w_y)ᵀδ,  F = Σ_{j≠y} q_j log(π_j/π_y)

    and q the softmax of the clean logits. R equals ε ||∇_h ℓ||₁.

    Args:
        features, labels, head_weight, head_bias, covariance, epsilon, class_prior:
            see `iada`.

    Returns:
        G, R and F of every sample, without the factors α and β.

    Raises:
        ValueError: if shapes don't fit.

    Source: meta_iada Table 1, which leaves out α and β.
    """
    _require_prior(class_prior, head_weight)
    shift = _shift(features, labels, head_weight, head_bias, epsilon)
    probability = linear(features, head_weight, head_bias).softmax(1)
    gap = shift @ head_weight.T
    prior = class_prior.log().expand_as(gap)
    own = labels[:, None]
    rho = half_variance(labels, head_weight, covariance)
    return FirstOrderTerms(
        generalisation=(probability * rho).sum(1),
        robustness=(probability * (gap - gap.gather(1, own))).sum(1),
        fairness=(probability * (prior - prior.gather(1, own))).sum(1),
    )


def _augmented_logits(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    covariance: Tensor,
    epsilon: Tensor,
    alpha: float,
) -> Tensor:
    """The Z of meta_iada Eq. 5 less a number per sample, shape (N, C).

    Softmax does not see what all logits of a sample have in common. Without
    ½ w_yᵀ Σ_y w_y and the mean of W, h + δ and Σ_y w_y share one matrix product:

        Z_j = w_jᵀ(h + δ - α Σ_y w_y) + b_j + α/2 w_jᵀ Σ_y w_j
    """
    moved = features + _shift(features, labels, weight, bias, epsilon)
    centred = _centred(weight)
    product, square = _moments(labels, centred, covariance)
    return linear(moved - alpha * product, centred, bias) + alpha * square


def _shift(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
) -> Tensor:
    """δ of every sample, shape (N, D)."""
    if epsilon.shape != labels.shape:
        raise ValueError(
            f"epsilon has shape {tuple(epsilon.shape)}, but there are {len(labels)} "
            "samples; give one number for each"
        )
    direction = perturbation_direction(features, labels, weight, bias)
    return epsilon[:, None] * direction


def _require_prior(class_prior: Tensor, head_weight: Tensor) -> None:
    if class_prior.shape != head_weight.shape[:1]:
        raise ValueError(
            f"class_prior has shape {tuple(class_prior.shape)}; give one share for "
            f"each of the {len(head_weight)} classes"
        )

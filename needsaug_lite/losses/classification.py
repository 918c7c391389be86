"""Losses that know the class sizes, for logits of shape (B, C).

All of them are cross-entropy of changed logits, times a weight of the label's
class. `reduction="mean"` with a class weight divides by the sum of the weights in
the batch, as torch does and as the published code of these losses does.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "sum", "none"]


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Weights inverse to the effective number of images of each class.

    w_c ∝ (1 - beta) / (1 - beta^n_c),   sum_c w_c = C

    beta = 0 gives equal weights; beta -> 1 gives weights proportional to 1/n_c.

    Args:
        counts: training images per class, shape (C,), each at least 1.
        beta: in [0, 1).

    Returns:
        Weights, float32, shape (C,), with sum C.

    Raises:
        ValueError: if beta is outside [0, 1) or a count is below 1.

    Source: Cui et al. 2019, Proposition 1 and the class-balanced weights built on it.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1)")
    if int(counts.min()) < 1:
        raise ValueError("every class needs at least one training image")
    # expm1 keeps the digits that 1 - beta^n loses for small n and beta near 1.
    log_beta = torch.log(torch.tensor(beta, dtype=torch.float64))
    effective = -torch.expm1(counts.double().cpu() * log_beta) / (1 - beta)
    weights = 1 / effective
    return (weights * len(counts) / weights.sum()).float().to(counts.device)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the softmax, in nats.

    L = -w_y log( exp(f_y) / sum_k exp(f_k) )

    Args:
        logits: f, shape (B, C).
        labels: y, int64, shape (B,).
        class_weight: w, shape (C,), or None for 1.
        reduction: mean (over the weights), sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none".
    """
    return functional.cross_entropy(
        logits, labels, weight=class_weight, reduction=reduction
    )


def focal(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.0,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy that fades for samples that are already right.

    L = -w_y (1 - p_y)^gamma log p_y

    gamma = 0 is cross-entropy. The mean is over samples, not over weights, as in
    the code published with LDAM.

    Args:
        logits: shape (B, C).
        labels: int64, shape (B,).
        gamma: focusing exponent, not negative.
        class_weight: shape (C,), or None for 1.
        reduction: mean over samples, sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none", nats.

    Source: Lin et al. 2017, Eq. 4, in its softmax form.
    """
    loss = functional.cross_entropy(logits, labels, reduction="none")
    # 1 - p_y from the loss itself: exact also where p_y rounds to 1.
    # The lower bound keeps the derivative of the power finite for gamma below 1.
    wrong = (-torch.expm1(-loss)).clamp(min=torch.finfo(loss.dtype).tiny)
    loss = wrong**gamma * loss
    if class_weight is not None:
        loss = class_weight[labels] * loss
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def ldam_margins(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Margins that grow as a class gets rarer.

    m_c = max_margin * (n_min / n_c)^(1/4)

    Args:
        counts: training images per class, shape (C,).
        max_margin: margin of the rarest class, in units of the cosine.

    Returns:
        Margins, float32, shape (C,).

    Raises:
        ValueError: if a count is below 1.

    Source: Cao et al. 2019, Sec. 3.1, with the constants of the published code.
    """
    if int(counts.min()) < 1:
        raise ValueError("every class needs at least one training image")
    return max_margin * (counts.min() / counts).float() ** 0.25


def ldam(
    logits: Tensor,
    labels: Tensor,
    *,
    margins: Tensor,
    scale: float = 30.0,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy in which the label's class must win by its margin.

    L = -w_y log( exp(s (z_y - m_y)) / (exp(s (z_y - m_y)) + sum_{k≠y} exp(s z_k)) )

    Args:
        logits: s z, scale times the cosines of a normalised head, shape (B, C).
        labels: int64, shape (B,).
        margins: m, shape (C,), in units of the cosine.
        scale: s; the logits contain it already, here it scales the margin.
        class_weight: shape (C,), or None for 1.
        reduction: mean over samples, sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none", nats.

    Source: Cao et al. 2019, Sec. 3.2, with a normalised head.
    """
    shift = functional.one_hot(labels, logits.shape[1]) * margins[labels].unsqueeze(1)
    return cross_entropy(
        logits - scale * shift, labels, class_weight=class_weight, reduction=reduction
    )


def logit_adjusted(
    logits: Tensor,
    labels: Tensor,
    *,
    class_prior: Tensor,
    tau: float = 1.0,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of logits that carry the class prior during training.

    L = -w_y log softmax_y( f + tau log pi )

    Prediction uses f alone. With tau = 1 the minimiser predicts the class of
    largest p(x | y), which is the Bayes rule of the balanced error.

    Args:
        logits: f, shape (B, C).
        labels: int64, shape (B,).
        class_prior: pi, shares of the training images, shape (C,), positive.
        tau: strength; 0 is cross-entropy.
        class_weight: shape (C,), or None for 1.
        reduction: mean over samples, sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none", nats.

    Source: Menon et al. 2021, Eq. 10; the term beta log pi of meta_iada Eq. 6.
    """
    return cross_entropy(
        logits + tau * class_prior.log(),
        labels,
        class_weight=class_weight,
        reduction=reduction,
    )


def vector_scaling(
    logits: Tensor,
    labels: Tensor,
    *,
    counts: Tensor,
    gamma: float = 0.2,
    tau: float = 1.2,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with a factor and a shift for every logit.

    L = -w_y log softmax_y( Delta f + tau log pi ),   Delta_c = (n_c / n_max)^gamma

    gamma = 0 is logit adjustment, tau = 0 is class-dependent temperature, both 0
    is cross-entropy. It is the parametric loss of autobalance Eq. 2.1 with w = 1.

    Args:
        logits: f, shape (B, C).
        labels: int64, shape (B,).
        counts: training images per class, shape (C,), each at least 1.
        gamma: exponent of the factor, not negative.
        tau: strength of the shift.
        class_weight: shape (C,), or None for 1.
        reduction: mean over samples, sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none", nats.

    Source: Kini et al. 2021, the VS loss, with the constants of its published code.
    """
    factor = (counts / counts.max()) ** gamma
    return logit_adjusted(
        logits * factor,
        labels,
        class_prior=counts / counts.sum(),
        tau=tau,
        class_weight=class_weight,
        reduction=reduction,
    )


def class_dependent_temperature(
    logits: Tensor,
    labels: Tensor,
    *,
    counts: Tensor,
    gamma: float = 0.3,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with logits that are damped for rare classes in training.

    L = -log softmax_y( Delta f ),   Delta_c = (n_c / n_max)^gamma

    Args:
        logits: f, shape (B, C).
        labels: int64, shape (B,).
        counts: training images per class, shape (C,).
        gamma: exponent, not negative; 0 is cross-entropy.
        reduction: mean over samples, sum, or none.

    Returns:
        Scalar, or shape (B,) for reduction "none", nats.

    Source: Ye et al. 2020; the published range of gamma is 0 to 0.4 on CIFAR-10.
    """
    return vector_scaling(
        logits, labels, counts=counts, gamma=gamma, tau=0.0, reduction=reduction
    )

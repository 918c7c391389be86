"""What holds features, predictions and latent vectors in bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from needsaug_lite.errors import UserError


def pseudo_consistency(
    changed_features: Tensor, features: Tensor, *, stop_gradient: bool = False
) -> Tensor:
    """How far a strong transformation moves the features of an image.

    ℓ_PCR = ‖g(T(x_p)) - g(x_p)‖²

    A g that gives every image the same features has no loss here; only another loss
    prevents it. The square is summed over the features and not divided by D.

    Args:
        changed_features: g(T(x_p)), shape (B, D).
        features: g(x_p), shape (B, D).
        stop_gradient: hold g(x_p) fixed, as UDA does; Eq. 5 prints no such thing.

    Returns:
        The mean over the batch, a scalar, at least 0.

    Source: mgr Eq. 5 and 6 (errata M8).
    """
    target = features.detach() if stop_gradient else features
    return (changed_features - target).square().sum(1).mean()


def prediction_consistency(
    changed_logits: Tensor,
    logits: Tensor,
    *,
    sharpening: float = 1.0,
    confidence: float = 0.0,
) -> Tensor:
    """How far a strong transformation moves what is predicted for an image.

    ℓ_UDA = 1[max_c p_c ≥ confidence] KL(q ‖ p(T(x))),   q = softmax(f(x) / sharpening)

    p and q are held fixed; the gradient passes through T(x) alone.

    Args:
        changed_logits: f(T(x)), shape (B, C).
        logits: f(x), shape (B, C).
        sharpening: temperature of q, above 0; below 1 it makes q surer.
        confidence: an image whose largest p(x) is below it counts as 0.

    Returns:
        The mean over the batch, a scalar in nats, at least 0.

    Source: UDA (Xie et al. 2020) Sec. 2.2 and 2.3; the loss of mgr's GDA+SSL.
    """
    logits = logits.detach()
    sharp = (logits / sharpening).log_softmax(1)
    gap = (sharp.exp() * (sharp - changed_logits.log_softmax(1))).sum(1)
    sure = logits.softmax(1).amax(1) >= confidence
    return (gap * sure).mean()


def kl_to_standard_normal(vectors: Tensor) -> Tensor:
    """How far the moments of a batch are from those of independent standard normals.

    D_KL(N(μ, diag σ²) ‖ N(0, I)) = ½ Σ_d (μ_d² + σ_d² - 1 - log σ_d²)

    μ and σ² are mean and unbiased variance of the batch. For B standard normal vectors
    the expectation is not 0 but about ½ d (1/B + 1/(B - 1)).

    Args:
        vectors: shape (B, d), at least two rows.

    Returns:
        A scalar in nats, at least 0; the sum over dimensions, not their mean.

    Raises:
        UserError: for fewer than two vectors.

    Source: mgr Eq. 11, whose σ is the variance (errata M5).
    """
    if len(vectors) < 2:
        raise UserError(
            f"{len(vectors)} vector(s) have no variance; take a batch of at least 2"
        )
    variance, mean = torch.var_mean(vectors, 0)
    return 0.5 * (mean.square() + variance - 1 - variance.log()).sum()


def decorrelation(features: Tensor) -> Tensor:
    """How much the features of a batch say the same thing.

    L = ½ (‖C‖_F² - ‖diag C‖²),   C = 1/B Σ_b (h_b - h̄)(h_b - h̄)ᵀ

    Args:
        features: h, shape (B, D).

    Returns:
        A scalar, at least 0; 0 if no two features are correlated in the batch.

    Source: Cogswell et al. 2016 (DeCov) Eq. 1 and 2; needs_aware Sec. 3.2.
    """
    centred = features - features.mean(0)
    covariance = centred.T @ centred / len(features)
    return 0.5 * (covariance - covariance.diagonal().diag()).square().sum()

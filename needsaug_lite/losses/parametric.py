"""The family of losses that AutoBalance searches in."""

from __future__ import annotations

from torch import Tensor

from needsaug_lite.losses.classification import Reduction, cross_entropy


def parametric_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    additive: Tensor | None = None,
    multiplicative: Tensor | None = None,
    groups: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy with a weight, a shift and a factor for every class.

    L = -w_y log( exp(Δ_y f_y + l_y) / sum_k exp(Δ_k f_k + l_k) )
      = w_y log( 1 + sum_{k≠y} exp(l_k - l_y) exp(Δ_k f_k - Δ_y f_y) )

    With attributes g, every parameter has one value for each class and attribute, and
    a sample is treated with those of its own attribute: w_yg, l_kg, Δ_kg. Prediction
    uses f alone.

    Cross-entropy is w = 1, l = 0, Δ = 1; weighted cross-entropy has its w; logit
    adjustment l = τ log π; class-dependent temperature Δ = (n/n_max)^γ; vector scaling
    both. A class is protected by a *smaller* l_y or Δ_y (errata A4).

    Args:
        logits: f, shape (B, C).
        labels: y, int64, shape (B,).
        class_weight: w, shape (C,), or (C, A) with groups; None for 1.
        additive: l, the same shapes; None for 0.
        multiplicative: Δ, the factor itself (autobalance Eq. 2.2 writes σ(Δ)), the same
            shapes; None for 1.
        groups: attribute of every sample, int64, shape (B,), or None.
        reduction: "mean" over samples (not over weights), as Eq. 2.3 has it; "sum" or
            "none".

    Returns:
        Scalar, or shape (B,) for "none", nats.

    Source: autobalance Eq. 2.1; Eq. 2.2 and 4.2 without augmentation (errata A3).
    """

    def row(table: Tensor) -> Tensor:
        """Values of all classes for each sample: (C,) as it is, (B, C) by groups."""
        return table if groups is None else table.T[groups]

    if multiplicative is not None:
        logits = logits * row(multiplicative)
    if additive is not None:
        logits = logits + row(additive)
    each = cross_entropy(logits, labels, reduction="none")
    if class_weight is not None:
        index = labels if groups is None else (labels, groups)
        each = class_weight[index] * each
    if reduction == "none":
        return each
    return each.mean() if reduction == "mean" else each.sum()

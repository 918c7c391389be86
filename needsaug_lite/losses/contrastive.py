"""Contrastive losses: the class of a feature among all other features of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def supervised_contrastive(
    projections: Tensor, labels: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Mean surprise at finding the features of one's own class among all others.

    L_sc = (1/|I|) Σ_i -(1/|P(i)|) Σ_{p∈P(i)} log s_ip
    s_ip = e^{z_i·z_p/τ} / Σ_{a≠i} e^{z_i·z_a/τ}

    z are the projections brought to length 1, P(i) all others with the label of i; i
    runs over those for which there are any. Never negative. Where two views of every
    image are used, the batch holds both, each with its label.

    Args:
        projections: shape (M, D); of any length above 0.
        labels: int64, shape (M,).
        temperature: τ > 0.

    Returns:
        A scalar in nats; 0 if no two labels agree.

    Raises:
        ValueError: for shapes that don't fit, or τ ≤ 0.

    Source: facog Eq. 1 (Khosla et al. 2020), with unit-norm projections and a mean in
    place of the sum over I (errata F8).
    """
    none = projections.new_empty(0, projections.shape[-1])
    return augmented_supervised_contrastive(
        projections, labels, none, labels[:0], temperature=temperature
    )


def augmented_supervised_contrastive(
    generated: Tensor,
    generated_labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Mean surprise of generated features at their own class, real and generated.

    L_asc = (1/|I|) Σ_i -(1/|P(i)|) Σ_{p∈P(i)} log s_ip
    s_ip = e^{z̃_i·z_p/τ} / Σ_{a∈A(i)} e^{z̃_i·z_a/τ}

    The anchors z̃_i are the generated projections brought to length 1. A(i) holds all
    projections but the anchor itself, real and generated; P(i) those of them with the
    label of i; i runs over the anchors for which there are any. P(i) ⊂ A(i), so every
    s_ip is a probability and the loss never negative.

    Args:
        generated: shape (M, D); the gradient flows into them alone.
        generated_labels: int64, shape (M,).
        real: shape (R, D); taken as constants.
        real_labels: int64, shape (R,).
        temperature: τ > 0.

    Returns:
        A scalar in nats; 0 if no anchor has another feature of its class.

    Raises:
        ValueError: for shapes that don't fit, or τ ≤ 0.

    Source: facog Eq. 4. As printed the generated positives are missing from the
    denominator, so that the loss can be negative (errata F2).
    """
    _check(generated, generated_labels, real, real_labels, temperature)
    anchors = normalize(generated, dim=1)
    others = torch.cat([anchors, normalize(real.detach(), dim=1)])
    labels = torch.cat([generated_labels, real_labels])
    itself = torch.eye(
        len(anchors), len(others), dtype=torch.bool, device=labels.device
    )
    similarity = anchors @ others.T / temperature
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(
        1, keepdim=True
    )
    positive = (generated_labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    # Not a product: a lone feature has log_share = inf, and inf * 0 isn't 0.
    surprise = -log_share.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return surprise.sum() / (count > 0).sum().clamp(min=1)


def _check(
    generated: Tensor,
    generated_labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    temperature: float,
) -> None:
    shapes = [tuple(t.shape) for t in (generated, generated_labels, real, real_labels)]
    features, labels = shapes[::2], shapes[1::2]
    fit = {len(s) for s in features} == {2} and [s[:1] for s in features] == labels
    if not fit or features[0][1] != features[1][1]:
        raise ValueError(
            "projections need shape (M, D) and labels (M,), with one D for all; given "
            f"{', '.join(map(str, shapes))}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be above 0")

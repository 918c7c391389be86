"""Whom a method pushes towards the decision boundary, and whom away from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from needsaug_lite.data import Examples


def perturbation_scores(
    epsilon: Tensor, train: Examples, num_classes: int
) -> dict[str, Any]:
    """Adversarial shares and mean strength, over all images and in parts of them.

    An image is adversarial if its ε is above 0: it is made harder.

    Args:
        epsilon: of every training image when last seen, shape (N,).
        train: the training images; true labels and groups are used where they are.
        num_classes: C.

    Returns:
        adversarial, epsilon_size (mean of |ε|), adversarial_per_class and
        epsilon_per_class (C numbers each); with groups adversarial_per_group (None
        for an absent group); where labels are known to be wrong, adversarial_clean
        and adversarial_noisy.

    Source: what meta_iada Fig. 3 and 4 show.
    """
    epsilon = epsilon.detach().cpu().double()
    harder = (epsilon > 0).double()
    labels = train.labels.cpu()
    found: dict[str, Any] = {
        "adversarial": float(harder.mean()),
        "epsilon_size": float(epsilon.abs().mean()),
        "adversarial_per_class": _means(harder, labels, num_classes),
        "epsilon_per_class": _means(epsilon, labels, num_classes),
    }
    if train.groups is not None:
        groups = train.groups.cpu()
        found["adversarial_per_group"] = _means(harder, groups, int(groups.max()) + 1)
    wrong = train.mislabelled
    if wrong is not None and bool(wrong.any()):
        clean, noisy = _means(harder, wrong.cpu().long(), 2)
        found |= {"adversarial_clean": clean, "adversarial_noisy": noisy}
    return found


def _means(values: Tensor, part: Tensor, parts: int) -> list[float | None]:
    """Mean of each part, None for an empty one."""
    sums = torch.zeros(parts, dtype=values.dtype).index_add_(0, part, values)
    sizes = torch.bincount(part, minlength=parts).tolist()
    pairs = zip(sums.tolist(), sizes, strict=True)
    return [total / size if size else None for total, size in pairs]

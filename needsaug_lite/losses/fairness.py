"""What a validation set is asked: risks of classes and groups, balanced or compared."""

from __future__ import annotations

import torch
from torch import Tensor


def conditional_risks(values: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mean of a number over the samples of every class and attribute.

    L_{k,j} = mean of ℓ_i over the samples of class k with attribute j

    Args:
        values: a loss (nats) or an error (0 or 1, or bool) of each sample, shape (B,).
        cells: k * A + j of each sample, int64, shape (B,).
        shape: number of classes C and of attributes A; A = 1 for classes alone.

    Returns:
        L, shape (C, A), NaN where there is no sample; a NaN has no gradient.

    Source: autobalance Sec. 1.1 (class-conditional risk) and Sec. 4.
    """
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    number = shape[0] * shape[1]
    zeros = torch.zeros(number, dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, cells, values)
    sizes = zeros.index_add(0, cells, torch.ones_like(values))
    means = sums / sizes.clamp(min=1)
    return torch.where(sizes > 0, means, torch.nan).view(shape)


def average_risk(risks: Tensor, shares: Tensor) -> Tensor:
    """Mean of the conditional risks, weighted by how common the cells are.

    L = sum_{k,j} π_{k,j} L_{k,j}, over the cells with a risk, π renormalised

    Args:
        risks: L, shape (C, A), NaN where unknown.
        shares: π, not negative, shape (C, A).

    Returns:
        A scalar in the unit of the risks.

    Source: autobalance Sec. 1.1; with shares of the training images the "weighted
    error" of Sec. 4 (errata A12).
    """
    known = ~risks.isnan()
    weights = torch.where(known, shares.to(risks.dtype), 0)
    return (weights * _filled(risks, known)).sum() / weights.sum()


def balanced_risk(risks: Tensor) -> Tensor:
    """Mean of the conditional risks in which all cells weigh the same.

    L_bal = 1/(C A) sum_{k,j} L_{k,j}, over the cells with a risk

    CE_bal for A = 1 and cross-entropy risks, CE_bal^G for A > 1; the balanced error for
    errors.

    Args:
        risks: L, shape (C, A), NaN where unknown.

    Returns:
        A scalar in the unit of the risks.

    Source: autobalance Sec. 1.1 and Sec. 4.
    """
    return average_risk(risks, torch.ones_like(risks))


def difference_of_equal_opportunity(risks: Tensor) -> Tensor:
    """How differently the attributes fare within a class, added over the classes.

    DEO = sum_k ( max_j L_{k,j} - min_j L_{k,j} )

    For two attributes it is the sum of |L_{k,1} - L_{k,2}|. It is 0 for a constant
    prediction, so that it makes sense only beside an error. On small samples it is
    biased upwards, because the noise of two means does not cancel in |·|.

    Args:
        risks: L, shape (C, A): losses for CE_deo, errors for the measure. NaN where
            unknown: such a cell is left out of its class.

    Returns:
        A scalar in the unit of the risks, at least 0.

    Source: autobalance Eq. 4.1 for two classes and attributes, in symmetric form.
    """
    known = ~risks.isnan()
    top = torch.where(known, risks, -torch.inf).max(1).values
    bottom = torch.where(known, risks, torch.inf).min(1).values
    compared = known.any(1)
    return torch.where(compared, top - bottom, 0.0).sum()


def _filled(risks: Tensor, known: Tensor) -> Tensor:
    return torch.where(known, risks, 0.0)

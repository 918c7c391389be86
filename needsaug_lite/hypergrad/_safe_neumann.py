"""A Neumann series whose step follows the curvature that it meets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._result import NotFiniteError
from needsaug_lite.hypergrad._solvers import Matrix, Product, Solution
from needsaug_lite.hypergrad._vectors import add_into, safe_norm, scaled

# Beyond it, the binomial coefficients of the series outgrow single precision.
_MOST_TERMS = 10


@dataclass(frozen=True)
class SafeNeumann:
    """See `safe_neumann`."""

    terms: int
    largest_step: float
    matrix: Matrix = "hessian"

    def solve(self, product: Product, vector: list[Tensor]) -> Solution:
        """Take the powers of H first, then add them with the step that they allow."""
        # Step 1: H^k v = ratio_0 ... ratio_k powers[k], each power of length 1, or 0.
        # The smallest number stands in for zero, so that nothing waits for the device.
        tiny = max(torch.finfo(part.dtype).tiny for part in vector)
        powers: list[list[Tensor]] = []
        lengths: list[Tensor] = []
        for k in range(self.terms + 1):
            curved = product(powers[-1]) if k else vector
            lengths.append(safe_norm(curved).clamp(min=tiny))
            powers.append(scaled(curved, 1 / lengths[-1]))
        ratios = torch.stack(lengths).tolist()
        if not all(map(math.isfinite, ratios)):
            raise NotFiniteError(
                "the Hessian of the inner loss times a vector is not finite; look at "
                "the second derivative of the loss"
            )
        # Step 2: a, and a Σ_j (1 - a x)^j = a Σ_k (-a x)^k Σ_j binom(j, k).
        step = min(self.largest_step, 1 / ratios[-1])
        total = [torch.zeros_like(part) for part in vector]
        factor = step
        for k, (power, ratio) in enumerate(zip(powers, ratios, strict=True)):
            factor *= -step * ratio if k else ratio
            add_into(total, power, factor * math.comb(self.terms + 1, k + 1))
        curvature = ratios[-1] if ratios[-1] > tiny else 0.0
        return total, {"terms": self.terms, "step": step, "curvature": curvature}


def safe_neumann(
    terms: int = 5, largest_step: float = 1.0, *, matrix: Matrix = "hessian"
) -> SafeNeumann:
    """The Neumann series with a step that the curvature allows, at no extra product.

    u = a Σ_{j=0..J} (I - aH)^j v,   a = min(largest_step, 1 / λ),
    λ = ||H^J v|| / ||H^(J-1) v||

    For a symmetric H the ratio of neighbouring powers grows with J towards the largest
    curvature that v has a part in, so that ||(aH)^k v|| ≤ ||v|| for all k ≤ J: no term
    can be longer than 2^j ||v||, whatever the network. A fixed step above 2/λ gives
    terms that grow geometrically (errata A7).

    Args:
        terms: J, after the zeroth; 1 to 10, as float32 loses the sum beyond that.
        largest_step: upper limit of a, so that a flat direction isn't overrated.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`.

    Returns:
        A solver for `implicit`; its report holds "terms", "step" (a) and "curvature"
        (λ).

    Raises:
        UserError: for impossible settings.

    Source: autobalance Sec. 2.1; the step is ours.
    """
    if not 1 <= terms <= _MOST_TERMS:
        raise UserError(f"terms is {terms}; give 1 to {_MOST_TERMS}")
    if not 0 < largest_step < math.inf:
        raise UserError(
            f"largest_step is {largest_step}; it must be positive and finite"
        )
    if matrix not in ("hessian", "gauss_newton"):
        raise UserError(f"unknown matrix {matrix!r}; use 'hessian' or 'gauss_newton'")
    return SafeNeumann(terms, largest_step, matrix)

"""The largest curvature of an inner loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._linearisation import Linearisation
from needsaug_lite.hypergrad._objective import Loss, Objective
from needsaug_lite.hypergrad._result import HypergradientWarning, NotFiniteError
from needsaug_lite.hypergrad._two_level import SLOTS
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import add, dot, norm, scaled


def largest_eigenvalue(
    inner_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
    generator: Generator | None = None,
) -> float:
    """The eigenvalue of the inner Hessian that is largest in size, by power iteration.

    x ← Hx / ||Hx||,   λ = xᵀHx

    A Neumann series on the undamped Hessian converges for steps below 2/λ, if the
    Hessian is positive definite. A negative result says that it is not. The estimate
    approaches from below in size, so leave room: step = 1/λ.

    Args:
        inner_loss: closure (params, hparams) -> scalar, or a sequence of closures.
        params: where the Hessian is taken, tensors by name.
        hparams: hyperparameters of the loss.
        iterations: at most this many products.
        tolerance: stop when ||Hx - λx|| is below this share of |λ|; then an eigenvalue
            lies within that distance.
        seed: of the start vector.
        generator: decides the draws of what is random in the closures.

    Returns:
        λ, in the unit of the loss per squared unit of the parameters.

    Raises:
        UserError: for impossible settings, or a loss that doesn't use its arguments.
        NotFiniteError: if a product with the Hessian is not finite.

    Warns:
        HypergradientWarning: if the tolerance was not reached.
    """
    if iterations < 1:
        raise UserError(f"iterations is {iterations}; take at least 1")
    weights = Variables.of(params, "params").leaves()
    settings = Variables.of(hparams, "hparams")
    with fixed_draws([weights, settings], generator) as draws:
        objective = Objective(inner_loss, "inner_loss", draws, SLOTS)
        here = Linearisation(
            objective, weights.values, weights.tensors, settings.tensors
        )
        source = torch.Generator("cpu").manual_seed(seed)
        vector = [
            torch.randn(part.shape, generator=source, device="cpu").to(part)
            for part in weights.values
        ]
        value, miss = 0.0, 0.0
        for _ in range(iterations):
            vector = scaled(vector, 1 / norm(vector))
            curved = here.product(vector, weights.values)
            value = float(dot(vector, curved))
            miss = float(norm(add(curved, vector, -value)))
            if not math.isfinite(value):
                raise NotFiniteError(
                    "the Hessian of inner_loss times a vector is not finite; look at "
                    "its second derivative"
                )
            if miss <= tolerance * abs(value) or not norm(curved) > 0:
                return value
            vector = curved
    warnings.warn(
        f"power iteration stopped after {iterations} products at {value:.4g}, with "
        f"an error of up to {miss:.2g}: two curvatures are close in size",
        HypergradientWarning,
        stacklevel=2,
    )
    return value

"""Derivatives that a value doesn't have: the straight-through estimator.

f̂ = stop(f) + s - stop(s)   has the value of f and the derivative of s, both exactly.
"""

from __future__ import annotations

from torch import Tensor


def with_derivative_of(value: Tensor, *surrogates: Tensor) -> Tensor:
    """`value`, with the sum of the derivatives of the surrogates, which broadcast."""
    return value.detach() + sum(only_derivative_of(part) for part in surrogates)


def only_derivative_of(surrogate: Tensor) -> Tensor:
    """Exactly zero, with the derivative of the surrogate."""
    return surrogate - surrogate.detach()


def clamp_to_unit(images: Tensor) -> Tensor:
    """Clamp to [0, 1] with derivative 1 everywhere."""
    return with_derivative_of(images.detach().clamp(0, 1), images)

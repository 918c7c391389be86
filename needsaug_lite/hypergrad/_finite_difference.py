"""One inner step, its second derivative replaced by a centred difference (DARTS)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._objective import Loss, Objective, require_dependence
from needsaug_lite.hypergrad._precision import full_precision, require_precision
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._two_level import SLOTS, Outer, require_rate
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import add, scaled


def finite_difference(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    lr: float,
    radius: float = 0.01,
    generator: Generator | None = None,
) -> Hypergradient:
    """Derivative of the outer loss after one inner step, from first derivatives only.

    θ' = θ - lr ∇_θ L_in(θ, h),   v = ∇_θ' L_out(θ', h),   ε = radius / ||v||

    d/dh L_out(θ'(h), h) ≈ ∂L_out/∂h
        - lr [∇_h L_in(θ + εv, h) - ∇_h L_in(θ - εv, h)] / (2ε)

    v is taken at the *updated* parameters θ', the difference around the *old* ones θ.
    Dividing the radius by ||v|| makes the length of the move ||εv|| = radius whatever
    the scale of the outer loss. The error of the second term falls as radius² until
    rounding takes over, which grows as 1/radius.

    Runs in full float32 or in float64: TF32 and an autocast around the call are off
    inside the closures. A closure must not enter autocast itself.

    Args:
        inner_loss: closure (params, hparams) -> scalar, or a sequence of closures that
            are averaged. Weight decay belongs here.
        outer_loss: the same, taken at the updated parameters.
        params: θ, tensors by name; which of them are free, see `unrolled`.
        hparams: h, tensors by name.
        lr: learning rate of the inner step, positive.
        radius: length of the move in parameter space, positive.
        generator: decides the draws of what is random in the closures; both sides of
            the difference see the same. Without it they follow from torch's default
            generator, which does not move.

    Returns:
        The hypergradient, with θ' as `params`.

    Raises:
        UserError: for impossible settings, parameters in half precision, or a loss that
            doesn't use its arguments.
        NotFiniteError: naming the loss or derivative that is not finite.

    Warns:
        HypergradientWarning: if the hypergradient is zero everywhere.

    Source: needs_aware Eq. 13 with the direct term, mgr Eq. 9 with the step and the
    factor mended (errata N2, M1, M2); Liu et al. 2019 (DARTS) Eq. 8.
    """
    require_rate(lr)
    require_radius(radius)
    weights = Variables.of(params, "params")
    settings = Variables.of(hparams, "hparams")
    require_precision(weights)
    everything = [*weights.values, *settings.values]
    draws_of = fixed_draws([weights, settings], generator)
    with draws_of as draws, full_precision(everything):
        inner = Objective(inner_loss, "inner_loss", draws, SLOTS)
        outer = Outer(outer_loss, draws)
        point = weights.leaves()
        inner_value, gradient, used = inner.gradient(
            point.values, point.tensors, settings.tensors
        )
        require_dependence(used, "inner_loss")
        updated = weights.at(add(weights.values, gradient, -lr))
        del gradient
        outer.evaluate(updated, settings)
        leaves = settings.leaves()

        def by_hparams(values: list[Tensor]) -> list[Tensor]:
            point = weights.at(values)
            return inner.gradient(leaves.values, point.tensors, leaves.tensors)[1]

        through = difference(
            by_hparams,
            weights.values,
            outer.take_vector(),
            outer.vector_norm,
            radius,
        )
        return outer.result(
            scaled(through, -lr), params=updated.tensors, inner_loss=inner_value
        )


def difference(
    gradient: Callable[[list[Tensor]], list[Tensor]],
    values: list[Tensor],
    vector: list[Tensor],
    length: Tensor,
    radius: float,
) -> list[Tensor]:
    """∇_z⟨∇_θ L, v⟩ by a centred difference of ∇_z L along v.

    Args:
        gradient: ∇_z L as a function of θ; it must not keep the tensors it is given.
        values: θ.
        vector: v, shaped like θ; emptied, to save memory.
        length: ||v||.
        radius: length of the move.
    """
    # A vector of zeros moves nothing: the difference is zero, and so is the result.
    # Bounded, because an infinite epsilon times a zero would not be one.
    length = length.clamp_min(torch.finfo(torch.float32).tiny)
    epsilon = (radius / length).clamp_max(1e38)
    moved = [torch.addcmul(value, epsilon.to(value), vector.pop(0)) for value in values]
    ahead = gradient(moved)
    for near, value in zip(moved, values, strict=True):
        near.neg_().add_(value, alpha=2)  # the mirror image, in the same memory
    return scaled(add(ahead, gradient(moved), -1.0), 0.5 / epsilon)


def require_radius(radius: float) -> None:
    """Refuse a radius that is not a positive number."""
    if not (math.isfinite(radius) and radius > 0):
        raise UserError(f"radius is {radius}; it must be a positive number")

"""One inner step, exact, without a second backward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.autograd import forward_ad

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._objective import (
    Loss,
    Objective,
    filled,
    require_dependence,
)
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._two_level import SLOTS, Outer, require_rate
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import add, averaged, scaled


def unrolled_forward(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    lr: float,
    generator: Generator | None = None,
) -> Hypergradient:
    """The same number as `unrolled` with one step, by a directional derivative.

    ∇_h⟨∇_θ L_in(θ, h), v⟩ = ∇_h D_v L_in(θ, h),
    D_v L_in(θ, h) = d/dt L_in(θ + tv, h) at t = 0

    The directional derivative comes out of one forward pass that carries tangents along
    v. Differentiating it by h keeps only what h touches: where h enters late, such as
    weights of the loss, no activation is stored. Cheaper than `unrolled` for
    convolutions, whose double backward is slow, and dearer for small dense networks,
    because the forward pass is done once more.

    Args:
        inner_loss: closure (params, hparams) -> scalar, or a sequence of closures that
            are averaged. Its operations need forward-mode derivatives.
        outer_loss: the same, taken at the updated parameters.
        params: θ, tensors by name; frozen ones are handed on unchanged.
        hparams: h, tensors by name.
        lr: learning rate of the inner step, positive.
        generator: decides the draws of what is random in the closures.

    Returns:
        The hypergradient, with θ' as `params`.

    Raises:
        UserError: for impossible settings, an operation without a forward-mode
            derivative, or a loss that doesn't use its arguments.
        NotFiniteError: naming the loss or derivative that is not finite.

    Source: as `unrolled`; the forward pass is the R-operator of Pearlmutter 1994.
    """
    require_rate(lr)
    weights = Variables.of(params, "params")
    settings = Variables.of(hparams, "hparams")
    with fixed_draws([*weights.values, *settings.values], generator) as draws:
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
        through = _slope_along(inner, weights, outer.take_vector(), settings.leaves())
        return outer.result(
            scaled(through, -lr), params=updated.tensors, inner_loss=inner_value
        )


def _slope_along(
    loss: Objective, weights: Variables, vector: list[Tensor], settings: Variables
) -> list[Tensor]:
    """∇_h D_v L, averaged over closures and ranks."""
    total: list[Tensor] | None = None
    for index in range(len(loss)):
        slope = _directional(loss, index, weights, vector, settings)
        found: tuple[Tensor | None, ...] = (None,) * len(settings.free)
        if slope is not None and slope.requires_grad:
            found = torch.autograd.grad(slope, settings.values, allow_unused=True)
        parts = filled(found, settings.values)
        total = parts if total is None else add(total, parts)
        del slope, found
    assert total is not None
    return averaged(scaled(total, 1 / len(loss)))


def _directional(
    loss: Objective,
    index: int,
    weights: Variables,
    vector: list[Tensor],
    settings: Variables,
) -> Tensor | None:
    """D_v L of one closure with its graph; None if nothing depends on θ."""
    tensors = dict(weights.tensors)
    with forward_ad.dual_level():
        for name, part in zip(weights.free, vector, strict=True):
            tensors[name] = forward_ad.make_dual(weights.tensors[name], part)
        try:
            value = loss.value(index, tensors, settings.tensors)
        except NotImplementedError as error:
            raise UserError(
                f"{loss.role} calls an operation that has no forward-mode derivative "
                f"in PyTorch ({str(error).splitlines()[0]}). Use hypergrad.unrolled"
            ) from error
        slope: Tensor | None = forward_ad.unpack_dual(value).tangent
    return slope

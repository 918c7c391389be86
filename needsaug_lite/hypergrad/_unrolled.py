"""The exact derivative through steps of gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._linearisation import Linearisation
from needsaug_lite.hypergrad._objective import Loss, Objective
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._two_level import SLOTS, Outer, require_rate
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import Vector, add, scaled


def unrolled(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    lr: float,
    steps: int = 1,
    momentum: float = 0.0,
    velocity: Mapping[str, Tensor] | None = None,
    generator: Generator | None = None,
) -> Hypergradient:
    """Derivative of the outer loss after inner steps, by the hyperparameters.

    θ_{t+1} = θ_t - lr m_{t+1},   m_{t+1} = momentum m_t + ∇_θ L_in(θ_t, h)

    d/dh L_out(θ_T(h), h), exact. With one step and no momentum it is

        ∂L_out/∂h - lr ∇_h⟨∇_θ L_in(θ, h), v⟩,   v = ∇_θ' L_out(θ', h)

    with v at the *updated* parameters θ' and held fixed. Several steps repeat the rule
    backwards, with v carried from step to step.

    Weight decay belongs to `inner_loss`. The graphs of all steps are alive at once if
    `inner_loss` is one closure; a sequence is evaluated again, one graph at a time.

    Args:
        inner_loss: closure (params, hparams) -> scalar, or a sequence of closures that
            are averaged. Every step uses all of them, with new random draws.
        outer_loss: the same, taken at the updated parameters.
        params: θ_0, tensors by name, such as dict(model.named_parameters()), with or
            without the buffers. Free are those that require a gradient, or all
            floating-point ones if none does; the others are handed on unchanged. So
            never give state_dict(), whose buffers would be trained.
        hparams: h, tensors by name, free or not by the same rule.
        lr: learning rate of the inner steps, positive.
        steps: T, at least 1.
        momentum: of SGD, without dampening, in [0, 1); it enters θ_T and the
            derivative.
        velocity: m_0 shaped like `params`, a constant; default zero.
        generator: decides the draws of what is random in the closures. Without it they
            follow from torch's default generator, which does not move.

    Returns:
        The hypergradient, with θ_T as `params`.

    Raises:
        UserError: for impossible settings, or a loss that doesn't use its arguments.
        NotFiniteError: naming the loss or derivative that is not finite.

    Warns:
        HypergradientWarning: if the hypergradient is zero everywhere.

    One estimate at a time in a process: the random state belongs to all threads.

    Source: needs_aware Eq. 8 and 18, mgr Eq. 8, meta_iada Eq. 7 to 10.
    """
    require_rate(lr)
    if steps < 1:
        raise UserError(f"steps is {steps}; take at least 1 inner step")
    if not 0 <= momentum < 1:
        raise UserError(f"momentum is {momentum}; it must lie in [0, 1)")
    weights = Variables.of(params, "params")
    settings = Variables.of(hparams, "hparams")
    with fixed_draws([weights, settings], generator) as draws:
        leaves = settings.leaves()
        outer = Outer(outer_loss, draws)
        moving = None if velocity is None else _matching(velocity, weights)
        path: list[tuple[Variables, Linearisation]] = []
        for step in range(steps):
            point = weights.leaves()
            inner = Objective(inner_loss, "inner_loss", draws, SLOTS * (step + 1))
            here = Linearisation(inner, point.values, point.tensors, leaves.tensors)
            path.append((point, here))
            gradient = here.take_gradient()
            if moving is not None:
                gradient = add(gradient, moving, momentum)
            moving = gradient if momentum else None
            weights = weights.at(add(weights.values, gradient, -lr))
            del gradient
        inner_value = path[0][1].value
        outer.evaluate(weights, leaves)
        through = _reverse(path, outer.take_vector(), leaves.values, lr, momentum)
        return outer.result(
            through,
            params=dict(weights.tensors),
            inner_loss=inner_value,
            velocity=None if moving is None else weights.shaped(moving),
        )


def _matching(velocity: Mapping[str, Tensor], weights: Variables) -> list[Tensor]:
    """The buffers of the free parameters, checked."""
    for name, value in zip(weights.free, weights.values, strict=True):
        if name not in velocity or velocity[name].shape != value.shape:
            raise UserError(
                f"velocity needs a tensor of shape {tuple(value.shape)} for {name!r}, "
                "one for every parameter that is trained"
            )
    return [velocity[name].detach() for name in weights.free]


def _reverse(
    path: list[tuple[Variables, Linearisation]],
    vector: Vector,
    hparams: list[Tensor],
    lr: float,
    momentum: float,
) -> list[Tensor]:
    """Go back through the steps, the last one first.

    λ is the derivative of the outer loss by θ_{t+1}, and -lr κ the one by m_{t+1}.
    """
    total = [torch.zeros_like(part) for part in hparams]
    lam, kappa = list(vector), None
    while path:
        point, here = path.pop()
        kappa = lam if kappa is None else add(lam, kappa, momentum)
        if not path:
            found = here.product(kappa, hparams, last=True)
            return add(total, found, -lr)
        wrt = [*point.values, *hparams]
        found = here.product(kappa, wrt, last=True)
        lam = add(lam, found[: len(lam)], -lr)
        total = add(total, scaled(found[len(lam) :], -lr))
    return total

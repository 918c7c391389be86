"""The part of a hypergradient that takes the parameters as given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._objective import Loss
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._two_level import Outer
from needsaug_lite.hypergrad._variables import Variables


def first_order(
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    generator: Generator | None = None,
) -> Hypergradient:
    """The partial derivative of the outer loss by the hyperparameters.

    ∂L_out(θ, h)/∂h, which is the limit of `unrolled` for lr → 0: what the training
    would change about θ is left out. It costs one evaluation of the outer loss, and is
    zero where h enters the training loss alone.

    Args:
        outer_loss: closure (params, hparams) -> scalar, or a sequence of closures that
            are averaged.
        params: θ, tensors by name; they stay as they are.
        hparams: h, tensors by name.
        generator: decides the draws of what is random in the closures.

    Returns:
        The hypergradient; its `inner_loss` is 0, because none was looked at.

    Raises:
        UserError: for a loss that doesn't use its arguments.
        NotFiniteError: naming the loss or derivative that is not finite.

    Warns:
        HypergradientWarning: if the hypergradient is zero everywhere.

    Source: the first-order approximation of DARTS (Liu et al. 2019, Sec. 2.3, ξ = 0),
    the default of PC-DARTS.
    """
    weights = Variables.of(params, "params")
    settings = Variables.of(hparams, "hparams")
    with fixed_draws([weights, settings], generator) as draws:
        outer = Outer(outer_loss, draws)
        outer.evaluate(weights, settings.leaves())
        return outer.result(
            [torch.zeros_like(part) for part in outer.direct],
            params=dict(weights.tensors),
            inner_loss=torch.zeros_like(outer.value),
        )

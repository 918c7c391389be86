"""What an estimator returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from needsaug_lite.errors import UserError

Tensors = dict[str, Tensor]


class NotFiniteError(UserError):
    """A loss or a derivative became infinite or not a number."""


class HypergradientWarning(UserWarning):
    """A hypergradient was computed, but a condition of its formula does not hold."""


class Hypergradient(dict[str, Tensor]):
    """Derivative of the outer loss by the hyperparameters, with what led to it.

    A dictionary shaped like `hparams`, each derivative on the device of its tensor;
    frozen hyperparameters have derivative zero. All numbers are detached tensors.

    Attributes:
        params: parameters at which the outer loss was taken: after the inner step or
            steps. For `implicit` they are those handed in, and as everywhere frozen
            tensors are included; these share memory with the caller's.
        inner_loss: inner loss at the parameters handed in, shape ().
        outer_loss: outer loss at `params`, shape ().
        vector_norm: ||v||, v the gradient of the outer loss by `params`, shape ().
        path_norms: norm of each part that the hypergradient is the sum of: "direct"
            (partial derivative of the outer loss) and "params" (through the
            parameters).
        velocity: momentum buffer after the last step (`unrolled` with momentum).
        report: what a solver has to say (`implicit`), such as its residual.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        params: Tensors,
        inner_loss: Tensor,
        outer_loss: Tensor,
        vector_norm: Tensor,
        path_norms: Tensors,
        velocity: Tensors | None = None,
        report: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(values)
        self.params = params
        self.inner_loss = inner_loss
        self.outer_loss = outer_loss
        self.vector_norm = vector_norm
        self.path_norms = path_norms
        self.velocity = velocity
        self.report = dict(report or {})
        _inspect(
            {
                "the inner loss": inner_loss,
                "the outer loss": outer_loss,
                "the gradient of the outer loss by the parameters": vector_norm,
                **{f"the hypergradient of {name!r}": t for name, t in values.items()},
            },
            values,
        )

    def set_grad(self, hparams: Mapping[str, Tensor]) -> None:
        """Put the derivative where an optimiser of the hyperparameters reads it.

        Args:
            hparams: the tensors that the optimiser holds; their `.grad` is replaced,
                that of a tensor that doesn't require a gradient stays as it is.
        """
        for name, value in self.items():
            if hparams[name].requires_grad:
                hparams[name].grad = value.clone()


def _inspect(
    quantities: Mapping[str, Tensor], hypergradient: Mapping[str, Tensor]
) -> None:
    """Wait once for the device; refuse what is not finite, warn of a zero result.

    Raises:
        NotFiniteError: with the name of the first quantity that is not finite.
    """
    home = next(iter(quantities.values())).device
    flags = [tensor.isfinite().all().to(home) for tensor in quantities.values()]
    moves = torch.stack([t.any().to(home) for t in hypergradient.values()]).any()
    *finite, moved = torch.stack([*flags, moves]).tolist()
    if not all(finite):
        found = [n for n, fine in zip(quantities, finite, strict=True) if not fine]
        raise NotFiniteError(
            f"{found[0]} is not finite. Lower the learning rate (of the training, of "
            "the inner step or of the hyperparameters), or look at the loss for a "
            "logarithm or division by zero"
        )
    if not moved:
        warnings.warn(
            "the hypergradient is zero everywhere: closures must compute with the "
            "hparams that they are given, and the outer loss must have a slope",
            HypergradientWarning,
            stacklevel=5,
        )

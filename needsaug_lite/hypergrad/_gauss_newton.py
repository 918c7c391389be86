"""The Gauss-Newton matrix of a loss that is split into network and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._objective import Objective
from needsaug_lite.hypergrad._vectors import add, averaged, mean

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class ComposedLoss:
    """L(θ, h) = loss(outputs(θ, h), h) + penalty(θ, h).

    The Gauss-Newton matrix keeps the curvature of the loss and of the penalty and
    leaves out that of the network: Jᵀ (∇²_z loss) J + ∇²_θ penalty with z = outputs and
    J = ∂z/∂θ. It is positive semi-definite if loss and penalty are convex.

    Attributes:
        outputs: (params, hparams) -> z, such as the logits of a batch, any shape.
        loss: (z, hparams) -> scalar.
        penalty: (params, hparams) -> scalar, such as weight decay; None for none.
    """

    outputs: Callable[[Tensors, Tensors], Tensor]
    loss: Callable[[Tensor, Tensors], Tensor]
    penalty: Callable[[Tensors, Tensors], Tensor] | None = None

    def __call__(self, params: Tensors, hparams: Tensors) -> Tensor:
        """The loss, a scalar."""
        value = self.loss(self.outputs(params, hparams), hparams)
        return value if self.penalty is None else value + self.penalty(params, hparams)


class GaussNewton:
    """Products with the Gauss-Newton matrix at one point."""

    def __init__(
        self, objective: Objective, by: Sequence[Tensor], params: Any, hparams: Any
    ) -> None:
        for closure in objective.closures:
            if not isinstance(closure, ComposedLoss):
                raise UserError(
                    "matrix='gauss_newton' needs to know what the network's outputs "
                    "are: give inner_loss as hypergrad.ComposedLoss(outputs, loss, "
                    "penalty)"
                )
        self._objective = objective
        self._by = list(by)
        self._arguments = (params, hparams)
        self._kept = self._graph(0) if len(objective) == 1 else None

    def product(self, vector: list[Tensor]) -> list[Tensor]:
        """The matrix times a vector shaped like the parameters."""
        if self._kept is not None:
            return averaged(self._one(self._kept, vector))
        batches = range(len(self._objective))
        return averaged(mean(self._one(self._graph(i), vector) for i in batches))

    def _graph(self, index: int) -> tuple[Tensor, ...]:
        """z, Jᵀw for a dummy w, z as a leaf, ∇_z loss, and the penalty's gradient."""
        closure = self._objective.begin(index)
        assert isinstance(closure, ComposedLoss)
        params, hparams = self._arguments
        with torch.enable_grad():
            outputs = closure.outputs(params, hparams)
            leaf = outputs.detach().requires_grad_()
            value = self._objective.scalar(closure.loss(leaf, hparams))
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            dummy = torch.zeros_like(outputs, requires_grad=True)
            back = self._gradient(outputs, dummy)
            penalty: list[Tensor] = []
            if closure.penalty is not None:
                penalty = self._gradient(closure.penalty(params, hparams))
        return (outputs, leaf, slope, dummy, *back, *penalty)

    def _gradient(self, of: Tensor, weight: Tensor | None = None) -> list[Tensor]:
        if not of.requires_grad:
            return [torch.zeros_like(leaf) for leaf in self._by]
        return list(
            torch.autograd.grad(
                of,
                self._by,
                grad_outputs=weight,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def _one(self, graph: tuple[Tensor, ...], vector: list[Tensor]) -> list[Tensor]:
        outputs, leaf, slope, dummy, *rest = graph
        back, penalty = rest[: len(self._by)], rest[len(self._by) :]
        # Jᵀw is linear in w; differentiating ⟨Jᵀw, v⟩ by w gives Jv.
        (pushed,) = _derivative(back, [dummy], vector)
        (curved,) = _derivative([slope], [leaf], [pushed])
        found = _derivative([outputs], self._by, [curved])
        if penalty:
            found = add(found, _derivative(penalty, self._by, vector))
        return found


def _derivative(
    of: Sequence[Tensor], by: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Σ_i weights_i ∂of_i/∂by; zero where nothing depends on it."""
    pairs = [(o, w) for o, w in zip(of, weights, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in by]
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        list(by),
        grad_outputs=[w for _, w in pairs],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return [part.detach() for part in found]

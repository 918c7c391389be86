"""The gradient of a loss at a point, and products with its Jacobian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._compiled import CompiledLoss
from needsaug_lite.hypergrad._objective import Objective, filled, require_dependence
from needsaug_lite.hypergrad._vectors import Vector, averaged, mean


class Linearisation:
    """The gradient g of a loss by some of its leaves, and products with g's Jacobian.

    With one closure the graph of g is kept between products; with several it is built
    anew for each of them, so that only one graph is alive at a time.

    Attributes:
        value: the loss, shape ().
        gradient: g, detached, or None after it has been taken.
    """

    def __init__(
        self, objective: Objective, by: Sequence[Tensor], *arguments: Any
    ) -> None:
        """Evaluate value and gradient.

        Args:
            objective: the loss.
            by: leaves inside `arguments` that g is the gradient by.
            arguments: of the loss's closures.
        """
        self._objective = objective
        self._by = list(by)
        self._arguments = arguments
        self._edges: list[tuple[int, GradientEdge]] | None = None
        # Compiled code frees its graph with the first product.
        self._once = isinstance(objective.closures[0], CompiledLoss)
        if len(objective) == 1:
            value, gradient, self._edges = self._graph(0)
            value, *gradient = averaged([value, *gradient])
        else:
            value, gradient = self._mean()
        self.value: Tensor = value
        self.gradient: list[Tensor] | None = gradient

    def _mean(self) -> tuple[Tensor, list[Tensor]]:
        """Value and gradient of a sequence, one graph after the other."""
        objective = self._objective
        if not any(isinstance(c, CompiledLoss) for c in objective.closures):
            value, gradient, used = objective.gradient(self._by, *self._arguments)
            require_dependence(used, objective.role)
            return value, gradient
        # By the same compiled gradient as in `product`: a compiled value draws other
        # dropout masks from the same random state.

        def value_and_gradient(index: int) -> list[Tensor]:
            value, gradient, _ = self._graph(index)
            return [value, *gradient]

        batches = range(len(objective))
        value, *gradient = averaged(mean(map(value_and_gradient, batches)))
        return value, gradient

    def take_gradient(self) -> list[Tensor]:
        """g; its memory belongs to the caller from now on."""
        assert self.gradient is not None
        gradient, self.gradient = self.gradient, None
        return gradient

    def product(
        self, vector: Vector, wrt: Sequence[Tensor], *, last: bool = False
    ) -> list[Tensor]:
        """∇_wrt ⟨g, vector⟩: the vector times the Jacobian of g by the leaves `wrt`.

        Args:
            vector: held fixed, shaped like `by`.
            wrt: leaves inside the arguments.
            last: free the graph.
        """
        wrt = list(wrt)
        if self._edges is not None and (last or not self._once):
            found = self._pullback(self._edges, vector, wrt, keep=not last)
            if last:
                self._edges = None
            return averaged(found)

        def one(index: int) -> list[Tensor]:
            edges = self._graph(index)[2]
            return self._pullback(edges, vector, wrt, keep=False)

        return averaged(mean(map(one, range(len(self._objective)))))

    def _pullback(
        self,
        edges: Sequence[tuple[int, GradientEdge]],
        vector: Vector,
        wrt: list[Tensor],
        *,
        keep: bool,
    ) -> list[Tensor]:
        if not edges or not wrt:
            return [torch.zeros_like(leaf) for leaf in wrt]
        with _explained(self._objective.role):
            found = torch.autograd.grad(
                [edge for _, edge in edges],
                wrt,
                grad_outputs=[vector[place] for place, _ in edges],
                retain_graph=keep,
                allow_unused=True,
            )
        return filled(found, wrt)

    def _graph(
        self, index: int
    ) -> tuple[Tensor, list[Tensor], list[tuple[int, GradientEdge]]]:
        """Value, detached gradient, and where in the graph each gradient comes out."""
        objective = self._objective
        closure = objective.closures[index]
        found: list[Tensor | None] = [None] * len(self._by)
        with torch.enable_grad(), _explained(objective.role):
            if isinstance(closure, CompiledLoss):
                objective.begin(index)
                given, value = closure.gradient(self._arguments, self._by)
                found = list(given)
            else:
                value = objective.value(index, *self._arguments)
                if value.requires_grad:
                    found = list(
                        torch.autograd.grad(
                            value, self._by, create_graph=True, allow_unused=True
                        )
                    )
        require_dependence([part is not None for part in found], objective.role)
        edges = [
            (place, get_gradient_edge(part))
            for place, part in enumerate(found)
            if part is not None and part.requires_grad
        ]
        _require_second_derivatives(edges, objective.role)
        return value.detach(), filled(found, self._by), edges


def _require_second_derivatives(
    edges: Sequence[tuple[int, GradientEdge]], role: str
) -> None:
    """Refuse a custom function that is marked as differentiable once.

    PyTorch cuts the graph there, and the hypergradient would lack a part in silence.
    """
    waiting = [edge.node for _, edge in edges]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() == "torch::autograd::Error":
            raise UserError(
                f"{role} calls a custom autograd function that is marked "
                "once_differentiable. Write its backward in differentiable "
                "operations, or use hypergrad.finite_difference"
            )
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


@contextmanager
def _explained(role: str) -> Iterator[None]:
    """Say what to do where PyTorch has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "aot_autograd does not" in message or "donated buffers" in message:
            raise UserError(
                f"{role} calls something that torch.compile has compiled, and PyTorch "
                "can't differentiate that twice. Hand hypergrad.compiled(loss), which "
                "compiles the gradient instead, or use hypergrad.finite_difference"
            ) from error
        if "modified by an inplace operation" in message:
            raise UserError(
                f"{role} reads a buffer that it also changes, and that change is taken "
                "back for the next evaluation. Put the module in eval mode, or hand "
                "the loss over as a list of one closure"
            ) from error
        undifferentiable = "is not implemented" in message and "derivative" in message
        if undifferentiable or "Double backward" in message:
            raise UserError(
                f"{role} calls an operation that has no second derivative in PyTorch "
                f"({message.splitlines()[0]}). Use another form of it, or "
                "hypergrad.finite_difference, which needs first derivatives only"
            ) from error
        raise

"""A compiled loss that can be differentiated twice: its gradient is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from needsaug_lite.errors import UserError

Closure = Callable[..., Tensor]
Tensors = Mapping[str, Tensor]


class CompiledLoss:
    """A loss whose value and whose gradient are compiled; see `compiled`.

    Args:
        loss: closure (params, hparams) -> scalar.
        options: of `torch.compile`.
    """

    def __init__(self, loss: Closure, **options: Any) -> None:

        def split(free: Tensors, rest: Tensors, hparams: Any) -> Tensor:
            return loss({**rest, **free}, hparams).reshape(())

        gradient = torch.func.grad_and_value(split)
        self._checked = False
        self._value: Closure = torch.compile(loss, **options)
        self._gradient: Callable[..., Any] = torch.compile(gradient, **options)

    def __call__(self, params: Tensors, hparams: Any) -> Tensor:
        """The loss, a scalar."""
        return self._value(params, hparams)

    def gradient(
        self, arguments: Sequence[Any], by: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Gradient by the tensors `by`, which are among the params, and the value."""
        params, hparams = arguments
        if not isinstance(params, Mapping) or not all(
            isinstance(tensor, Tensor) for tensor in params.values()
        ):
            raise UserError(
                "hypergrad.compiled serves unrolled and implicit; a level of a chain "
                "needs a plain function"
            )
        places = {id(tensor): place for place, tensor in enumerate(by)}
        free = {name: t for name, t in params.items() if id(t) in places}
        rest = {name: t for name, t in params.items() if id(t) not in places}
        found, value = self._gradient(free, rest, hparams)
        ordered = sorted(free, key=lambda name: places[id(free[name])])
        if not self._checked:  # torch.func.grad gives zeros where nothing depends
            if not any(bool(part.any()) for part in found.values()):
                raise UserError(
                    "the gradient of the compiled loss is zero everywhere: it must "
                    "compute with the params that it is given"
                )
            self._checked = True
        return [found[name] for name in ordered], value


def compiled(loss: Closure, **options: Any) -> CompiledLoss:
    """A loss for the estimators, with value and gradient compiled by `torch.compile`.

    PyTorch cannot differentiate a compiled function twice. But the gradient itself,
    built by `torch.func.grad`, can be compiled, and differentiating that once is all
    that `unrolled` and `implicit` need. So hand this instead of a compiled loss.

    Args:
        loss: closure (params, hparams) -> scalar, free of side effects.
        options: of `torch.compile`, such as `backend` or `mode`.

    Returns:
        A loss with one closure, for `unrolled` and `implicit` (and, though it gains
        nothing there, `finite_difference`); several may stand in a list. Random layers
        draw the same numbers in all evaluations of one estimate.
    """
    return CompiledLoss(loss, **options)

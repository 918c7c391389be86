"""A compiled loss that can be differentiated twice: its gradient is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Closure = Callable[..., Tensor]
Tensors = Mapping[str, Tensor]


class CompiledLoss:
    """A loss whose value and whose gradient are compiled; see `compiled`."""

    def __init__(self, loss: Closure, **options: Any) -> None:

        def split(free: Tensors, rest: Tensors, hparams: Any) -> Tensor:
            return loss({**rest, **free}, hparams)

        gradient = torch.func.grad_and_value(split)
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
        places = {id(tensor): place for place, tensor in enumerate(by)}
        free = {name: t for name, t in params.items() if id(t) in places}
        rest = {name: t for name, t in params.items() if id(t) not in places}
        found, value = self._gradient(free, rest, hparams)
        ordered = sorted(free, key=lambda name: places[id(free[name])])
        return [found[name] for name in ordered], value


def compiled(loss: Closure, **options: Any) -> CompiledLoss:
    """A loss for the estimators, with value and gradient compiled by `torch.compile`.

    PyTorch cannot differentiate a compiled function twice. But the gradient itself,
    built by `torch.func.grad`, can be compiled, and differentiating that once is all
    that `unrolled` and `implicit` need. So hand this instead of a compiled loss.

    Args:
        loss: closure (params, hparams) -> scalar, free of side effects.
        options: of `torch.compile`, such as `backend` or `mode`.
    """
    return CompiledLoss(loss, **options)

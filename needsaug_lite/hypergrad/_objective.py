"""A loss as closures over batches, which are averaged one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import Draws
from needsaug_lite.hypergrad._vectors import add, averaged, scaled

Closure = Callable[..., Tensor]
#: A closure (params, hparams) -> scalar, or a sequence of closures that are averaged.
Loss = Closure | Sequence[Closure]


class Objective:
    """The mean of a loss over its closures, on fixed draws, and over the ranks.

    Args:
        loss: a closure, or a sequence of closures, one for each batch.
        role: what the caller calls it, for messages.
        draws: random numbers; closure i uses slot `slot + i`.
    """

    def __init__(self, loss: Loss, role: str, draws: Draws, slot: int) -> None:
        closures = (loss,) if callable(loss) else tuple(loss)
        if not closures or not all(callable(closure) for closure in closures):
            raise UserError(
                f"{role} must be a function that returns a scalar, or a sequence of "
                "such functions, one for each batch"
            )
        self.closures: tuple[Closure, ...] = closures
        self.role = role
        self._draws = draws
        self._slot = slot

    def __len__(self) -> int:
        return len(self.closures)

    def begin(self, index: int) -> Closure:
        """Closure `index`, its random state set."""
        self._draws.begin(self._slot + index)
        return self.closures[index]

    def value(self, index: int, *arguments: Any) -> Tensor:
        """The loss of one closure, with its graph."""
        with torch.enable_grad():
            return self.scalar(self.begin(index)(*arguments))

    def scalar(self, value: Any) -> Tensor:
        """Refuse what is not a scalar."""
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = (
                f"a tensor of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else f"a {type(value).__name__}"
            )
            raise UserError(
                f"{self.role} returned {given}; it must return a scalar tensor: take "
                "the mean over the batch"
            )
        return value.reshape(())

    def gradient(
        self, leaves: Sequence[Tensor], *arguments: Any
    ) -> tuple[Tensor, list[Tensor], list[bool]]:
        """Mean value, its gradient by `leaves`, and which of them it depends on.

        `leaves` are tensors inside `arguments`; no graph is kept.
        """
        total, sums = None, None
        used = [False] * len(leaves)
        for index in range(len(self)):
            value = self.value(index, *arguments)
            found: Sequence[Tensor | None] = [None] * len(leaves)
            if value.requires_grad and leaves:
                found = torch.autograd.grad(value, leaves, allow_unused=True)
            used = [u or g is not None for u, g in zip(used, found, strict=True)]
            gradients = filled(found, leaves)
            sums = gradients if sums is None else add(sums, gradients)
            total = value.detach() if total is None else total + value.detach()
            del value, found, gradients
        assert total is not None
        assert sums is not None
        share = 1 / len(self)
        if len(self) > 1:
            total, sums = share * total, scaled(sums, share)
        mean, *gradients = averaged([total, *sums])
        return mean, gradients, used


def filled(found: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Detached, with zeros where a leaf has no gradient."""
    return [
        torch.zeros_like(leaf) if part is None else part.detach().to_dense()
        for part, leaf in zip(found, leaves, strict=True)
    ]


def require_dependence(used: Sequence[bool], role: str) -> None:
    """Refuse a loss none of whose leaves has a gradient."""
    if not any(used):
        raise UserError(
            f"{role} does not depend on the params that it is given. A closure must "
            "compute with its arguments, for instance through "
            "torch.func.functional_call(model, params, images), not with the "
            "module's own weights"
        )

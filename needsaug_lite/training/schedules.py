"""Settings of the optimiser, and the learning rate of an epoch as a function."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from needsaug_lite.errors import UserError

MOMENTUM = 0.9


@dataclass(frozen=True)
class Optimisation:
    """An optimiser and a schedule that is stated in fractions of the run.

    With the defaults and 200 epochs: SGD with momentum, warm-up for 5 epochs, rate
    times 0.01 at epochs 160 and 180, as in the code published with LDAM.

    Attributes:
        lr: learning rate after the warm-up.
        momentum, nesterov: of SGD.
        weight_decay: its product with the weights is added to the gradient.
        batch_size: images per step.
        warmup: share of the epochs with a linearly growing rate.
        milestones: shares of the epochs at which the rate is multiplied.
        factor: what it is multiplied with.
        schedule: "step" as above, or "cosine" from lr to 0 after the warm-up.
        kind: "sgd", or "adam" with β 0.9 and 0.999, as in needs_aware Sec. 4.1 with
            lr 1e-3; a look ahead of a method stays a plain step at the same rate.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = MOMENTUM
    weight_decay: Annotated[float, Ge(0)] = 2e-4
    nesterov: bool = False
    batch_size: Annotated[int, Gt(0)] = 128
    warmup: Annotated[float, Ge(0), Le(1)] = 0.025
    milestones: tuple[Annotated[float, Ge(0), Le(1)], ...] = (0.8, 0.9)
    factor: Annotated[float, Gt(0)] = 0.01
    schedule: Literal["step", "cosine"] = "step"
    kind: Literal["sgd", "adam"] = "sgd"

    def check(self) -> None:
        """Refuse settings that don't go together.

        Raises:
            UserError: for Nesterov's step without momentum, and for settings of SGD
                that Adam has no use for.
        """
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov needs a momentum above 0")
        if self.kind == "adam" and (self.nesterov or self.momentum != MOMENTUM):
            raise UserError(
                f"momentum {self.momentum} and nesterov {self.nesterov} are of SGD, "
                "and kind is adam: leave both out, or set kind to sgd"
            )

    def learning_rate(self, epoch: int, epochs: int) -> float:
        """Rate of epoch `epoch` (from 0) in a run of `epochs` epochs."""
        warm = round(self.warmup * epochs)
        if epoch < warm:
            return self.lr * (epoch + 1) / warm
        if self.schedule == "cosine":
            progress = (epoch - warm) / max(1, epochs - warm)
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        passed = sum(epoch >= round(share * epochs) for share in self.milestones)
        return self.lr * self.factor**passed

    def optimiser(
        self, trained: nn.Module | Iterable[Tensor]
    ) -> torch.optim.SGD | torch.optim.Adam:
        """An optimiser of the given parameters.

        Args:
            trained: the parameters, or a network with all of its own.

        Raises:
            UserError: see `check`.
        """
        self.check()
        given = trained.parameters() if isinstance(trained, nn.Module) else trained
        if self.kind == "adam":
            return torch.optim.Adam(given, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            given,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr

"""Settings of the optimiser, and the learning rate of an epoch as a function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """SGD with momentum and a schedule that is stated in fractions of the run.

    With the defaults and 200 epochs: warm-up for 5 epochs, rate times 0.01 at
    epochs 160 and 180, as in the code published with LDAM.

    Attributes:
        lr: learning rate after the warm-up.
        momentum, weight_decay, nesterov: of SGD.
        batch_size: images per step.
        warmup: share of the epochs with a linearly growing rate.
        milestones: shares of the epochs at which the rate is multiplied.
        factor: what it is multiplied with.
        schedule: "step" as above, or "cosine" from lr to 0 after the warm-up.
    """

    lr: Annotated[float, Gt(0)] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 2e-4
    nesterov: bool = False
    batch_size: Annotated[int, Gt(0)] = 128
    warmup: Annotated[float, Ge(0), Le(1)] = 0.025
    milestones: tuple[Annotated[float, Ge(0), Le(1)], ...] = (0.8, 0.9)
    factor: Annotated[float, Gt(0)] = 0.01
    schedule: Literal["step", "cosine"] = "step"

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

    def optimiser(self, model: nn.Module) -> torch.optim.SGD:
        """SGD over all parameters of `model`."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimiser.param_groups:
        group["lr"] = lr

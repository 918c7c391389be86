"""The outer half of an estimate with two levels, whatever the inner half is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._draws import Draws
from needsaug_lite.hypergrad._objective import Loss, Objective, require_dependence
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import Vector, add, norm, safe_norm

# Closures of one loss that get random numbers of their own.
SLOTS = 4096


class Outer:
    """The outer loss at given parameters: its value, v, and the direct term."""

    def __init__(self, loss: Loss, draws: Draws) -> None:
        self._objective = Objective(loss, "outer_loss", draws, 0)

    def evaluate(self, params: Variables, hparams: Variables) -> None:
        """Take value and gradients at `params`; `hparams` are leaves of a graph."""
        point, settings = params.leaves(), hparams.leaves()
        leaves = [*point.values, *settings.values]
        value, found, used = self._objective.gradient(
            leaves, point.tensors, settings.tensors
        )
        count = len(point.free)
        require_dependence(used[:count], "outer_loss")
        self.value = value
        self._vector = found[:count]
        self.direct = found[count:]
        self.vector_norm = safe_norm(self._vector)
        self._hparams = hparams

    def take_vector(self) -> list[Tensor]:
        """v; its memory belongs to the caller from now on."""
        vector, self._vector = self._vector, []
        return vector

    def result(
        self,
        through: Vector,
        *,
        params: Mapping[str, Tensor],
        inner_loss: Tensor,
        velocity: dict[str, Tensor] | None = None,
        report: Mapping[str, float] | None = None,
    ) -> Hypergradient:
        """Direct term plus what comes through the parameters."""
        return Hypergradient(
            self._hparams.shaped(add(self.direct, through)),
            params=dict(params),
            inner_loss=inner_loss,
            outer_loss=self.value,
            vector_norm=self.vector_norm,
            path_norms={"direct": norm(self.direct), "params": norm(through)},
            velocity=velocity,
            report=report,
        )


def require_rate(lr: float) -> None:
    """Refuse a learning rate that is not a positive number."""
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"lr is {lr}; the learning rate must be a positive number")

"""Levels of a chain: what each of them is, and what they may read of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._objective import Loss
from needsaug_lite.hypergrad._result import Hypergradient
from needsaug_lite.hypergrad._two_level import require_rate

State = Literal["old", "updated"]
Weights = dict[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Level:
    """θ_k' = θ_k - lr_k ∇_θ_k L_k(θ_k, what the level reads of others, h).

    Attributes:
        name: how other levels and the result call it.
        loss: closure (weights, hparams) -> scalar, or a sequence of closures that are
            averaged. `weights` holds the tensors of this level (old) under its own
            name, and those of every level in `reads`.
        params: θ_k, tensors by name; frozen ones stay as they are.
        lr: learning rate, positive.
        reads: name of another level -> "updated" to see its weights after its step, and
            be differentiated through them, or "old" to see those before it; one of the
            two for each level.
    """

    name: str
    loss: Loss
    params: Mapping[str, Tensor]
    lr: float
    reads: Mapping[str, State] = field(default_factory=dict)


class ChainHypergradient(Hypergradient):
    """A hypergradient through several levels.

    Attributes:
        weights: updated parameters of every level, by its name; `params` holds the same
            under names such as "first.weight".
        losses: loss of every level before its step; `inner_loss` is the last one.
        gradients: gradient of every level's loss by its free weights, before its step.
        paths: what the hypergradient is the sum of, shaped like it. "direct" is the
            partial derivative of the outer loss; "second" goes from the hyperparameters
            through the step of level second to the outer loss; "first -> second" from
            them through the step of first, which second reads, and second's step.
        path_norms: norm of each path.
    """

    weights: dict[str, dict[str, Tensor]]
    losses: dict[str, Tensor]
    gradients: dict[str, dict[str, Tensor]]
    paths: dict[str, dict[str, Tensor]]


class Reads(dict[str, Mapping[str, Tensor]]):
    """Weights by level; a level that was not declared is named."""

    def __init__(self, reader: str, weights: Weights) -> None:
        super().__init__(weights)
        self._reader = reader

    def __missing__(self, name: str) -> Mapping[str, Tensor]:
        raise UserError(
            f"{self._reader} uses the weights of {name!r}, but declares only "
            f"{', '.join(map(repr, self))}: add {name!r} to its reads"
        )


def ordered(levels: Sequence[Level]) -> list[Level]:
    """The levels, checked: names, rates, and the order of their reads."""
    names = [level.name for level in levels]
    if not names or len(set(names)) < len(names):
        raise UserError(f"levels need names, each its own; given: {names}")
    for place, level in enumerate(levels):
        require_rate(level.lr)
        for other, state in level.reads.items():
            if other not in names or other == level.name:
                raise UserError(
                    f"level {level.name!r} reads {other!r}; it can read "
                    f"{', '.join(repr(n) for n in names if n != level.name) or 'none'}"
                )
            if state not in ("old", "updated"):
                raise UserError(
                    f"level {level.name!r} reads {state!r} weights of {other!r}; say "
                    "'old' or 'updated'"
                )
            if state == "updated" and other not in names[:place]:
                raise UserError(
                    f"level {level.name!r} reads the updated weights of {other!r}, "
                    "which steps after it: put it later, or read 'old' weights"
                )
    return list(levels)

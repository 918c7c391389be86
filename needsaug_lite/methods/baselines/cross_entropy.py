"""Plain cross-entropy, and two ways to draw classes evenly."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import Tensor

from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier


class CrossEntropy(Supervised):
    """Cross-entropy on the training images as they are."""


class Resampling(Supervised):
    """Cross-entropy with classes drawn in proportion to n_c^power.

    An epoch draws as many images as there are, with replacement: class c with
    probability proportional to n_c^power. power = 1 is the data as they are, 0
    draws all classes equally, 0.5 is square-root sampling.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        power: Annotated[float, Ge(0), Le(1)] = 0.0,
        **common: Any,
    ) -> None:
        self.power = power
        super().__init__(model, splits, **common)

    def sampling_weights(self) -> Tensor | None:
        """n_c^(power - 1): a class then has the share n_c^power."""
        return self.counts.double() ** (self.power - 1)

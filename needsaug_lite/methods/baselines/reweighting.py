"""Class weights, focal weights, and weights that come late."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le, Lt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.supervised import (
    DEFERRED_START,
    Deferred,
    Supervised,
)
from needsaug_lite.models import Classifier

Beta = Annotated[float, Ge(0), Lt(1)]


class ClassBalanced(Supervised):
    """Cross-entropy weighted by the inverse effective number (Cui et al. 2019)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        beta: Beta = 0.9999,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.class_weight = losses.class_balanced_weights(self.counts, beta)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Weighted cross-entropy."""
        return losses.cross_entropy(logits, labels, class_weight=self.class_weight)


class Focal(Supervised):
    """Focal loss (Lin et al. 2017), with class weights if beta > 0 (CB-Focal)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gamma: Annotated[float, Ge(0)] = 1.0,
        beta: Beta = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.gamma = gamma
        self.class_weight = losses.class_balanced_weights(self.counts, beta)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss, weighted if beta > 0."""
        return losses.focal(
            logits, labels, gamma=self.gamma, class_weight=self.class_weight
        )


class DeferredReweighting(Deferred):
    """Cross-entropy, then weighted cross-entropy (CE-DRW of Cao et al. 2019)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        start: Annotated[float, Ge(0), Le(1)] = DEFERRED_START,
        beta: Beta = 0.9999,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, start=start, beta=beta, **common)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, weighted once the deferred weights are on."""
        return losses.cross_entropy(logits, labels, class_weight=self.class_weight)

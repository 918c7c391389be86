"""Losses that change the logits by the class sizes: LA, CDT, VS."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier

NotNegative = Annotated[float, Ge(0)]


class LogitAdjustment(Supervised):
    """Logits plus tau log pi in training (Menon et al. 2021)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        tau: NotNegative = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.tau = tau
        self.class_prior = splits.class_prior

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the adjusted logits."""
        return losses.logit_adjusted(
            logits, labels, class_prior=self.class_prior, tau=self.tau
        )


class VectorScaling(Supervised):
    """A factor and a shift for every logit (Kini et al. 2021)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gamma: NotNegative = 0.2,
        tau: NotNegative = 1.2,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.gamma, self.tau = gamma, tau

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the scaled and shifted logits."""
        return losses.vector_scaling(
            logits, labels, counts=self.counts, gamma=self.gamma, tau=self.tau
        )


class ClassDependentTemperature(Supervised):
    """Logits of rare classes damped in training (Ye et al. 2020)."""

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gamma: NotNegative = 0.3,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.gamma = gamma

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the damped logits."""
        return losses.class_dependent_temperature(
            logits, labels, counts=self.counts, gamma=self.gamma
        )

"""Convex combinations of features of a class, wherever their weights come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from needsaug_lite.methods.baselines.feature_oversampling import FeatureOversampling
from needsaug_lite.models import Mixer, mix

NEARLY_ONE = 0.9


class FeatureMixing(FeatureOversampling, ABC):
    """Features that are convex combinations of S real ones of their class.

    f̃_c = Σ_i w_i f_{c,i},  w_i ≥ 0,  Σ_i w_i = 1                  (facog Sec. 3.3)

    For features drawn independently, E f̃ = μ_c and Cov f̃ = E‖w‖² Σ_c (errata F4).
    """

    slots: int

    @property
    @abstractmethod
    def mixer(self) -> Mixer:
        """Where the weights come from; see `models.feature_gan`."""

    def mixture(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Generated features (B, D), their weights (B, S), what was mixed (B, S, D)."""
        features = self.dictionary.sample(labels, self.slots, self.draw, self.device)
        noise = self.mixer.noise(len(labels), self.draw)
        weights = self.mixer(noise, self.placed(labels), features)
        return mix(weights, features), weights, features

    def made(self, labels: Tensor) -> Tensor:
        """Mixtures of features of classes `labels`."""
        return self.mixture(labels)[0]


def weight_statistics(weights: Tensor) -> dict[str, Tensor]:
    """How far mixtures are from copies.

    Args:
        weights: shape (B, S), rows that add up to 1.

    Returns:
        `weight_norm`: the mean of ‖w‖², between 1/S (the middle) and 1 (a copy), the
        share of a class's variance that its mixtures have; `near_copies`: the share of
        rows with a weight above 0.9.

    Source: facog errata F4.
    """
    return {
        "weight_norm": weights.square().sum(1).mean(),
        "near_copies": (weights.amax(1) > NEARLY_ONE).float().mean(),
    }

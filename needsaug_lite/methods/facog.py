"""FACoG: a GAN that only mixes, kept apart by contrast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.adversarial_source import AdversarialSource
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
    Weight,
)
from needsaug_lite.methods.baselines.feature_mixing import (
    FeatureMixing,
    weight_statistics,
)
from needsaug_lite.methods.baselines.feature_oversampling import (
    PHASE2,
    OversamplingSettings,
)
from needsaug_lite.models import Classifier, ConvexGenerator, Mixer, SeeingGenerator

Sight = Literal["blind", "seeing"]


class FACoG(FeatureMixing, AdversarialSource):
    """Mixtures whose weights a generator learns against a discriminator.

    Per step of the second phase, with uniform labels c and S real features of each:

    1. f̃ = Σ_i G(n|c)_i f_{c,i}
    2. D:  ½ E[(D(f_c, c) - 1)²] + ½ E[D(f̃, c)²]             (Eq. 3, errata F1, F5)
    3. G:  λ_adv ½ E[(D(f̃, c) - 1)²] + λ_asc L_asc            (Eq. 4 and 5, errata F2)
    4. classifier: real features and mixtures of rare classes (Sec. 3.4, errata F6)

    Backbone and projection stay as the first phase left them.

    Source: Park et al. 2023.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        slots: Annotated[int, Ge(1)] = 5,
        lambda_adv: Weight = 1.0,
        lambda_asc: Weight = 0.1,
        temperature: Annotated[float, Gt(0)] = 0.1,
        sight: Sight = "blind",
        **common: Any,
    ) -> None:
        """Prepare generator and discriminator.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            phase1: settings of the first phase.
            phase2: settings of the second phase.
            slots: N_s, features of a class that are mixed.
            lambda_adv, lambda_asc: weights of the generator's two losses.
            temperature: τ of the contrast.
            sight: "blind" as printed, or "seeing": the generator is given the features
                that it mixes (errata F4).
            common: see `ContrastiveTraining`.
        """
        classes = splits.num_classes
        source: Mixer = (
            ConvexGenerator(classes, slots)
            if sight == "blind"
            else SeeingGenerator(classes, model.feature_dim)
        )
        super().__init__(
            model, splits, source=source, phase1=phase1, phase2=phase2, **common
        )
        self.slots = slots
        self._mixer = source
        self.lambda_adv, self.lambda_asc = lambda_adv, lambda_asc
        self.temperature = temperature

    @property
    def mixer(self) -> Mixer:
        """The generator of convex weights."""
        return self._mixer

    def play(self, chosen: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """One update of the discriminator, then one of the generator."""
        labels = self.placed(chosen)
        mixtures, weights, mixed = self.mixture(chosen)
        judged = self.train_discriminator(real, mixtures, labels)
        adversarial = losses.least_squares_generator(
            self.discriminator(mixtures, labels)
        )
        contrast = self.contrast(mixtures, labels, mixed)
        # facog Eq. 5
        self.train_generator(self.lambda_adv * adversarial + self.lambda_asc * contrast)
        return {
            "discriminator_loss": judged,
            "adversarial": adversarial.detach(),
            "augmented_contrast": contrast.detach(),
            **weight_statistics(weights.detach()),
        }

    def contrast(self, mixtures: Tensor, labels: Tensor, mixed: Tensor) -> Tensor:
        """Eq. 4 of mixtures (B, D) among themselves and what was mixed (B, S, D).

        Every mixture thus finds real features of its class.
        """
        with torch.no_grad():
            real = self.projection(mixed.flatten(0, 1))
        return losses.augmented_supervised_contrastive(
            self.projection(mixtures),
            labels,
            real,
            labels.repeat_interleave(mixed.shape[1]),
            temperature=self.temperature,
        )

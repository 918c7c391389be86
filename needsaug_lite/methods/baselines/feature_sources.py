"""Other sources of features for the same second phase: what FACoG is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.adversarial_source import AdversarialSource
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
)
from needsaug_lite.methods.baselines.feature_mixing import (
    FeatureMixing,
    weight_statistics,
)
from needsaug_lite.methods.baselines.feature_oversampling import (
    PHASE2,
    FeatureOversampling,
    OversamplingSettings,
)
from needsaug_lite.models import (
    Classifier,
    CopyWeights,
    DirichletWeights,
    FeatureGenerator,
    InstanceGenerator,
    Mixer,
)
from needsaug_lite.statistics import FeatureDictionary


class FixedMixing(FeatureMixing):
    """Mixtures with weights that nobody learns.

    "dirichlet" spreads the weights evenly over all mixtures; "copy" puts all weight on
    one feature, which is oversampling of features.

    Source: the two comparisons that errata F4 of facog asks for.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        kind: Literal["dirichlet", "copy"],
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        slots: Annotated[int, Ge(1)] = 5,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, phase1=phase1, phase2=phase2, **common)
        self.slots = slots
        self._mixer: Mixer = (
            DirichletWeights(slots) if kind == "dirichlet" else CopyWeights(slots)
        )

    @property
    def mixer(self) -> Mixer:
        """The fixed source of weights."""
        return self._mixer


class FeatureSMOTE(FeatureOversampling):
    """Points between a feature and one of its nearest neighbours of the class.

    f̃ = f + u (f' - f),  u uniform on [0, 1],  f' one of the k nearest

    imbalanced-learn's SMOTE brings every class to the size of the largest once, before
    the second phase; the features to add are drawn from that. In a class of n ≤ k
    images all others are neighbours; a lone image is repeated.

    Source: Chawla et al. 2002, on features of the frozen backbone.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        neighbours: Annotated[int, Ge(1)] = 5,
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, phase1=phase1, phase2=phase2, **common)
        self.neighbours = neighbours
        self._grown: FeatureDictionary | None = None
        self._grown_from: FeatureDictionary | None = None

    @property
    def grown(self) -> FeatureDictionary:
        """Real and synthetic features, as many of each class."""
        if self._grown is None or self._grown_from is not self.dictionary:
            self._grown_from = self.dictionary
            self._grown = smote(self.dictionary, self.neighbours, self.batches.seed)
        return self._grown

    def made(self, labels: Tensor) -> Tensor:
        """Features of classes `labels` out of the grown dictionary."""
        return self.grown.sample(labels, 1, self.draw, self.device).squeeze(1)


def smote(
    dictionary: FeatureDictionary, neighbours: int, seed: int
) -> FeatureDictionary:
    """The dictionary with every class grown to the size of the largest.

    Args:
        dictionary: N features.
        neighbours: k.
        seed: of the synthetic features, a whole number below 2^32.
    """
    from imblearn.over_sampling import SMOTE, RandomOverSampler

    features, labels = dictionary.features.cpu().numpy(), dictionary.labels.numpy()
    lone = {int(c): 2 for c in (dictionary.counts == 1).nonzero().flatten()}
    if lone:
        repeat = RandomOverSampler(sampling_strategy=lone, random_state=seed)
        features, labels = repeat.fit_resample(features, labels)
    size = max(int(dictionary.counts.max()), 2 if lone else 1)
    nearest = (dictionary.counts - 1).clamp(1, neighbours)
    # One k for all classes would be that of the smallest class.
    for k in nearest.unique().tolist():
        grow = dict.fromkeys((nearest == k).nonzero().flatten().tolist(), size)
        sampler = SMOTE(sampling_strategy=grow, k_neighbors=k, random_state=seed)
        features, labels = sampler.fit_resample(features, labels)
    grown = torch.from_numpy(features).to(dictionary.features)
    return FeatureDictionary(grown, torch.from_numpy(labels), dictionary.num_classes)


class FeatureGAN(AdversarialSource):
    """A conditional GAN that invents features, with FACoG's discriminator and losses.

    Source: the row "cGAN" of facog Table 1, on features of the frozen backbone.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        **common: Any,
    ) -> None:
        self.generator = FeatureGenerator(splits.num_classes, model.feature_dim)
        super().__init__(
            model, splits, source=self.generator, phase1=phase1, phase2=phase2, **common
        )

    def made(self, labels: Tensor) -> Tensor:
        """Features of classes `labels`."""
        noise = self.generator.noise(len(labels), self.draw)
        features: Tensor = self.generator(noise, self.placed(labels))
        return features

    def play(self, chosen: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """One update of the discriminator, then one of the generator."""
        labels = self.placed(chosen)
        fake = self.made(chosen)
        judged = self.train_discriminator(real, fake, labels)
        loss = losses.least_squares_generator(self.discriminator(fake, labels))
        self.train_generator(loss)
        return {"discriminator_loss": judged, "adversarial": loss.detach()}


class FeatureGAMO(AdversarialSource):
    """Mixtures of all images of a class, as hard for the classifier as can be.

    G:  [½ E(D(f̃, c) - 1)²] - E log(1 - p_c(f̃))

    p is the classifier that is being tuned. The first term, which keeps the mixtures
    near their class, is left out with `judged=False` ("GAMO w/o D").

    Source: Mullick et al. 2019; here on features of the frozen backbone, with FACoG's
    discriminator, optimiser and classifier instead of their own.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        judged: bool,
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        **common: Any,
    ) -> None:
        self.generator = InstanceGenerator(splits.class_counts)
        super().__init__(
            model, splits, source=self.generator, phase1=phase1, phase2=phase2, **common
        )
        self.judged = judged

    def mixture(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Generated features (B, D) and their weights over all images (B, N)."""
        noise = self.generator.noise(len(labels), self.draw)
        weights = self.generator(noise, self.placed(labels))
        return weights @ self.dictionary.features.to(self.device), weights

    def made(self, labels: Tensor) -> Tensor:
        """Mixtures of all features of classes `labels`."""
        return self.mixture(labels)[0]

    def play(self, chosen: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """One update of the discriminator, then one of the generator."""
        labels = self.placed(chosen)
        fake, weights = self.mixture(chosen)
        found = self.train_discriminator(real, fake, labels)
        hard = losses.misclassification(self.model.head(fake), labels)
        taken = losses.least_squares_generator(self.discriminator(fake, labels))
        self.train_generator(hard + taken if self.judged else hard)
        return {
            "discriminator_loss": found,
            "adversarial": taken.detach(),
            "misclassification": hard.detach(),
            **weight_statistics(weights.detach()),
        }

"""From contrast to classification along a curriculum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Batches, Splits
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
    ContrastiveTraining,
)
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.models import Classifier
from needsaug_lite.training import Stage


class HybridContrastive(ContrastiveTraining):
    """Contrast of images drawn evenly, cross-entropy of classes drawn evenly.

    L = α L_sc + (1 - α) L_ce,  α = 1 - (t / T)²

    t is the epoch, T their number. Of the first phase's settings, the temperature,
    the projection and the views are used.

    Source: Wang et al. 2021 (Hybrid-SC), Sec. 3.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, phase1=phase1, **common)
        self.balanced = Batches(
            splits.train,
            self.batches.batch_size,
            self.batches.normalisation,
            augment=self.batches.augment,
            seed=self.batches.seed,
            class_weights=1 / self.counts.double(),
            view=2,
        )
        self.share = 1.0

    def stages(self, epochs: int) -> Sequence[Stage]:
        """One stage."""
        self.epochs = self.first_epochs = epochs
        return [
            Stage("Hybrid-SC", epochs, self.batches, self.hybrid_step, self.begin_epoch)
        ]

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set learning rate and α, and start the other views and the even classes."""
        self.share = 1 - (epoch / self.epochs) ** 2
        self.evenly: Iterator[Batch] = self.balanced.epoch(epoch)
        return {**self.begin_contrastive_epoch(epoch), "alpha": self.share}

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """Of its only stage, which is not the first phase of other methods."""
        name = type(self).__name__
        return {**super().start_settings, "stage": name, "own_version": self.version}

    def hybrid_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of backbone, classifier and projection."""
        self.model.train()
        even = next(self.evenly)
        images = torch.cat([batch.images, next(self.others).images, even.images])
        features = self.model.features(images)
        contrasted, classified = features.split([2 * len(batch), len(even)])
        logits = self.model.head(classified)
        contrast = losses.supervised_contrastive(
            self.projection(contrasted),
            batch.labels.repeat(2),
            temperature=self.phase1.temperature,
        )
        classification = losses.cross_entropy(logits, even.labels)
        loss = self.share * contrast + (1 - self.share) * classification
        self.descend(loss)
        return {
            "loss": loss.detach(),
            "contrast": contrast.detach(),
            "accuracy": accuracy(logits, even.labels),
        }

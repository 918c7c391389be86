"""A method that goes on training its GAN, to see what a run does with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.models import Classifier


class Budgeted(CrossEntropy):
    """Cross-entropy; every step moves all weights of the generator a little."""

    needs_adversary = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gan: Any,
        alone: bool = False,
        push: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.gan, self.push = gan, push
        self.first = None if alone else model
        self.images = torch.zeros(splits.num_classes, dtype=torch.int64)

    @property
    def generator(self) -> Any:
        return self.gan.generator

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        with torch.no_grad():
            for weights in self.generator.parameters():
                weights += self.push
        self.images += batch.labels.bincount(minlength=len(self.images))
        return super().step(batch)

    def allocation_summary(self) -> dict[str, Any]:
        return {"images": self.images.tolist()}

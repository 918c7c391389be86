"""What a model says about a part of the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from needsaug_lite.data import Batch, Batches, Examples, Normalisation


@dataclass(frozen=True)
class Predictions:
    """Logits of a data set with its labels.

    Attributes:
        logits: float32, shape (N, C).
        labels: int64, shape (N,).
        groups: int64, shape (N,), or None.
    """

    logits: Tensor
    labels: Tensor
    groups: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of every sample, nats, shape (N,)."""
        return nn.functional.cross_entropy(self.logits, self.labels, reduction="none")

    @property
    def errors(self) -> Tensor:
        """1 where the prediction is wrong, else 0; float32, shape (N,)."""
        return (self.logits.argmax(1) != self.labels).float()


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """Logits of a model in evaluation mode; the model's mode is put back after.

    Args:
        model: from images (B, C, H, W) to logits.
        batches: on the model's device.

    Returns:
        Logits, labels and, where the data have them, groups, on the CPU.
    """
    was_training = model.training
    model.eval()
    logits, labels, groups = [], [], []
    try:
        for batch in batches:
            logits.append(model(batch.images).float().cpu())
            labels.append(batch.labels.cpu())
            if batch.groups is not None:
                groups.append(batch.groups.cpu())
    finally:
        model.train(was_training)
    joined = torch.cat(groups) if groups else None
    return Predictions(torch.cat(logits), torch.cat(labels), joined)


def predict_all(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    batch_size: int = 500,
) -> Predictions:
    """Logits of one part of the data, in its order.

    Args:
        model: from images (B, C, H, W) to logits, in evaluation mode here.
        examples: the part.
        normalisation: that the model was trained with.
        batch_size: images at once; it changes no result.

    Returns:
        What `predict` returns.
    """
    batches = Batches(examples, batch_size, normalisation, shuffle=False)
    return predict(model, batches.epoch(0))


def sample_losses(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    batch_size: int = 500,
) -> Tensor:
    """Cross-entropy of every image in evaluation mode.

    Args:
        model, examples, normalisation, batch_size: see `predict_all`.

    Returns:
        Nats, on the CPU, shape (N,).
    """
    found = predict_all(model, examples, normalisation, batch_size=batch_size)
    return found.losses

"""What a classifier gets right, per class and in all."""

from __future__ import annotations

from typing import Any

import torch
from imblearn.metrics import geometric_mean_score
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from needsaug_lite import _torchvision  # noqa: F401  # before torchmetrics
from needsaug_lite.data import Examples, Normalisation
from needsaug_lite.errors import UserError
from needsaug_lite.metrics.forward import Predictions, predict_all

from torchmetrics.functional.classification import (  # isort: skip
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

#: Classes with more than MANY training images are "many", with fewer than FEW "few".
MANY, FEW = 100, 20


def evaluate(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    class_counts: Tensor | None = None,
    batch_size: int = 500,
) -> dict[str, Any]:
    """Metrics of a model on one part of the data.

    Args:
        model, examples, normalisation, batch_size: see `predict_all`.
        class_counts: training images of each class; see `from_predictions`.

    Returns:
        What `from_predictions` returns.
    """
    predictions = predict_all(model, examples, normalisation, batch_size=batch_size)
    return from_predictions(predictions, class_counts)


def noise_average_precision(suspicion: Tensor, mislabelled: Tensor) -> float:
    """How well a score ranks the images with wrong labels before the others.

    The precision of the k most suspicious images, averaged over the wrong labels:
    sum_k (recall_k - recall_{k-1}) precision_k. It is 1 for a perfect ranking and the
    share of wrong labels for a score that is the same for all images.

    Args:
        suspicion: larger means more likely wrong, shape (N,), finite.
        mislabelled: which labels are wrong, bool, shape (N,).

    Returns:
        The average precision, in (0, 1].

    Raises:
        UserError: if no label is wrong, or the shapes differ.
    """
    if suspicion.shape != mislabelled.shape:
        raise UserError(
            f"{len(suspicion)} scores can't be compared with {len(mislabelled)} "
            "labels; give one score for every image"
        )
    if not bool(mislabelled.any()):
        raise UserError("no label is wrong, so that there is nothing to rank")
    truth, score = mislabelled.cpu().numpy(), suspicion.detach().cpu().numpy()
    return float(average_precision_score(truth, score))


def from_predictions(
    predictions: Predictions, class_counts: Tensor | None = None
) -> dict[str, Any]:
    """Metrics of logits.

    Args:
        predictions: logits and labels of N samples.
        class_counts: *training* images per class, shape (C,); with them the
            accuracies of many- (more than 100), medium- (20 to 100) and few-shot
            classes (fewer than 20) are added.

    Returns:
        top1, balanced_accuracy (mean recall over the classes that are present),
        geometric_mean (of the recalls), loss (nats), ece (15 bins), per_class
        (recall, None for a class without samples), per_class_loss, support,
        confusion (rows: truth), and many/medium/few where asked for. Where the
        samples have groups also worst_group_accuracy, average_group_accuracy (mean
        over the groups that are present, not over samples), per_group (None for an
        absent group) and group_support. Accuracies are shares in [0, 1].
    """
    logits, labels = predictions.logits, predictions.labels
    num_classes = logits.shape[1]
    guesses = logits.argmax(1)
    confusion = multiclass_confusion_matrix(guesses, labels, num_classes)
    support = confusion.sum(1)
    recall = confusion.diag() / support
    present = support > 0
    losses = torch.zeros(num_classes).index_add(0, labels, predictions.losses) / support
    ece = multiclass_calibration_error(logits.softmax(1), labels, num_classes, 15)
    metrics: dict[str, Any] = {
        "top1": float((guesses == labels).float().mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "geometric_mean": float(
            geometric_mean_score(
                labels.numpy(), guesses.numpy(), labels=labels.unique().numpy()
            )
        ),
        "loss": float(predictions.losses.mean()),
        "ece": float(ece),
        "per_class": _numbers(recall),
        "per_class_loss": _numbers(losses),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
    }
    if class_counts is not None:
        counts = class_counts.cpu()
        shots = {
            "many": counts > MANY,
            "medium": (counts >= FEW) & (counts <= MANY),
            "few": counts < FEW,
        }
        for name, chosen in shots.items():
            rates = recall[chosen & present]
            metrics[name] = float(rates.mean()) if len(rates) else None
    if predictions.groups is not None:
        metrics |= _group_scores(predictions.groups, guesses == labels)
    return metrics


def _group_scores(groups: Tensor, right: Tensor) -> dict[str, Any]:
    """Accuracy of every group, and its minimum and mean over those with samples."""
    support = torch.bincount(groups)
    accuracy = torch.bincount(groups[right], minlength=len(support)) / support
    present = accuracy[support > 0]
    return {
        "worst_group_accuracy": float(present.min()),
        "average_group_accuracy": float(present.mean()),
        "per_group": _numbers(accuracy),
        "group_support": support.tolist(),
    }


def _numbers(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

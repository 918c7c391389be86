"""What a classifier gets right, per class and in all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from imblearn.metrics import geometric_mean_score
from sklearn.metrics import accuracy_score, average_precision_score, precision_score
from torch import Tensor, nn

from needsaug_lite import _torchvision  # noqa: F401  # before torchmetrics
from needsaug_lite.data import Batch, Batches, Examples, Normalisation
from needsaug_lite.errors import UserError

from torchmetrics.functional.classification import (  # isort: skip
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

MANY, FEW = 100, 20


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
    """Logits of a model in evaluation mode; the model's mode is put back after."""
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
    """Logits of one part of the data, in its order."""
    batches = Batches(examples, batch_size, normalisation, shuffle=False)
    return predict(model, batches.epoch(0))


def evaluate(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    class_counts: Tensor | None = None,
    batch_size: int = 500,
) -> dict[str, Any]:
    """Metrics of a model on one part of the data; see `from_predictions`."""
    predictions = predict_all(model, examples, normalisation, batch_size=batch_size)
    return from_predictions(predictions, class_counts)


def sample_losses(
    model: nn.Module,
    examples: Examples,
    normalisation: Normalisation,
    *,
    batch_size: int = 500,
) -> Tensor:
    """Cross-entropy of every image in evaluation mode, nats, on the CPU, shape (N,)."""
    found = predict_all(model, examples, normalisation, batch_size=batch_size)
    return found.losses


def noise_average_precision(suspicion: Tensor, mislabelled: Tensor) -> float:
    """How well a score ranks the images with wrong labels before the others.

    The precision of the k most suspicious images, averaged over the wrong labels:
    sum_k (recall_k - recall_{k-1}) precision_k. It is 1 for a perfect ranking and the
    share of wrong labels for a score that is the same for all images.

    Args:
        suspicion: larger means more likely wrong, shape (N,), finite.
        mislabelled: which labels are wrong, bool, shape (N,).

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


def generalised_long_tail_scores(
    predictions: Predictions, train_groups: Tensor, attributes: int
) -> dict[str, float]:
    """Accuracy and precision under other distributions of classes and attributes.

    Every test image i of group g gets the weight P(g) / m_g, where m_g is the number
    of test images of the group, and

        CLT:  P(c, a) = 1/C n_ca / n_c      attributes as in training
        GLT:  P(c, a) = 1/C 1/A             attributes equal

    with n_ca the training images of class c with attribute a. The weighted accuracy
    is the expectation of the accuracy on a test set that is drawn from these test
    images with that distribution; the weighted precision, a mean over classes, is
    what such a test set tends to as it grows. Tang et al. build one test set for each
    distribution; the weights use all images instead and add no noise of drawing.

    The same numbers serve three protocols: after training on a long tail of classes
    and attributes they are CLT and GLT; after training on balanced classes with a long
    tail of attributes, glt is what is called ALT.

    A group without test images can't be judged: its share goes to the other attributes
    of its class, in proportion. A group without training images has weight 0 in CLT
    and its full share in GLT. A class that has no weight left is left out of all
    means; the remaining classes are equal.

    Args:
        predictions: with groups, label * attributes + attribute.
        train_groups: groups of the training images, coded alike, shape (N,).
        attributes: A.

    Returns:
        clt_accuracy, clt_precision, glt_accuracy, glt_precision, in [0, 1]. A class
        that is never predicted has precision 0.

    Raises:
        UserError: if the groups are missing, don't fit the labels, or the training
            and test images have none in common.

    Source: Tang et al. 2022, protocols CLT, GLT, ALT; meta_iada Table 4.
    """
    groups, labels = predictions.groups, predictions.labels
    if groups is None or not torch.equal(groups // attributes, labels):
        raise UserError(
            "generalised long-tail scores need the group label * attributes + "
            f"attribute of every image, with attributes={attributes}; load the data "
            "with attribute_imbalance"
        )
    number = predictions.logits.shape[1] * attributes
    there = torch.bincount(groups, minlength=number).double()
    trained = torch.bincount(train_groups.cpu(), minlength=number).double()
    truth, guesses = labels.numpy(), predictions.logits.argmax(1).numpy()
    scores = {}
    for name, share in (("clt", trained), ("glt", torch.ones_like(trained))):
        within = (share * (there > 0)).view(-1, attributes)
        totals = within.sum(1, keepdim=True)
        kept = torch.nonzero(totals.flatten() > 0).flatten().tolist()
        if not kept:
            raise UserError("no test image belongs to a group with training images")
        each = (within / totals.clamp(min=1)).flatten() / there.clamp(min=1)
        weight = each[groups].numpy()
        found = accuracy_score(truth, guesses, sample_weight=weight)
        scores[f"{name}_accuracy"] = float(found)
        found = precision_score(
            truth,
            guesses,
            labels=kept,
            average="macro",
            sample_weight=weight,
            zero_division=0,
        )
        scores[f"{name}_precision"] = float(found)
    return scores


def _numbers(values: Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

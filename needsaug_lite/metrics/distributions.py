"""What a classifier gets right under other shares of classes and attributes."""

from __future__ import annotations

import torch
from sklearn.metrics import accuracy_score, precision_score
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Cells
from needsaug_lite.errors import UserError
from needsaug_lite.metrics.forward import Predictions


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


def fairness_scores(
    predictions: Predictions, cells: Cells, train_counts: Tensor
) -> dict[str, float]:
    """How differently the attributes fare, and the accuracy at the training shares.

        deo                = sum_k ( max_j E_kj - min_j E_kj )
        adjusted_accuracy  = 1 - sum_kj n_kj E_kj / sum_kj n_kj

    with E_kj the share of wrong guesses among the images of class k with attribute j
    and n_kj their number among the training images. Both are independent of how many
    test images a cell has. A cell without test images can't be judged and is left out
    of both; the shares of the others grow in proportion.

    Args:
        predictions: with groups, unless `cells` has one attribute.
        cells: how the groups are read.
        train_counts: n, training images of every cell, shape (C, A).

    Returns:
        deo, from 0 to C, and adjusted_accuracy, in [0, 1].

    Raises:
        UserError: if the groups are missing, or no cell has training and test images.

    Source: autobalance Eq. 4.1 with errors for risks, and Sec. 4, "weighted error"
    (errata A12).
    """
    if predictions.groups is None and cells.attribute_of_group is not None:
        raise UserError(
            "fairness scores need the group of every image; evaluate on data that "
            "have groups"
        )
    device = train_counts.device
    groups = None if predictions.groups is None else predictions.groups.to(device)
    number = cells.number(predictions.labels.to(device), groups)
    errors = predictions.errors.to(device).double()
    risks = losses.conditional_risks(errors, number, cells.shape)
    if not bool((~risks.isnan() & (train_counts > 0)).any()):
        raise UserError("no test image belongs to a group with training images")
    return {
        "deo": float(losses.difference_of_equal_opportunity(risks)),
        "adjusted_accuracy": 1 - float(losses.average_risk(risks, train_counts)),
    }

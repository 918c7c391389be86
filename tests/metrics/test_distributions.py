"""Scores under other shares of classes and attributes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, precision_score

from needsaug_lite import metrics
from needsaug_lite.data import Cells
from needsaug_lite.errors import UserError
from needsaug_lite.metrics import Predictions, from_predictions


def resampled(predictions: Predictions, shares: torch.Tensor) -> tuple[float, float]:
    """Accuracy and precision on a large test set drawn with the shares of groups."""
    draw = np.random.default_rng(0)
    assert predictions.groups is not None
    labels = predictions.labels.numpy()
    guesses = predictions.logits.argmax(1).numpy()
    drawn = draw.choice(len(shares), 400_000, p=(shares / shares.sum()).numpy())
    index = np.empty(len(drawn), dtype=int)
    for group in np.unique(drawn):
        pool = np.flatnonzero(predictions.groups.numpy() == group)
        index[drawn == group] = draw.choice(pool, int((drawn == group).sum()))
    truth, guess = labels[index], guesses[index]
    return accuracy_score(truth, guess), precision_score(truth, guess, average="macro")


def test_weighted_scores_are_those_of_a_resampled_test_set(
    grouped_predictions: Predictions,
) -> None:
    predictions = grouped_predictions
    counts = torch.tensor([[60, 30, 10], [20, 10, 5], [8, 1, 1], [0, 3, 3]])
    train_groups = torch.repeat_interleave(torch.arange(12), counts.flatten())
    scores = metrics.generalised_long_tail_scores(predictions, train_groups, 3)
    shares = (counts / counts.sum(1, keepdim=True)).double()
    clt = resampled(predictions, shares.flatten())
    glt = resampled(predictions, torch.ones(12).double())
    assert scores["clt_accuracy"] == pytest.approx(clt[0], abs=0.004)
    assert scores["clt_precision"] == pytest.approx(clt[1], abs=0.004)
    assert scores["glt_accuracy"] == pytest.approx(glt[0], abs=0.004)
    assert scores["glt_precision"] == pytest.approx(glt[1], abs=0.004)
    # In closed form: the mean over classes of the weighted recalls of their groups.
    rates = torch.tensor(from_predictions(predictions)["per_group"]).view(4, 3)
    expected = float((shares * rates).sum(1).mean())
    assert scores["clt_accuracy"] == pytest.approx(expected)
    assert scores["glt_accuracy"] == pytest.approx(float(rates.mean()))
    assert abs(scores["clt_accuracy"] - scores["glt_accuracy"]) > 0.05


def test_equal_groups_in_training_make_both_protocols_equal(
    grouped_predictions: Predictions,
) -> None:
    predictions = grouped_predictions
    balanced = torch.arange(12).repeat(7)
    scores = metrics.generalised_long_tail_scores(predictions, balanced, 3)
    assert scores["clt_accuracy"] == pytest.approx(scores["glt_accuracy"])
    assert scores["clt_precision"] == pytest.approx(scores["glt_precision"])


def test_groups_without_test_images_pass_their_share_on() -> None:
    # Class 0: attribute 0 right, 1 absent; class 1: both there; class 2: none at all.
    guesses = torch.eye(3)[[0, 0, 1, 0]]
    found = Predictions(guesses, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 2, 3]))
    train = torch.tensor([0, 1, 1, 1, 2, 2, 2, 3, 4, 5])
    scores = metrics.generalised_long_tail_scores(found, train, 2)
    assert scores["clt_accuracy"] == pytest.approx((1 + 3 / 4) / 2)
    assert scores["glt_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["glt_precision"] == pytest.approx((1 / 1.5 + 1) / 2)
    # Class 1 has training images of an attribute only that no test image has.
    alone = Predictions(guesses[:3], found.labels[:3], torch.tensor([0, 0, 2]))
    scores = metrics.generalised_long_tail_scores(alone, torch.tensor([0, 3]), 2)
    assert scores["clt_accuracy"] == 1
    assert scores["clt_precision"] == 1


def test_weighted_scores_need_groups_that_fit(grouped_predictions: Predictions) -> None:
    predictions = grouped_predictions
    train = torch.arange(12)
    for wrong in (
        Predictions(predictions.logits, predictions.labels),
        Predictions(predictions.logits, predictions.labels, predictions.labels),
    ):
        with pytest.raises(UserError, match="attributes=3"):
            metrics.generalised_long_tail_scores(wrong, train, 3)
    lonely = Predictions(torch.eye(2)[:1], torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(UserError, match="no test image"):
        metrics.generalised_long_tail_scores(lonely, torch.tensor([1]), 2)


# --- fairness -----------------------------------------------------------------------

TRAIN = torch.tensor([[60, 30, 10], [20, 10, 5], [8, 1, 1], [0, 3, 3]])
CELLS = Cells(4, 3, torch.arange(12) % 3)


def test_fairness_scores_are_those_of_the_group_accuracies(
    grouped_predictions: Predictions,
) -> None:
    found = metrics.fairness_scores(grouped_predictions, CELLS, TRAIN)
    rates = from_predictions(grouped_predictions)["per_group"]
    rows = [rates[3 * label : 3 * label + 3] for label in range(4)]
    assert found["deo"] == pytest.approx(sum(max(row) - min(row) for row in rows))
    weighted = np.average(rates, weights=TRAIN.flatten().numpy())
    assert found["adjusted_accuracy"] == pytest.approx(weighted)


def test_two_attributes_give_the_printed_formula() -> None:
    # Right: 3 of 4 and 1 of 2 of the first class, 1 of 4 and 2 of 2 of the second.
    labels = torch.tensor([0] * 6 + [1] * 6)
    groups = torch.tensor([0] * 4 + [1] * 2 + [2] * 4 + [3] * 2)
    guesses = torch.tensor([0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1, 1])
    found = Predictions(torch.eye(2)[guesses], labels, groups)
    cells = Cells(2, 2, torch.tensor([0, 1, 0, 1]))
    train = torch.tensor([[70, 10], [5, 15]])
    scores = metrics.fairness_scores(found, cells, train)
    assert scores["deo"] == pytest.approx(abs(3 / 4 - 1 / 2) + abs(1 / 4 - 1))
    expected = 0.7 * 3 / 4 + 0.1 * 1 / 2 + 0.05 * 1 / 4 + 0.15 * 1
    assert scores["adjusted_accuracy"] == pytest.approx(expected)
    # The other code of the same cells, attribute * C + label.
    recoded = Predictions(found.logits, labels, groups % 2 * 2 + labels)
    other = Cells(2, 2, torch.tensor([0, 0, 1, 1]))
    assert metrics.fairness_scores(recoded, other, train) == scores


def test_fairness_does_not_depend_on_how_many_test_images_a_cell_has(
    grouped_predictions: Predictions,
) -> None:
    once = grouped_predictions
    assert once.groups is not None
    more = torch.where(once.groups % 3 == 1, 5, 2)
    index = torch.repeat_interleave(torch.arange(600), more)
    often = Predictions(once.logits[index], once.labels[index], once.groups[index])
    found, expected = (
        metrics.fairness_scores(each, CELLS, TRAIN) for each in (often, once)
    )
    assert found == pytest.approx(expected)


def test_a_constant_guess_is_perfectly_fair_and_as_good_as_its_class_is_common() -> (
    None
):
    labels = torch.arange(4).repeat_interleave(6)
    groups = labels * 3 + torch.arange(24) % 3
    constant = torch.eye(4)[[1] * 24]
    found = metrics.fairness_scores(Predictions(constant, labels, groups), CELLS, TRAIN)
    assert found["deo"] == 0
    assert found["adjusted_accuracy"] == pytest.approx(35 / 151)


def test_cells_that_can_not_be_judged_are_left_out() -> None:
    cells, train = (
        Cells(2, 2, torch.tensor([0, 1, 0, 1])),
        torch.tensor([[6, 2], [2, 9]]),
    )
    guesses, labels = torch.eye(2)[[0, 1, 0]], torch.tensor([0, 0, 1])
    found = Predictions(guesses, labels, torch.tensor([0, 1, 2]))
    scores = metrics.fairness_scores(found, cells, train)
    assert scores["deo"] == 1
    assert scores["adjusted_accuracy"] == pytest.approx(6 / 10)
    with pytest.raises(UserError, match="no test image"):
        metrics.fairness_scores(found, cells, torch.tensor([[0, 0], [0, 9]]))
    with pytest.raises(UserError, match="group of every image"):
        metrics.fairness_scores(Predictions(guesses, labels), cells, train)

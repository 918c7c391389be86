"""Metrics against direct formulas."""

from __future__ import annotations

import pytest
import torch

from needsaug_lite import data, metrics, models
from needsaug_lite.errors import UserError
from needsaug_lite.metrics import Predictions, from_predictions


def random_predictions(count: int = 400, classes: int = 5) -> Predictions:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=draw)
    labels = torch.randint(classes, (count,), generator=draw)
    logits[torch.arange(count), labels] += 1.0
    return Predictions(logits, labels)


def test_recalls_and_their_means() -> None:
    predictions = random_predictions()
    scores = from_predictions(predictions)
    hits = predictions.logits.argmax(1) == predictions.labels
    recalls = [float(hits[predictions.labels == c].float().mean()) for c in range(5)]
    assert scores["per_class"] == pytest.approx(recalls)
    assert scores["top1"] == pytest.approx(float(hits.float().mean()))
    assert scores["balanced_accuracy"] == pytest.approx(sum(recalls) / 5)
    product = torch.tensor(recalls, dtype=torch.float64).prod()
    assert scores["geometric_mean"] == pytest.approx(float(product ** (1 / 5)))
    assert sum(map(sum, scores["confusion"])) == 400
    assert [sum(row) for row in scores["confusion"]] == scores["support"]


def test_geometric_mean_is_zero_when_a_class_is_never_found() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    scores = from_predictions(Predictions(logits, torch.tensor([0, 1])))
    assert scores["geometric_mean"] == 0
    assert scores["balanced_accuracy"] == 0.5


def test_losses_per_class_average_to_the_loss() -> None:
    predictions = random_predictions()
    scores = from_predictions(predictions)
    shares = torch.tensor(scores["support"]) / 400
    total = float((shares * torch.tensor(scores["per_class_loss"])).sum())
    assert scores["loss"] == pytest.approx(total, rel=1e-5)


def test_expected_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.9 with accuracy 1/2, confidence 0.6 with accuracy 1.
    shares = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    scores = from_predictions(Predictions(shares.log(), labels))
    assert scores["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=1e-6)


def test_a_class_without_samples_is_left_out() -> None:
    logits = torch.eye(3)
    scores = from_predictions(Predictions(logits[:2], torch.tensor([0, 1])))
    assert scores["per_class"] == [1.0, 1.0, None]
    assert scores["balanced_accuracy"] == 1.0


def test_many_medium_few_follow_training_counts() -> None:
    predictions = random_predictions(classes=4)
    counts = torch.tensor([101, 100, 20, 19])
    scores = from_predictions(predictions, counts)
    recalls = scores["per_class"]
    assert scores["many"] == pytest.approx(recalls[0])
    assert scores["medium"] == pytest.approx((recalls[1] + recalls[2]) / 2)
    assert scores["few"] == pytest.approx(recalls[3])
    assert from_predictions(predictions, torch.full((4,), 50))["few"] is None


def test_predicting_changes_neither_mode_nor_buffers() -> None:
    splits = data.load("digits")
    model = models.build("convnet", splits.image_shape, 10, width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    normalisation = data.Normalisation.of(splits)
    metrics.evaluate(model, splits.test, normalisation)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_batch_size_does_not_matter() -> None:
    splits = data.load("digits")
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    normalisation = data.Normalisation.of(splits)
    one, other = (
        metrics.evaluate(model, splits.test, normalisation, batch_size=size)
        for size in (7, 1000)
    )
    assert one["confusion"] == other["confusion"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_average_precision_of_perfect_constant_and_reversed_scores() -> None:
    wrong = torch.tensor([True, False, False, True, False])
    assert metrics.noise_average_precision(wrong.float(), wrong) == 1
    assert metrics.noise_average_precision(torch.full((5,), 0.3), wrong) == 2 / 5
    # Wrong labels come fourth and fifth: precision 1/4, then 2/5.
    reversed_score = -wrong.float() + torch.tensor([0.1, 0, 0, 0, 0])
    found = metrics.noise_average_precision(reversed_score, wrong)
    assert found == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_average_precision_needs_wrong_labels_and_a_score_for_each() -> None:
    with pytest.raises(UserError, match="no label is wrong"):
        metrics.noise_average_precision(torch.ones(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(UserError, match="2 scores .* 3 labels"):
        metrics.noise_average_precision(torch.ones(2), torch.ones(3, dtype=torch.bool))


def test_sample_losses_are_in_order_and_average_to_the_loss() -> None:
    splits = data.load("digits")
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    normalisation = data.Normalisation.of(splits)
    each = metrics.sample_losses(model, splits.test, normalisation, batch_size=70)
    total = metrics.evaluate(model, splits.test, normalisation)["loss"]
    assert float(each.mean()) == pytest.approx(total, rel=1e-5)
    tenth = splits.test.subset(torch.tensor([10]))
    alone = metrics.sample_losses(model, tenth, normalisation)
    assert float(each[10]) == pytest.approx(float(alone), rel=1e-4)


# --- groups -----------------------------------------------------------------------


def test_group_accuracies_and_their_worst_and_mean(
    grouped_predictions: Predictions,
) -> None:
    predictions = grouped_predictions
    scores = from_predictions(predictions)
    assert predictions.groups is not None
    hits = (predictions.logits.argmax(1) == predictions.labels).double()
    rates = [float(hits[predictions.groups == g].mean()) for g in range(12)]
    assert scores["per_group"] == pytest.approx(rates)
    assert scores["worst_group_accuracy"] == pytest.approx(min(rates))
    assert scores["average_group_accuracy"] == pytest.approx(sum(rates) / 12)
    assert sum(scores["group_support"]) == 600
    without = from_predictions(Predictions(predictions.logits, predictions.labels))
    assert scores.keys() - without.keys() == {
        "per_group",
        "worst_group_accuracy",
        "average_group_accuracy",
        "group_support",
    }


def test_an_absent_group_is_left_out() -> None:
    logits = torch.eye(2)[[0, 0, 1]]
    found = Predictions(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 3, 3]))
    scores = from_predictions(found)
    assert scores["per_group"] == [1.0, None, None, 0.5]
    assert scores["group_support"] == [1, 0, 0, 2]
    assert scores["worst_group_accuracy"] == 0.5
    assert scores["average_group_accuracy"] == 0.75

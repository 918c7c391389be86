"""Fifteen numbers about a sample, each against a definition of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from needsaug_lite.statistics import (
    CHARACTERISTICS,
    SampleMemory,
    standardised,
    training_characteristics,
)
from needsaug_lite.statistics.characteristics import margins

COUNT, CLASSES, SIZE = 12, 4, 5
NAMES = {name: place for place, name in enumerate(CHARACTERISTICS)}


@dataclass
class Scene:
    """A batch of six out of twelve samples, of which eight were seen before."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    index: Tensor
    weight: Tensor
    prior: Tensor
    memory: SampleMemory
    before: Tensor  # logits of the samples 0 to 7 when they were last seen
    all_labels: Tensor

    def found(self) -> Tensor:
        return training_characteristics(
            self.features,
            self.logits,
            self.labels,
            self.index,
            self.weight,
            self.prior,
            self.memory,
        )

    def column(self, name: str) -> Tensor:
        return self.found()[:, NAMES[name]]


@pytest.fixture
def scene() -> Scene:
    source = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    # Class 3 has no sample among those that were seen.
    all_labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 3, 3])
    memory = SampleMemory(all_labels, CLASSES)
    before = 2 * normal(8, CLASSES)
    memory.remember(torch.arange(8), before, all_labels[:8])
    memory.begin_epoch()
    index = torch.tensor([9, 1, 10, 0, 6, 4])
    features, weight = normal(6, SIZE), normal(CLASSES, SIZE)
    logits = features @ weight.T + normal(CLASSES)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    return Scene(
        features,
        logits,
        all_labels[index],
        index,
        weight,
        prior,
        memory,
        before,
        all_labels,
    )


def literal(scene: Scene) -> np.ndarray:
    """The list in the docstring, sample by sample, in float64."""

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    def margin(z: np.ndarray, y: int) -> float:
        return float(softmax(z)[y] - max(np.delete(softmax(z), y)))

    def loss(z: np.ndarray, y: int) -> float:
        return float(-np.log(softmax(z)[y]))

    before = scene.before.double().numpy()
    known = dict(enumerate(zip(before, scene.all_labels.tolist(), strict=False)))

    def of_class(measure: Callable[[np.ndarray, int], float], y: int) -> float:
        values = [measure(z, label) for z, label in known.values() if label == y]
        return float(np.mean(values)) if values else 0.0

    rows = []
    for place, number in enumerate(scene.index.tolist()):
        h = scene.features[place].double().numpy()
        z = scene.logits[place].double().numpy()
        y = int(scene.labels[place])
        w, p = scene.weight[y].double().numpy(), softmax(z)
        slope = scene.logits[place].double().clone().requires_grad_()
        cross_entropy(slope, scene.labels[place]).backward()
        old = loss(*known[number]) if number in known else loss(z, y)
        rows.append(
            [
                loss(z, y),
                margin(z, y),
                float(slope.grad.norm()),
                h @ w / math.sqrt(h @ h) / math.sqrt(w @ w),
                -sum(q * math.log(q) for q in p),
                float(scene.prior[y]),
                of_class(loss, y),
                math.sqrt(w @ w),
                loss(z, y) - of_class(loss, y),
                margin(z, y) - of_class(margin, y),
                z[y],
                p[y],
                of_class(margin, y),
                math.sqrt(h @ h),
                loss(z, y) - old,
            ]
        )
    return np.array(rows)


@pytest.mark.parametrize("name", CHARACTERISTICS)
def test_each_equals_its_definition(scene: Scene, name: str) -> None:
    expected = literal(scene)[:, NAMES[name]]
    assert np.ptp(expected) > 0.05  # the scene tells samples apart
    np.testing.assert_allclose(scene.column(name).numpy(), expected, 1e-5, 1e-6)


def test_the_order_is_that_of_the_list() -> None:
    assert CHARACTERISTICS == (
        "loss", "margin", "gradient_norm", "cosine", "entropy", "class_share",
        "class_loss", "class_weight_norm", "loss_above_class", "margin_above_class",
        "label_logit", "label_probability", "class_margin", "feature_norm",
        "loss_change",
    )  # fmt: skip


def test_equal_logits(scene: Scene) -> None:
    scene.logits = torch.full((6, CLASSES), 3.0)
    log = math.log(CLASSES)
    for name, value in {
        "loss": log,
        "margin": 0.0,
        "entropy": log,
        "label_probability": 1 / CLASSES,
        "gradient_norm": math.sqrt((1 - 1 / CLASSES) ** 2 + 3 / CLASSES**2),
        "label_logit": 3.0,
    }.items():
        torch.testing.assert_close(scene.column(name), torch.full((6,), value))


@pytest.mark.parametrize(("right", "margin"), [(True, 1.0), (False, -1.0)])
def test_certainty(scene: Scene, right: bool, margin: float) -> None:
    label = scene.labels if right else (scene.labels + 1) % CLASSES
    scene.logits = 1000 * torch.eye(CLASSES)[label]
    length = 0.0 if right else math.sqrt(2)
    for name, value in {
        "loss": 0.0 if right else 1000.0,
        "margin": margin,
        "gradient_norm": length,
        "entropy": 0.0,
        "label_probability": float(right),
    }.items():
        torch.testing.assert_close(scene.column(name), torch.full((6,), value))


def test_a_constant_on_all_logits_moves_the_label_logit_alone(scene: Scene) -> None:
    before = scene.found()
    scene.logits = scene.logits + 7
    moved = (scene.found() - before).abs().amax(0)
    assert moved[NAMES["label_logit"]] == pytest.approx(7, abs=1e-5)
    moved[NAMES["label_logit"]] = 0
    assert moved.max() < 1e-5


def test_permuted_samples_give_permuted_rows(scene: Scene) -> None:
    before, order = scene.found(), torch.tensor([3, 5, 0, 1, 4, 2])
    for name in ("features", "logits", "labels", "index"):
        setattr(scene, name, getattr(scene, name)[order])
    torch.testing.assert_close(scene.found(), before[order])


def test_no_graph_and_nothing_remembered(scene: Scene) -> None:
    kept = {name: value.clone() for name, value in scene.memory.state_dict().items()}
    scene.weight.requires_grad_()
    scene.logits.requires_grad_()
    assert not scene.found().requires_grad
    assert scene.found().dtype == torch.float32
    for name, value in scene.memory.state_dict().items():
        torch.testing.assert_close(value, kept[name], equal_nan=True, rtol=0, atol=0)


def test_a_label_with_two_largest_others_has_its_margin_from_one() -> None:
    probability = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])
    found = margins(probability, torch.tensor([0, 0]))
    torch.testing.assert_close(found, torch.tensor([-0.2, 0.0]))


def test_in_the_first_look_nothing_is_known() -> None:
    labels = torch.tensor([0, 1, 1])
    memory = SampleMemory(labels, 3)
    assert memory.loss.isnan().all()
    assert not memory.class_loss.any()
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    found = training_characteristics(
        torch.ones(3, 2), logits, labels, torch.arange(3), torch.ones(3, 2),
        torch.ones(3) / 3, memory,
    )  # fmt: skip
    assert not found[:, NAMES["loss_change"]].any()
    assert torch.equal(found[:, NAMES["loss_above_class"]], found[:, NAMES["loss"]])
    assert found.isfinite().all()


def certain(label: int, probability: float) -> Tensor:
    """Logits of one sample over two classes, with p_label given."""
    gap = math.log(probability / (1 - probability))
    return torch.tensor([[gap if place == label else 0.0 for place in (0, 1)]])


def test_class_means_are_of_the_epoch_before_and_over_seen_samples() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    memory = SampleMemory(labels, 2)
    memory.remember(torch.tensor([0]), certain(0, 0.5), labels[:1])
    memory.remember(torch.tensor([1]), certain(0, 0.25), labels[1:2])
    assert not memory.class_loss.any()  # still the epoch before
    memory.begin_epoch()
    # Over the two that were seen; sample 2 and class 1 weren't.
    mean = -(math.log(0.5) + math.log(0.25)) / 2
    torch.testing.assert_close(memory.class_loss, torch.tensor([mean, 0.0]))
    torch.testing.assert_close(memory.class_margin, torch.tensor([-0.25, 0.0]))
    memory.remember(torch.tensor([2]), certain(0, 0.9), labels[2:3])
    torch.testing.assert_close(memory.class_loss[0], torch.tensor(mean))
    memory.begin_epoch()
    # Values stay until their sample is seen again.
    mean = -(math.log(0.5) + math.log(0.25) + math.log(0.9)) / 3
    torch.testing.assert_close(memory.class_loss[0], torch.tensor(mean))
    assert memory.loss.isnan().tolist() == [False, False, False, True]


def test_loss_change_is_against_the_last_look(scene: Scene) -> None:
    assert scene.column("loss_change").abs().max() > 0.1
    scene.memory.remember(scene.index, scene.logits, scene.labels)
    assert scene.column("loss_change").abs().max() < 1e-6


def test_resuming_in_the_middle_of_an_epoch_changes_no_bit(scene: Scene) -> None:
    # Half an epoch after the class means were taken.
    scene.memory.remember(scene.index[:3], scene.logits[:3], scene.labels[:3])
    other = SampleMemory(scene.all_labels, CLASSES)
    other.load_state_dict({n: v.clone() for n, v in scene.memory.state_dict().items()})
    before = scene.found()
    scene.memory, kept = other, scene.memory
    assert torch.equal(scene.found(), before)
    for memory in (other, kept):
        memory.remember(scene.index[3:], scene.logits[3:], scene.labels[3:])
        memory.begin_epoch()
    assert torch.equal(other.class_loss, kept.class_loss)
    assert torch.equal(other.class_margin, kept.class_margin)


def test_standardised_columns() -> None:
    source = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 3, generator=source) * torch.tensor([1e-3, 1, 1e4])
    columns = columns + torch.tensor([0.01, -5, 3e4])
    found = standardised(columns)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=2e-6)
    deviation = found.std(0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), rtol=1e-5, atol=0)
    # Position and scale of a column are forgotten, its sign is not.
    torch.testing.assert_close(
        standardised(-3 * columns + 2), -found, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("size", [2, 3, 7, 100, 128, 1000, 4097])
def test_constant_columns_become_zero(size: int) -> None:
    """Whatever float32 leaves of the mean of equal numbers."""
    values = torch.tensor([0.0, 0.1, -1 / 3, 1e-20, 123.456, 1e7 / 3])
    assert not standardised(values.expand(size, -1)).any()


def test_one_sample_has_nothing_to_compare() -> None:
    assert not standardised(torch.randn(1, 15)).any()

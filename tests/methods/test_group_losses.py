"""Fair training losses and Group-LA: by hand, in their limits, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting, only_train
from helpers.meta_methods import assert_same, load, make
from torch import Tensor
from torch.nn.functional import cross_entropy

from needsaug_lite import models, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.registry import METHODS, hyperparameters
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.group_losses import FairLoss, GroupLogitAdjustment
from needsaug_lite.methods.baselines.logit_adjustment import LogitAdjustment
from needsaug_lite.training import Optimisation


def two_sides(*, code: str = "label first") -> Splits:
    """Every third training image of a class has attribute 1."""
    splits = load()
    labels = splits.train.labels
    place = (labels[:, None] == labels).tril(-1).sum(1)  # within the class
    side = (place % 3 == 0).long()
    groups = {
        "label first": 2 * labels + side,
        "attribute first": 10 * side + labels,
        "one attribute": labels,
    }[code]
    return only_train(replace(splits, train=replace(splits.train, groups=groups)))


def side_of(batch: Batch, code: str) -> Tensor:
    assert batch.groups is not None
    return {
        "label first": batch.groups % 2,
        "attribute first": batch.groups // 10,
        "one attribute": 0 * batch.groups,
    }[code]


def logits_of(batch: Batch) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(len(batch), 10, generator=draw, dtype=torch.float64)


def risks_of(logits: Tensor, batch: Batch, code: str) -> Tensor:
    """Mean cross-entropy of every cell, shape (C, A)."""
    each = cross_entropy(logits, batch.labels, reduction="none")
    side = side_of(batch, code)
    sides = range(1 if code == "one attribute" else 2)
    rows = [
        [each[(batch.labels == k) & (side == j)].mean() for j in sides]
        for k in range(10)
    ]
    return torch.stack([torch.stack(row) for row in rows])


CODES = ["label first", "attribute first"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("goal", ["balanced", "deo"])
@pytest.mark.parametrize("fairness", [0.0, 0.3, 1.0])
def test_the_blend_by_hand(code: str, goal: str, fairness: float) -> None:
    splits = two_sides(code=code)
    method = make(FairLoss, splits, goal=goal, fairness=fairness)
    batch = next(method.batches.epoch(0))
    logits = logits_of(batch)
    risks = risks_of(logits, batch, code)
    whole = Batch(
        torch.zeros(0), splits.train.labels, splits.train.groups, torch.zeros(0)
    )
    cell = 2 * whole.labels + side_of(whole, code)
    shares = cell.bincount(minlength=20).double().view(10, 2) / len(cell)
    gap = (risks[:, 0] - risks[:, 1]).abs().sum()
    target = gap if goal == "deo" else risks.mean()
    expected = (1 - fairness) * (shares * risks).sum() + fairness * target
    torch.testing.assert_close(
        method.batch_loss(logits, batch), expected, rtol=1e-6, atol=0
    )


def test_balanced_on_stratified_batches_is_the_mean_of_the_batch() -> None:
    """Every cell has the same number of images, so all images weigh the same."""
    method = make(FairLoss, two_sides(), fairness=1.0)
    for batch in method.batches.epoch(0):
        assert batch.groups is not None
        assert batch.groups.bincount().unique().tolist() == [1]  # 32 // 20 of 20 cells
        logits = logits_of(batch)
        found = method.batch_loss(logits, batch)
        torch.testing.assert_close(found, cross_entropy(logits, batch.labels))


def test_without_fairness_it_estimates_plain_cross_entropy() -> None:
    """Over epochs, the mean is the cross-entropy of all training images."""
    splits = two_sides()
    method = make(FairLoss, splits, fairness=0.0)
    draw = torch.Generator().manual_seed(5)
    logits = torch.randn(len(splits.train), 10, generator=draw, dtype=torch.float64)
    truth = cross_entropy(logits, splits.train.labels)
    found = torch.stack(
        [
            method.batch_loss(logits[batch.index], batch)
            for epoch in range(200)
            for batch in method.batches.epoch(epoch)
        ]
    )
    error = found.std() / len(found) ** 0.5
    assert (found.mean() - truth).abs() < 4 * error
    assert error < 0.02


def test_a_batch_of_everything_is_exact() -> None:
    """A cell repeated a whole number of times has its own mean."""
    splits = two_sides()
    train = splits.train
    assert train.groups is not None
    keep = torch.cat(
        [(train.groups == g).nonzero().flatten()[: 1 + g % 2] for g in range(20)]
    )
    few = replace(splits, train=train.subset(keep))
    for fairness in (0.0, 1.0):
        method = make(FairLoss, few, fairness=fairness, batch_size=40)
        batch = next(method.batches.epoch(0))
        draw = torch.Generator().manual_seed(5)
        logits = torch.randn(len(keep), 10, generator=draw, dtype=torch.float64)
        each = cross_entropy(logits, few.train.labels, reduction="none")
        assert few.train.groups is not None
        weight = 1 / few.train.groups.bincount()[few.train.groups]
        expected = each.mean() if fairness == 0 else (weight * each).sum() / 20
        found = method.batch_loss(logits[batch.index], batch)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("code", [*CODES, "one attribute"])
@pytest.mark.parametrize(("tau", "fairness"), [(1.0, 1.0), (0.7, 0.4), (0.0, 1.0)])
@pytest.mark.parametrize("size", [32, 10])
def test_group_logit_adjustment_by_hand(
    code: str, tau: float, fairness: float, size: int
) -> None:
    splits = two_sides(code=code)
    method = make(
        GroupLogitAdjustment, splits, tau=tau, fairness=fairness, batch_size=size
    )
    whole = Batch(
        torch.zeros(0), splits.train.labels, splits.train.groups, torch.zeros(0)
    )
    side, sides = side_of(whole, code), 1 if code == "one attribute" else 2
    batch = next(method.batches.epoch(0))
    logits, own = logits_of(batch), side_of(batch, code)
    total = torch.zeros((), dtype=torch.float64)
    for f, y, a in zip(logits, batch.labels, own, strict=True):
        within = whole.labels[side == a]
        prior = within.bincount(minlength=10).double() / len(within)
        share = len(within) / len(side)
        adjusted = cross_entropy(f + tau * prior.log(), y) / (sides * share)
        total += (1 - fairness) * cross_entropy(f, y) + fairness * adjusted
    found = method.batch_loss(logits, batch)
    torch.testing.assert_close(found, total / len(batch), rtol=1e-6, atol=0)


def fitted(kind: Any, splits: Splits, **settings: Any) -> Any:
    method = make(kind, splits, **settings)
    training.fit(method, 2)
    return method


def test_limits_of_group_logit_adjustment() -> None:
    splits, one = two_sides(), two_sides(code="one attribute")
    plain = fitted(CrossEntropy, splits)
    assert_same(plain, fitted(GroupLogitAdjustment, splits, fairness=0.0), "/model")
    alone = fitted(GroupLogitAdjustment, one).model.state_dict()
    for name, value in fitted(LogitAdjustment, one).model.state_dict().items():
        torch.testing.assert_close(alone[name], value, rtol=1e-4, atol=1e-5)


def test_augmentation_stays_with_the_stratified_batches() -> None:
    def black(pixels: Tensor, _: torch.Generator) -> Tensor:
        return torch.zeros_like(pixels)

    method = make(FairLoss, two_sides(), augment=black)
    batch = next(method.batches.epoch(0))
    assert len(batch.images.unique()) == 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(FairLoss, {}), (FairLoss, {"goal": "deo"}), (GroupLogitAdjustment, {})],
)
def test_a_step_waits_for_nothing(kind: Any, settings: dict[str, Any]) -> None:
    method = make(kind, two_sides(), fairness=0.5, **settings)
    method.stages(1)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    with NoWaiting():
        method.step(batch)


@pytest.mark.parametrize("kind", [FairLoss, GroupLogitAdjustment])
def test_no_groups(kind: Any) -> None:
    with pytest.raises(UserError, match=r"needs the group of every .* group_counts"):
        make(kind, load())


def test_an_empty_cell() -> None:
    splits = two_sides()
    assert splits.train.groups is not None
    keep = (splits.train.groups != 7).nonzero().flatten()
    few = replace(splits, train=splits.train.subset(keep))
    with pytest.raises(UserError, match="needs training images of each"):
        make(GroupLogitAdjustment, few)
    # The means of cells do without it.
    training.fit(make(FairLoss, few, goal="deo"), 1)


NAMES = [n for n in METHODS if n.startswith(("autobalance", "fair_", "group_logit"))]


def settings_of(name: str) -> dict[str, Any]:
    if name.startswith("autobalance"):
        return {"interval": 1, "start": 0.0}
    return {"fairness": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_registered_names_train(name: str) -> None:
    settings = hyperparameters(name)(**settings_of(name)).model_dump()
    entry = METHODS[name]
    splits = two_sides()
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    before = [p.detach().clone() for p in model.parameters()]
    method = entry.load()(
        model,
        splits,
        optimisation=Optimisation(lr=0.05, batch_size=32),
        **entry.fixed,
        **settings,
    )
    history = training.fit(method, 1)
    assert all(row["loss"] > 0 for row in history.rows)
    after: Sequence[Tensor] = list(model.parameters())
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_all_the_names_are_there() -> None:
    assert {
        "fair_balanced", "fair_deo", "group_logit_adjustment", "autobalance_tau",
        "autobalance_l", "autobalance_delta", "autobalance_delta_l", "autobalance",
        "autobalance_grouped",
    } <= set(NAMES)  # fmt: skip

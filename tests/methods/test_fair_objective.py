"""The fair objective: what it is on all images, and what a batch says about it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.data import (
    Batch,
    Cells,
    Examples,
    InMemory,
    Normalisation,
    StratifiedBatches,
)
from needsaug_lite.methods.fair_objective import FairObjective, Goal

C, A = 3, 2
SIZES = torch.tensor([[8, 2], [4, 4], [1, 16]])
CELLS = Cells(C, A, torch.arange(C * A) % A)


def data() -> tuple[Examples, Tensor]:
    """Images in cells of these sizes, and logits of each."""
    source = torch.Generator().manual_seed(5)
    groups = torch.arange(C * A).repeat_interleave(SIZES.flatten())
    groups = groups[torch.randperm(len(groups), generator=source)]
    pixels = torch.zeros(len(groups), 1, 1, 1, dtype=torch.uint8)
    logits = 2 * torch.randn(len(groups), C, generator=source, dtype=torch.float64)
    return Examples(InMemory(pixels), groups // A, groups), logits


def batch_of(examples: Examples, index: Tensor) -> Batch:
    some = examples.subset(index)
    return Batch(torch.zeros(len(index), 1, 1, 1), some.labels, some.groups, index)


def objective(goal: Goal, fairness: float) -> FairObjective:
    return FairObjective.of(data()[0], CELLS, goal, fairness)


def on(ask: FairObjective, index: Tensor) -> Tensor:
    examples, logits = data()
    return ask(logits[index], batch_of(examples, index))


EVERYTHING = torch.arange(int(SIZES.sum()))


def cell_means() -> Tensor:
    examples, logits = data()
    each = losses.cross_entropy(logits, examples.labels, reduction="none")
    groups = examples.groups
    means = torch.stack([each[groups == g].mean() for g in range(C * A)])
    return means.view(C, A)


def test_without_fairness_it_is_cross_entropy() -> None:
    examples, logits = data()
    plain = losses.cross_entropy(logits, examples.labels)
    goals: tuple[Goal, Goal] = ("balanced", "deo")
    for goal in goals:
        got = on(objective(goal, 0.0), EVERYTHING)
        assert_close(got, plain, rtol=1e-6, atol=0)


def test_with_fairness_alone_it_is_its_goal() -> None:
    means = cell_means()
    assert_close(on(objective("balanced", 1.0), EVERYTHING), means.mean())
    deo = (means[:, 0] - means[:, 1]).abs().sum()
    assert_close(on(objective("deo", 1.0), EVERYTHING), deo)


@pytest.mark.parametrize("goal", ["balanced", "deo"])
def test_in_between_it_is_the_mix(goal: Goal) -> None:
    """0.1 CE + 0.9 CE_deo is fairness 0.9 (A5)."""
    plain, fair = (on(objective(goal, x), EVERYTHING) for x in (0.0, 1.0))
    got = on(objective(goal, 0.9), EVERYTHING)
    assert_close(got, 0.1 * plain + 0.9 * fair)


@pytest.mark.parametrize("goal", ["balanced", "deo"])
@pytest.mark.parametrize("fairness", [0.0, 0.4, 1.0])
def test_a_stratified_batch_of_all_images_says_what_all_images_say(
    goal: Goal, fairness: float
) -> None:
    """Each cell's images are repeated until all cells are as large as the largest."""
    examples, _ = data()
    assert examples.groups is not None
    batches = StratifiedBatches(
        examples, examples.groups, 16 * C * A, Normalisation((0.0,), (1.0,)), steps=1
    )
    index = batches.order(2)
    assert len(index) == 96
    ask = objective(goal, fairness)
    assert_close(on(ask, index), on(ask, EVERYTHING))


def test_a_cell_that_a_batch_lacks_is_left_out() -> None:
    examples, _ = data()
    assert examples.groups is not None
    seen = EVERYTHING[examples.groups != 3]
    means = cell_means()
    known = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    shares = SIZES.double() * known
    plain = (shares / shares.sum() * means).sum()
    got = on(objective("balanced", 0.0), seen)
    assert_close(got, plain, rtol=1e-6, atol=0)
    assert_close(on(objective("balanced", 1.0), seen), means[known].mean())
    gaps = (means[:, 0] - means[:, 1]).abs()
    assert_close(on(objective("deo", 1.0), seen), gaps[0] + gaps[2])


def test_without_attributes_it_balances_classes() -> None:
    examples, logits = data()
    ask = FairObjective.of(examples, Cells(C, 1), "balanced", 1.0)
    got = ask(logits, batch_of(examples, EVERYTHING))
    weight = 1 / (C * examples.counts(C) / len(examples))
    expected = losses.parametric_cross_entropy(
        logits, examples.labels, class_weight=weight.double()
    )
    assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("goal", ["balanced", "deo"])
@pytest.mark.parametrize("seen", [31, 9])
def test_gradients_by_the_logits(goal: Goal, seen: int) -> None:
    examples, logits = data()
    index = EVERYTHING[:seen]
    batch, ask = batch_of(examples, index), objective(goal, 0.7)
    leaf = logits[index].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: ask(f, batch), leaf)

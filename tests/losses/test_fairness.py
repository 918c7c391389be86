"""Risks of cells: closed forms, limits, and cells without samples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses

C, A = 4, 3
NAN = math.nan


def draw(seed: int = 0, batch: int = 200, missing: int = 0) -> tuple[Tensor, Tensor]:
    """Losses, and cells of which the first `missing` have no sample."""
    source = torch.Generator().manual_seed(seed)
    values = torch.rand(batch, generator=source, dtype=torch.float64)
    return values, torch.randint(missing, C * A, (batch,), generator=source)


def table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Conditional risks


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 60))
def test_conditional_risks_are_means_of_cells(seed: int, batch: int) -> None:
    values, cells = draw(seed, batch)
    got = losses.conditional_risks(values, cells, (C, A))
    for k in range(C):
        for j in range(A):
            mine = values[cells == k * A + j]
            assert_close(got[k, j], mine.mean(), equal_nan=True)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_errors_may_be_truth_values_numbers_or_floats(kind: torch.dtype) -> None:
    errors = torch.tensor([1, 1, 0, 1, 0, 0], dtype=kind)
    cells = torch.tensor([0, 0, 0, 1, 1, 3])
    got = losses.conditional_risks(errors, cells, (2, 2))
    truth = torch.tensor([[2 / 3, 0.5], [NAN, 0.0]])
    assert_close(got, truth, equal_nan=True)


def test_a_sample_weighs_one_over_the_size_of_its_cell() -> None:
    values, cells = draw(missing=2)
    leaf = values.clone().requires_grad_()
    risks = losses.conditional_risks(leaf, cells, (C, A))
    assert bool(risks.flatten()[:2].isnan().all())
    (got,) = torch.autograd.grad(losses.balanced_risk(risks), leaf)
    sizes = torch.bincount(cells)
    assert_close(got, 1 / ((C * A - 2) * sizes[cells].double()))


# Averages


def test_with_its_own_shares_the_average_is_the_plain_mean() -> None:
    values, cells = draw(missing=1)
    sizes = torch.bincount(cells, minlength=C * A).view(C, A)
    risks = losses.conditional_risks(values, cells, (C, A))
    assert_close(losses.average_risk(risks, sizes), values.mean())
    assert_close(losses.average_risk(risks, 5.0 * sizes), values.mean())


def test_the_balanced_risk_against_its_formula() -> None:
    values, cells = draw()
    risks = losses.conditional_risks(values, cells, (C, A))
    total = sum(values[cells == c].mean() for c in range(C * A))
    assert_close(losses.balanced_risk(risks), total / (C * A))
    equal = torch.full((C, A), 0.3)
    assert_close(losses.average_risk(risks, equal), losses.balanced_risk(risks))


def test_the_balanced_cross_entropy_is_the_one_with_weights() -> None:
    """CE_bal = mean of 1/(C π_y) CE, with the shares of the same samples."""
    source = torch.Generator().manual_seed(2)
    logits = torch.randn(60, C, generator=source, dtype=torch.float64)
    labels = torch.randint(C, (60,), generator=source)
    shares = torch.bincount(labels, minlength=C).double() / 60
    each = losses.cross_entropy(logits, labels, reduction="none")
    risks = losses.conditional_risks(each, labels, (C, 1))
    weighted = losses.parametric_cross_entropy(
        logits, labels, class_weight=1 / (C * shares)
    )
    assert_close(losses.balanced_risk(risks), weighted)


def test_unknown_cells_are_left_out_and_the_other_shares_grow() -> None:
    risks = table([[0.2, NAN], [0.6, 1.0]])
    shares = table([[0.4, 0.3], [0.2, 0.1]])
    expected = (0.4 * 0.2 + 0.2 * 0.6 + 0.1 * 1.0) / 0.7
    assert float(losses.average_risk(risks, shares)) == pytest.approx(expected)
    assert float(losses.balanced_risk(risks)) == pytest.approx(1.8 / 3)


def test_images_shown_twice_change_no_balanced_question() -> None:
    values, cells = draw()
    twice = (cells == 4) | (cells == 7)
    more, where = torch.cat([values, values[twice]]), torch.cat([cells, cells[twice]])
    one = losses.conditional_risks(values, cells, (C, A))
    two = losses.conditional_risks(more, where, (C, A))
    for ask in (losses.balanced_risk, losses.difference_of_equal_opportunity):
        assert_close(ask(one), ask(two))
    assert not torch.isclose(values.mean(), more.mean())


# Difference of equal opportunity


def test_deo_of_two_attributes_is_the_sum_of_absolute_differences() -> None:
    risks = torch.rand(5, 2, dtype=torch.float64)
    expected = (risks[:, 0] - risks[:, 1]).abs().sum()
    assert_close(losses.difference_of_equal_opportunity(risks), expected)


def test_deo_is_the_spread_within_classes() -> None:
    risks = table([[0.1, 0.5, 0.2], [0.9, 0.3, 0.3], [0.4, 0.4, 0.4]])
    found = losses.difference_of_equal_opportunity(risks)
    assert float(found) == pytest.approx(0.4 + 0.6)


def test_what_deo_does_not_see() -> None:
    """The level of a class, and the names of attributes and classes."""
    ask = losses.difference_of_equal_opportunity
    risks = torch.rand(C, A, dtype=torch.float64)
    assert_close(ask(risks + torch.rand(C, 1).double()), ask(risks))
    assert_close(ask(risks[:, [2, 0, 1]]), ask(risks))
    assert_close(ask(risks[[3, 1, 0, 2]]), ask(risks))
    assert_close(ask(3 * risks), 3 * ask(risks))
    assert not torch.isclose(ask(risks + torch.arange(A) ** 2), ask(risks))


@pytest.mark.parametrize("guess", range(C))
def test_deo_is_zero_for_constant_predictions(guess: int) -> None:
    _, cells = draw()
    labels = cells // A
    errors = (labels != guess).double()
    risks = losses.conditional_risks(errors, cells, (C, A))
    assert float(losses.difference_of_equal_opportunity(risks)) == 0
    assert float(losses.balanced_risk(risks)) == pytest.approx(1 - 1 / C)
    logits = torch.randn(C).double().expand(len(labels), C)
    each = losses.cross_entropy(logits, labels, reduction="none")
    risks = losses.conditional_risks(each, cells, (C, A))
    assert float(losses.difference_of_equal_opportunity(risks)) < 1e-12


def test_deo_without_attributes_is_zero() -> None:
    risks = torch.rand(C, 1, dtype=torch.float64)
    assert float(losses.difference_of_equal_opportunity(risks)) == 0


def test_deo_leaves_unknown_cells_and_classes_out() -> None:
    risks = table([[0.1, NAN, 0.4], [NAN, 0.9, NAN], [NAN, NAN, NAN]])
    found = losses.difference_of_equal_opportunity(risks)
    assert float(found) == pytest.approx(0.3)


@pytest.mark.parametrize("missing", [0, 1, 3, 5])
def test_gradients_are_right_and_finite_whatever_is_missing(missing: int) -> None:
    values, cells = draw(batch=40, missing=missing)
    shares = torch.rand(C, A, dtype=torch.float64)

    def asked(leaf: Tensor) -> Tensor:
        risks = losses.conditional_risks(leaf, cells, (C, A))
        return torch.stack(
            [
                losses.average_risk(risks, shares),
                losses.balanced_risk(risks),
                losses.difference_of_equal_opportunity(risks),
            ]
        )

    leaf = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(asked, leaf)
    assert bool(asked(leaf).isfinite().all())


def test_deo_raises_the_best_and_lowers_the_worst() -> None:
    risks = table([[0.1, 0.5, 0.2], [NAN, NAN, NAN]]).requires_grad_()
    value = losses.difference_of_equal_opportunity(risks)
    (got,) = torch.autograd.grad(value, risks)
    assert_close(got, table([[-1, 1, 0], [0, 0, 0]]))

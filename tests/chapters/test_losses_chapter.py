"""What chapter 2 teaches is what the library does."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.taught import definitions, functions
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.experiments.comparisons import holm

NOTEBOOK = "02_losses_that_know_class_sizes.ipynb"
TAUGHT = {
    "cross_entropy",
    "class_balanced_weights",
    "focal",
    "ldam_margins",
    "ldam",
    "logit_adjusted",
    "vector_scaling",
}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(NOTEBOOK, TAUGHT, torch=torch, one_hot=one_hot)


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Any:
    source = torch.Generator().manual_seed(request.param)
    num_classes = 3 + 4 * request.param
    counts = torch.randint(1, 900, (num_classes,), generator=source)
    logits = 4 * torch.randn(50, num_classes, generator=source, dtype=torch.float64)
    labels = torch.randint(num_classes, (50,), generator=source)
    return SimpleNamespace(logits=logits, labels=labels, counts=counts)


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, TAUGHT).values()
    lines = sum(len(ast.unparse(node).splitlines()) for node in nodes)
    assert lines <= 40


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_weights_agree(taught: Any, case: Any, beta: float) -> None:
    got = taught.class_balanced_weights(case.counts, beta)
    expected = losses.class_balanced_weights(case.counts, beta).double()
    assert_close(got, expected, rtol=1e-6, atol=0)


def test_weighted_cross_entropy_agrees(taught: Any, case: Any) -> None:
    weight = taught.class_balanced_weights(case.counts)
    for class_weight in (None, weight):
        got = taught.cross_entropy(case.logits, case.labels, class_weight)
        expected = losses.cross_entropy(
            case.logits, case.labels, class_weight=class_weight, reduction="none"
        )
        assert_close(got, expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_agrees(taught: Any, case: Any, gamma: float) -> None:
    got = taught.focal(case.logits, case.labels, gamma)
    expected = losses.focal(case.logits, case.labels, gamma=gamma, reduction="none")
    assert_close(got, expected)


def test_margins_and_ldam_agree(taught: Any, case: Any) -> None:
    margins = taught.ldam_margins(case.counts)
    expected = losses.ldam_margins(case.counts).double()
    assert_close(margins, expected, rtol=1e-6, atol=0)
    got = taught.ldam(case.logits, case.labels, margins)
    assert_close(
        got, losses.ldam(case.logits, case.labels, margins=margins, reduction="none")
    )


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_logit_adjustment_agrees(taught: Any, case: Any, tau: float) -> None:
    prior = case.counts.double() / case.counts.sum()
    got = taught.logit_adjusted(case.logits, case.labels, prior, tau)
    expected = losses.logit_adjusted(
        case.logits, case.labels, class_prior=prior, tau=tau, reduction="none"
    )
    assert_close(got, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.2])
@pytest.mark.parametrize("tau", [0.0, 1.2])
def test_vector_scaling_agrees(
    taught: Any, case: Any, gamma: float, tau: float
) -> None:
    counts = case.counts.double()
    got = taught.vector_scaling(case.logits, case.labels, counts, gamma, tau)
    expected = losses.vector_scaling(
        case.logits, case.labels, counts=counts, gamma=gamma, tau=tau, reduction="none"
    )
    assert_close(got, expected)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    pairs = sorted(zip(p_values, corrected, strict=True))
    for before, after in pairs:
        assert before <= after <= min(1.0, len(p_values) * before) + 1e-12
    ordered = [after for _, after in pairs]
    assert ordered == sorted(ordered)

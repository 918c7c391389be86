"""What chapter 9 teaches is what the library does."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.taught import definitions, functions
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import hypergrad, losses
from needsaug_lite.data import Batch, Cells, Normalisation, StratifiedBatches
from needsaug_lite.data.splits import Examples, InMemory
from needsaug_lite.experiments import hypotheses
from needsaug_lite.methods.endless import Endless
from needsaug_lite.methods.fair_objective import FairObjective

NOTEBOOK = "09_fairness_as_an_upper_level.ipynb"
IMPLEMENTATION = {"fair_loss", "train_loss", "hypergradient", "search"}
TAUGHT = IMPLEMENTATION | {
    "measures", "cell_errors", "folded_mean", "smallest_head", "direction"
}  # fmt: skip
SHARES = torch.tensor([[0.73, 0.038], [0.012, 0.22]], dtype=torch.float64)


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        TAUGHT,
        torch=torch,
        np=np,
        norm=norm,
        minimize=minimize,
        grad=grad,
        cross_entropy=cross_entropy,
    )


def normal(seed: int, *shape: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def problem(seed: int, number: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and attributes, with every cell present."""
    cell = torch.arange(number) % 4
    return normal(seed, number, 5) + (cell // 2)[:, None], cell // 2, cell % 2


def loss_parameters(seed: int) -> dict[str, Tensor]:
    return {"l": normal(seed, 2, 2), "raw": normal(seed + 1, 2, 2)}


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, IMPLEMENTATION).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_measures_are_those_of_the_library(taught: Any, seed: int) -> None:
    errors = normal(seed, 2, 2).abs()
    weighted, balanced, worst, deo = taught.measures(errors, SHARES)
    assert_close(weighted, losses.average_risk(errors, SHARES))
    assert_close(balanced, losses.balanced_risk(errors))
    assert_close(deo, losses.difference_of_equal_opportunity(errors))
    assert float(worst) == float(errors.max())


@pytest.mark.parametrize("lam", [0.0, 0.4, 0.9, 1.0])
def test_objective_is_that_of_the_library(taught: Any, lam: float) -> None:
    _, y, a = problem(0)
    logits = normal(3, len(y), 2)
    cells = Cells(2, 2, torch.tensor([0, 1, 0, 1]))
    library = FairObjective(cells, SHARES, "deo", lam)
    batch = Batch(torch.zeros(len(y), 1), y, 2 * y + a, torch.arange(len(y)))
    assert_close(taught.fair_loss(logits, y, a, SHARES, lam), library(logits, batch))


def test_training_loss_is_that_of_the_library(taught: Any) -> None:
    x, y, a = problem(1)
    theta, alpha, weight = normal(4, 2, 5), loss_parameters(5), normal(9, 2, 2).exp()
    expected = losses.parametric_cross_entropy(
        x @ theta.T,
        y,
        class_weight=weight,
        additive=alpha["l"],
        multiplicative=alpha["raw"].sigmoid(),
        groups=a,
    )
    expected = expected + 0.05 * theta.square().sum()
    found = taught.train_loss(theta, alpha, x, y, a, weight, 0.1)
    assert_close(found, expected)


@pytest.mark.parametrize("terms", [0, 1, 5, 30])
def test_hypergradient_is_that_of_the_library(taught: Any, terms: int) -> None:
    x, y, a = problem(2)
    x_out, y_out, a_out = problem(3, 24)
    weight = torch.ones(2, 2, dtype=torch.float64)

    def inner(theta: Tensor, alpha: Any) -> Any:
        return taught.train_loss(theta, alpha, x, y, a, weight, 0.1)

    def outer(theta: Tensor) -> Any:
        logits = x_out @ theta.T
        return taught.fair_loss(logits, y_out, a_out, SHARES, 0.9)

    theta, alpha = normal(6, 2, 5), loss_parameters(7)
    expected = hypergrad.implicit(
        lambda p, h: inner(p["theta"], h),
        lambda p, h: outer(p["theta"]),
        {"theta": theta},
        alpha,
        solver=hypergrad.neumann(terms, 0.1),
    )
    leaves = {name: value.clone().requires_grad_() for name, value in alpha.items()}
    found = taught.hypergradient(
        theta.requires_grad_(), leaves, inner, outer, terms, 0.1
    )
    for name, value in found.items():
        assert_close(value, expected[name])
        assert float(value.abs().max()) > 1e-6


def test_search_takes_both_steps_in_turn(taught: Any) -> None:
    def inner(theta: Tensor, alpha: Any) -> Any:
        shift = alpha["l"] + alpha["raw"]
        return 0.5 * (theta - shift).square().sum()  # θ* = l + raw, H = I

    def outer(theta: Tensor) -> Any:
        return 0.5 * (theta - 3).square().sum()

    start = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    alpha = {
        name: torch.zeros(1, dtype=torch.float64, requires_grad=True)
        for name in ("l", "raw")
    }
    settings = {"interval": 2, "lr": 0.5, "outer_lr": 0.1, "terms": 40}
    theta, found = taught.search(start, alpha, inner, outer, 400, 4, **settings)
    assert_close(found["l"] + found["raw"], torch.full((1,), 3.0).double())
    assert_close(theta, torch.full((1,), 3.0).double())
    _, untouched = taught.search(start, alpha, inner, outer, 4, 4, **settings)
    assert float(untouched["l"].detach()) == 0


def test_folded_mean_is_that_of_scipy(taught: Any) -> None:
    from scipy.stats import foldnorm

    for d, tau in ((0.0, 1.0), (0.3, 0.7), (2.0, 0.5)):
        expected = foldnorm.mean(d / tau, scale=tau)
        assert abs(taught.folded_mean(d, tau) - expected) < 1e-12


def test_colour_blind_cells_are_alike_and_its_use_helps_the_majority(
    taught: Any,
) -> None:
    blind = taught.cell_errors(1.2, SHARES.numpy(), 0.0)
    assert np.ptp(blind) < 1e-12
    best = taught.cell_errors(1.2, SHARES.numpy(), 1.0)
    majority = SHARES.numpy() > 0.1
    assert (best[majority] < blind[majority]).all()
    assert (best[~majority] > blind[~majority]).all()


def test_smallest_head_without_factors_is_the_widest_margin(taught: Any) -> None:
    points = np.array([[-1.0, 0.0], [-1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    head = taught.smallest_head(points, labels, groups, np.ones((2, 2)))
    assert np.abs(taught.direction(head) - [1.0, 0.0, 0.0]).max() < 1e-6


def test_control_is_judged_by_the_images_it_is_given() -> None:
    mine = "autobalance_grouped"
    taught = functions(
        NOTEBOOK,
        {"judge_by"},
        StratifiedBatches=StratifiedBatches,
        Endless=Endless,
        FairObjective=FairObjective,
        LIVE={mine: {"goal": "deo", "fairness": 0.9}},
        MINE=mine,
    )
    cells, none = Cells(2, 2, torch.tensor([0, 1, 0, 1])), Normalisation((0.0,), (1.0,))

    def images(repeats: list[int]) -> Examples:
        cell = torch.arange(4).repeat_interleave(torch.tensor(repeats))
        values = torch.full((len(cell), 1, 1, 1), sum(repeats), dtype=torch.uint8)
        return Examples(InMemory(values), cell // 2, cell)

    held, rest = images([2, 2, 2, 2]), images([6, 3, 2, 1])
    strata = StratifiedBatches(held, cells.number(held.labels, held.groups), 4, none)
    method = SimpleNamespace(
        cells=cells, strata=strata, validation=Endless(strata, 3), fair_loss=None
    )
    taught.judge_by(method, rest)
    batch = next(method.validation)
    assert float(batch.images.mean()) == pytest.approx(12 / 255)
    assert method.validation.steps == 3
    assert method.fair_loss.fairness == 0.9
    assert_close(method.fair_loss.shares * 12, torch.tensor([[6.0, 3.0], [2.0, 1.0]]))


def test_answers_speak_of_what_was_compared() -> None:
    taught = functions(NOTEBOOK, {"worded"}, hypotheses=hypotheses)
    frame = pd.DataFrame(
        {"repeats": ["", "", ""], "verdict": ["higher", "lower", "no difference shown"]}
    )
    expected = (
        "not supported: better in 1, no difference shown in 1, worse in 1 "
        "of 3 comparisons"
    )
    assert taught.worded(frame, "better", "worse") == expected
    assert taught.worded(frame.iloc[:0], "better", "worse") == "not measured"

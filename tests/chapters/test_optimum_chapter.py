"""What chapter 4 teaches is what the library does."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.taught import definitions, functions
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from needsaug_lite import hypergrad

NOTEBOOK = "04_differentiating_an_optimum.ipynb"
TAUGHT = {"implicit", "neumann", "conjugate_gradient", "exact"}
assert_same = partial(assert_close, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(NOTEBOOK, TAUGHT, torch=torch, grad=grad)


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    """As in the chapter."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Any:
    """A strongly convex inner loss that isn't quadratic; three hyperparameters."""
    source = torch.Generator().manual_seed(request.param)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    inputs, held, mix = normal(20, 5), normal(15, 5), normal(5, 3)
    theta, h = normal(5), normal(3)

    def inner(theta: Tensor, h: Tensor) -> Tensor:
        scores = inputs @ theta + (inputs @ mix) @ h
        return torch.log1p(scores.exp()).mean() + 0.1 * (theta**2).sum()

    def outer(theta: Tensor, h: Tensor) -> Tensor:
        return ((held @ theta) ** 2).mean() + theta.sum() + (h**3).sum()

    return SimpleNamespace(inner=inner, outer=outer, theta=theta, h=h)


def from_library(case: Any, solver: hypergrad.Solver) -> Tensor:
    def named(loss: Callable[[Tensor, Tensor], Tensor]) -> hypergrad.Loss:
        return lambda params, hparams: loss(params["theta"], hparams["h"])

    return hypergrad.implicit(
        named(case.inner),
        named(case.outer),
        {"theta": case.theta},
        {"h": case.h},
        solver=solver,
    )["h"]


def by_chapter(taught: Any, case: Any, solve: Any) -> Any:
    return taught.implicit(case.inner, case.outer, case.theta, case.h, solve)


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, TAUGHT).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


def test_exact_agrees(taught: Any, case: Any) -> None:
    found = by_chapter(taught, case, taught.exact)
    assert_same(found, from_library(case, hypergrad.exact()))


@pytest.mark.parametrize(("terms", "step"), [(0, 0.1), (5, 0.5), (60, 0.3)])
def test_neumann_agrees(taught: Any, case: Any, terms: int, step: float) -> None:
    found = by_chapter(taught, case, taught.neumann(terms, step))
    assert_same(found, from_library(case, hypergrad.neumann(terms, step)))


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_conjugate_gradient_agrees(
    taught: Any, case: Any, iterations: int, damping: float
) -> None:
    found = by_chapter(taught, case, taught.conjugate_gradient(iterations, damping))
    solver = hypergrad.conjugate_gradient(iterations, damping=damping)
    assert_same(found, from_library(case, solver))


def test_conjugate_gradient_refuses_negative_curvature(taught: Any) -> None:
    curvatures = torch.tensor([1.0, -1.0])
    solve = taught.conjugate_gradient(5)
    # d = v: (1 - 4) / (1 + 4)
    with pytest.raises(ValueError, match="curvature -0.6 <= 0"):
        solve(lambda w: curvatures * w, torch.tensor([1.0, 2.0]))


def test_conjugate_gradient_of_zero_is_zero(taught: Any) -> None:
    zero = torch.zeros(3)
    assert_close(taught.conjugate_gradient(5)(lambda w: w, zero), zero)

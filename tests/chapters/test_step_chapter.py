"""What chapter 3 teaches is what the library does."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.taught import definitions, functions
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import hypergrad

NOTEBOOK = "03_differentiating_through_a_step.ipynb"
TAUGHT = {
    "leaves",
    "virtual_step",
    "outer_gradients",
    "one_step",
    "centred",
    "finite_difference",
}
HELPERS = {"norm"}
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(NOTEBOOK, TAUGHT | HELPERS, torch=torch, grad=torch.autograd.grad)


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request: pytest.FixtureRequest) -> Any:
    """Losses of two tensors each, not quadratic, the outer one with a direct term."""
    source = torch.Generator().manual_seed(request.param)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    x, y, x_out, y_out = normal(20, 5), normal(20), normal(12, 5), normal(12)

    def model(params: Tensors, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["hidden"]) @ params["out"]

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        error = (model(params, x * hparams["gain"].exp()) - y) ** 2
        decay = (hparams["decay"] * params["out"] ** 2).sum()
        return error.mean() + decay

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        error = ((model(params, x_out) - y_out) ** 2).mean()
        return error + 0.1 * (hparams["decay"] ** 2).sum()

    params = {"hidden": 0.5 * normal(5, 4), "out": normal(4)}
    hparams = {"gain": 0.3 * normal(5), "decay": 0.1 * normal(4).exp()}
    return SimpleNamespace(losses=(inner, outer), params=params, hparams=hparams)


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, TAUGHT).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


@pytest.mark.parametrize("lr", [0.01, 0.3])
def test_one_step_agrees(taught: Any, case: Any, lr: float) -> None:
    got = taught.one_step(*case.losses, case.params, case.hparams, lr)
    expected = hypergrad.unrolled(*case.losses, case.params, case.hparams, lr=lr)
    assert_close(got, dict(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("radius", [1e-3, 0.01, 0.3])
def test_finite_difference_agrees(taught: Any, case: Any, radius: float) -> None:
    arguments = (*case.losses, case.params, case.hparams)
    got = taught.finite_difference(*arguments, 0.2, radius)
    expected = hypergrad.finite_difference(*arguments, lr=0.2, radius=radius)
    assert_close(got, dict(expected), rtol=1e-8, atol=1e-11)


def test_default_radius_is_the_librarys(taught: Any, case: Any) -> None:
    arguments = (*case.losses, case.params, case.hparams)
    got = taught.finite_difference(*arguments, 0.2)
    assert_close(got, dict(hypergrad.finite_difference(*arguments, lr=0.2)))


def test_difference_approaches_the_exact_step(taught: Any, case: Any) -> None:
    arguments = (*case.losses, case.params, case.hparams, 0.2)
    exact = taught.one_step(*arguments)

    def error(radius: float) -> float:
        found = taught.finite_difference(*arguments, radius)
        return float(sum((found[k] - exact[k]).square().sum() for k in exact) ** 0.5)

    assert error(1e-3) / error(2e-3) == pytest.approx(0.25, rel=0.02)


def test_callers_tensors_stay_as_they_are(taught: Any, case: Any) -> None:
    before = {name: p.clone() for name, p in case.params.items()}
    taught.one_step(*case.losses, case.params, case.hparams, 0.3)
    taught.finite_difference(*case.losses, case.params, case.hparams, 0.3)
    assert_close(case.params, before, rtol=0, atol=0)
    assert not any(t.requires_grad for t in [*case.params.values()])

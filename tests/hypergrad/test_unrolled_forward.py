"""The directional derivative gives the number of `unrolled`, by another route."""

from __future__ import annotations

import pytest
import torch
from helpers.bilevel import Smooth, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    first=st.integers(1, 5),
    second=st.integers(1, 4),
    lr=st.floats(1e-4, 0.3),
    batches=st.integers(1, 3),
)
def test_equals_one_graph(
    seed: int, first: int, second: int, lr: float, batches: int
) -> None:
    problem = Smooth(torch.Generator().manual_seed(seed), (first, second))
    inner = [
        lambda p, h, k=k: problem.inner(p, h) * 2 * (k + 1) / (batches + 1)
        for k in range(batches)
    ]
    found = hypergrad.unrolled_forward(
        inner if batches > 1 else problem.inner,
        problem.outer,
        problem.params,
        problem.hparams,
        lr=lr,
    )
    assert error(found, problem.truth(lr)) < 1e-9


def test_all_that_it_returns(smooth: Smooth) -> None:
    arguments = (smooth.inner, smooth.outer, smooth.params, smooth.hparams)
    ours = hypergrad.unrolled_forward(*arguments, lr=0.3)
    exact = hypergrad.unrolled(*arguments, lr=0.3)
    assert error(ours.params, exact.params) < 1e-14
    for name in ("inner_loss", "outer_loss", "vector_norm"):
        torch.testing.assert_close(getattr(ours, name), getattr(exact, name))
    assert error(ours.path_norms, exact.path_norms) < 1e-9


def test_an_operation_without_a_forward_derivative(smooth: Smooth) -> None:
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return g * 2

    def inner(p: dict, h: dict) -> Tensor:
        return (Backward.apply(p["x"]) * h["h"]).sum()

    def outer(p: dict, h: dict) -> Tensor:
        return p["x"].square().sum()

    with pytest.raises(UserError, match="forward-mode"):
        hypergrad.unrolled_forward(
            inner, outer, {"x": torch.ones(2)}, {"h": torch.ones(2)}, lr=0.1
        )

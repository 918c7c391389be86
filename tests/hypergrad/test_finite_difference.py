"""The DARTS estimator: its order, its scale, its factor, its evaluation points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.bilevel import Smooth, error, free
from hypothesis import given, settings
from hypothesis import strategies as st

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError

LR = 0.07


def estimate(problem: Smooth, **changes: object) -> hypergrad.Hypergradient:
    options = {"lr": LR, "radius": 1e-3, **changes}
    return hypergrad.finite_difference(
        problem.inner, problem.outer, problem.params, problem.hparams, **options
    )


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    first=st.integers(1, 5),
    second=st.integers(1, 4),
    lr=st.floats(1e-3, 0.3),
)
def test_close_to_the_exact_step(seed: int, first: int, second: int, lr: float) -> None:
    problem = Smooth(torch.Generator().manual_seed(seed), (first, second))
    assert error(estimate(problem, lr=lr), problem.truth(lr)) < 1e-4


def test_the_error_falls_as_radius_squared(smooth: Smooth) -> None:
    radii = np.array([0.2, 0.1, 0.05, 0.02, 0.01])
    truth = smooth.truth(LR)
    errors = [error(estimate(smooth, radius=float(r)), truth) for r in radii]
    slope = np.polyfit(np.log(radii), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.05)


def test_the_scale_of_the_outer_loss_does_not_matter(smooth: Smooth) -> None:
    """epsilon = radius / ||v||: a larger outer loss moves the parameters as far."""
    small = hypergrad.finite_difference(
        smooth.inner,
        lambda p, h: 1e-6 * smooth.outer(p, h),
        smooth.params,
        smooth.hparams,
        lr=LR,
        radius=0.05,
    )
    usual = estimate(smooth, radius=0.05)
    assert error({n: 1e6 * t for n, t in small.items()}, usual) < 1e-7


def test_an_outer_loss_at_its_minimum_has_the_direct_term_alone() -> None:
    found = hypergrad.finite_difference(
        lambda p, h: (p["t"] * h["h"]).sum(),
        lambda p, h: ((p["t"] - 1) ** 2).sum() + 5 * h["h"].sum(),
        {"t": torch.tensor([1.5, 2.0])},  # the step goes to (1, 1) exactly
        {"h": torch.tensor([5.0, 10.0])},
        lr=0.1,
    )
    torch.testing.assert_close(found["h"], torch.tensor([5.0, 5.0]))


def test_it_agrees_with_unrolled_in_all_that_it_returns(smooth: Smooth) -> None:
    ours, exact = (
        estimate(smooth),
        hypergrad.unrolled(
            smooth.inner, smooth.outer, smooth.params, smooth.hparams, lr=LR
        ),
    )
    assert error(ours.params, exact.params) < 1e-14
    for name in ("inner_loss", "outer_loss", "vector_norm"):
        torch.testing.assert_close(getattr(ours, name), getattr(exact, name))
    assert error(ours.path_norms, exact.path_norms) < 1e-4


def test_a_sequence_is_averaged(smooth: Smooth) -> None:
    parts = [lambda p, h, k=k: k * smooth.inner(p, h) for k in (0.5, 1.5)]
    found = hypergrad.finite_difference(
        parts,
        [smooth.outer, smooth.outer],
        smooth.params,
        smooth.hparams,
        lr=LR,
        radius=1e-3,
    )
    assert error(found, estimate(smooth)) < 1e-9


def test_half_precision_is_refused(smooth: Smooth) -> None:
    params = {name: t.bfloat16() for name, t in smooth.params.items()}
    with pytest.raises(UserError, match="float32 or float64"):
        hypergrad.finite_difference(
            smooth.inner, smooth.outer, params, smooth.hparams, lr=LR
        )


def test_autocast_and_tf32_are_off_inside_and_on_afterwards() -> None:
    """Under bfloat16 autocast a difference would be noise."""
    torch.set_default_dtype(torch.float32)
    images, weight = torch.randn(32, 20), torch.randn(20, 5)
    seen = []

    def inner(p: dict, h: dict) -> torch.Tensor:
        logits = images @ p["w"]
        seen.append((logits.dtype, torch.backends.cuda.matmul.fp32_precision))
        return (logits.square() * h["h"]).mean()

    def outer(p: dict, h: dict) -> torch.Tensor:
        return (images @ p["w"]).sigmoid().mean()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = hypergrad.finite_difference(
                inner, outer, {"w": weight}, {"h": torch.ones(5)}, lr=0.1
            )
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {(torch.float32, "ieee")}
    exact = hypergrad.unrolled(
        inner, outer, {"w": weight}, {"h": torch.ones(5)}, lr=0.1
    )
    assert error(found, exact) < 2e-2


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf")])
def test_impossible_radius(smooth: Smooth, radius: float) -> None:
    with pytest.raises(UserError, match="radius"):
        estimate(smooth, radius=radius)


def test_closures_get_no_graph_through_the_parameters(smooth: Smooth) -> None:
    """First derivatives only: a loss without a second derivative will do."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)  # type: ignore[attr-defined]
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, g: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return g * x.cos()

    def inner(p: dict, h: dict) -> torch.Tensor:
        return (Once.apply(p["x"]) * h["h"]).sum()

    def smooth_inner(p: dict, h: dict) -> torch.Tensor:
        return (p["x"].sin() * h["h"]).sum()

    def outer(p: dict, h: dict) -> torch.Tensor:
        return (p["x"] ** 2).sum()

    params, hparams = {"x": torch.randn(4)}, {"h": torch.randn(4)}
    found = hypergrad.finite_difference(inner, outer, params, hparams, lr=LR)
    h = free(hparams)
    exact = hypergrad.unrolled(smooth_inner, outer, params, h, lr=LR)
    assert error(found, exact) < 1e-4
    with pytest.raises(UserError, match="once_differentiable"):
        hypergrad.unrolled(inner, outer, params, hparams, lr=LR)

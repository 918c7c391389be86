"""Derivatives through inner steps, against one graph through everything."""

from __future__ import annotations

import pytest
import torch
from helpers.bilevel import Smooth, error, flat
from hypothesis import given, settings
from hypothesis import strategies as st

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError

LR = 0.07


def test_a_scalar_by_hand() -> None:
    """L_in = (θ - 3h)², L_out = θ² + h: by the chain rule 12 lr θ' + 1."""
    theta, h = torch.tensor(2.0), torch.tensor(0.5)
    found = hypergrad.unrolled(
        lambda p, q: (p["t"] - 3 * q["h"]) ** 2,
        lambda p, q: p["t"] ** 2 + q["h"],
        {"t": theta},
        {"h": h},
        lr=LR,
    )
    updated = 2.0 - 2 * LR * (2.0 - 1.5)
    assert found["h"].item() == pytest.approx(12 * LR * updated + 1, rel=1e-14)
    assert found.params["t"].item() == pytest.approx(updated, rel=1e-14)
    assert found.inner_loss.item() == pytest.approx(0.25)
    assert found.outer_loss.item() == pytest.approx(updated**2 + 0.5)
    assert found.vector_norm.item() == pytest.approx(2 * updated)
    assert found.path_norms["direct"].item() == pytest.approx(1)
    assert found.path_norms["params"].item() == pytest.approx(12 * LR * updated)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    first=st.integers(1, 5),
    second=st.integers(1, 4),
    steps=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    lr=st.floats(1e-4, 0.2),
    batches=st.integers(1, 3),
)
def test_equals_one_graph(
    seed: int,
    first: int,
    second: int,
    steps: int,
    momentum: float,
    lr: float,
    batches: int,
) -> None:
    problem = Smooth(torch.Generator().manual_seed(seed), (first, second))
    # Closures whose mean is the loss: each leaves out what the next one has too much.
    inner = [
        lambda p, h, k=k: problem.inner(p, h) * 2 * (k + 1) / (batches + 1)
        for k in range(batches)
    ]
    found = hypergrad.unrolled(
        inner if batches > 1 else problem.inner,
        problem.outer,
        problem.params,
        problem.hparams,
        lr=lr,
        steps=steps,
        momentum=momentum,
    )
    assert error(found, problem.truth(lr, steps, momentum)) < 1e-9


def test_the_parameters_after_the_steps_are_those_of_sgd(smooth: Smooth) -> None:
    params = {n: torch.nn.Parameter(t.clone()) for n, t in smooth.params.items()}
    optimiser = torch.optim.SGD(params.values(), lr=LR, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        smooth.inner(params, smooth.hparams).backward()
        optimiser.step()
    found = hypergrad.unrolled(
        smooth.inner,
        smooth.outer,
        smooth.params,
        smooth.hparams,
        lr=LR,
        steps=3,
        momentum=0.9,
    )
    assert error(found.params, {n: t.detach() for n, t in params.items()}) < 1e-12
    assert found.velocity is not None
    buffers = {n: optimiser.state[t]["momentum_buffer"] for n, t in params.items()}
    assert error(found.velocity, buffers) < 1e-12


def test_a_velocity_carries_on_where_another_estimate_stopped(smooth: Smooth) -> None:
    """Two steps at once, or one step and then one step from its velocity."""
    common = {"lr": LR, "momentum": 0.9}
    losses = (smooth.inner, smooth.outer)
    both = hypergrad.unrolled(*losses, smooth.params, smooth.hparams, steps=2, **common)
    first = hypergrad.unrolled(*losses, smooth.params, smooth.hparams, **common)
    second = hypergrad.unrolled(
        *losses, first.params, smooth.hparams, velocity=first.velocity, **common
    )
    assert error(second.params, both.params) < 1e-12
    # The first step is a constant for the second estimate: its part is missing there.
    assert error(second, both) > 1e-3


def test_v_is_taken_at_the_updated_parameters(smooth: Smooth) -> None:
    """With v at the old parameters the answer is another one."""
    point = {n: t.clone().requires_grad_() for n, t in smooth.params.items()}
    v_old = torch.autograd.grad(
        smooth.outer(point, smooth.hparams), list(point.values())
    )
    found = hypergrad.unrolled(
        smooth.inner, smooth.outer, smooth.params, smooth.hparams, lr=0.3
    )
    assert (
        abs(float(found.vector_norm) - float(flat(dict(enumerate(v_old))).norm()))
        > 1e-2
    )


def test_hparams_in_one_loss_only(smooth: Smooth) -> None:
    """What enters the outer loss alone has the direct term alone, and vice versa."""
    hparams = {**smooth.hparams, "outside": torch.tensor([2.0, -1.0])}

    def outer(params: dict, h: dict) -> torch.Tensor:
        return smooth.outer(params, smooth.hparams) + (h["outside"] ** 3).sum()

    found = hypergrad.unrolled(smooth.inner, outer, smooth.params, hparams, lr=LR)
    torch.testing.assert_close(found["outside"], 3 * hparams["outside"] ** 2)
    truth = smooth.truth(LR)
    torch.testing.assert_close(found["scale"], truth["scale"])
    assert not torch.allclose(found["shift"], truth["shift"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "positive number"),
        ({"lr": float("nan")}, "positive number"),
        ({"lr": 0.1, "steps": 0}, "at least 1 inner step"),
        ({"lr": 0.1, "momentum": 1.0}, r"\[0, 1\)"),
        ({"lr": 0.1, "velocity": {}}, "velocity needs a tensor"),
    ],
)
def test_impossible_settings(smooth: Smooth, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hypergrad.unrolled(
            smooth.inner, smooth.outer, smooth.params, smooth.hparams, **settings
        )

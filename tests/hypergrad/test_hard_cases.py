"""Cases in which a plausible implementation is wrong in silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.bilevel import Smooth, Tensors, error
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm
from torch.utils.checkpoint import checkpoint

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError

ESTIMATORS: dict[str, Callable] = {
    "unrolled": partial(hypergrad.unrolled, lr=0.1),
    "finite_difference": partial(hypergrad.finite_difference, lr=0.1),
    "implicit": partial(hypergrad.implicit, solver=hypergrad.neumann(2, 0.01)),
}
everywhere = pytest.mark.parametrize("name", ESTIMATORS)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head, self.inside = nn.Linear(8, 4), True

    def forward(self, x: Tensor) -> Tensor:
        if self.inside:
            return self.head(checkpoint(self.body, x, use_reentrant=False).tanh())
        return self.head(self.body(x).tanh())


@everywhere
def test_checkpointing_inside_a_module_is_refused_and_outside_is_right(
    name: str,
) -> None:
    """The backward would compute the segment again with the module's own weights."""
    model, x, y = Checkpointed(), torch.randn(12, 4), torch.randn(12, 4)
    params = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    hparams = {"h": torch.randn(4)}

    def forward(p: Tensors) -> Tensor:
        return functional_call(model, p, x)

    def around(p: Tensors) -> Tensor:
        return checkpoint(forward, p, use_reentrant=False)

    def losses(run: Callable[[Tensors], Tensor]) -> tuple[Callable, Callable]:
        return (
            lambda p, h: (run(p) * h["h"]).square().mean(),
            lambda p, h: (run(p) - y).square().mean(),
        )

    with pytest.raises(UserError, match="checkpoint"):
        ESTIMATORS[name](*losses(forward), params, hparams)
    model.inside = False
    plain = ESTIMATORS[name](*losses(forward), params, hparams)
    assert error(ESTIMATORS[name](*losses(around), params, hparams), plain) < 1e-9


def quadratic(curvature: Tensor) -> Callable:
    def loss(p: Tensors, h: Tensors) -> Tensor:
        return 0.5 * (curvature * p["x"] ** 2).sum() - (p["x"] * h["h"]).sum()

    return loss


def judged_by(vector: Tensor) -> Callable:
    return lambda p, h: (p["x"] * vector).sum()


def zeros(count: int) -> tuple[Tensors, Tensors]:
    return {"x": torch.zeros(count)}, {"h": torch.zeros(count)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradients_refuse_a_singular_matrix(
    seed: int, dtype: torch.dtype
) -> None:
    """The curvature of a null direction is rounding, of either sign."""
    source = torch.Generator().manual_seed(seed)
    matrix = torch.randn(10, 20, generator=source, dtype=dtype)
    vector = torch.randn(20, generator=source, dtype=dtype)
    params, hparams = ({n: t.to(dtype) for n, t in g.items()} for g in zeros(20))

    def inner(p: Tensors, h: Tensors) -> Tensor:
        return 0.5 * (matrix @ p["x"]).square().sum() - (p["x"] * h["h"]).sum()

    with pytest.raises(hypergrad.IndefiniteError, match="damping of more than"):
        hypergrad.implicit(
            inner,
            judged_by(vector),
            params,
            hparams,
            solver=hypergrad.conjugate_gradient(50),
        )


@pytest.mark.parametrize(
    ("curvature", "vector", "step", "terms"),
    [
        ([1.0, -0.5], [1.0, 0.1], 1.0, 5),  # grows in a direction where v is short
        ([1.0, 0.01], [0.01, 1.0], 2.5, 10),
        ([1.0, 0.0], [0.0, 1.0], 1.0, 5),  # no curvature at all
    ],
)
def test_a_series_that_diverges_slowly_warns(
    curvature: list[float], vector: list[float], step: float, terms: int
) -> None:
    """The last term is longer than the one before, but no longer than v."""
    solver = hypergrad.neumann(terms, step)
    with pytest.warns(hypergrad.HypergradientWarning, match="diverges"):
        hypergrad.implicit(
            quadratic(torch.tensor(curvature)),
            judged_by(torch.tensor(vector)),
            *zeros(2),
            solver=solver,
        )


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-24, 1e18])
def test_the_scale_of_the_outer_loss_in_single_precision(scale: float) -> None:
    """Squares of such a v are zero or infinite in float32."""
    x, h = torch.randn(50).float(), {"h": (torch.rand(50) + 0.5).float()}
    curvature = torch.rand(50).float() + 0.5

    def inner(p: Tensors, hp: Tensors) -> Tensor:
        return (p["x"].cos() * hp["h"]).sum() + p["x"].square().sum()

    def outer(p: Tensors, hp: Tensors) -> Tensor:
        return (p["x"] ** 2).sum() * scale

    routes = ((hypergrad.unrolled, 1e-5), (hypergrad.finite_difference, 1e-3))
    for estimator, bound in routes:
        unit = estimator(inner, lambda p, hp: (p["x"] ** 2).sum(), {"x": x}, h, lr=0.1)
        found = estimator(inner, outer, {"x": x}, h, lr=0.1)
        ratio = {"h": (found["h"].double() / scale)}
        assert error(ratio, {"h": unit["h"].double()}) < bound
    solver = hypergrad.conjugate_gradient(60)
    found = hypergrad.implicit(quadratic(curvature), outer, {"x": x}, h, solver=solver)
    truth = 2 * x.double() / curvature.double()
    assert error({"h": found["h"].double() / scale}, {"h": truth}) < 1e-4


class Moving(nn.Module):
    """Reads a buffer that it has just changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.5).add_(3 * z.abs().mean(0))
        return (z * self.mean).tanh()


def test_a_buffer_that_a_graph_has_read_is_not_changed_under_it() -> None:
    model, x = Moving(), torch.randn(6, 4)
    params, hparams = dict(model.named_parameters()), {"h": torch.randn(4)}
    before = model.mean.clone()

    def run(p: Tensors, training: bool) -> Tensor:
        model.train(training)
        return functional_call(model, p, x)

    def inner(p: Tensors, h: Tensors) -> Tensor:
        return (run(p, True) * h["h"]).square().mean()

    def outer(p: Tensors, h: Tensors) -> Tensor:
        return run(p, False).square().mean()

    with pytest.raises(UserError, match="eval mode"):
        hypergrad.unrolled(inner, outer, params, hparams, lr=0.1)
    assert torch.equal(model.mean, before)
    listed = hypergrad.unrolled([inner, inner], outer, params, hparams, lr=0.1)
    close = hypergrad.finite_difference(
        inner, outer, params, hparams, lr=0.1, radius=1e-4
    )
    assert listed["h"].isfinite().all()
    assert close["h"].isfinite().all()
    assert torch.equal(model.mean, before)


@everywhere
def test_statistics_handed_over_without_a_module(name: str) -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 5)
    params = {
        "w": torch.randn(3, 5).requires_grad_(),
        "mean": torch.zeros(5),
        "var": torch.ones(5),
    }

    def run(p: Tensors) -> Tensor:
        return batch_norm(x @ p["w"], p["mean"], p["var"], training=True)

    ESTIMATORS[name](
        lambda p, h: ((run(p) - y).square() * h["h"]).mean(),
        lambda p, h: (run(p) + y).square().mean(),
        params,
        {"h": torch.rand(5)},
    )
    assert torch.equal(params["mean"], torch.zeros(5))
    assert torch.equal(params["var"], torch.ones(5))


def test_estimates_do_not_make_a_compiled_module_compile_again() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(6, 4)
    compilations = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable:
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    params, hparams = dict(compiled.named_parameters()), {"h": torch.randn(4)}
    counts = []
    for _ in range(6):
        hypergrad.finite_difference(
            lambda p, h: (functional_call(compiled, p, x) * h["h"]).square().mean(),
            lambda p, h: functional_call(compiled, p, x).square().mean(),
            params,
            hparams,
            lr=0.1,
        )
        compiled(x)
        counts.append(len(compilations))
    assert counts[-1] == counts[1]


@everywhere
def test_one_tensor_under_two_names_is_refused(name: str, smooth: Smooth) -> None:
    weight = torch.randn(3)
    with pytest.raises(UserError, match="same tensor"):
        ESTIMATORS[name](
            smooth.inner, smooth.outer, {"a": weight, "b": weight}, smooth.hparams
        )


def test_complex_tensors_and_inference_mode_are_refused(smooth: Smooth) -> None:
    params = {**smooth.params, "z": torch.randn(2, dtype=torch.complex128)}
    with pytest.raises(UserError, match="complex"):
        hypergrad.unrolled(smooth.inner, smooth.outer, params, smooth.hparams, lr=0.1)
    with torch.inference_mode(), pytest.raises(UserError, match="inference_mode"):
        hypergrad.unrolled(
            smooth.inner, smooth.outer, smooth.params, smooth.hparams, lr=0.1
        )


def test_a_curvature_that_is_not_finite_is_named() -> None:
    with pytest.raises(hypergrad.NotFiniteError, match="Hessian"):
        hypergrad.largest_eigenvalue(
            lambda p, h: (p["x"].clamp_min(0).sqrt() * h["h"]).sum(),
            {"x": torch.zeros(3)},
            {"h": torch.ones(3)},
        )


def test_sparse_gradients(smooth: Smooth) -> None:
    rows = torch.tensor([0, 2, 2])

    def losses(sparse: bool) -> tuple[Callable, Callable]:
        def picked(p: Tensors) -> Tensor:
            return nn.functional.embedding(rows, p["table"], sparse=sparse)

        return (
            lambda p, h: (picked(p).sin() * h["h"]).sum(),
            lambda p, h: picked(p).square().sum(),
        )

    params, hparams = {"table": torch.randn(4, 3)}, {"h": torch.randn(3)}
    dense, sparse = (
        hypergrad.finite_difference(*losses(kind), params, hparams, lr=0.1)
        for kind in (False, True)
    )
    assert error(sparse, dense) < 1e-9


def test_an_inherited_precision_stays_inherited(smooth: Smooth) -> None:
    before = torch.backends.fp32_precision
    try:
        torch.backends.fp32_precision = "tf32"
        hypergrad.finite_difference(
            smooth.inner, smooth.outer, smooth.params, smooth.hparams, lr=0.1
        )
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = before


def test_derivatives_given_to_an_optimiser_are_copies(smooth: Smooth) -> None:
    hparams = {n: t.clone().requires_grad_() for n, t in smooth.hparams.items()}
    found = hypergrad.unrolled(
        smooth.inner, smooth.outer, smooth.params, hparams, lr=0.1
    )
    before = {n: t.clone() for n, t in found.items()}
    found.set_grad(hparams)
    nn.utils.clip_grad_norm_(hparams.values(), 1e-6)
    assert error(found, before) == 0

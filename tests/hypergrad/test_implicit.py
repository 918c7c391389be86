"""The derivative of an optimum: closed forms, solvers, and what they must refuse."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.bilevel import Ridge, Smooth, error, flat
from hypothesis import given, settings
from hypothesis import strategies as st

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import HypergradientWarning


def solve(problem: Ridge, solver: hypergrad.Solver, **changes: object):
    params = problem.split(problem.solution(problem.hparams))
    options = {"inner_loss": problem.inner, "outer_loss": problem.outer, **changes}
    return hypergrad.implicit(
        options["inner_loss"],
        options["outer_loss"],
        params,
        problem.hparams,
        solver=solver,
    )


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(2, 15),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
)
def test_ridge_in_closed_form(seed: int, samples: int, sizes: tuple[int, int]) -> None:
    problem = Ridge(seed, samples, sizes)
    truth = problem.truth()
    assert error(solve(problem, hypergrad.exact()), truth) < 1e-9
    enough = hypergrad.conjugate_gradient(60, tolerance=1e-12)
    assert error(solve(problem, enough), truth) < 1e-9


@pytest.mark.parametrize("terms", [0, 1, 5, 40])
def test_neumann_is_the_truncated_matrix_series(terms: int) -> None:
    problem = Ridge()
    matrix = problem.matrix(problem.hparams)
    step = 0.7 / float(torch.linalg.eigvalsh(matrix).max())
    eye = torch.eye(len(matrix))
    power, series = eye, eye
    for _ in range(terms):
        power = power @ (eye - step * matrix)
        series = series + power
    found = solve(problem, hypergrad.neumann(terms, step))
    assert error(found, problem.truth(step * series)) < 1e-9


def test_neumann_is_unrolling_from_the_optimum() -> None:
    """terms + 1 steps of gradient descent that start, and stay, at the optimum."""
    problem = Ridge()
    step = 0.5 / float(torch.linalg.eigvalsh(problem.matrix(problem.hparams)).max())
    params = problem.split(problem.solution(problem.hparams))
    losses = (problem.inner, problem.outer)
    series = hypergrad.implicit(
        *losses, params, problem.hparams, solver=hypergrad.neumann(4, step)
    )
    steps = hypergrad.unrolled(*losses, params, problem.hparams, lr=step, steps=5)
    assert error(series, steps) < 1e-9


def test_the_sign_by_solving_again() -> None:
    """Weights moved a little, the problem solved again: a central difference."""
    problem, step = Ridge(), 1e-5
    found = solve(problem, hypergrad.exact())
    for name in problem.hparams:
        for place in range(min(3, problem.hparams[name].numel())):
            values = []
            for sign in (1, -1):
                moved = {n: t.clone() for n, t in problem.hparams.items()}
                moved[name][place] += sign * step
                values.append(
                    float(problem.outer(problem.split(problem.solution(moved)), moved))
                )
            slope = (values[0] - values[1]) / (2 * step)
            assert float(found[name][place]) == pytest.approx(slope, rel=1e-5)


def test_the_hessian_is_not_block_diagonal() -> None:
    """The two tensors share curvature: solving them apart gives another answer."""
    problem = Ridge()
    matrix = problem.matrix(problem.hparams)
    first = problem.sizes[0]
    blocks = torch.block_diag(matrix[:first, :first], matrix[first:, first:])
    apart = problem.truth(torch.linalg.inv(blocks))
    assert error(apart, problem.truth()) > 0.05


def test_damping_is_added_to_the_diagonal() -> None:
    problem = Ridge()
    matrix = problem.matrix(problem.hparams)
    damped = matrix + 0.4 * torch.eye(len(matrix))
    truth = problem.truth(torch.linalg.inv(damped))
    solver = hypergrad.conjugate_gradient(60, damping=0.4, tolerance=1e-12)
    assert error(solve(problem, solver), truth) < 1e-9
    step = 1 / float(torch.linalg.eigvalsh(damped).max())
    series = hypergrad.neumann(3000, step, damping=0.4)
    assert error(solve(problem, series), truth) < 1e-9


def test_weight_decay_is_part_of_the_hessian() -> None:
    """Left out of the inner loss it changes the answer, by what the formula says."""
    problem = Ridge()

    def without(params: dict, hparams: dict) -> torch.Tensor:
        decay = hparams["decay"].exp().sum()
        return (
            problem.inner(params, hparams) - 0.5 * decay * flat(params).square().sum()
        )

    found = solve(problem, hypergrad.exact(), inner_loss=without)
    matrix = problem.matrix(problem.hparams)
    bare = matrix - problem.hparams["decay"].exp() * torch.eye(len(matrix))
    theta = problem.solution(problem.hparams)
    slope = torch.linalg.solve(
        bare, problem.x_out.T @ (problem.x_out @ theta - problem.y_out)
    )
    truth = -(problem.x @ slope) * (problem.x @ theta - problem.y)
    torch.testing.assert_close(found["weight"], truth)
    assert error({"w": truth}, {"w": problem.truth()["weight"]}) > 0.02


def test_sequences_are_averaged_in_every_product() -> None:
    problem = Ridge()
    parts = [
        lambda p, h, k=k: k * problem.inner(p, h) + (1 - k) * flat(p).square().sum()
        for k in (0.4, 1.6)
    ]
    outer = [lambda p, h, k=k: k * problem.outer(p, h) for k in (3.0, -1.0)]
    for solver in (hypergrad.exact(), hypergrad.conjugate_gradient(60)):
        found = solve(problem, solver, inner_loss=parts, outer_loss=outer)
        assert error(found, problem.truth()) < 1e-9


def test_the_report_says_how_far_the_parameters_are_from_an_optimum() -> None:
    problem = Ridge()
    found = solve(problem, hypergrad.conjugate_gradient(60))
    assert found.report["gradient_norm"] < 1e-9
    assert found.report["residual"] < 1e-9
    moved = {
        n: t + 1 for n, t in problem.split(problem.solution(problem.hparams)).items()
    }
    point = {n: t.clone().requires_grad_() for n, t in moved.items()}
    loss = problem.inner(point, problem.hparams)
    slope = torch.autograd.grad(loss, list(point.values()))
    away = hypergrad.implicit(
        problem.inner, problem.outer, moved, problem.hparams, solver=hypergrad.exact()
    )
    assert away.report["gradient_norm"] == pytest.approx(
        float(flat(dict(enumerate(slope))).norm())
    )


# What a solver must not do in silence.


def test_a_diverging_series_warns_and_an_overflowing_one_is_an_error() -> None:
    problem = Ridge()
    top = float(torch.linalg.eigvalsh(problem.matrix(problem.hparams)).max())
    with pytest.warns(HypergradientWarning, match="diverges.*step"):
        found = solve(problem, hypergrad.neumann(8, 2.5 / top))
    assert found.report["growth"] > 1
    with pytest.raises(hypergrad.NotFiniteError, match="overflows"):
        solve(problem, hypergrad.neumann(3000, 100 / top))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(problem, hypergrad.neumann(8, 1.9 / top))


def saddle(params: dict, hparams: dict) -> torch.Tensor:
    x = params["x"]
    return (
        0.5 * (x * x * torch.tensor([2.0, -1.0, 3.0])).sum() + (x * hparams["h"]).sum()
    )


def linear(params: dict, hparams: dict) -> torch.Tensor:
    return params["x"].sum()


def at_the_saddle(solver: hypergrad.Solver) -> hypergrad.Hypergradient:
    return hypergrad.implicit(
        saddle, linear, {"x": torch.zeros(3)}, {"h": torch.zeros(3)}, solver=solver
    )


def test_conjugate_gradients_refuse_negative_curvature() -> None:
    with pytest.raises(hypergrad.IndefiniteError, match="damping of more than"):
        at_the_saddle(hypergrad.conjugate_gradient(10))
    found = at_the_saddle(hypergrad.conjugate_gradient(10, damping=1.5))
    truth = -1 / (torch.tensor([2.0, -1.0, 3.0]) + 1.5)
    torch.testing.assert_close(found["h"], truth)


def test_the_exact_solve_names_a_saddle_and_refuses_a_singular_matrix() -> None:
    with pytest.warns(HypergradientWarning, match="saddle"):
        found = at_the_saddle(hypergrad.exact())
    torch.testing.assert_close(found["h"], -1 / torch.tensor([2.0, -1.0, 3.0]))
    with pytest.raises(UserError, match="singular.*weight decay"):
        hypergrad.implicit(
            lambda p, h: (p["x"][:2].sum() - h["h"]) ** 2,
            linear,
            {"x": torch.zeros(3)},
            {"h": torch.tensor(1.0)},
            solver=hypergrad.exact(),
        )


def test_a_tolerance_that_is_not_reached_warns() -> None:
    with pytest.warns(HypergradientWarning, match="residual"):
        solve(Ridge(), hypergrad.conjugate_gradient(1, tolerance=1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(Ridge(), hypergrad.conjugate_gradient(1))


def test_exact_has_a_limit() -> None:
    with pytest.raises(UserError, match="limit is 4"):
        solve(Ridge(), hypergrad.exact(limit=4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hypergrad.neumann(-1, 0.1), "terms"),
        (lambda: hypergrad.neumann(3, 0.0), "step"),
        (lambda: hypergrad.conjugate_gradient(0), "iterations"),
        (lambda: hypergrad.conjugate_gradient(5, damping=-1.0), "damping"),
        (lambda: hypergrad.conjugate_gradient(5, tolerance=2.0), "tolerance"),
        (lambda: hypergrad.exact(matrix="fisher"), "unknown matrix"),
    ],
)
def test_impossible_solvers(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# Power iteration.


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_the_largest_eigenvalue(seed: int) -> None:
    problem = Smooth(torch.Generator().manual_seed(seed))
    theta = flat(problem.params)
    shapes = [t.shape for t in problem.params.values()]

    def of_vector(vector: torch.Tensor) -> torch.Tensor:
        pieces = vector.split([s.numel() for s in shapes])
        named = zip(problem.params, pieces, shapes, strict=True)
        params = {name: piece.view(shape) for name, piece, shape in named}
        return problem.inner(params, problem.hparams)

    values = torch.linalg.eigvalsh(torch.func.hessian(of_vector)(theta))
    truth = values[values.abs().argmax()]
    found = hypergrad.largest_eigenvalue(
        problem.inner, problem.params, problem.hparams, iterations=5000, tolerance=1e-5
    )
    assert found == pytest.approx(float(truth), rel=1e-4)


def test_a_negative_curvature_keeps_its_sign_and_too_few_products_warn() -> None:
    params, hparams = {"x": torch.zeros(3)}, {"h": torch.zeros(3)}

    def hill(p: dict, h: dict) -> torch.Tensor:
        return -saddle(p, h)

    found = hypergrad.largest_eigenvalue(hill, params, hparams, tolerance=1e-6)
    assert found == pytest.approx(-3)
    with pytest.warns(HypergradientWarning, match="power iteration"):
        hypergrad.largest_eigenvalue(hill, params, hparams, iterations=1)


# The Gauss-Newton matrix.


class Network:
    """tanh network with softmax: outputs, loss weighted by class, weight decay."""

    def __init__(self) -> None:
        self.x, self.y = torch.randn(10, 3), torch.randint(4, (10,))
        self.params = {"a": torch.randn(5, 3), "b": 0.7 * torch.randn(4, 5)}
        self.hparams = {"weight": torch.rand(4) + 0.5}

    def outputs(self, p: dict, h: dict) -> torch.Tensor:
        return (self.x @ p["a"].T).tanh() @ p["b"].T

    def loss(self, z: torch.Tensor, h: dict) -> torch.Tensor:
        picked = z.log_softmax(1).gather(1, self.y[:, None]).squeeze(1)
        return -(h["weight"][self.y] * picked).mean()

    def penalty(self, p: dict, h: dict) -> torch.Tensor:
        return 0.05 * (p["a"].square().sum() + p["b"].square().sum())

    def composed(self) -> hypergrad.ComposedLoss:
        return hypergrad.ComposedLoss(self.outputs, self.loss, self.penalty)

    def outer(self, p: dict, h: dict) -> torch.Tensor:
        return (self.outputs(p, h) ** 3).mean()

    def matrix(self) -> torch.Tensor:
        """Jᵀ diag-blocks(w (diag p - p pᵀ) / N) J + 0.1 I, by its definition."""

        def of_vector(vector: torch.Tensor) -> torch.Tensor:
            a, b = vector.split([15, 20])
            return self.outputs({"a": a.view(5, 3), "b": b.view(4, 5)}, {})

        theta = flat(self.params)
        jacobian = torch.func.jacrev(of_vector)(theta)
        p = of_vector(theta).softmax(1)
        total = 0.1 * torch.eye(35)
        for j, q, label in zip(jacobian, p, self.y, strict=True):
            weight = self.hparams["weight"][label] / len(self.y)
            total = total + j.T @ (weight * (torch.diag(q) - torch.outer(q, q))) @ j
        return total


def test_gauss_newton_by_its_definition() -> None:
    net = Network()
    matrix = net.matrix()
    point = {n: t.clone().requires_grad_() for n, t in net.params.items()}
    h = {n: t.clone().requires_grad_() for n, t in net.hparams.items()}
    v = torch.autograd.grad(net.outer(point, h), list(point.values()))
    u = torch.linalg.solve(matrix, flat(dict(enumerate(v))))
    g = torch.autograd.grad(
        net.composed()(point, h), list(point.values()), create_graph=True
    )
    product = flat(dict(enumerate(g))) @ u
    truth = {"weight": -torch.autograd.grad(product, h["weight"])[0]}
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    for inner in (net.composed(), [net.composed(), net.composed()]):
        for solver in (
            hypergrad.exact(matrix="gauss_newton"),
            hypergrad.conjugate_gradient(80, tolerance=1e-11, matrix="gauss_newton"),
        ):
            found = hypergrad.implicit(
                inner, net.outer, net.params, net.hparams, solver=solver
            )
            assert error(found, truth) < 1e-8
    with pytest.raises(hypergrad.IndefiniteError, match="gauss_newton"):
        hypergrad.implicit(
            net.composed(),
            net.outer,
            net.params,
            net.hparams,
            solver=hypergrad.conjugate_gradient(80),
        )


def test_gauss_newton_is_the_hessian_of_a_linear_model() -> None:
    net = Network()
    net.params = {"b": net.params["b"]}
    features = (net.x @ torch.randn(3, 5)).tanh()
    composed = hypergrad.ComposedLoss(
        lambda p, h: features @ p["b"].T,
        net.loss,
        lambda p, h: p["b"].square().sum(),
    )

    def outer(p: dict, h: dict) -> torch.Tensor:
        return (features @ p["b"].T).pow(3).mean()

    answers = [
        hypergrad.implicit(
            composed, outer, net.params, net.hparams, solver=hypergrad.exact(matrix=m)
        )
        for m in ("hessian", "gauss_newton")
    ]
    assert error(*answers) < 1e-9


def test_gauss_newton_needs_a_composed_loss() -> None:
    with pytest.raises(UserError, match="ComposedLoss"):
        solve(Ridge(), hypergrad.exact(matrix="gauss_newton"))

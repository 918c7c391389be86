"""The Neumann series with a step of its own: the plain series, bounds, and limits."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from helpers.bilevel import Ridge, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import NotFiniteError, Solver

SIZE = 7


def solve(
    solver: Solver, matrix: Tensor, vector: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """u, with the vector split over two tensors of different shapes."""

    def split(flat: Tensor) -> list[Tensor]:
        return [flat[:3].clone(), flat[3:].clone().view(-1, 2)]

    def product(parts: list[Tensor]) -> list[Tensor]:
        return split(matrix @ torch.cat([part.reshape(-1) for part in parts]))

    found, report = solver.solve(product, split(vector))
    return torch.cat([part.reshape(-1) for part in found]), report


def symmetric(seed: int, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix with these eigenvalues, and a vector."""
    source = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    root = torch.randn(size, size, generator=source, dtype=torch.float64)
    basis = torch.linalg.qr(root).Q
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2, torch.randn(
        size, generator=source, dtype=torch.float64
    )


def spectrum(seed: int, exponent: float, negative: int = 0) -> Tensor:
    """Curvatures 10^-exponent to 10^exponent, the first `negative` below zero."""
    source = torch.Generator().manual_seed(seed)
    power = 2 * torch.rand(SIZE + 2, generator=source, dtype=torch.float64) - 1
    values: Tensor = 10 ** (exponent * power)
    values[:negative] *= -1
    return values


CASES = {
    "seed": st.integers(0, 10_000),
    "terms": st.integers(1, 10),
    "exponent": st.floats(0, 3),
    "negative": st.integers(0, 4),
    "largest": st.sampled_from([1e-3, 0.1, 1.0, 50.0]),
}


@settings(deadline=None)
@given(**CASES)
def test_it_is_the_series_with_the_step_that_it_reports(
    seed: int, terms: int, exponent: float, negative: int, largest: float
) -> None:
    matrix, vector = symmetric(seed, spectrum(seed, exponent, negative))
    found, report = solve(hypergrad.safe_neumann(terms, largest), matrix, vector)
    step = report["step"]
    assert report["terms"] == terms
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth, _ = solve(hypergrad.neumann(terms, step), matrix, vector)
    longest = step * 2**terms * vector.norm()
    assert float((found - truth).norm()) < 1e-11 * float(longest)


@settings(deadline=None)
@given(**CASES)
def test_no_power_grows_so_the_solution_is_bounded(
    seed: int, terms: int, exponent: float, negative: int, largest: float
) -> None:
    """||(aH)^k v|| ≤ ||v|| for k ≤ J, so ||u|| ≤ a (2^(J+1) - 1) ||v||."""
    matrix, vector = symmetric(seed, spectrum(seed, exponent, negative))
    found, report = solve(hypergrad.safe_neumann(terms, largest), matrix, vector)
    step, slack = report["step"], 1 + 1e-9
    power = vector
    for _ in range(terms):
        power = step * matrix @ power
        assert float(power.norm()) <= slack * float(vector.norm())
    bound = step * (2 ** (terms + 1) - 1) * vector.norm()
    assert float(found.norm()) <= slack * float(bound)


@settings(deadline=None)
@given(**CASES)
def test_the_step_follows_the_ratio_of_the_last_two_powers(
    seed: int, terms: int, exponent: float, negative: int, largest: float
) -> None:
    matrix, vector = symmetric(seed, spectrum(seed, exponent, negative))
    _, report = solve(hypergrad.safe_neumann(terms, largest), matrix, vector)
    before = torch.linalg.matrix_power(matrix, terms - 1) @ vector
    ratio = float((matrix @ before).norm() / before.norm())
    assert report["curvature"] == pytest.approx(ratio, rel=1e-8)
    assert report["step"] == pytest.approx(min(largest, 1 / ratio), rel=1e-8)
    # From below, and closer with every term.
    top = float(torch.linalg.eigvalsh(matrix).abs().max())
    assert report["curvature"] <= top * (1 + 1e-9)
    if terms > 1:
        _, fewer = solve(hypergrad.safe_neumann(terms - 1), matrix, vector)
        assert fewer["curvature"] <= report["curvature"] * (1 + 1e-9)


@pytest.mark.parametrize("curvature", [1e6, -1e6])
@pytest.mark.parametrize("terms", [1, 5, 10])
def test_a_huge_curvature_of_either_sign(curvature: float, terms: int) -> None:
    """Where a fixed step of 1 gives terms as long as 10^(6 terms)."""
    values = torch.tensor([curvature, 3.0, 1.0, 0.5, 0.1, 0.01, -0.3])
    matrix, vector = symmetric(1, values)
    found, report = solve(hypergrad.safe_neumann(terms), matrix, vector)
    # One product sees as much of the huge curvature as v has of its direction.
    share = float((matrix @ vector).norm() / vector.norm()) / 1e6
    most = 1e-6 / share if terms == 1 else 1.1e-6
    assert 1e-6 <= report["step"] * (1 + 1e-9) <= most * (1 + 1e-6)
    bound = report["step"] * (2 ** (terms + 1) - 1) * vector.norm()
    assert float(found.norm()) <= float(bound)
    with pytest.warns(hypergrad.HypergradientWarning, match="diverges"):
        fixed, _ = solve(hypergrad.neumann(terms, 1.0), matrix, vector)
    assert float(fixed.norm()) > 1e4 * float(vector.norm())


def test_it_converges_where_the_matrix_is_well_conditioned() -> None:
    """What is left out is (1 - aλ)^(J+1), 0.2^11 at most."""
    matrix, vector = symmetric(2, torch.linspace(4.0, 5.0, SIZE))
    truth = torch.linalg.solve(matrix, vector)
    errors = []
    for terms in range(1, 11):
        found, _ = solve(hypergrad.safe_neumann(terms), matrix, vector)
        errors.append(float((found - truth).norm() / truth.norm()))
    assert all(more < less for less, more in pairwise(errors))
    assert errors[-1] < 0.2**11


@pytest.mark.parametrize("curvature", [1e-3, 0.3, 1.0, 40.0, 1e6])
def test_along_an_eigenvector_in_closed_form(curvature: float) -> None:
    """u = (1 - (1 - aλ)^(J+1)) v / λ: exact where 1/λ is a step that is allowed."""
    terms, largest = 5, 2.0
    values = torch.full((SIZE,), curvature)
    matrix, vector = torch.diag(values), torch.randn(SIZE)
    found, report = solve(hypergrad.safe_neumann(terms, largest), matrix, vector)
    step = min(largest, 1 / curvature)
    assert report["step"] == pytest.approx(step)
    expected = (1 - (1 - step * curvature) ** (terms + 1)) / curvature * vector
    torch.testing.assert_close(found, expected)
    if curvature >= 0.5:
        torch.testing.assert_close(found, vector / curvature)


def test_along_a_negative_curvature_in_closed_form() -> None:
    """Each term is twice as long as the one before: a (2^(J+1) - 1) v."""
    vector = torch.randn(SIZE)
    found, _ = solve(hypergrad.safe_neumann(5), -4.0 * torch.eye(SIZE), vector)
    torch.testing.assert_close(found, 0.25 * 63 * vector)


def test_without_curvature_all_terms_are_the_vector() -> None:
    vector = torch.randn(SIZE)
    zeros = torch.zeros(SIZE, SIZE)
    found, report = solve(hypergrad.safe_neumann(3, 0.5), zeros, vector)
    assert report == {"terms": 3, "step": 0.5, "curvature": 0}
    torch.testing.assert_close(found, 0.5 * 4 * vector)


def test_a_zero_vector_gives_zero() -> None:
    matrix, vector = symmetric(3, torch.ones(SIZE))
    found, report = solve(hypergrad.safe_neumann(), matrix, torch.zeros_like(vector))
    assert torch.equal(found, torch.zeros_like(found))
    assert report["curvature"] == 0


# Lengths of v and H for which v, H and u are float32.
FAR = [
    (length, scale)
    for length in (1e-36, 1e-20, 1e-3, 1e20, 1e36)
    for scale in (1e-30, 1e-3, 1.0, 1e3, 1e30)
    if 1e-37 < length / scale < 1e37
]


@pytest.mark.parametrize(("length", "scale"), FAR)
def test_lengths_whose_squares_leave_float32(length: float, scale: float) -> None:
    """Compared with the series in float64, and with the step for H and v near 1."""
    matrix, vector = symmetric(4, torch.linspace(1.0, 3.0, SIZE))
    solver = hypergrad.safe_neumann(5, 1e6 / scale)
    _, plain = solve(hypergrad.safe_neumann(5), matrix, vector)
    found, report = solve(solver, (scale * matrix).float(), (length * vector).float())
    truth, _ = solve(hypergrad.neumann(5, scale * report["step"]), matrix, vector)
    expected = truth * (length / scale)
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-4
    # Out of range the largest entry stands in for a norm: at most √n apart.
    usual = 1e-10 < scale < 1e10
    apart = report["curvature"] / scale / plain["curvature"]
    assert apart == pytest.approx(1, abs=1e-4) if usual else 1 / 3 < apart < 3


def test_float32_keeps_the_sum() -> None:
    """Binomials of 10 terms cancel to a part in 2^11; what is left is exact enough."""
    worst = 0.0
    for seed in range(50):
        matrix, vector = symmetric(seed, spectrum(seed, 1.5, seed % 3))
        solver = hypergrad.safe_neumann(10, 10.0)
        truth, _ = solve(solver, matrix, vector)
        found, _ = solve(solver, matrix.float(), vector.float())
        wrong = (found.double() - truth).norm() / truth.norm()
        worst = max(worst, float(wrong))
    assert worst < 5e-5


def test_the_vector_stays_as_it_is() -> None:
    matrix, vector = symmetric(5, torch.ones(SIZE))
    parts = [vector.clone()]
    solver = hypergrad.safe_neumann()
    solver.solve(lambda v: [matrix @ v[0]], parts)
    assert torch.equal(parts[0], vector)


# Through `implicit`.


def at_optimum(solver: Solver) -> hypergrad.Hypergradient:
    problem = Ridge()
    params = problem.split(problem.solution(problem.hparams))
    return hypergrad.implicit(
        problem.inner, problem.outer, params, problem.hparams, solver=solver
    )


@pytest.mark.parametrize("terms", [1, 5, 10])
def test_implicit_with_it_is_the_truncated_matrix_series(terms: int) -> None:
    problem = Ridge()
    found = at_optimum(hypergrad.safe_neumann(terms))
    step = found.report["step"]
    matrix = problem.matrix(problem.hparams)
    eye = torch.eye(len(matrix))
    power, series = eye, eye
    for _ in range(terms):
        power = power @ (eye - step * matrix)
        series = series + power
    assert error(found, problem.truth(step * series)) < 1e-9
    assert error(found, at_optimum(hypergrad.neumann(terms, step))) < 1e-9
    assert 0 < step < 1


def test_gauss_newton_products_are_asked_for() -> None:
    with pytest.raises(UserError, match="ComposedLoss"):
        at_optimum(hypergrad.safe_neumann(matrix="gauss_newton"))


def test_a_hessian_that_is_not_finite_is_an_error() -> None:
    matrix, vector = symmetric(6, torch.ones(SIZE))
    for broken in (torch.nan, torch.inf):
        matrix[0, 0] = broken
        with pytest.raises(NotFiniteError, match="second derivative"):
            solve(hypergrad.safe_neumann(), matrix, vector)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"terms": 0}, "1 to 10"),
        ({"terms": 11}, "1 to 10"),
        ({"largest_step": 0.0}, "largest_step"),
        ({"largest_step": -1.0}, "largest_step"),
        ({"largest_step": float("nan")}, "largest_step"),
        ({"largest_step": float("inf")}, "largest_step"),
        ({"matrix": "fisher"}, "unknown matrix"),
    ],
)
def test_impossible_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hypergrad.safe_neumann(**settings_)  # type: ignore[arg-type]

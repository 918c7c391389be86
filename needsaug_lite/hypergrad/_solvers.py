"""Solvers of H u = v that see the symmetric matrix H through its products only."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._result import HypergradientWarning, NotFiniteError
from needsaug_lite.hypergrad._vectors import add, add_into, dot, safe_norm

Product = Callable[[list[Tensor]], list[Tensor]]
Matrix = Literal["hessian", "gauss_newton"]
Solution = tuple[list[Tensor], dict[str, float]]


class IndefiniteError(UserError):
    """A matrix that must be positive definite has a direction of negative curvature."""


class Solver(Protocol):
    """Solves H u = v; `matrix` says which H the products are of."""

    @property
    def matrix(self) -> Matrix:
        """The Hessian of the inner loss, or its Gauss-Newton matrix."""

    def solve(self, product: Product, vector: list[Tensor]) -> Solution:
        """u, and what there is to say about it, in plain numbers."""


@dataclass(frozen=True)
class Neumann:
    """See `neumann`."""

    terms: int
    step: float
    damping: float = 0.0
    matrix: Matrix = "hessian"

    def solve(self, product: Product, vector: list[Tensor]) -> Solution:
        """Sum the series; warn if its terms grow."""
        start = before = last = safe_norm(vector)
        kept = 1 - self.step * self.damping
        # Memory of our own: v may be shared, and is the zeroth term.
        term = [part.clone() for part in vector]
        total = [part.clone() for part in vector]
        for index in range(self.terms):
            curved = product(term)
            if kept != 1:
                for part in term:
                    part.mul_(kept)
            add_into(term, curved, -self.step)
            del curved
            add_into(total, term)
            if index >= self.terms - 2:
                before, last = last, safe_norm(term)
        for part in total:
            part.mul_(self.step)
        report = self._report(*torch.stack([start, before, last]).tolist())
        return total, report

    def _report(self, start: float, before: float, last: float) -> dict[str, float]:
        """Lengths of the zeroth, the last but one and the last term, judged."""
        if not math.isfinite(last):
            raise NotFiniteError(
                f"the Neumann series overflows within {self.terms} terms: step "
                f"{self.step:g} is far above 2 / the largest curvature "
                "(hypergrad.largest_eigenvalue gives it), or the second derivative of "
                "the inner loss is not finite"
            )
        # I - step H is symmetric, so the ratio of neighbouring terms never falls and
        # stays below the spectral radius: at 1 the series is known to diverge.
        ratio = last / before if self.terms and before > 0 else 0.0
        if ratio > 1 - 1e-6:
            warnings.warn(
                f"the Neumann series diverges: term {self.terms} is {ratio:.6g} times "
                f"as long as the one before. Either step {self.step:g} is above 2 / "
                "the largest curvature (hypergrad.largest_eigenvalue), or the matrix "
                "has zero or negative curvature and needs damping",
                HypergradientWarning,
                stacklevel=4,
            )
        growth = last / start if start > 0 else 0.0
        return {"terms": self.terms, "growth": growth, "ratio": ratio}


@dataclass(frozen=True)
class ConjugateGradient:
    """See `conjugate_gradient`."""

    iterations: int
    damping: float = 0.0
    tolerance: float = 0.0
    matrix: Matrix = "hessian"

    def solve(self, product: Product, vector: list[Tensor]) -> Solution:
        """Iterate from u = 0 until the residual is small or iterations are used up."""
        solution = [torch.zeros_like(part) for part in vector]
        scale = float(safe_norm(vector))
        if scale == 0:
            return solution, {"iterations": 0, "residual": 0.0}
        # v at a length near 1: the squares of a short v would vanish in float32.
        residual = direction = [part / scale for part in vector]
        square = start = float(dot(residual, residual))
        rounding = max(torch.finfo(part.dtype).eps for part in vector)
        relative, used, largest = 1.0, 0, 0.0
        # Below this the recursion of the residual only stirs rounding errors.
        while used < self.iterations and relative > max(self.tolerance, rounding):
            curved = product(direction)
            if self.damping:
                curved = add(curved, direction, self.damping)
            products = [dot(direction, curved), dot(direction, direction)]
            along, length = torch.stack(products).tolist()
            largest = max(largest, along / length)
            # A curvature within rounding of zero is zero, whatever its sign.
            smallest = 10 * rounding * largest
            if not along > smallest * length:
                self._refuse(along / length, smallest, used)
            rate = square / along
            add_into(solution, direction, rate)
            residual = add(residual, curved, -rate)
            before, square = square, float(dot(residual, residual))
            direction = add(residual, direction, square / before)
            used += 1
            relative = (square / start) ** 0.5
        if self.tolerance and relative > self.tolerance:
            warnings.warn(
                f"conjugate gradients stopped after {used} iterations with a relative "
                f"residual of {relative:.3g}, above the tolerance {self.tolerance:g}: "
                "allow more iterations or add damping",
                HypergradientWarning,
                stacklevel=3,
            )
        report = {"iterations": used, "residual": relative}
        return [scale * part for part in solution], report

    def _refuse(self, curvature: float, smallest: float, used: int) -> None:
        if not math.isfinite(curvature):
            raise NotFiniteError(
                f"a curvature is not finite in iteration {used + 1} of conjugate "
                "gradients; look at the second derivative of the inner loss"
            )
        singular = abs(curvature) <= smallest
        other = (
            ", or matrix='gauss_newton' with a hypergrad.ComposedLoss"
            if self.matrix == "hessian" and not singular
            else ""
        )
        kind = "singular" if singular else "not positive definite"
        raise IndefiniteError(
            f"conjugate gradients met the curvature {curvature:.3g} in iteration "
            f"{used + 1}: the damped {self.matrix.replace('_', '-')} matrix is {kind}. "
            f"Use damping of more than {self.damping + max(smallest, -curvature):.3g} "
            f"(other directions may ask for more){other}"
        )


@dataclass(frozen=True)
class Exact:
    """See `exact`."""

    limit: int = 4096
    matrix: Matrix = "hessian"

    def solve(self, product: Product, vector: list[Tensor]) -> Solution:
        """Build the matrix column by column and decompose it."""
        sizes = [part.numel() for part in vector]
        shapes = [part.shape for part in vector]
        if sum(sizes) > self.limit:
            raise UserError(
                f"exact() would build a matrix of {sum(sizes)} x {sum(sizes)} numbers; "
                f"its limit is {self.limit}. Use conjugate_gradient, or raise the limit"
            )
        flat = torch.cat([part.reshape(-1) for part in vector])

        def unflatten(long: Tensor) -> list[Tensor]:
            pieces = long.split(sizes)
            return [p.view(s) for p, s in zip(pieces, shapes, strict=True)]

        identity = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
        columns = [
            torch.cat([part.reshape(-1) for part in product(unflatten(column))])
            for column in identity
        ]
        matrix = torch.stack(columns)
        if not bool(matrix.isfinite().all()):
            raise NotFiniteError(
                "the matrix of second derivatives holds numbers that are not finite"
            )
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        size = values.abs()
        smallest, largest = float(size.min()), float(size.max())
        if smallest <= largest * len(flat) * torch.finfo(flat.dtype).eps:
            raise UserError(
                f"the matrix is singular to the precision of {flat.dtype}: its "
                f"eigenvalues have sizes {smallest:.3g} to {largest:.3g}, so the inner "
                "problem has no unique solution. Add weight decay to the inner loss"
                + ("" if flat.dtype == torch.float64 else ", or compute in float64")
            )
        if float(values.min()) < 0:
            warnings.warn(
                f"the smallest eigenvalue is {float(values.min()):.3g}: the parameters "
                "are at a saddle of the inner loss, not at a minimum",
                HypergradientWarning,
                stacklevel=3,
            )
        solution = vectors @ ((vectors.mT @ flat) / values)
        report = {"smallest": float(values.min()), "largest": float(values.max())}
        return unflatten(solution), report


def neumann(
    terms: int, step: float, *, damping: float = 0.0, matrix: Matrix = "hessian"
) -> Neumann:
    """H^-1 v ≈ step Σ_{j=0..terms} (I - step H)^j v, the truncated Neumann series.

    Converges if 0 < step < 2 / λ_max and every eigenvalue of H is positive; what is
    left out along an eigenvector is the share (1 - step λ)^(terms + 1). It warns if the
    last term is not shorter than the one before, which no convergent series does.

    Args:
        terms: J, terms after the zeroth, each a product with H; 0 gives step v.
        step: a; 1 / `largest_eigenvalue` is safe for the undamped Hessian.
        damping: added to the diagonal of H.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`.

    Returns:
        A solver for `implicit`; its report holds "terms", "growth" (length of the last
        term over that of v) and "ratio" (over that of the term before).

    Raises:
        UserError: for impossible settings.

    Source: autobalance Sec. 2.1; Lorraine et al. 2020, Algorithm 3.
    """
    if terms < 0:
        raise UserError(f"terms is {terms}; give 0 or more")
    if not step > 0:
        raise UserError(f"step is {step}; it must be positive")
    _check(damping, matrix)
    return Neumann(terms, step, damping, matrix)


def conjugate_gradient(
    iterations: int = 10,
    damping: float = 0.0,
    tolerance: float = 0.0,
    *,
    matrix: Matrix = "hessian",
) -> ConjugateGradient:
    """Solve (H + damping I) u = v by conjugate gradients from u = 0.

    In exact arithmetic n iterations give the solution for n parameters. Every
    iteration waits for the device, because it may be the last.

    Args:
        iterations: at most this many products with H.
        damping: added to the diagonal of H; it changes the answer.
        tolerance: stop when ||v - (H + damping I)u|| / ||v||, as the recursion knows
            it, is below this, and warn if it never was; 0 asks for nothing, and stops
            at rounding error.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`: positive
            semi-definite where the Hessian of a network is not.

    Returns:
        A solver for `implicit`; its report holds "iterations" and "residual". It raises
        `IndefiniteError` where the curvature along a direction is not positive.

    Raises:
        UserError: for impossible settings.
    """
    if iterations < 1:
        raise UserError(f"iterations is {iterations}; take at least 1")
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance is {tolerance}; it must lie in [0, 1)")
    _check(damping, matrix)
    return ConjugateGradient(iterations, damping, tolerance, matrix)


def exact(limit: int = 4096, *, matrix: Matrix = "hessian") -> Exact:
    """Build H over all parameters together, and solve H u = v by its eigenvalues.

    Args:
        limit: largest number of parameters.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`.

    Returns:
        A solver for `implicit`; its report holds the "smallest" and "largest"
        eigenvalue. It refuses a matrix that is singular to working precision or larger
        than the limit, and warns at a saddle.

    Raises:
        UserError: for an unknown matrix.
    """
    _check(0.0, matrix)
    return Exact(limit, matrix)


def _check(damping: float, matrix: str) -> None:
    if not damping >= 0:
        raise UserError(f"damping is {damping}; give 0 or more")
    if matrix not in ("hessian", "gauss_newton"):
        raise UserError(f"unknown matrix {matrix!r}; use 'hessian' or 'gauss_newton'")

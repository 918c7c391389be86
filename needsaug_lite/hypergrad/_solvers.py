"""Solvers of H u = v that see the symmetric matrix H through its products only."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._result import HypergradientWarning, NotFiniteError
from needsaug_lite.hypergrad._vectors import add, add_into, dot, norm

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
        start = last = norm(vector)
        kept = 1 - self.step * self.damping
        # Memory of our own: v may be shared, and is the zeroth term.
        term = [part.clone() for part in vector]
        total = [part.clone() for part in vector]
        for _ in range(self.terms):
            curved = product(term)
            if kept != 1:
                for part in term:
                    part.mul_(kept)
            add_into(term, curved, -self.step)
            del curved
            add_into(total, term)
            last = norm(term)
        for part in total:
            part.mul_(self.step)
        growth = float(last / start) if self.terms and float(start) > 0 else 0.0
        if growth != growth or growth == float("inf"):
            raise NotFiniteError(
                f"the Neumann series overflows within {self.terms} terms: step "
                f"{self.step:g} is far above 2 / the largest curvature. "
                "hypergrad.largest_eigenvalue gives the curvature"
            )
        if growth > 1 + 1e-6:
            warnings.warn(
                f"the Neumann series diverges: the norm of term {self.terms} is "
                f"{growth:.4g} times that of the vector. Either step {self.step:g} is "
                "above 2 / the largest curvature (hypergrad.largest_eigenvalue), or "
                "the matrix has negative curvature and needs damping",
                HypergradientWarning,
                stacklevel=3,
            )
        return total, {"terms": self.terms, "growth": growth}


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
        residual = direction = vector
        square = dot(residual, residual)
        start = float(square.sqrt())
        relative, used = (1.0 if start > 0 else 0.0), 0
        # Below this the recursion of the residual only stirs rounding errors.
        floor = max(self.tolerance, torch.finfo(vector[0].dtype).eps)
        while used < self.iterations and relative > floor:
            curved = product(direction)
            if self.damping:
                curved = add(curved, direction, self.damping)
            along = float(dot(direction, curved))
            if not along > 0:
                self._refuse(along, float(dot(direction, direction)), used)
            rate = float(square) / along
            add_into(solution, direction, rate)
            residual = add(residual, curved, -rate)
            before, square = square, dot(residual, residual)
            direction = add(residual, direction, float(square / before))
            used += 1
            relative = float(square.sqrt()) / start
        if self.tolerance and relative > self.tolerance:
            warnings.warn(
                f"conjugate gradients stopped after {used} iterations with a relative "
                f"residual of {relative:.3g}, above the tolerance {self.tolerance:g}: "
                "allow more iterations or add damping",
                HypergradientWarning,
                stacklevel=3,
            )
        return solution, {"iterations": used, "residual": relative}

    def _refuse(self, along: float, length: float, used: int) -> None:
        if along != along or abs(along) == float("inf"):
            raise NotFiniteError(
                f"a curvature is not finite in iteration {used + 1} of conjugate "
                "gradients; look at the second derivative of the inner loss"
            )
        raise IndefiniteError(
            f"conjugate gradients met the curvature {along / length:.3g} in iteration "
            f"{used + 1}: the damped {self.matrix.replace('_', '-')} matrix is not "
            f"positive definite. Use damping of more than "
            f"{self.damping - along / length:.3g} (other directions may ask for more)"
            + (
                ", or matrix='gauss_newton' with a hypergrad.ComposedLoss"
                if self.matrix == "hessian"
                else ""
            )
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
                f"the matrix is singular: its eigenvalues have sizes {smallest:.3g} to "
                f"{largest:.3g}, so the inner problem has no unique solution. Add "
                "weight decay to the inner loss"
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
    left out along an eigenvector is the share (1 - step λ)^(terms + 1). It warns if
    the last term is longer than v, which no convergent series does.

    Args:
        terms: J, terms after the zeroth, each a product with H; 0 gives step v.
        step: a; 1 / `largest_eigenvalue` is safe.
        damping: added to the diagonal of H.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`.

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
        tolerance: stop when ||v - Hu|| / ||v|| is below it, and warn if it never was;
            0 asks for nothing, and stops at rounding error.
        matrix: "hessian", or "gauss_newton" for a `ComposedLoss`: positive
            semi-definite where the Hessian of a network is not.
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
    """
    _check(0.0, matrix)
    return Exact(limit, matrix)


def _check(damping: float, matrix: str) -> None:
    if not damping >= 0:
        raise UserError(f"damping is {damping}; give 0 or more")
    if matrix not in ("hessian", "gauss_newton"):
        raise UserError(f"unknown matrix {matrix!r}; use 'hessian' or 'gauss_newton'")

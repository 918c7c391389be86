"""The derivative of an optimum, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from needsaug_lite.hypergrad._draws import fixed_draws
from needsaug_lite.hypergrad._gauss_newton import GaussNewton
from needsaug_lite.hypergrad._linearisation import Linearisation
from needsaug_lite.hypergrad._objective import Loss, Objective
from needsaug_lite.hypergrad._result import Hypergradient, NotFiniteError
from needsaug_lite.hypergrad._solvers import Product, Solver
from needsaug_lite.hypergrad._two_level import SLOTS, Outer
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import norm, scaled


def implicit(
    inner_loss: Loss,
    outer_loss: Loss,
    params: Mapping[str, Tensor],
    hparams: Mapping[str, Tensor],
    *,
    solver: Solver,
    generator: Generator | None = None,
) -> Hypergradient:
    """Derivative of the outer loss at an optimum θ*(h) of the inner loss.

    ∇_θ L_in(θ*(h), h) = 0   ⇒   dθ*/dh = -H^-1 ∂²L_in/∂θ∂h,   H = ∂²L_in/∂θ²

    d/dh L_out(θ*(h), h) = ∂L_out/∂h - ∇_h⟨∇_θ L_in(θ*, h), u⟩,   H u = ∂L_out/∂θ

    Everything is taken at the parameters handed in, which the formula supposes to be
    stationary: `report["gradient_norm"]` says how far they are from it. Weight decay
    belongs to `inner_loss`: it moves θ* and is part of H. No learning rate occurs.

    Args:
        inner_loss: closure (params, hparams) -> scalar, or a sequence of closures that
            are averaged, in the gradient and in every product with H. A `ComposedLoss`
            if the solver asks for the Gauss-Newton matrix.
        outer_loss: the same.
        params: θ*, tensors by name; which of them are free, see `unrolled`.
        hparams: h, tensors by name.
        solver: of H u = v: `neumann`, `safe_neumann`, `conjugate_gradient` or `exact`.
        generator: decides the draws of what is random in the closures. Without it they
            follow from torch's default generator, which does not move.

    Returns:
        The hypergradient. `report` holds what the solver says, and "gradient_norm".

    Raises:
        UserError: for a matrix that the solver can't treat, or a loss that doesn't use
            its arguments.
        NotFiniteError: naming the quantity that is not finite.

    Warns:
        HypergradientWarning: if a series diverges or a tolerance is not reached.

    Source: autobalance Sec. 2.1, with the minus sign that it lacks (errata A1, A2, A7).
    """
    weights = Variables.of(params, "params").leaves()
    settings = Variables.of(hparams, "hparams").leaves()
    with fixed_draws([weights, settings], generator) as draws:
        outer = Outer(outer_loss, draws)
        outer.evaluate(weights, settings)
        if not bool(outer.vector_norm.isfinite()):
            raise NotFiniteError(
                "the outer loss is not finite, or its gradient by the parameters"
            )
        inner = Objective(inner_loss, "inner_loss", draws, SLOTS)
        arguments = (weights.tensors, settings.tensors)
        here = Linearisation(inner, weights.values, *arguments)
        gradient_norm = norm(here.take_gradient())
        product: Product
        if solver.matrix == "gauss_newton":
            product = GaussNewton(inner, weights.values, *arguments).product
        else:

            def product(vector: list[Tensor]) -> list[Tensor]:
                return here.product(vector, weights.values)

        solution, report = solver.solve(product, outer.take_vector())
        through = here.product(solution, settings.values, last=True)
        return outer.result(
            scaled(through, -1.0),
            params=weights.fixed().tensors,
            inner_loss=here.value,
            report={**report, "gradient_norm": float(gradient_norm)},
        )

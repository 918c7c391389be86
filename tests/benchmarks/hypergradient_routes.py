"""The plain training step, hand-written hypergradients, and ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.hypergradient_problem import (
    OUTER_LR,
    RADIUS,
    TERMS,
    Problem,
    Step,
    Tensors,
)
from torch import Tensor

from needsaug_lite import hypergrad

Route = Callable[[Problem], Step]
grad = torch.autograd.grad


def plain(problem: Problem) -> Step:
    """Forward, backward, update in place: the unit of time."""
    network, images = problem.network, problem.batch[0]
    parameters = list(network.parameters())

    def step() -> Tensor:
        loss = problem.weighted(network(images), problem.class_weights)
        _descend(parameters, grad(loss, parameters), problem.lr)
        return loss.detach()

    return step


@torch.no_grad()
def _descend(
    parameters: list[Tensor], gradients: tuple[Tensor, ...], lr: float
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.add_(gradient, alpha=-lr)


def _leaves(tensors: Tensors) -> Tensors:
    return {key: t.detach().requires_grad_() for key, t in tensors.items()}


def _moved(
    params: Tensors, direction: tuple[Tensor, ...], scale: float | Tensor
) -> Tensors:
    """params + scale * direction, without a graph."""
    pairs = zip(params.items(), direction, strict=True)
    with torch.no_grad():
        return {key: p + scale * d for (key, p), d in pairs}


class _Loop:
    """Parameters and class weights that live from step to step."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.params = problem.params()
        self.hparams = problem.hparams()

    def finish(self, params: Tensors, hypergradient: Tensor) -> Tensor:
        self.params = params
        self.hparams["class_weights"].sub_(hypergradient, alpha=OUTER_LR)
        return hypergradient

    def plain_step(self) -> Tensors:
        params = _leaves(self.params)
        loss = self.problem.inner_loss(params, self.hparams)
        return _moved(params, grad(loss, list(params.values())), -self.problem.lr)


def by_hand_unrolled(problem: Problem) -> Step:
    """One graph through the update, as a textbook writes it."""
    loop = _Loop(problem)

    def step() -> Tensor:
        params, hparams = _leaves(loop.params), _leaves(loop.hparams)
        inner = problem.inner_loss(params, hparams)
        gradients = grad(inner, list(params.values()), create_graph=True)
        pairs = zip(params.items(), gradients, strict=True)
        updated = {key: p - problem.lr * g for (key, p), g in pairs}
        outer = problem.outer_loss(updated, hparams)
        (answer,) = grad(outer, hparams["class_weights"])
        return loop.finish({k: p.detach() for k, p in updated.items()}, answer)

    return step


def by_hand_finite_difference(problem: Problem) -> Step:
    """The one-step DARTS estimator: a centred difference around the old weights."""
    loop = _Loop(problem)

    def step() -> Tensor:
        old, hparams = loop.params, _leaves(loop.hparams)
        updated = _leaves(loop.plain_step())
        outer = problem.outer_loss(updated, hparams)
        vector = grad(outer, list(updated.values()))
        norm = torch.linalg.vector_norm(torch.stack([v.norm() for v in vector]))
        epsilon = RADIUS / norm
        sides = []
        for sign in (1, -1):
            inner = problem.inner_loss(_moved(old, vector, sign * epsilon), hparams)
            sides += grad(inner, hparams["class_weights"])
        answer = -problem.lr * (sides[0] - sides[1]) / (2 * epsilon)
        return loop.finish(updated, answer)

    return step


def by_hand_neumann(problem: Problem) -> Step:
    """A plain step, then the truncated series at the new parameters."""
    loop = _Loop(problem)

    def step() -> Tensor:
        params, hparams = _leaves(loop.plain_step()), _leaves(loop.hparams)
        leaves = list(params.values())
        term = grad(problem.outer_loss(params, hparams), leaves)
        inner = problem.inner_loss(params, hparams)
        gradient = grad(inner, leaves, create_graph=True)
        total = term
        for _ in range(TERMS):
            product = grad(gradient, leaves, term, retain_graph=True)
            pairs = zip(term, product, strict=True)
            term = tuple(t - problem.neumann_step * h for t, h in pairs)
            total = tuple(s + t for s, t in zip(total, term, strict=True))
        (mixed,) = grad(gradient, hparams["class_weights"], total)
        return loop.finish(params, -problem.neumann_step * mixed)

    return step


def ours_unrolled(problem: Problem) -> Step:
    loop = _Loop(problem)

    def step() -> Tensor:
        result = hypergrad.unrolled(
            problem.inner_loss,
            problem.outer_loss,
            loop.params,
            loop.hparams,
            lr=problem.lr,
        )
        return loop.finish(result.params, result["class_weights"])

    return step


def ours_finite_difference(problem: Problem) -> Step:
    loop = _Loop(problem)

    def step() -> Tensor:
        result = hypergrad.finite_difference(
            problem.inner_loss,
            problem.outer_loss,
            loop.params,
            loop.hparams,
            lr=problem.lr,
            radius=RADIUS,
        )
        return loop.finish(result.params, result["class_weights"])

    return step


def ours_neumann(problem: Problem) -> Step:
    loop = _Loop(problem)
    solver = hypergrad.neumann(terms=TERMS, step=problem.neumann_step)

    def step() -> Tensor:
        # The plain step as a user has it: parameters updated in place.
        params = _leaves(loop.params)
        gradients = grad(
            problem.inner_loss(params, loop.hparams), list(params.values())
        )
        _descend(list(loop.params.values()), gradients, problem.lr)
        del params, gradients
        result = hypergrad.implicit(
            problem.inner_loss,
            problem.outer_loss,
            loop.params,
            loop.hparams,
            solver=solver,
        )
        return loop.finish(result.params, result["class_weights"])

    return step


ROUTES: dict[str, dict[str, Route]] = {
    "unrolled": {
        "ours": ours_unrolled,
        "hand-written": by_hand_unrolled,
    },
    "finite differences": {
        "ours": ours_finite_difference,
        "hand-written": by_hand_finite_difference,
    },
    "Neumann": {"ours": ours_neumann, "hand-written": by_hand_neumann},
}

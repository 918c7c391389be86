"""The same step with TorchOpt, higher and Betty, each used as its own examples do.

A library that is not installed, or has no such estimator, is absent: higher has only
the unroll, Betty no one-step unroll through a graph, TorchOpt no finite difference.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.hypergradient_problem import (
    OUTER_LR,
    RADIUS,
    TERMS,
    Problem,
    Step,
)
from torch import Tensor, nn

Route = Callable[[Problem], Step]
PACKAGES = {"TorchOpt": "torchopt", "higher": "higher", "Betty": "betty-ml"}


def torchopt_unrolled(problem: Problem) -> Step:
    """MetaSGD."""
    import torchopt

    network, weights = problem.network, problem.class_weights.requires_grad_()
    optimiser = torchopt.MetaSGD(network, lr=problem.lr)

    def step() -> Tensor:
        optimiser.step(problem.weighted(network(problem.batch[0]), weights))
        outer = problem.unweighted(network(problem.outer_batch[0]))
        (answer,) = torch.autograd.grad(outer, weights)
        torchopt.stop_gradient(network)
        torchopt.stop_gradient(optimiser)
        return _outer_step(weights, answer)

    return step


def torchopt_neumann(problem: Problem) -> Step:
    """Implicit differentiation with the solver `solve_inv(ns=True)`."""
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_inv

    names = [name for name, _ in problem.network.named_parameters()]
    weights = problem.class_weights.requires_grad_()

    def inner(params: tuple[Tensor, ...], class_weights: Tensor) -> Tensor:
        named = dict(zip(names, params, strict=True))
        return problem.inner_loss(named, {"class_weights": class_weights})

    solve = solve_inv(ns=True, maxiter=TERMS, alpha=problem.neumann_step)

    @custom_root(torch.func.grad(inner), argnums=1, solve=solve)
    def one_step(
        params: tuple[Tensor, ...], class_weights: Tensor
    ) -> tuple[Tensor, ...]:
        leaves = tuple(p.detach().requires_grad_() for p in params)
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                inner(leaves, class_weights.detach()), leaves
            )
        pairs = zip(params, gradients, strict=True)
        return tuple(p.detach().sub_(g, alpha=problem.lr) for p, g in pairs)

    params = tuple(problem.params().values())

    def step() -> Tensor:
        nonlocal params
        updated = one_step(params, weights)
        named = dict(zip(names, updated, strict=True))
        (answer,) = torch.autograd.grad(problem.outer_loss(named, {}), weights)
        params = tuple(p.detach() for p in updated)
        return _outer_step(weights, answer)

    return step


def higher_unrolled(problem: Problem) -> Step:
    """innerloop_ctx; afterwards the new parameters are copied into the network."""
    import higher

    network, weights = problem.network, problem.class_weights.requires_grad_()
    sgd = torch.optim.SGD(network.parameters(), lr=problem.lr)

    def step() -> Tensor:
        with higher.innerloop_ctx(network, sgd) as (functional, optimiser):
            optimiser.step(problem.weighted(functional(problem.batch[0]), weights))
            outer = problem.unweighted(functional(problem.outer_batch[0]))
            (answer,) = torch.autograd.grad(outer, weights)
            with torch.no_grad():
                new = functional.parameters()
                for old, updated in zip(network.parameters(), new, strict=True):
                    old.copy_(updated)
        return _outer_step(weights, answer)

    return step


def _outer_step(weights: Tensor, hypergradient: Tensor) -> Tensor:
    with torch.no_grad():
        weights.sub_(hypergradient, alpha=OUTER_LR)
    return hypergradient


class _ClassWeights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)


def _betty(problem: Problem, scale: float, **estimator: Any) -> Step:
    """Betty's engine with an inner and an outer problem, one step of it a call.

    Args:
        problem: what is solved.
        scale: factor between Betty's answer and the hypergradient of one step.
        estimator: fields of `betty.configs.Config` for the inner problem.
    """
    from betty.configs import Config
    from betty.engine import Engine
    from betty.logging import get_logger
    from betty.problems import ImplicitProblem

    get_logger().setLevel(logging.ERROR)
    found: list[Tensor] = []

    class Outer(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return problem.unweighted(self.inner(batch[0]))

        def param_callback(self, params: Any) -> None:
            # The gradient is dropped right after this call.
            found[:] = [scale * params[0].grad]

    class Inner(ImplicitProblem):
        def training_step(self, batch: Any) -> Tensor:
            return problem.weighted(self(batch[0]), self.outer.module.weights)

    module = _ClassWeights(problem.class_weights)
    device = str(problem.class_weights.device)
    outer = Outer(
        name="outer",
        config=Config(retain_graph=True),
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=OUTER_LR * scale),
        train_data_loader=[problem.outer_batch],
        device=device,
    )
    inner = Inner(
        name="inner",
        config=Config(**estimator),
        module=problem.network,
        optimizer=torch.optim.SGD(problem.network.parameters(), lr=problem.lr),
        train_data_loader=[problem.batch],
        device=device,
    )
    links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    engine = Engine(problems=[outer, inner], dependencies=links)

    def step() -> Tensor:
        engine.train_step()
        return found[0]

    return step


def betty_finite_difference(problem: Problem) -> Step:
    """Betty's `darts`: a difference around the NEW weights, without the step size.

    It leaves the weights at theta' - epsilon v: its last line calls `add`, not `add_`.
    """
    return _betty(problem, problem.lr, type="darts", darts_alpha=RADIUS)


def betty_neumann(problem: Problem) -> Step:
    return _betty(
        problem,
        1.0,
        type="neumann",
        neumann_iterations=TERMS,
        neumann_alpha=problem.neumann_step,
    )


def installed(name: str) -> bool:
    module = PACKAGES[name].removesuffix("-ml")
    return importlib.util.find_spec(module) is not None


PEERS: dict[str, dict[str, Route]] = {
    "unrolled": {"TorchOpt": torchopt_unrolled, "higher": higher_unrolled},
    "finite differences": {"Betty": betty_finite_difference},
    "Neumann": {"TorchOpt": torchopt_neumann, "Betty": betty_neumann},
}

"""Two-level problems with known derivatives, for the tests of hypergradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors], Tensor]


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All entries as one vector, in the order of the dictionary."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def error(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """Relative error of all entries together."""
    assert list(found) == list(truth)
    return float((flat(found) - flat(truth)).norm() / flat(truth).norm())


def free(tensors: Mapping[str, Tensor]) -> Tensors:
    """Fresh leaves that require a gradient."""
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


class Smooth:
    """A nonlinear problem over several tensors; every scale differs from 1."""

    def __init__(
        self, source: torch.Generator, sizes: tuple[int, ...] = (4, 3)
    ) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        first, second = sizes
        self.params = {"weight": draw(first, 2), "bias": draw(second)}
        self.hparams = {"scale": 1.7 * draw(first), "shift": 0.6 * draw(2)}
        total = 2 * first + second
        root = draw(total, total)
        self.curvature = root @ root.T / total + 0.5 * torch.eye(
            total, dtype=torch.float64
        )

    def inner(self, params: Tensors, hparams: Tensors) -> Tensor:
        x = flat(params)
        factor = 1.5 + hparams["scale"].sin()[:, None]
        scaled = (factor * params["weight"]).sin().sum()
        shifted = (params["weight"] * hparams["shift"]).square().sum()
        return 0.5 * x @ self.curvature @ x + 0.3 * scaled + 0.2 * shifted

    def outer(self, params: Tensors, hparams: Tensors) -> Tensor:
        """Enters `shift` directly, and `scale` through the parameters alone."""
        x = flat(params)
        return 2.5 * (x**3).mean() + (hparams["shift"] ** 2).sum() * x.cos().mean()

    def after_steps(
        self, hparams: Tensors, lr: float, steps: int = 1, momentum: float = 0.0
    ) -> Tensor:
        """The outer loss after the steps, one graph through everything."""
        params, moving = free(self.params), None
        for _ in range(steps):
            loss = self.inner(params, hparams)
            found = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            moving = (
                found
                if moving is None
                else [g + momentum * m for g, m in zip(found, moving, strict=True)]
            )
            params = {
                name: value - lr * step
                for (name, value), step in zip(params.items(), moving, strict=True)
            }
        return self.outer(params, hparams)

    def truth(self, lr: float, steps: int = 1, momentum: float = 0.0) -> Tensors:
        """The exact hypergradient through the steps."""
        hparams = free(self.hparams)
        loss = self.after_steps(hparams, lr, steps, momentum)
        found = torch.autograd.grad(loss, list(hparams.values()))
        return dict(zip(hparams, found, strict=True))


class Ridge:
    """Weighted ridge regression: the optimum and its derivative in closed form.

    L_in = 1/2 Σ_i w_i (x_iᵀθ - y_i)² + 1/2 e^d ||θ||², θ split over two tensors, and
    L_out = 1/2 ||X'θ - y'||² + 3 d². The hyperparameters are w and d.
    """

    def __init__(
        self, seed: int = 0, samples: int = 12, sizes: tuple[int, int] = (3, 2)
    ) -> None:
        source = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        self.sizes, width = sizes, sum(sizes)
        self.x, self.y = draw(samples, width), draw(samples)
        self.x_out, self.y_out = draw(9, width), 2 * draw(9)
        self.hparams = {"weight": draw(samples).exp(), "decay": draw(1) * 0.3}

    def split(self, theta: Tensor) -> Tensors:
        first, second = theta.split(self.sizes)
        return {"a": first.clone(), "b": second[:, None].clone()}

    def inner(self, params: Tensors, hparams: Tensors) -> Tensor:
        theta = flat(params)
        square = (self.x @ theta - self.y).square()
        penalty = hparams["decay"].exp().sum() * theta @ theta
        return 0.5 * (hparams["weight"] @ square + penalty)

    def outer(self, params: Tensors, hparams: Tensors) -> Tensor:
        miss = (self.x_out @ flat(params) - self.y_out).square().sum()
        return 0.5 * miss + 3 * hparams["decay"].square().sum()

    def matrix(self, hparams: Tensors) -> Tensor:
        width = self.x.shape[1]
        weighted = self.x.T @ (hparams["weight"][:, None] * self.x)
        return weighted + hparams["decay"].exp() * torch.eye(width, dtype=torch.float64)

    def solution(self, hparams: Tensors) -> Tensor:
        return torch.linalg.solve(
            self.matrix(hparams), self.x.T @ (hparams["weight"] * self.y)
        )

    def truth(self, through: Tensor | None = None) -> Tensors:
        """dθ/dw_i = -H⁻¹ x_i (x_iᵀθ - y_i), dθ/dd = -H⁻¹ e^d θ.

        `through` stands in for H⁻¹.
        """
        theta = self.solution(self.hparams)
        if through is None:
            through = torch.linalg.inv(self.matrix(self.hparams))
        slope = through @ (self.x_out.T @ (self.x_out @ theta - self.y_out))
        residual = self.x @ theta - self.y
        decay = self.hparams["decay"]
        return {
            "weight": -(self.x @ slope) * residual,
            "decay": -decay.exp() * (theta @ slope) + 6 * decay,
        }

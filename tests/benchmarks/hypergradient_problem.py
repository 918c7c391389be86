"""The work that every route does: per-class weights learned through one inner step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from needsaug_lite import models

Tensors = dict[str, Tensor]
# One call is one step: inner update, hypergradient, outer update. It keeps its state
# and returns the hypergradient, shape (C,).
Step = Callable[[], Tensor]

CLASSES = 10
# By network; a round is a hundred plain steps, each 0.1 s for 32 images in ResNet-32.
BATCH = {"mlp": 128, "resnet32": 32}
OUTER_LR, RADIUS, TERMS = 0.01, 0.01, 5


@dataclass(frozen=True)
class Problem:
    """A network, its class weights w (C,), an inner and an outer batch.

    inner loss (1/B) sum_i w[y_i] CE(f(x_i), y_i); outer loss the mean cross-entropy
    on the other batch. Batch norm is in eval mode: all routes see one function.

    Attributes:
        name: of the network in the table.
        lr: of the inner step.
        neumann_step: a of the series, below 1 / the largest curvature.
        network: its parameters are where every route starts.
        class_weights: w.
        batch: images and labels of the inner loss.
        outer_batch: those of the outer loss.
    """

    name: str
    lr: float
    neumann_step: float
    network: nn.Module
    class_weights: Tensor
    batch: tuple[Tensor, Tensor]
    outer_batch: tuple[Tensor, Tensor]

    @property
    def parameter_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    def fresh(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        """The same start with storage of its own."""
        (x, y), (x_outer, y_outer) = self.batch, self.outer_batch
        return Problem(
            self.name,
            self.lr,
            self.neumann_step,
            copy.deepcopy(self.network).to(device, dtype),
            self.class_weights.detach().to(device, dtype, copy=True),
            (x.to(device, dtype), y.to(device)),
            (x_outer.to(device, dtype), y_outer.to(device)),
        )

    def params(self) -> Tensors:
        """The network's own parameters as leaves without a graph."""
        return {k: p.detach() for k, p in self.network.named_parameters()}

    def hparams(self) -> Tensors:
        return {"class_weights": self.class_weights}

    def inner_loss(self, params: Tensors, hparams: Tensors) -> Tensor:
        logits = functional_call(self.network, params, (self.batch[0],))
        return self.weighted(logits, hparams["class_weights"])

    def outer_loss(self, params: Tensors, hparams: Tensors) -> Tensor:
        logits = functional_call(self.network, params, (self.outer_batch[0],))
        return self.unweighted(logits)

    def weighted(self, logits: Tensor, class_weights: Tensor) -> Tensor:
        labels = self.batch[1]
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return (class_weights[labels] * losses).mean()

    def unweighted(self, logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, self.outer_batch[1])


def mlp() -> Problem:
    """784-500-200-10."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 200),
        nn.ReLU(),
        nn.Linear(200, CLASSES),
    )
    # The largest curvature is 1.1 at the start.
    return _problem("mlp", network, (784,), lr=0.1, neumann_step=0.05)


def resnet32() -> Problem:
    """The CIFAR ResNet-32, running statistics taken from one batch of noise."""
    torch.manual_seed(0)
    network = models.build("resnet32", (3, 32, 32), CLASSES)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    # Without statistics of its own inputs a fresh network in eval mode diverges in one
    # step; momentum None is the average over all batches, here one.
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network(torch.randn(128, 3, 32, 32))
    # The largest curvature is 120 at the start.
    return _problem(
        "resnet32", network.eval(), (3, 32, 32), lr=0.01, neumann_step=0.005
    )


def _problem(
    name: str,
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    lr: float,
    neumann_step: float,
) -> Problem:
    size = BATCH[name]

    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(size, *shape), torch.randint(CLASSES, (size,))

    weights = 1 + 0.1 * torch.rand(CLASSES)
    return Problem(name, lr, neumann_step, network, weights, batch(), batch())


def exact_one_step(problem: Problem) -> Tensor:
    """d outer(theta - lr grad inner(theta, w)) / dw, one graph, float64, shape (C,)."""
    exact = problem.fresh(torch.float64)
    params = {k: p.requires_grad_() for k, p in exact.params().items()}
    weights = exact.class_weights.requires_grad_()
    inner = exact.inner_loss(params, {"class_weights": weights})
    gradients = torch.autograd.grad(inner, list(params.values()), create_graph=True)
    pairs = zip(params.items(), gradients, strict=True)
    updated = {key: p - problem.lr * g for (key, p), g in pairs}
    (answer,) = torch.autograd.grad(exact.outer_loss(updated, {}), weights)
    return answer


def exact_neumann(problem: Problem) -> Tensor:
    """The truncated series at the parameters after one plain step, float64.

    -d/dw <grad inner, u>, u = a sum_{j=0..J} (I - a H)^j grad outer; shape (C,).
    """
    exact = problem.fresh(torch.float64)
    start = {k: p.requires_grad_() for k, p in exact.params().items()}
    weights = exact.class_weights.requires_grad_()
    hparams = {"class_weights": weights}
    gradients = torch.autograd.grad(
        exact.inner_loss(start, hparams), list(start.values())
    )
    pairs = zip(start.items(), gradients, strict=True)
    params = {k: (p - problem.lr * g).detach().requires_grad_() for (k, p), g in pairs}
    leaves = list(params.values())
    term = torch.autograd.grad(exact.outer_loss(params, {}), leaves)
    gradient = torch.autograd.grad(
        exact.inner_loss(params, hparams), leaves, create_graph=True
    )
    total = term
    for _ in range(TERMS):
        product = torch.autograd.grad(gradient, leaves, term, retain_graph=True)
        term = tuple(
            t - problem.neumann_step * h for t, h in zip(term, product, strict=True)
        )
        total = tuple(s + t for s, t in zip(total, term, strict=True))
    (mixed,) = torch.autograd.grad(gradient, weights, total)
    return -problem.neumann_step * mixed


EXACT: dict[str, Callable[[Problem], Tensor]] = {
    "unrolled": exact_one_step,
    "finite differences": exact_one_step,
    "Neumann": exact_neumann,
}
PROBLEMS: dict[str, Callable[[], Problem]] = {"mlp": mlp, "resnet32": resnet32}

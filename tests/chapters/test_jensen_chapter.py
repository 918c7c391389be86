"""What chapter 6 teaches is what the library does."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.taught import definitions, functions
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from needsaug_lite import losses

NOTEBOOK = "06_infinitely_many_augmentations.ipynb"
TAUGHT = {
    "perturbation_direction",
    "explicit_copies",
    "literal_half_variance",
    "half_variance",
    "augmented_logits",
    "iada_weighted",
    "iada",
    "first_order_terms",
}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK, TAUGHT, torch=torch, cross_entropy=cross_entropy, one_hot=one_hot
    )


# (samples, classes, features); the last has more classes than samples.
@pytest.fixture(scope="module", params=[(40, 3, 5), (30, 10, 6), (7, 12, 4)])
def case(request: pytest.FixtureRequest) -> Any:
    samples, num_classes, width = request.param
    source = torch.Generator().manual_seed(samples)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    prior = torch.rand(num_classes, generator=source, dtype=torch.float64) + 0.05
    root = normal(num_classes, width, width)
    return SimpleNamespace(
        h=normal(samples, width),
        y=torch.randint(num_classes, (samples,), generator=source),
        weight=normal(num_classes, width),
        bias=normal(num_classes),
        root=root,
        covariance=root @ root.mT,
        epsilon=2 * torch.rand(samples, generator=source, dtype=torch.float64) - 1,
        prior=prior / prior.sum(),
    )


def arguments(case: Any) -> tuple[Any, ...]:
    head = (case.weight, case.bias)
    return case.h, case.y, *head, case.covariance, case.epsilon, case.prior


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, TAUGHT).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


def test_direction_agrees(taught: Any, case: Any) -> None:
    given = (case.h, case.y, case.weight, case.bias)
    got = taught.perturbation_direction(*given)
    assert_close(got, losses.perturbation_direction(*given))


@pytest.mark.parametrize("name", ["half_variance", "literal_half_variance"])
def test_half_variance_agrees(taught: Any, case: Any, name: str) -> None:
    given = (case.y, case.weight, case.covariance)
    expected = losses.half_variance(*given)
    assert_close(getattr(taught, name)(*given), expected, rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest array made."""

    entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.entries = max(self.entries, made.numel())
        return made


@pytest.mark.parametrize(
    ("samples", "num_classes", "width"), [(64, 20, 24), (64, 50, 8)]
)
def test_half_variance_makes_no_array_larger_than_its_inputs(
    taught: Any, samples: int, num_classes: int, width: int
) -> None:
    labels = torch.randint(num_classes, (samples,))
    covariance = torch.eye(width).repeat(num_classes, 1, 1)
    with Largest() as seen:
        taught.half_variance(labels, torch.randn(num_classes, width), covariance)
    batch = samples * max(num_classes, width)
    assert seen.entries <= max(covariance.numel(), batch)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0, 1.7])
def test_published_loss_agrees(
    taught: Any, case: Any, alpha: float, beta: float
) -> None:
    got = taught.iada(*arguments(case), alpha, beta)
    expected = losses.iada(*arguments(case), alpha=alpha, beta=beta, reduction="none")
    assert_close(got, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_bound_agrees(taught: Any, case: Any, alpha: float) -> None:
    got = taught.iada_weighted(*arguments(case), alpha)
    expected = losses.iada_weighted(*arguments(case), alpha=alpha, reduction="none")
    assert_close(got, expected)


def test_defaults_are_the_librarys(taught: Any, case: Any) -> None:
    for name in ("iada", "iada_weighted"):
        got = getattr(taught, name)(*arguments(case))
        tested = getattr(losses, name)(*arguments(case), reduction="none")
        assert_close(got, tested)


def test_gradients_agree(taught: Any, case: Any) -> None:
    """The direction is a constant, and epsilon keeps its gradient."""
    gradients = []
    for loss in (taught.iada, losses.iada):
        leaves = [given.clone() for given in arguments(case)]
        wanted = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
        gradients.append(torch.autograd.grad(loss(*leaves).sum(), wanted))
    scale = len(case.y)  # the library's default is a mean
    symmetric = [(g + g.mT) / 2 if g.ndim == 3 else g for g in gradients[0]]
    assert_close(symmetric, [scale * g for g in gradients[1]])


def test_first_order_terms_agree(taught: Any, case: Any) -> None:
    got = taught.first_order_terms(*arguments(case))
    assert_close(got, tuple(losses.first_order_terms(*arguments(case))))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_copies_stay_below_the_bound(taught: Any, case: Any, alpha: float) -> None:
    source = torch.Generator().manual_seed(1)
    drawn = taught.explicit_copies(
        case.h, case.y, case.weight, case.bias, case.root, case.epsilon,
        alpha, 2000, source,
    )  # fmt: skip
    weight = 1 / (len(case.prior) * case.prior[case.y])
    bound = losses.iada_weighted(*arguments(case), alpha=alpha, reduction="none")
    error = drawn.std(1) / drawn.shape[1] ** 0.5
    mean = drawn.mean(1)
    assert bool((bound / weight > mean - 6 * error - 1e-9).all())
    if alpha == 0:
        assert_close(bound / weight, mean)

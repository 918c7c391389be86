"""What chapter 5 teaches is what the library does."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from helpers.taught import definitions, functions
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.functional import one_hot
from torch.testing import assert_close

from needsaug_lite import hypergrad
from needsaug_lite.data import load
from needsaug_lite.methods.baselines.hyper_cleaning import HyperCleaning
from needsaug_lite.models import Classifier
from needsaug_lite.training import Optimisation

NOTEBOOK = "05_several_levels.ipynb"
IMPLEMENTATION = {"pull", "sweep"}
TAUGHT = IMPLEMENTATION | {
    "for_library",
    "whole_graph",
    "total_by_autodiff",
    "cleaning_gradient",
}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK, TAUGHT, torch=torch, grad=grad, one_hot=one_hot, hypergrad=hypergrad
    )


def case(seed: int) -> tuple[dict[str, Any], Any, Tensor]:
    """Four levels, of which the last reads three and the third one, and large rates."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    mix = {name: normal(4, 4) for name in "abcd"}

    def loss(name: str) -> Any:
        def closure(weights: Tensor, others: dict[str, Tensor], meta: Tensor) -> Tensor:
            read = sum((other.sin() for other in others.values()), meta)
            return ((mix[name] @ weights).tanh() * read).sum() + weights.pow(
                4
            ).sum() / 9

        return closure

    reads = {"a": (), "b": (), "c": ("a",), "d": ("a", "b", "c")}
    levels = {
        name: (loss(name), normal(4), 0.5 + 0.3 * place, reads[name])
        for place, name in enumerate("abcd")
    }

    def outer(seen: dict[str, Tensor], meta: Tensor) -> Tensor:
        return (seen["d"].sin() * meta).sum() + (seen["a"] * meta.exp()).sum()

    return levels, outer, normal(4)


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, IMPLEMENTATION).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_path_agrees_with_the_library(taught: Any, seed: int) -> None:
    levels, outer, meta = case(seed)
    paths = taught.sweep(levels, outer, meta)
    chain = taught.for_library(levels, outer)
    exact = hypergrad.chain_exact(*chain, {"A": meta})
    rough = hypergrad.chain(*chain, {"A": meta}, radius=1e-4)
    named = {"direct", "a", "d", "a -> d", "b -> d", "c -> d", "a -> c -> d"}
    assert paths.keys() == exact.paths.keys() == rough.paths.keys() == named
    for path, part in paths.items():
        assert part.norm() > 1e-3, path
        assert_close(exact.paths[path]["A"], part)
        assert_close(rough.paths[path]["A"], part, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sum_of_paths_is_the_derivative(taught: Any, seed: int) -> None:
    levels, outer, meta = case(seed)
    total = sum(taught.sweep(levels, outer, meta).values())
    assert_close(total, taught.total_by_autodiff(levels, outer, meta))

    def value(at: Tensor) -> Tensor:
        result: Tensor = taught.whole_graph(levels, outer, at).detach()
        return result

    step = 1e-6 * torch.eye(len(meta), dtype=torch.float64)
    slopes = [(value(meta + s) - value(meta - s)) / 2e-6 for s in step]
    assert_close(total, torch.stack(slopes), rtol=1e-6, atol=1e-7)


def test_closed_form_is_the_derivative_of_the_method(taught: Any) -> None:
    splits = load("digits", noise=0.4, meta_per_class=3, seed=5)
    torch.manual_seed(5)
    head = nn.Linear(64, 10, bias=False)
    model = Classifier(nn.Flatten(), 64, head)
    settings = Optimisation(batch_size=16, weight_decay=0.0)
    method = HyperCleaning(model, splits, optimisation=settings)
    source = torch.Generator().manual_seed(6)
    with torch.no_grad():
        shape = method.weight_logits.shape
        method.weight_logits.copy_(torch.randn(shape, generator=source))
    batch = next(iter(method.batches.epoch(0)))
    clean = next(method.meta)
    expected = taught.cleaning_gradient(
        head.weight.detach(),
        method.weight_logits[batch.index],
        batch.images.flatten(1),
        batch.labels,
        clean.images.flatten(1),
        clean.labels,
        method.optimiser.param_groups[0]["lr"],
    )
    got = method.hypergradient(batch, clean)["weight_logits"]
    assert expected.abs().max() > 0
    assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

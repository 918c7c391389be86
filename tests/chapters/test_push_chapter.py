"""What chapter 7 teaches is what the library does."""

from __future__ import annotations

import ast
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
import torch
from helpers.taught import definitions, functions
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from needsaug_lite import hypergrad, losses, models, statistics
from needsaug_lite.data import load
from needsaug_lite.methods.meta_iada import MetaIADA
from needsaug_lite.training import Optimisation

NOTEBOOK = "07_learning_how_hard_to_push.ipynb"
IMPLEMENTATION = {"meta_iada_step", "clipped"}
TAUGHT = IMPLEMENTATION | {"linear_push", "merged", "shares_of", "group_accuracies"}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        TAUGHT,
        torch=torch,
        np=np,
        product=product,
        hypergrad=hypergrad,
        losses=losses,
        functional_call=functional_call,
        cross_entropy=cross_entropy,
        one_hot=one_hot,
    )


def test_implementation_fits_in_forty_lines() -> None:
    nodes = definitions(NOTEBOOK, IMPLEMENTATION).values()
    assert sum(len(ast.unparse(node).splitlines()) for node in nodes) <= 40


def warm(diagonal: bool = False) -> tuple[MetaIADA, list[Any]]:
    """A method after two steps with cross-entropy, and the batches that follow."""
    splits = load("digits", imbalance=20, meta_per_class=5, seed=3)
    torch.manual_seed(3)
    model = models.build("convnet", splits.image_shape, 10, width=4, feature_dim=8)
    method = MetaIADA(
        model, splits, optimisation=Optimisation(batch_size=32), seed=3,
        diagonal=diagonal, covariance_lr=50.0,
    )  # fmt: skip
    method.stages(10)
    method.begin_epoch(0)
    batches = list(islice(method.batches.epoch(0), 5))
    for batch in batches[:2]:
        method.early_step(batch)
    method.begin_epoch(1)
    return method, batches[2:]


def test_a_step_is_that_of_the_library(taught: Any) -> None:
    (library, batches), (ours, _) = warm(), warm()
    start = ours.linear.weight.detach().clone()
    for batch in batches:
        library.late_step(batch)
        features = ours.model.features(batch.images)
        logits = ours.linear(features)
        ours.moments.update(features, batch.labels)
        found = ours.characteristics(batch, features, logits)
        ours.memory.remember(batch.index, logits, batch.labels)
        _, sigma = taught.meta_iada_step(
            ours.model, ours.network, ours.optimiser, ours.outer_optimiser,
            ours.moments.covariance, found, batch, next(ours.meta), ours.class_prior,
            covariance_lr=50.0,
        )  # fmt: skip
        assert float((sigma - ours.moments.covariance).abs().max()) > 0
    assert float((ours.linear.weight - start).detach().abs().max()) > 1e-3
    for one, other in ((library.model, ours.model), (library.network, ours.network)):
        mine = dict(other.named_parameters())
        for name, parameter in one.named_parameters():
            assert_close(parameter, mine[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_cut_is_that_of_the_library(taught: Any, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    some = torch.randn(6, 5, 5, generator=source, dtype=torch.float64)
    some = some + some.mT
    expected = statistics.nearest_positive_semidefinite(some)
    assert_close(taught.clipped(some), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_closed_form_is_the_derivative(taught: Any, seed: int, alpha: float) -> None:
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    h, y, W, b = normal(20, 4), torch.arange(20) % 3, normal(3, 4), normal(3)
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    spread = 0.4 * normal(3, 4, 4)
    sigma, epsilon = spread @ spread.mT, normal(20).tanh()
    clean, clean_labels = normal(9, 4), torch.arange(9) % 3

    def inner(params: Any, given: Any) -> Tensor:
        return losses.iada(
            h, y, params["W"], params["b"], sigma, given["e"], prior, alpha=alpha
        )

    def outer(params: Any, given: Any) -> Tensor:
        return cross_entropy(clean @ params["W"].T + params["b"], clean_labels)

    estimate = hypergrad.unrolled(
        inner, outer, {"W": W, "b": b}, {"e": epsilon}, lr=0.4
    )
    after = {name: p.detach().requires_grad_() for name, p in estimate.params.items()}
    G, g_b = torch.autograd.grad(outer(after, None), [after["W"], after["b"]])
    louder, turned = taught.linear_push(
        h, y, W, b, sigma, epsilon, prior, G, g_b, 0.4, alpha=alpha
    )
    assert_close(louder + turned, estimate["e"])
    assert float(louder.abs().max()) > 1e-4 < float(turned.abs().max())


def test_merged_moments_are_those_of_the_library(taught: Any) -> None:
    source = torch.Generator().manual_seed(0)
    running = statistics.ClassCovariance(1, 3, dtype=torch.float64)
    state = (0, torch.zeros(3).double(), torch.zeros(3, 3).double())
    for size in (4, 1, 7):
        part = torch.randn(size, 3, generator=source, dtype=torch.float64) + size
        running.update(part, torch.zeros(size, dtype=torch.long))
        state = taught.merged(*state, part)
        assert_close(state[1], running.mean[0])
        assert_close(state[2], running.covariance[0])


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.25, 0.4])
@pytest.mark.parametrize("wrong_colour", [0.2, 0.5, 0.9])
def test_no_predictor_passes_the_ceiling(
    taught: Any, flip: float, wrong_colour: float
) -> None:
    shares = taught.shares_of(flip, wrong_colour)
    assert shares.sum() == pytest.approx(1)
    assert shares.sum((0, 2)) == pytest.approx([0.5, 0.5])
    worst = [
        taught.group_accuracies(np.array(v, dtype=float).reshape(2, 2), shares).min()
        for v in product((0, 1), repeat=4)
    ]
    assert max(worst) == pytest.approx(1 - flip)


def test_coloured_digits_have_the_shares_of_the_text(taught: Any) -> None:
    splits = load("digits", colour=True, seed=0)
    expected = taught.shares_of(0.25, 0.9).sum(0)  # (label, red)
    assert splits.test.groups is not None
    groups = torch.bincount(splits.test.groups, minlength=4) / len(splits.test)
    for red, label in product((0, 1), repeat=2):
        share = float(groups[2 * red + label])
        assert share == pytest.approx(expected[label, red], abs=0.06)

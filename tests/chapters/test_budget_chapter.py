"""What chapter 13 teaches is what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.taught import functions, lines_of_code
from torch.testing import assert_close

from needsaug_lite import allocation
from needsaug_lite.data import generator
from needsaug_lite.methods import budget

NOTEBOOK = "13_a_budget_where_it_is_needed.ipynb"
ALGORITHM = {"shares_of", "draw_budget", "weights_of"}
MOMENTS = {"coin_moments"}
RULES = ["score_ratio", "enumerate", "c_way", "literal"]
CLASSES, IMAGES, STEPS = 5, 203, 10
# Streams of the library's draws.
LABELS, NOISE = 731, 733


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(NOTEBOOK, ALGORITHM | MOMENTS, torch=torch, DOUBLE=torch.float64)


def shares() -> torch.Tensor:
    return torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04], dtype=torch.float64)


def test_algorithm_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, ALGORITHM) <= 40


def test_shares_are_those_of_the_library(taught: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    losses = torch.rand(40, generator=draw, dtype=torch.float64)
    labels = torch.arange(40) % CLASSES
    means = allocation.mean_per_class(losses, labels, CLASSES)
    expected = allocation.class_allocation(means)
    assert_close(taught.shares_of(losses, labels, CLASSES), expected)
    # Of zero losses every class gets the same.
    even = taught.shares_of(0 * losses, labels, CLASSES)
    assert_close(even, torch.full_like(even, 1 / CLASSES))


@pytest.mark.parametrize("rule", RULES)
def test_an_epoch_holds_exactly_the_budget(taught: Any, rule: str) -> None:
    draw = torch.Generator().manual_seed(1)
    parts = taught.draw_budget(shares(), IMAGES, STEPS, rule, draw)
    sizes = [len(labels) for labels, _ in parts]
    assert len(sizes) == STEPS
    assert sum(sizes) == IMAGES
    assert max(sizes) - min(sizes) <= 1
    assert all(len(labels) == len(noise) for labels, noise in parts)


@pytest.mark.parametrize("rule", RULES)
def test_draws_are_those_of_the_library(taught: Any, rule: Any) -> None:
    theirs = budget.Budget(
        IMAGES, STEPS, CLASSES, 2, seed=3, device=torch.device("cpu")
    )
    theirs.draw(4, shares(), rule)
    # What decides the classes has its own stream: noise in "c_way".
    stream = NOISE if rule == "c_way" else LABELS
    if rule == "c_way":
        mine = allocation.gumbel_noise((IMAGES, CLASSES), generator(3, NOISE, 4))
        labels = (shares().log() + mine).argmax(1)
    else:
        parts = taught.draw_budget(
            shares(), IMAGES, STEPS, rule, generator(3, stream, 4)
        )
        labels = torch.cat([part for part, _ in parts])
    counts = labels.bincount(minlength=CLASSES)
    assert counts.tolist() == theirs.last_counts.tolist()
    if rule != "enumerate":  # which is even up to one image, and in another order
        found = torch.cat([next(theirs).labels for _ in range(STEPS)])
        assert_close(labels, found)


def test_noise_is_gumbel(taught: Any) -> None:
    draw = torch.Generator().manual_seed(5)
    parts = taught.draw_budget(shares(), 40_000, 4, "c_way", draw)
    noise = torch.cat([noise for _, noise in parts]).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, rel=0.03)
    labels = torch.cat([labels for labels, _ in parts])
    assert_close(labels, (shares().log() + noise).argmax(1))
    frequency = labels.bincount(minlength=CLASSES) / len(labels)
    assert_close(frequency.double(), shares(), rtol=0, atol=0.01)


@pytest.mark.parametrize("rule", RULES)
def test_weights_are_those_of_the_library(taught: Any, rule: Any) -> None:
    draw = torch.Generator().manual_seed(2)
    values = torch.rand(IMAGES, generator=draw, dtype=torch.float64)
    old = torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)
    for labels, noise in taught.draw_budget(shares(), IMAGES, STEPS, rule, draw)[:3]:
        portion = budget.Portion(torch.zeros(len(labels), 2), labels, noise)
        results = []
        for which in (0, 1):
            p = shares().requires_grad_()
            if which == 0:
                found = taught.weights_of(rule, p, old, labels, noise, 0.6)
            else:
                found = budget.weights(rule, p, old, portion, 0.6)
            (slope,) = torch.autograd.grad((found * values[: len(labels)]).sum(), p)
            results.append((found.detach(), slope))
        assert_close(*results)
        assert float(results[0][1].norm()) > 0


@pytest.mark.parametrize("heat", [0.1, 1.0, 5.0])
def test_moments_are_those_of_the_weight(taught: Any, heat: float) -> None:
    label = torch.zeros(100_000, dtype=torch.int64)
    draw = torch.Generator().manual_seed(6)
    noise = allocation.gumbel_noise((len(label), 2), draw).double()
    for chance in (0.05, 0.3):
        p = torch.tensor([chance, 1 - chance], dtype=torch.float64)
        found = allocation.relaxed_bernoulli(p, label, noise, heat)
        slope = found * (1 - found) / heat
        exact = taught.coin_moments(p, heat)
        for sample, moment in zip((found, slope, slope**2), exact, strict=True):
            tolerance = 5 * float(sample.std()) / len(label) ** 0.5
            assert float(sample.mean()) == pytest.approx(
                float(moment[0]), abs=tolerance
            )

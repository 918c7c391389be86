"""The functions that chapter 1 teaches agree with the library's."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from needsaug_lite import allocation
from needsaug_lite.data import generator, long_tail_counts

NOTEBOOK = Path(__file__).parents[2] / "nbs/01_which_classes_need_data.ipynb"
needs = st.lists(st.floats(0, 50), min_size=2, max_size=20)


def _taught() -> dict[str, Callable[..., Any]]:
    """Function definitions of the notebook's code cells, by name."""
    from itertools import combinations

    names: dict[str, Any] = {
        "torch": torch, "np": np, "stats": stats, "combinations": combinations,
    }  # fmt: skip
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type != "code" or "%pip" in cell.source:
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef):
                exec(compile(ast.Module([node], []), str(NOTEBOOK), "exec"), names)
    return names


TAUGHT = _taught()


@given(needs, st.floats(0.1, 10), st.floats(0, 1))
def test_class_allocation(values: list[float], temperature: float, part: float) -> None:
    losses = torch.tensor(values, dtype=torch.float64)
    floor = part / len(values)
    taught = TAUGHT["class_allocation"](losses, temperature, floor)
    tested = allocation.class_allocation(losses, temperature=temperature, floor=floor)
    assert torch.allclose(taught, tested)


@given(needs.filter(any), st.integers(0, 50_000))
def test_split_budget(values: list[float], budget: int) -> None:
    shares = allocation.class_allocation(torch.tensor(values, dtype=torch.float64))
    taught = TAUGHT["split_budget"](shares, budget)
    assert torch.equal(taught, allocation.split_budget(shares, budget))


@given(st.integers(0, 1000))
def test_score_ratio(seed: int) -> None:
    draw = generator(seed)
    losses = torch.rand(5, generator=draw, dtype=torch.float64) + 0.1
    drawn_from = torch.rand(5, generator=draw, dtype=torch.float64) + 0.1
    labels = torch.randint(5, (40,), generator=draw)

    def value_and_gradient(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        own = losses.clone().requires_grad_()
        p = allocation.class_allocation(own)
        weights = function(p, drawn_from, labels)
        (gradient,) = torch.autograd.grad((weights * labels).sum(), own)
        return weights.detach(), gradient

    pair = value_and_gradient(TAUGHT["score_ratio"])
    for one, other in zip(
        pair, value_and_gradient(allocation.score_ratio), strict=True
    ):
        assert torch.allclose(one, other)


def test_holm_is_its_closed_form() -> None:
    # Holm's rule in closed form: max over j <= i of (m - j + 1) p_(j), at most 1.
    draw = np.random.default_rng(0)
    for _ in range(50):
        p = draw.uniform(0, 0.3, size=8)
        corrected = TAUGHT["holm"](p)
        for i in range(8):
            smaller = np.sort(p[p <= p[i]])
            closed = min(1, max((8 - j) * value for j, value in enumerate(smaller)))
            assert np.isclose(corrected[i], closed)


def test_rarer_ahead_finds_a_planted_pair() -> None:
    draw = np.random.default_rng(1)
    recalls = np.array([0.9, 0.8, 0.7, 0.75]) + 0.01 * draw.normal(size=(12, 4))
    pairs, leads, corrected = TAUGHT["rarer_ahead"](recalls)
    found = [pair for pair, p in zip(pairs, corrected, strict=True) if p < 0.05]
    assert found == [(2, 3)]
    assert np.allclose(leads[pairs.index((2, 3))], recalls[:, 3] - recalls[:, 2])


def test_size_and_class_separates_what_was_planted() -> None:
    draw = np.random.default_rng(2)
    sizes = np.stack(
        [draw.permutation(long_tail_counts(1000, 100, 10)) for _ in range(20)]
    )
    effects = draw.normal(size=10)
    effects -= effects.mean()
    recalls = 0.5 + 0.1 * np.log(sizes) + effects
    (_, _, both), by_chance = TAUGHT["size_and_class"](sizes, recalls, 20, draw)
    assert both == pytest.approx(1)
    assert by_chance.max() < both
    assert np.allclose(TAUGHT["class_effects"](sizes, recalls), effects)


def test_order_agreement_is_one_for_the_same_order() -> None:
    sizes = np.array([[5, 3, 1], [1, 2, 3]])
    recalls = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    assert TAUGHT["order_agreement"](sizes, recalls).tolist() == [1, -1]

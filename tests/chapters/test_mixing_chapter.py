"""What chapter 10 teaches is what the library does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.shared_phases import at_second_phase
from helpers.taught import functions, lines_of_code
from scipy.optimize import linprog, nnls
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.models import feature_gan

NOTEBOOK = "10_mixing_instead_of_inventing.ipynb"
ALGORITHM = {"contrast", "update", "mixing", "phase2_step"}
TAUGHT = ALGORITHM | {"in_hull"}
STEPS = 3


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        TAUGHT,
        np=np,
        torch=torch,
        nnls=nnls,
        cross_entropy=cross_entropy,
        normalize=normalize,
    )


def test_algorithm_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, ALGORITHM) <= 40


def projections(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 5, generator=source, dtype=torch.float64)
    return features, torch.randint(4, (20,), generator=source)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_contrast_of_views_is_that_of_the_library(
    taught: Any, seed: int, temperature: float
) -> None:
    z, y = projections(seed)
    y[0] = 9  # no other feature of its class
    expected = losses.supervised_contrastive(z, y, temperature=temperature)
    found = taught.contrast(z, y, z[:0], y[:0], temperature)
    assert float(expected) > 0.1
    assert_close(found, expected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contrast_of_generated_features_is_that_of_the_library(
    taught: Any, seed: int
) -> None:
    z, y = projections(seed)
    z.requires_grad_()
    given = z[:8], y[:8], z[8:], y[8:]
    expected = losses.augmented_supervised_contrastive(*given)
    found = taught.contrast(*given)
    assert_close(found, expected)
    assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (found, expected)))


def way(before: torch.nn.Module, after: torch.nn.Module) -> torch.Tensor:
    """How far and where to a network has moved, as one vector."""
    pairs = zip(after.parameters(), before.parameters(), strict=True)
    return torch.cat([(new - old).detach().flatten() for new, old in pairs])


@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("weights", [(1.0, 0.1), (1.0, 0.0), (0.0, 0.5), (0.3, 2.0)])
def test_steps_of_the_second_phase_are_those_of_the_library(
    taught: Any, slots: int, weights: tuple[float, float]
) -> None:
    method = at_second_phase(
        "facog",
        slots=slots,
        lambda_adv=weights[0],
        lambda_asc=weights[1],
        # No decay: it would be most of what moves G.
        phase2={"lr": 0.05, "batch_size": 64, "weight_decay": 0.0},
    )
    nets = {
        "D": method.discriminator,
        "G": method.mixer,
        "head": method.model.head,
        "project": method.projection,
    }
    ours = copy.deepcopy(nets)
    trained = [name for name in nets if name != "project"]
    optimisers = {name: method.phase2.optimiser(ours[name]) for name in trained}
    draw = torch.Generator()
    draw.set_state(method.draw.get_state())
    before = copy.deepcopy(nets)
    make = taught.mixing(ours["G"], method.dictionary, slots)
    for _, batch in zip(range(STEPS), method.rows.epoch(0), strict=False):
        assert len(batch) == 64
        logged = method.oversampling_step(batch)
        rows = method.dictionary.take(batch.index), batch.labels
        given = make, method.dictionary, rows, method.shares, draw, weights
        norm = taught.phase2_step(ours, optimisers, *given)
        assert_close(norm, logged["weight_norm"])
    assert torch.equal(draw.get_state(), method.draw.get_state())
    for name, net in nets.items():
        # Ways, not weights: with some losses G moves by little.
        mine, library = way(before[name], ours[name]), way(before[name], net)
        if name == "project" or (name == "G" and slots == 1):
            assert not mine.any()
            assert not library.any()
        else:
            assert float(library.norm()) > 0
            assert float((mine - library).norm()) < 0.01 * float(library.norm()), name


def test_mixtures_are_those_of_the_library(taught: Any) -> None:
    method = at_second_phase("facog")
    labels = torch.arange(10).repeat(3)
    make = taught.mixing(method.mixer, method.dictionary, method.slots)
    made, features, weights = make(labels, torch.Generator().manual_seed(5))
    assert_close(made, feature_gan.mix(weights, features))
    assert_close(weights.sum(1), torch.ones(30))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_hull_is_that_of_a_linear_programme(taught: Any, size: int) -> None:
    source = np.random.default_rng(size)
    corners, points = source.normal(size=(12, size)), source.normal(size=(40, size))
    system = np.vstack([corners.T, np.ones(12)])
    feasible = [
        linprog(np.zeros(12), A_eq=system, b_eq=np.append(point, 1)).status == 0
        for point in points
    ]
    assert 0 < sum(feasible) < 40
    assert taught.in_hull(points, corners).tolist() == feasible

"""What chapter 14 teaches is what the library does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.taught import functions, lines_of_code
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import hypergrad
from needsaug_lite.data import Normalisation, load
from needsaug_lite.hypergrad import Level
from needsaug_lite.methods.budget import Portion
from needsaug_lite.methods.four_levels import ROLES, Drawn, FourLevels, Look
from needsaug_lite.methods.generation.adversarial import BigGAN
from needsaug_lite.methods.needs_aware import NeedsAware
from needsaug_lite.methods.shared_head import by_role, copies, encoder
from needsaug_lite.models import Classifier, features_with
from needsaug_lite.training import Optimisation

NOTEBOOK = "14_four_levels_one_gradient.ipynb"
ALGORITHM = {"scores", "shares", "four_levels", "gradient_of_head", "needs_aware_step"}
STEPS = 3
Seen = tuple[tuple[torch.Tensor, ...], ...]


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        ALGORITHM,
        torch=torch,
        hypergrad=hypergrad,
        Level=Level,
        ROLES=ROLES,
        cross_entropy=cross_entropy,
        features_with=features_with,
        encoder=encoder,
    )


def small_method(strength: float, gamma: float, lr: float = 0.1) -> NeedsAware:
    """The whole method on digits, with small smooth encoders and a small GAN."""
    splits = load("digits", imbalance=20, meta_per_class=10, seed=0)
    torch.manual_seed(0)
    gan = BigGAN(splits, width=8, seed=0)
    width: Any = gan.discriminator.feature_dim
    layers = nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, width), nn.Tanh()
    model = Classifier(nn.Sequential(*layers), width, nn.Linear(width, 10))
    method = NeedsAware(
        model,
        splits,
        gan=gan,
        strength=strength,
        gamma=gamma,
        generator_lr=1e-3,
        normalisation=Normalisation((0.0,), (1.0,)),
        optimisation=Optimisation(lr=lr, weight_decay=0.0, warmup=0.0, batch_size=32),
        seed=0,
    )
    method.stages(1)
    method.begin_epoch(0)
    return method


def coming(method: NeedsAware, batch: Any) -> tuple[Seen, Any, Portion, Look]:
    """What the method's next step sees, as the chapter and as the library have it."""
    portion = next(method.budget)
    real, latents = method.gan.next_real()
    needs, clean = method.held_out.next_needs(), method.held_out.next_learned()
    drawn = Drawn(portion, method.drawn_from, 1.0)
    look = Look(batch, drawn, (latents, real.labels), needs, clean)
    seen = (
        (batch.images, batch.labels),
        (portion.latents, portion.labels, method.drawn_from),
        (latents, real.labels),
        (needs.images, needs.labels),
        (clean.images, clean.labels),
    )
    return seen, (real, latents), portion, look


def test_algorithm_fits_in_forty_lines() -> None:
    step = {"needs_aware_step"}
    assert lines_of_code(NOTEBOOK, ALGORITHM - step) <= 40
    assert lines_of_code(NOTEBOOK, step) <= 20


def test_roles_are_those_of_the_library() -> None:
    from helpers.taught import NOTEBOOKS

    text = (NOTEBOOKS / NOTEBOOK).read_text(encoding="utf-8")
    assert 'ROLES = (\\"outer\\", \\"W1\\", \\"H\\", \\"W2\\", \\"need\\")' in text
    assert ROLES == ("outer", "W1", "H", "W2", "need")


def test_shares_are_those_of_the_library(taught: Any) -> None:
    method = small_method(1.0, 1.0)
    needs = method.held_out.next_needs()
    a = copies(method.model.head, ROLES)
    params = encoder(method.first)
    expected = method.levels.shares(params, by_role(a, "need"), needs)
    found = taught.shares(method.first, params, a, needs.images, needs.labels)
    assert float(expected.detach().std()) > 1e-3
    assert_close(found, expected)


@pytest.mark.parametrize(("strength", "gamma"), [(0.7, 0.4), (2.0, 1.5)])
def test_gradient_is_that_of_the_library_path_by_path(
    taught: Any, strength: float, gamma: float
) -> None:
    method = small_method(strength, gamma)
    batch = next(iter(method.batches.epoch(0)))
    seen, _, _, look = coming(method, batch)
    rates = (0.5, 0.2)
    # Shares that the labels weren't drawn from, so that the weights aren't all 1.
    uneven = torch.linspace(0.5, 1.5, 10) / 10
    assert look.drawn is not None
    look = Look(
        look.batch, Drawn(look.drawn.portion, uneven, 1.0), *(look.fake, look.needs),
        look.clean,
    )  # fmt: skip
    seen = (seen[0], (*seen[1][:2], uneven), *seen[2:])
    levels = method.levels
    assert isinstance(levels, FourLevels)
    expected = levels.hypergradient(look, *rates)
    slopes, found = taught.gradient_of_head(
        method.first, method.model, method.gan, seen, *rates, strength, gamma
    )
    assert set(found.paths) == set(expected.paths)
    for path, length in expected.path_norms.items():
        assert float(length) > 0
        assert_close(found.path_norms[path], length, rtol=1e-3, atol=1e-9)
    for name, slope in levels.total(expected).items():
        assert_close(slopes[name], slope, rtol=1e-4, atol=1e-7)
    for role in ROLES:
        for name in slopes:
            key = f"{role}.{name}"
            assert_close(found[key], expected[key], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("strength", "gamma"), [(0.7, 0.4), (2.0, 1.5)])
def test_steps_are_those_of_the_library(
    taught: Any, strength: float, gamma: float
) -> None:
    mine, theirs = small_method(strength, gamma), small_method(strength, gamma)
    start = copy.deepcopy(mine.model.state_dict())
    optimisers = {"A": mine.meta_optimiser, "W": mine.optimiser}
    for batch in list(theirs.batches.epoch(0))[:STEPS]:
        seen, real, _, _ = coming(mine, batch)
        lr = mine.optimiser.param_groups[0]["lr"]
        found = taught.needs_aware_step(
            mine.first, mine.model, mine.gan, seen, real, optimisers,
            lr, 1e-3, strength, gamma,
        )  # fmt: skip
        logged = theirs.step(batch)
        assert_close(found.outer_loss, logged["outer_loss"], rtol=1e-4, atol=1e-6)
    for name, value in mine.model.state_dict().items():
        assert (value - start[name]).abs().max() > 1e-3
    pairs = (
        (mine.model, theirs.model),
        (mine.first, theirs.first),
        (mine.generator, theirs.generator),
        (mine.gan.gan.discriminator, theirs.gan.gan.discriminator),
    )
    for ours, others in pairs:
        values = zip(ours.parameters(), others.parameters(), strict=True)
        for one, other in values:
            assert_close(one, other, rtol=1e-3, atol=2e-4)

"""What chapter 11 teaches is what the library does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.taught import functions, lines_of_code
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.testing import assert_close

from needsaug_lite import data, losses, models, training
from needsaug_lite.methods.baselines.generative import GDA, PCR, Generative
from needsaug_lite.methods.baselines.synthetic_images import SyntheticSettings
from needsaug_lite.models import Generator, unrecorded

NOTEBOOK = "11_when_synthetic_data_hurts.ipynb"
ALGORITHM = {"gda_loss", "pcr_loss", "synthetic_step"}
TAUGHT = ALGORITHM | {"label_mass"}
STEPS = 3


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK, TAUGHT, np=np, cross_entropy=cross_entropy, unrecorded=unrecorded
    )


class Blots(Generator):
    """Images from random weights that depend on z and y."""

    def __init__(self) -> None:
        super().__init__(6, 10)
        self.layer = nn.Linear(16, 64)

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        given = torch.cat([latents, one_hot(labels, 10).float()], 1)
        made: Tensor = self.layer(given).sigmoid()
        return made.view(-1, 1, 8, 8)


def test_algorithm_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, ALGORITHM) <= 40


@pytest.mark.parametrize(("kind", "name"), [(GDA, "gda_loss"), (PCR, "pcr_loss")])
def test_steps_are_those_of_the_library(
    taught: Any, kind: type[Generative], name: str
) -> None:
    splits = data.load("digits", seed=0, kept=0.2)
    torch.manual_seed(0)
    made, start = Blots(), models.build("convnet", splits.image_shape, 10, width=4)
    recipe = training.Optimisation(lr=0.05, batch_size=32, warmup=0.0)
    theirs, ours = copy.deepcopy(start), copy.deepcopy(start)
    method = kind(
        theirs,
        splits,
        generator=made,
        synthetic=SyntheticSettings(strength=0.6, batch_size=16),
        optimisation=recipe,
        seed=1,
    )
    method.stages(5)
    method.begin_epoch(0)
    draw = torch.Generator()
    draw.set_state(method.draw.get_state())
    optimiser = recipe.optimiser(ours)
    normal = method.normalisation.from_unit
    batches = list(method.batches.epoch(0))[:STEPS]
    for batch in batches:
        z, y = made.noise(16, draw), made.labels(16, draw)
        with torch.no_grad():
            images = made.sample(z, y)
            changed = images
            if kind is PCR:
                drawn = method.strong.draw(images.shape, draw)
                changed = method.strong(images, drawn)
        loss = getattr(taught, name)
        views = normal(images), normal(changed), y
        value = taught.synthetic_step(ours, optimiser, batch, views, loss, 0.6)
        assert_close(value, method.step(batch)["synthetic_loss"], rtol=1e-4, atol=1e-5)
    assert len(batches) == STEPS
    moved = torch.cat([p.detach().flatten() for p in ours.parameters()])
    expected = torch.cat([p.detach().flatten() for p in theirs.parameters()])
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    assert (moved - expected).norm() < 1e-3 * (expected - before).norm()
    for mine, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert_close(mine, their, rtol=1e-4, atol=1e-5)


def test_consistency_is_that_of_the_library_and_leaves_the_head(taught: Any) -> None:
    torch.manual_seed(0)
    model = models.build("convnet", (1, 8, 8), 10, width=4).double().eval()
    images, changed = torch.rand(2, 12, 1, 8, 8, dtype=torch.float64)
    found = taught.pcr_loss(model, images, changed, torch.zeros(12).long())
    expected = losses.pseudo_consistency(
        model.features(changed), model.features(images)
    )
    assert_close(found, expected)
    found.backward()
    assert all(p.grad is None for p in model.head.parameters())
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_training_on_a_mixture_leads_to_its_masses(
    taught: Any, strength: float
) -> None:
    """Minimising real and generated cross-entropy at one image gives m / Σ m."""
    source = np.random.default_rng(0)
    real, made = source.random((2, 5, 3))
    prior = np.array([0.5, 0.3, 0.2])
    mass = torch.from_numpy(taught.label_mass(real, made, prior, strength))
    logits = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)
    real_part = torch.from_numpy(real * prior)
    made_part = torch.from_numpy(made / 3)

    def closure() -> Tensor:
        fit.zero_grad()
        logs = logits.log_softmax(1)
        loss = -(real_part * logs).sum() - strength * (made_part * logs).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    fit.step(closure)  # type: ignore[no-untyped-call]
    share = mass / mass.sum(1, keepdim=True)
    assert_close(logits.detach().softmax(1), share, rtol=1e-4, atol=1e-6)

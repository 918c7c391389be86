"""What chapter 12 teaches is what the library does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.synthetic import make, painter
from helpers.taught import functions, lines_of_code
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.methods.mgr import MGR
from needsaug_lite.models import features_with, unrecorded

NOTEBOOK = "12_learning_where_to_sample.ipynb"
ALGORITHM = {"search_direction", "divergence_of", "finder_step", "mgr_step"}
TAUGHT = ALGORITHM | {"consistency", "gradient", "leaves"}
STEPS = 3


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        TAUGHT,
        torch=torch,
        functional_call=functional_call,
        cross_entropy=cross_entropy,
        features_with=features_with,
        unrecorded=unrecorded,
    )


def test_algorithm_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, ALGORITHM) <= 40


def test_divergence_is_that_of_the_library(taught: Any) -> None:
    source = torch.Generator().manual_seed(0)
    vectors = 2 * torch.randn(9, 4, generator=source, dtype=torch.float64) + 0.3
    expected = losses.kl_to_standard_normal(vectors)
    assert float(expected) > 1
    assert_close(taught.divergence_of(vectors), expected)


def test_consistency_is_that_of_the_library(taught: Any) -> None:
    method = make(MGR)
    source = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 1, 8, 8, generator=source) for _ in range(2)]
    params = dict(method.model.named_parameters())
    named = dict(zip(("plain", "changed"), views, strict=True))
    expected = method.synthetic_loss(params, named, torch.zeros(6).long())
    assert expected.item() > 0
    assert_close(taught.consistency(method.model, params, views), expected)


@pytest.mark.parametrize("lambda_kl", [0.0, 0.01])
@pytest.mark.parametrize(("eta", "strength"), [(0.3, 0.6), (0.05, 2.0)])
def test_steps_are_those_of_the_library(
    taught: Any, lambda_kl: float, eta: float, strength: float
) -> None:
    method = make(
        MGR,
        source=painter(),
        synthetic={"strength": strength},
        search={"lambda_kl": lambda_kl, "look_ahead": eta, "lr": 1e-3},
    )
    method.stages(1)
    method.begin_epoch(0)
    model, finder = copy.deepcopy((method.model, method.finder))
    sgd = method.optimisation.optimiser(model)
    for group in sgd.param_groups:
        group["lr"] = method.optimiser.param_groups[0]["lr"]
    adam = torch.optim.Adam(finder.parameters(), lr=1e-3, eps=1e-15)
    meta = copy.copy(method.meta)
    meta.begin_epoch(0)
    for batch in list(method.batches.epoch(0))[:STEPS]:
        before = method.draw.get_state()
        latents, labels = method.latents()
        of_change = method.draw.get_state()

        def generate(
            points: torch.Tensor,
            labels: torch.Tensor = labels,
            of_change: torch.Tensor = of_change,
        ) -> tuple[torch.Tensor, ...]:
            method.draw.set_state(of_change)
            images = method.generator.sample(points, labels)
            return tuple(method.views(images).values())

        clean = next(meta)
        search, prior, outer = taught.mgr_step(
            model.train(),
            finder,
            (sgd, adam),
            generate,
            (batch.images, batch.labels),
            latents,
            (clean.images, clean.labels),
            eta,
            strength,
            lambda_kl,
        )
        method.draw.set_state(before)
        logged = method.step(batch)
        assert float(search.norm()) > 0
        assert_close(search.norm(), logged["search_gradient"], rtol=5e-3, atol=1e-9)
        assert_close(prior.norm(), logged["prior_gradient"], rtol=5e-3, atol=1e-9)
        assert_close(outer, logged["outer_loss"], rtol=1e-4, atol=1e-6)
    for mine, theirs in ((model, method.model), (finder, method.finder)):
        pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
        for one, other in pairs:
            assert_close(one, other, rtol=1e-3, atol=3e-5)
    # Generated images leave no trace in the running moments.
    for one, other in zip(model.buffers(), method.model.buffers(), strict=True):
        assert_close(one, other)

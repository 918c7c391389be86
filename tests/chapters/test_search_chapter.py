"""What chapter 15 teaches is what the library does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.taught import functions, lines_of_code
from torch.func import functional_call
from torch.nn.functional import cross_entropy, max_pool2d
from torch.testing import assert_close

from needsaug_lite import models
from needsaug_lite.data import load
from needsaug_lite.methods.search.pc_darts import PCDARTS
from needsaug_lite.methods.search.settings import EvaluationSettings, SearchSettings
from needsaug_lite.models import unrecorded
from needsaug_lite.models.cell_operations import OPERATIONS, MixedEdges, shuffled
from needsaug_lite.models.genotype import discretise
from needsaug_lite.models.search_cell import KINDS, Architecture, Space
from needsaug_lite.training import Optimisation

NOTEBOOK = "15_searching_where_data_is_needed.ipynb"
STEP = {"loss_at", "slopes", "gradient_of_cells", "search_step"}
ALGORITHM = {"mixed_edge", "discretised"} | STEP
PART = "backbone.architecture."
STEPS = 3


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        ALGORITHM,
        torch=torch,
        PART=PART,
        unrecorded=unrecorded,
        functional_call=functional_call,
        cross_entropy=cross_entropy,
        max_pool2d=max_pool2d,
    )


def small_search(**settings: Any) -> Any:
    """PC-DARTS on digits in the smallest supernet that has all kinds of cells."""
    splits = load("digits", meta_per_class=10, seed=0)
    torch.manual_seed(0)
    model = models.build(
        "supernet",
        splits.image_shape,
        splits.num_classes,
        width=4,
        cells=3,
        nodes=1,
        operations=("none", "avg_pool_3x3", "skip_connect", "sep_conv_3x3"),
        partial=2,
        halvings=0,
        edge_normalised=True,
    )
    method = PCDARTS(
        model,
        splits,
        search=SearchSettings(length=1.0, warm_up=0.0, meta_lr=0.05),
        evaluation=EvaluationSettings(auxiliary=0.0),
        optimisation=Optimisation(lr=0.1, batch_size=32, warmup=0.0, schedule="cosine"),
        seed=0,
        **settings,
    )
    method.stages(1)
    method.searcher.begin_epoch(0)
    return method.searcher


def test_each_part_fits_in_forty_lines() -> None:
    for part in ({"mixed_edge"}, STEP, {"discretised"}):
        assert lines_of_code(NOTEBOOK, part) <= 40


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("partial", [2, 4])
def test_edge_is_that_of_the_library(taught: Any, stride: int, partial: int) -> None:
    torch.manual_seed(0)
    theirs = MixedEdges(OPERATIONS, 8, stride, partial, 1)
    x = torch.randn(4, 8, 6, 6)
    alpha, beta = torch.rand(len(OPERATIONS)).softmax(0), torch.tensor(0.3)
    mixed, beside = theirs(x, beta * alpha[None], beta[None])
    assert beside is not None
    expected = shuffled(torch.cat([mixed[:, 0], beside[:, 0]], 1), partial)
    shares = dict(zip(OPERATIONS, alpha, strict=True))
    found = taught.mixed_edge(theirs.operations, x, shares, beta, partial, stride)
    assert_close(found, expected)


@pytest.mark.parametrize("route", ["first_order", "finite_difference"])
def test_gradient_is_that_of_the_library(taught: Any, route: str) -> None:
    search = small_search(route=route)
    batch = next(iter(search.batches.epoch(0)))
    clean = next(search.held_out)
    expected = search.hypergradient(batch, clean)
    lr = search.learner.optimiser.param_groups[0]["lr"]
    rate = 0.0 if route == "first_order" else lr
    decay = search.learner.optimisation.weight_decay
    found = taught.gradient_of_cells(search.model, batch, clean, rate, decay)
    assert set(found) == {f"{PART}{name}" for name in expected}
    for name, slope in found.items():
        assert float(slope.abs().max()) > 1e-6
        assert_close(slope, expected[name.removeprefix(PART)], rtol=1e-3, atol=1e-7)


def test_routes_differ(taught: Any) -> None:
    search = small_search()
    batch = next(iter(search.batches.epoch(0)))
    clean = next(search.held_out)
    first = taught.gradient_of_cells(search.model, batch, clean)
    ahead = taught.gradient_of_cells(search.model, batch, clean, 0.1)
    assert any((first[n] - ahead[n]).norm() > 1e-2 * first[n].norm() for n in first)


def test_steps_are_those_of_the_library(taught: Any) -> None:
    mine, theirs = small_search(), small_search()
    start = {n: p.detach().clone() for n, p in mine.model.named_parameters()}
    optimisers = {"A": mine.meta_optimiser, "W": mine.learner.optimiser}
    for batch in list(theirs.batches.epoch(0))[:STEPS]:
        taught.search_step(mine.model, batch, next(mine.held_out), optimisers)
        theirs.step(batch)
    others = dict(theirs.model.named_parameters())
    for name, value in mine.model.named_parameters():
        assert not torch.equal(value, start[name])
        assert_close(value, others[name], rtol=1e-3, atol=1e-4)
    buffers = dict(theirs.model.named_buffers())
    for name, moment in mine.model.named_buffers():  # only real training images count
        assert_close(moment, buffers[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_cells_are_those_of_the_library(taught: Any, nodes: int) -> None:
    for number in range(10):
        torch.manual_seed(number)
        architecture = Architecture(Space(nodes=nodes))
        with torch.no_grad():
            for parameter in architecture.parameters():
                parameter.normal_()
        expected = discretise(architecture)
        for kind in KINDS:
            found = taught.discretised(
                architecture.strengths(kind), OPERATIONS, architecture.space.inputs
            )
            assert found == expected.cell(kind)

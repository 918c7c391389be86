"""The gradient of an architecture by every route, and who moves what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.needs import weights
from helpers.supernets import (
    OPERATIONS,
    SEARCH,
    begin,
    doubled,
    error,
    flat,
    halves,
    held,
    leaves,
    penalty,
    scores,
    search,
    stepped,
    tensors,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus
from torch.testing import assert_close

from needsaug_lite.data import Batch
from needsaug_lite.methods.search.bilevel import BilevelSearch
from needsaug_lite.methods.search.pc_darts import (
    DARTS,
    PCDARTS,
    EqualSearch,
    JointSearch,
)
from needsaug_lite.methods.search.settings import SearchSettings

LR = 0.5


def in_float64(**settings: Any) -> tuple[Any, Batch, Batch]:
    """A searcher that has trained for a while, and two batches."""
    method = search(PCDARTS, **settings)
    searcher = method.searcher
    for batch in begin(method)[:3]:
        searcher.step(batch)
    searcher.model.double()
    batches = begin(method, 1)
    searcher.learner.optimiser.param_groups[0]["lr"] = LR
    return searcher, doubled(batches[0]), doubled(next(searcher.held_out))


def validation_loss(
    searcher: Any, seen: Batch, clean: Batch, lr: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_val(W - η ∇(L_tr(W, A) + decay), A) as one graph, and its leaves A."""
    own, part = halves(leaves(searcher.model))
    if lr:
        found = scores(searcher.model, {**own, **part}, seen.images)
        loss = cross_entropy(found, seen.labels)
        own = stepped(loss + penalty(own, SEARCH.weight_decay), own, lr)
    found = scores(searcher.model, {**own, **part}, clean.images)
    return cross_entropy(found, clean.labels), part


@pytest.mark.parametrize("route", ["exact", "first_order"])
def test_the_gradient_of_a_is_that_of_one_graph(route: str) -> None:
    searcher, seen, clean = in_float64(route=route)
    found = searcher.hypergradient(seen, clean)
    lr = LR if route == "exact" else 0.0
    value, part = validation_loss(searcher, seen, clean, lr)
    truth = torch.autograd.grad(value, list(part.values()))
    assert len(part) == 4
    assert error(dict(found), dict(zip(part, truth, strict=True))) < 1e-9
    assert_close(found.outer_loss, value.detach(), rtol=1e-10, atol=0)
    other, _ = validation_loss(searcher, seen, clean, LR - lr)
    assert abs(float((other - value).detach())) > 1e-3  # the routes can be told apart


def test_the_error_of_differences_falls_with_the_square_of_the_radius(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def smooth_relu(maps: Tensor) -> Tensor:  # a method; softplus isn't one
        return softplus(maps)

    monkeypatch.setattr(Tensor, "relu", smooth_relu)
    smooth = {"partial": 1, "operations": ("avg_pool_3x3", "dil_conv_3x3")}
    searcher, seen, clean = in_float64(model=smooth, route="exact")
    for module in list(searcher.model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    truth = dict(searcher.hypergradient(seen, clean))
    searcher.route = "finite_difference"
    gaps = []
    for radius in (2e-3, 1e-3):
        searcher.radius = radius
        gaps.append(error(dict(searcher.hypergradient(seen, clean)), truth))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)
    assert gaps[1] < 1e-3


@pytest.mark.parametrize("route", ["first_order", "finite_difference", "exact"])
def test_a_look_leaves_no_trace(route: str) -> None:
    searcher, seen, clean = in_float64(route=route)
    before, drawn = tensors(searcher.model), torch.get_rng_state()
    searcher.hypergradient(seen, clean)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = tensors(searcher.model)
    assert all(value.equal(after[name]) for name, value in before.items())


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_a_step_is_adam_for_a_then_sgd_for_the_weights(clip: float) -> None:
    given = SearchSettings(
        length=1.0, warm_up=0.0, weight_decay=0.01, meta_decay=0.2, clip=clip
    )
    method = search(PCDARTS, search=given)
    seen, searcher = begin(method)[0], method.searcher
    clean = next(searcher.held_out)
    searcher.held_out.begin_epoch(0)
    value, part = validation_loss(searcher, seen, clean, 0.0)
    twin = [nn.Parameter(p.detach().clone()) for p in part.values()]
    adam = torch.optim.Adam(twin, 0.006, (0.5, 0.999), weight_decay=0.2)
    for one, slope in zip(
        twin, torch.autograd.grad(value, list(part.values())), strict=True
    ):
        one.grad = slope
    adam.step()
    own, _ = halves(leaves(searcher.model))
    moments = tensors(searcher.model)
    logged = searcher.step(seen)
    _, moved = halves(weights(searcher.model))
    for name, one in zip(part, twin, strict=True):
        assert_close(moved[name], one.data, rtol=0, atol=1e-6)
    assert_close(logged["outer_loss"], value.detach())

    # W with the new A; decay is added after the gradient is shortened.
    loss = cross_entropy(
        scores(searcher.model, {**own, **moved}, seen.images), seen.labels
    )
    slopes = torch.autograd.grad(loss, list(own.values()))
    norm = torch.cat([s.flatten() for s in slopes]).norm()
    assert (norm > clip) == (clip < 1)
    short = min(1.0, clip / float(norm))
    after, _ = halves(weights(searcher.model))
    for (name, old), slope in zip(own.items(), slopes, strict=True):
        step = 0.05 * (short * slope + 0.01 * old.detach())
        assert_close(after[name], old.detach() - step, rtol=1e-4, atol=1e-6)

    # Of the running moments the training images alone left a trace, once.
    norm_of = "backbone.stem.1.num_batches_tracked"
    assert tensors(searcher.model)[norm_of] == moments[norm_of] + 1


@pytest.mark.parametrize("kind", [PCDARTS, DARTS, EqualSearch, JointSearch])
def test_nobody_but_adam_holds_a(kind: Any) -> None:
    method = search(kind)
    searcher = method.searcher
    part = {id(p) for p in method.architecture.parameters()}
    rest = {id(p) for p in searcher.model.parameters()} - part
    assert held(searcher.meta_optimiser) == part
    assert held(searcher.learner.optimiser) == rest
    searcher.moving = False
    before = weights(method.architecture)
    others, _ = halves(weights(searcher.model))
    batches = begin(method)
    for batch in batches[:2]:
        searcher.step(batch)
    after = weights(method.architecture)
    assert all(value.equal(after[name]) for name, value in before.items())
    moved, _ = halves(weights(searcher.model))
    assert not all(value.equal(moved[name]) for name, value in others.items())


def test_a_moves_at_every_third_step() -> None:
    method = search(PCDARTS, interval=3)
    searcher: BilevelSearch = method.searcher
    batches = begin(method, 1)
    assert len(batches) >= 3
    moved = []
    for batch in (batches * 3)[:7]:
        before = flat(weights(method.architecture))
        searcher.step(batch)
        moved.append(not torch.equal(before, flat(weights(method.architecture))))
    assert moved == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("kind", "partial", "edges"), [(PCDARTS, None, True), (DARTS, 1, False)]
)
def test_what_the_two_searches_settle(
    kind: Any, partial: int | None, edges: bool
) -> None:
    assert (kind.partial, kind.edge_normalised) == (partial, edges)
    assert len(OPERATIONS) == search(kind).architecture.normal.shape[1]

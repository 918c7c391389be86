"""The search network: its sums against single operations, its sharing, its sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import max_pool2d
from torch.testing import assert_close

from needsaug_lite import models
from needsaug_lite.errors import UserError
from needsaug_lite.models import Architecture, Space, Supernet
from needsaug_lite.models.cell_operations import (
    OPERATIONS,
    MixedEdges,
    operation,
    shuffled,
)
from needsaug_lite.models.search_cell import KINDS, SearchCell

F64 = torch.float64
SMALL = Space(2)


def maps(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=F64, generator=generator)


def supernet(space: Space = SMALL, **options: Any) -> Supernet:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 4, "cells": 3, "partial": 2} | options
    architecture = Architecture(space)
    for parameter in architecture.parameters():
        nn.init.normal_(parameter)
    return Supernet(1, architecture, **sizes).double()


def single(
    layer: nn.Module, name: str, stride: int, copy: int, count: int
) -> nn.Module:
    """One copy's operation with its part of the weights of all copies."""
    alone = operation(name, 4, stride, affine=False).double()
    own = layer.state_dict()
    parts = {
        key: own[key].unflatten(0, (count, -1))[copy]
        for key, value in alone.state_dict().items()
        if value.ndim
    }
    alone.load_state_dict(parts, strict=False)
    return alone


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("partial", [1, 3])
def test_mixed_edges_are_sums_of_single_operations(stride: int, partial: int) -> None:
    torch.manual_seed(0)
    count, channels = 3, 4 * partial
    mixed = MixedEdges(OPERATIONS, channels, stride, partial, count).double()
    x, strengths, edges = maps(5, channels, 7, 7), maps(3, 8).softmax(1), maps(3)
    total, beside = mixed(x, strengths, edges)
    for copy in range(count):
        wanted = torch.zeros_like(total[:, copy])
        for name, layer in mixed.operations.items():
            number = 1 if mixed._alike(name) else count
            alone = single(layer, name, stride, min(copy, number - 1), number)
            column = OPERATIONS.index(name)
            wanted = wanted + strengths[copy, column] * alone(x[:, :4])
        assert_close(total[:, copy], wanted)
    if partial == 1:
        assert beside is None
    else:
        rest = x[:, 4:]
        rest = rest if stride == 1 else max_pool2d(rest, 2, ceil_mode=True)
        assert_close(beside, edges[None, :, None, None, None] * rest[:, None])


@pytest.mark.parametrize("partial", [1, 2])
def test_a_node_sums_over_its_edges(partial: int) -> None:
    """Edge by edge with channels shuffled on each, as PC-DARTS writes it."""
    torch.manual_seed(0)
    space = Space(3)
    cell = SearchCell(
        space, (8, 8), 4, halve=True, halved=False, partial=partial
    ).double()
    inputs = maps(3, 8, 8, 8), maps(3, 8, 8, 8, seed=2)
    strengths, edges = maps(3, 4, 8), maps(3, 4, seed=3)
    states = [cell.first(inputs[0]), cell.second(inputs[1])]
    for node in range(3):
        total = torch.zeros_like(maps(3, 4, 4, 4))
        for state in range(node + 2):
            start = max(0, state - 1)
            mixed, beside = cell.sources[state](
                states[state], strengths[start:, state], edges[start:, state]
            )
            parts = [p[:, node - start] for p in (mixed, beside) if p is not None]
            total = total + shuffled(torch.cat(parts, 1), partial)
        states.append(total)
    assert_close(cell(inputs, strengths, edges), torch.cat(states[2:], 1))


def test_one_hot_preferences_leave_one_operation() -> None:
    torch.manual_seed(0)
    mixed = MixedEdges(OPERATIONS, 4, 1, 1, 2).double()
    architecture = Architecture(Space(1))
    x = maps(3, 4, 6, 6)
    for column, name in enumerate(OPERATIONS):
        with torch.no_grad():
            architecture.normal.zero_()[:, column] = 1e4
            assert architecture.normal_edges is not None
            architecture.normal_edges.copy_(torch.tensor([1e4, 0.0]))
        strengths = architecture.strengths("normal").double()
        total, _ = mixed(x, strengths, architecture.edges_of("normal").double())
        if name == "none":
            wanted = torch.zeros_like(x)
        else:
            layer = mixed.operations[name]
            number = 1 if mixed._alike(name) else 2
            wanted = single(layer, name, 1, 0, number)(x)
        assert_close(total[:, 0], wanted)
        assert_close(total[:, 1], torch.zeros_like(x))  # β = 0


def test_the_shuffle_is_a_permutation_that_takes_turns() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    found = shuffled(x, 3).flatten().tolist()
    assert found == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert_close(shuffled(shuffled(x, 3), 4), x)
    assert shuffled(x, 1) is x


@pytest.mark.parametrize(
    ("channels", "side", "halvings", "cells"),
    [(1, 28, 0, 3), (1, 28, 1, 3), (3, 32, 2, 4), (3, 32, 0, 1), (1, 8, 0, 2)],
)
def test_sizes(channels: int, side: int, halvings: int, cells: int) -> None:
    torch.manual_seed(0)
    net = Supernet(
        channels, Architecture(SMALL), width=4, cells=cells, halvings=halvings
    )
    halved = min(cells, 2)
    assert net.feature_dim == 2 * 4 * 2**halved
    features = net(torch.randn(2, channels, side, side))
    assert features.shape == (2, net.feature_dim)


def test_shares_sum_to_one() -> None:
    architecture = Architecture(Space(4))
    assert Space(4).edges == 14
    for kind in KINDS:
        assert architecture.operations_of(kind).shape == (14, 8)
        assert_close(architecture.operations_of(kind).sum(1), torch.ones(14))
        parts = torch.split(architecture.edges_of(kind), [2, 3, 4, 5])
        assert_close(torch.stack([p.sum() for p in parts]), torch.ones(4))
    plain = Architecture(Space(4), edge_normalised=False)
    assert_close(plain.edges_of("reduce"), torch.ones(14))
    assert [name for name, _ in plain.named_parameters()] == ["normal", "reduce"]


@pytest.mark.parametrize("partial", [1, 2])
def test_gradients_by_preferences_are_finite_differences(partial: int) -> None:
    net, images = supernet(partial=partial), maps(4, 1, 8, 8)
    names = [f"architecture.{n}" for n, _ in net.architecture.named_parameters()]
    start = {n: p.detach() for n, p in net.named_parameters()}
    direction = {n: maps(*start[n].shape, seed=5) for n in names}

    def value(step: Tensor) -> Tensor:
        moved = {n: start[n] + step * direction[n] for n in names}
        found: Tensor = functional_call(net, start | moved, (images,))
        return found.square().sum()

    def slope(step: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value(step), step, create_graph=True)
        return found

    # Small, as ReLU and pooling have kinks.
    here = torch.zeros((), dtype=F64, requires_grad=True)
    h = 1e-7
    up, down = here + h, here - h
    assert_close(slope(here), (value(up) - value(down)) / (2 * h), rtol=1e-5, atol=0)
    (bend,) = torch.autograd.grad(slope(here), here)
    assert_close(bend, (slope(up) - slope(down)) / (2 * h), rtol=1e-4, atol=0)


def test_second_derivatives_through_weights_exist() -> None:
    net, images = supernet(), maps(4, 1, 8, 8)
    loss = net(images).square().sum()
    weights = [p for n, p in net.named_parameters() if "architecture" not in n]
    inner = torch.autograd.grad(loss, weights, create_graph=True)
    outer = torch.autograd.grad(
        torch.stack([g.square().sum() for g in inner]).sum(),
        list(net.architecture.parameters()),
    )
    assert all(bool(g.isfinite().all()) and bool((g != 0).any()) for g in outer)


def test_preferences_may_be_passed_in() -> None:
    net, images = supernet(), maps(3, 1, 8, 8)
    other = {n: maps(*p.shape) for n, p in net.architecture.named_parameters()}
    before = net(images)
    passed = {f"architecture.{n}": value for n, value in other.items()}
    found = functional_call(net, passed, (images,))
    assert_close(net(images), before)
    with torch.no_grad():
        for name, parameter in net.architecture.named_parameters():
            parameter.copy_(other[name])
    assert_close(found, net(images))
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_twin_shares_the_architecture_and_nothing_else(fresh: bool) -> None:
    net, images = supernet(), maps(3, 1, 8, 8)
    net(images).sum().backward()
    torch.manual_seed(7)
    twin = net.twin(fresh=fresh)
    assert twin.architecture is net.architecture
    assert all(p.grad is not None for p in net.architecture.parameters())
    shared = {id(t) for t in [*net.parameters(), *net.buffers()]}
    own = {n for n, t in [*twin.named_parameters()] if id(t) in shared}
    assert own == {
        f"architecture.{n}"
        for n in ("normal", "reduce", "normal_edges", "reduce_edges")
    }
    assert not any(id(t) in shared for t in twin.buffers())
    assert torch.allclose(twin(images), net(images)) is not fresh
    before = net(images)
    with torch.no_grad():
        twin.stem.get_parameter("0.weight").add_(1)
    assert_close(net(images), before)


def test_a_fresh_twin_is_drawn_as_the_first_was() -> None:
    net = supernet(width=16)
    weights = [p.detach() for n, p in net.named_parameters() if "archi" not in n]
    twin = net.twin(fresh=True)
    drawn = [p.detach() for n, p in twin.named_parameters() if "archi" not in n]
    wide = [
        (a.std(), b.std())
        for a, b in zip(weights, drawn, strict=True)
        if a.numel() > 500
    ]
    assert wide
    for a, b in wide:
        assert abs(float(a / b) - 1) < 0.2


def test_a_seed_repeats() -> None:
    assert_close(supernet().state_dict(), supernet().state_dict())


def test_only_the_operations_of_the_space_are_built() -> None:
    few = supernet(Space(2, ("none", "skip_connect")))
    assert few.architecture.normal.shape == (5, 2)
    assert not [n for n, _ in few.named_parameters() if "conv" in n]


def test_builds_a_classifier() -> None:
    torch.manual_seed(0)
    model = models.build(
        "supernet",
        (1, 8, 8),
        5,
        width=4,
        cells=2,
        nodes=2,
        operations=("skip_connect",),
    )
    assert "backbone.architecture.normal" in dict(model.named_parameters())
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 6}, "partial is 4"),
        ({"halvings": 2}, "fewer halvings"),
        ({"halvings": 3}, "use 0, 1 or 2"),
        ({"cells": 0}, "at least 1"),
        ({"nodes": 0}, "at least 1"),
        ({"operations": ("none",)}, "other than none"),
        ({"operations": ("conv",)}, "sep_conv_3x3"),
        ({"operations": ("none", "none")}, "once"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        models.build("supernet", (1, 8, 8), 5, **({"width": 8, "cells": 3} | options))


def test_unknown_operations_and_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="max_pool_3x3"):
        operation("conv", 4, 1, affine=False)
    with pytest.raises(UserError, match="at least 2 channels"):
        operation("skip_connect", 1, 2, affine=False)
    with pytest.raises(UserError, match="3 x 3 pixels"):
        supernet()(maps(1, 1, 3, 3))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("side", [1, 6, 7])
def test_strides_round_up(name: str, side: int) -> None:
    layer = operation(name, 4, 2, affine=True)
    assert layer(torch.randn(2, 4, side, side)).shape[2:] == (-(-side // 2),) * 2

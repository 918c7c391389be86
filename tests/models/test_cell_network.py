"""The evaluation network: its sum, its drop path, its auxiliary head, its size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from needsaug_lite.errors import UserError
from needsaug_lite.models import Architecture, Space
from needsaug_lite.models.cell_network import Cell, CellNetwork, drop_paths
from needsaug_lite.models.genotype import Genotype, discretise

POOL, SKIP, SEP = "avg_pool_3x3", "skip_connect", "sep_conv_3x3"
FOUND = Genotype(
    ((SKIP, 0), (SEP, 1), (SKIP, 1), (POOL, 2)),
    ((POOL, 0), (SKIP, 1), (SKIP, 1), (SEP, 2)),
)
SKIPS = ((SKIP, 0), (SKIP, 1), (SKIP, 0), (SKIP, 2))


def network(genotype: Genotype = FOUND, classes: int | None = 5) -> CellNetwork:
    torch.manual_seed(0)
    return CellNetwork(1, genotype, width=4, cells=3, classes=classes)


def images(count: int = 4, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, side, side, generator=generator)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("halve", [False, True])
def test_a_node_is_the_sum_of_two_operations(halve: bool) -> None:
    torch.manual_seed(0)
    cell = Cell(FOUND, (6, 6), 4, halve=halve, halved=False)
    x, y = torch.randn(2, 3, 6, 8, 8)
    states = [cell.first(x), cell.second(y)]
    for (a, i), (b, j) in pairwise(zip(cell.operations, cell.inputs, strict=True)):
        if len(states) == 2 or a is cell.operations[2]:
            states.append(a(states[i]) + b(states[j]))
    assert_close(cell(x, y), torch.cat(states[2:], 1))
    assert cell.inputs == [i for _, i in (FOUND.reduce if halve else FOUND.normal)]


@pytest.mark.parametrize(
    ("channels", "side", "cells", "halvings"),
    [(1, 28, 3, 0), (1, 28, 3, 1), (3, 32, 6, 2), (1, 8, 1, 0), (1, 7, 2, 0)],
)
def test_sizes(channels: int, side: int, cells: int, halvings: int) -> None:
    torch.manual_seed(0)
    net = CellNetwork(
        channels, FOUND, width=4, cells=cells, halvings=halvings, classes=5
    )
    assert net.feature_dim == 2 * 4 * 2 ** min(cells, 2)
    features, logits = net.with_auxiliary(torch.randn(2, channels, side, side))
    assert features.shape == (2, net.feature_dim)
    assert logits.shape == (2, 5)


def test_the_auxiliary_head_changes_no_feature() -> None:
    net = network().eval()
    assert_close(net.with_auxiliary(images())[0], net(images()))
    without = network(classes=None)
    assert parameters(without) < parameters(net)
    with pytest.raises(UserError, match="build it with classes"):
        without.with_auxiliary(images())


def test_the_size_depends_on_the_genotype_alone() -> None:
    """Preferences that rank alike give networks of one size and one start."""
    torch.manual_seed(0)
    first = Architecture(Space(2))
    for parameter in first.parameters():
        nn.init.normal_(parameter)
    second = Architecture(Space(2))
    with torch.no_grad():
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            b.copy_(a + 3)
    one, two = network(discretise(first)), network(discretise(second))
    assert parameters(one) == parameters(two)
    assert_close(one(images()), two(images()))


def test_the_size_by_hand() -> None:
    # Width 2, one cell, which halves: C = 4. Stem 54 + 12; two preparations of
    # 6 * 4 + 8; skips of stride 2: 4 * 4 + 8 each, three of them; one identity.
    net = CellNetwork(1, Genotype(SKIPS, SKIPS), width=2, cells=1)
    assert parameters(net) == 54 + 12 + 2 * 32 + 3 * 24


def test_dropped_paths_keep_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 2, 2).expand(20_000, 3, 2, 2)
    found = drop_paths(x, 0.3)
    kept = (found != 0).flatten(1)
    assert bool((kept.all(1) | ~kept.any(1)).all())  # whole samples
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.015)
    assert_close(found.mean(0), x[0], rtol=0.03, atol=0)
    assert drop_paths(x, 0) is x


def test_paths_are_dropped_in_training_only() -> None:
    net = network()
    net(images())
    off, still = net.eval()(images()), torch.get_rng_state()
    net.drop_probability = 0.5
    assert_close(net(images()), off)
    assert torch.equal(torch.get_rng_state(), still)
    net.train()
    assert not torch.allclose(net(images()), net(images()))
    # The global seed repeats what is dropped.
    torch.manual_seed(3)
    first = net(images())
    torch.manual_seed(3)
    assert_close(net(images()), first)


def test_identities_are_never_dropped() -> None:
    cell = Cell(Genotype(SKIPS, SKIPS), (6, 6), 4, halve=False, halved=False)
    x, y = torch.randn(2, 3, 6, 8, 8)
    assert_close(cell(x, y, 0.9), cell(x, y, 0.0))
    halving = Cell(Genotype(SKIPS, SKIPS), (6, 6), 4, halve=True, halved=False)
    assert not torch.allclose(halving(x, y, 0.9), halving(x, y, 0.0))


def test_every_used_weight_learns() -> None:
    net = network()
    features, logits = net.with_auxiliary(images())
    loss = features.square().sum() + logits.square().sum()
    slopes = torch.autograd.grad(loss, list(net.parameters()))
    assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 x 3 pixels"):
        network()(images(side=3))

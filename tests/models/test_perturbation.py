"""The perturbation network: from characteristics to ε in (-1, 1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from needsaug_lite.models import PerturbationNetwork
from needsaug_lite.statistics import CHARACTERISTICS


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(count: int = 20) -> Tensor:
    return torch.randn(count, len(CHARACTERISTICS))


def spread(network: PerturbationNetwork, scale: float) -> None:
    """Weights as after a training."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=scale)


def test_it_starts_at_zero_for_every_sample() -> None:
    assert not PerturbationNetwork()(1000 * inputs()).any()


def test_the_start_has_a_slope() -> None:
    """By u and c at once; by V and a after the first step, because u is zero."""
    network, found = PerturbationNetwork(), inputs()
    names = [name for name, _ in network.named_parameters()]
    weights = torch.randn(20)  # one sample is to be pushed up, another one down
    for step in range(2):
        network.zero_grad()
        (weights * network(found)).sum().backward()
        slopes = {n: bool(p.grad.any()) for n, p in network.named_parameters()}
        last = [name.startswith("layers.2") for name in names]
        assert list(slopes.values()) == (last if step == 0 else [True] * 4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * parameter.grad


def test_the_formula() -> None:
    network, found = PerturbationNetwork(hidden=7), inputs()
    spread(network, 0.3)
    first, bias, last, constant = (p.detach() for p in network.parameters())
    hidden = (found @ first.T + bias).clamp(min=0)
    expected = torch.tanh(hidden @ last[0] + constant)
    torch.testing.assert_close(network(found), expected)
    assert network(found).shape == (20,)


def test_the_range_is_open() -> None:
    network = PerturbationNetwork()
    spread(network, 0.2)
    found = network(inputs(500))
    assert found.abs().max() < 1
    assert found.min() < -0.3
    assert found.max() > 0.3


@pytest.mark.parametrize("hidden", [1, 100, 33])
def test_the_width_is_a_setting(hidden: int) -> None:
    network = PerturbationNetwork(hidden=hidden)
    assert sum(p.numel() for p in network.parameters()) == hidden * (15 + 1 + 1) + 1

"""Batches that leave no trace in running moments."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from needsaug_lite.models import unrecorded


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU())


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "without moments": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "plain instance": lambda: nn.InstanceNorm2d(3),
}


def images() -> Tensor:
    return 2 + torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", NORMS)
def test_the_result_is_that_of_training_and_the_moments_stay(kind: str) -> None:
    model = network(NORMS[kind]()).train()
    other = copy.deepcopy(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with unrecorded(model):
        inside = model(images())
    assert torch.equal(inside, other(images()))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", NORMS)
def test_afterwards_a_batch_is_remembered_as_ever(kind: str) -> None:
    model = network(NORMS[kind]()).train()
    other = copy.deepcopy(model)
    with unrecorded(model), unrecorded(model):
        model(images() + 5)
    for each in (model, other):
        each(images())
    same = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in same)
    if kind == "batch":
        assert int(model.state_dict()["1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("kind", NORMS)
def test_in_evaluation_mode_the_moments_are_used(kind: str) -> None:
    model = network(NORMS[kind]())
    model(images() - 3)
    model.eval()
    plain = model(images())
    with unrecorded(model):
        assert torch.equal(model(images()), plain)


def test_moments_come_back_after_an_error() -> None:
    model = network(nn.BatchNorm2d(3))
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="inside"), unrecorded(model):
        raise ValueError("inside")
    assert list(model.state_dict()) == names

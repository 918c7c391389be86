"""The average of a network: its values, what it refuses, and that nobody waits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from needsaug_lite.methods.generation.averages import MovingAverage


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_it_is_the_librarys_average() -> None:
    torch.manual_seed(0)
    model = network()
    ours = MovingAverage(model, 0.7)
    blend = get_ema_multi_avg_fn(0.7)
    theirs = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
    for _ in range(4):
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape)
        model(torch.randn(6, 3))  # moves the moments of batch norm
        ours.update_parameters(model)
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    for name, found in ours.module.state_dict().items():
        if found.is_floating_point():
            assert_close(found, expected[name], rtol=0, atol=0)
    assert int(ours.n_averaged) == 4


def test_the_average_of_one_network_is_that_network() -> None:
    model = network()
    average = MovingAverage(network(), 0.9)
    for _ in range(3):
        average.update_parameters(model)
    for name, found in average.module.state_dict().items():
        assert_close(found, model.state_dict()[name])


def test_it_is_ready_to_use() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    average.update_parameters(model)
    assert not any(module.training for module in average.modules())
    assert not any(weight.requires_grad for weight in average.parameters())
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.training


class NoMoving(TorchDispatchMode):
    """Refuses what moves numbers between devices or reads them from one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name != "_to_copy"
        if name in {"_local_scalar_dense", "is_nonzero"}:
            assert args[0].device.type == "cpu"
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device() -> None:
    """ "meta" stands for a device whose numbers the host can't see."""
    model = network().to("meta")
    average = MovingAverage(model, 0.9)
    with NoMoving():
        for _ in range(3):
            average.update_parameters(model)
    assert average.n_averaged.device.type == "cpu"

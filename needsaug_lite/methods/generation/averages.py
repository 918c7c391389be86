"""The average of a network over its training, which is sampled in its place."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """A copy of a network that follows it, in evaluation mode and without gradients.

    w̄ ← w in the first step,   w̄ ← d w̄ + (1 - d) w in those that follow

    w are the parameters and the moments of batch norm. The library's own update moves
    its counter to the device in every step, which waits for it; this one doesn't.

    Args:
        network: on its final device.
        decay: d, the share that stays; 0 is no average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        blend = get_ema_multi_avg_fn(decay)
        super().__init__(network, multi_avg_fn=blend, use_buffers=True)
        self._blend = blend
        self.requires_grad_(False).eval()

    def update_parameters(self, model: nn.Module) -> None:
        """Follow `model` by one step."""
        if self.n_averaged == 0:  # on the CPU, as the library makes it
            super().update_parameters(model)
            return
        self._blend(_numbers(self.module), _numbers(model), self.n_averaged)
        self.n_averaged += 1


def _numbers(network: nn.Module) -> list[Tensor]:
    """Parameters and buffers without those that count."""
    everything = chain(network.parameters(), network.buffers())
    return [one.detach() for one in everything if one.is_floating_point()]

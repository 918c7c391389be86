"""Batch norm over a batch that several processes share out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from needsaug_lite.data.team import Team


class TeamNorm(_BatchNorm):
    """Batch norm by the moments of the whole batch, not of this process's part.

    μ = Σ x / n,   σ² = Σ (x - μ)² / n,   y = (x - μ) / √(σ² + eps) · weight + bias

    with sums over the images and pixels of all processes, n of them. The running
    variance takes σ² n / (n - 1), as in PyTorch. All derivatives pass through the sums,
    those of a derivative too, which SyncBatchNorm of PyTorch doesn't offer.
    """

    def __init__(self, layer: _BatchNorm, team: Team):
        """Take over parameters and running moments.

        Args:
            layer: batch norm of one process.
            team: the processes.
        """
        super().__init__(
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
        )
        self.team = team
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes after the channels will do."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, shape (B, channels, ...)."""
        if not self.training:
            found: Tensor = super().forward(x)
            return found
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = x.new_full((1,), x.numel() // x.shape[1])
        sums = self.team.total(torch.cat([x.sum(axes), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = self.team.total(centred.square().sum(axes)) / count
        self._record(mean, variance, count)
        scaled: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        if not self.affine:
            return scaled
        return scaled * self.weight.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _record(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running moments towards those of the batch."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share: float | Tensor = 1 / self.num_batches_tracked
        if self.momentum is not None:
            share = self.momentum
        self.running_mean += share * (mean - self.running_mean)
        unbiased = variance * (count / (count - 1))
        self.running_var += share * (unbiased - self.running_var)


def with_team_norm(model: nn.Module, team: Team) -> None:
    """Put a `TeamNorm` in the place of every batch norm inside a model.

    The names and tensors of its parameters and buffers stay: optimisers, checkpoints
    and saved models know them.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, TeamNorm(child, team))

"""Processes that share out every batch, each working on its part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


@dataclass(frozen=True)
class Team:
    """N processes of torch.distributed that train one network together.

    What all of them sum up has the same bits in each of them. A team of one sums
    nothing and hands every tensor back as it is.

    Attributes:
        rank: number of this process, from 0.
        size: N.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` things in a row are this process's own.

        Parts differ by one at most; with fewer things than processes some are empty.
        """
        start, stop = self.rank * count, (self.rank + 1) * count
        return slice(start // self.size, stop // self.size)

    def total(self, own: Tensor) -> Tensor:
        """Sum over the processes, with a graph that can be differentiated repeatedly.

        A derivative is that of the sum of all processes' losses; every process must
        take it, and then has the share of it that runs through its own tensors.

        Args:
            own: of the same shape in every process.
        """
        if self.size == 1:
            return own
        summed: Tensor = _Total.apply(own)
        return summed

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one type by their means over the processes, in place."""
        if self.size == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= self.size
        means = flat.split([part.numel() for part in parts])
        for part, mean in zip(parts, means, strict=True):
            part.copy_(mean.view(part.shape))

    def gathered(self, own: Tensor, count: int) -> Tensor:
        """The values of all processes in a row, without a graph.

        Args:
            own: of the things in `part(count)`, shape (n, ...).
            count: B, of all processes together.

        Returns:
            Shape (B, ...).
        """
        own = own.detach()
        if self.size == 1:
            return own
        # Adding zeros changes no bits, and needs no parts of one size.
        row = own.new_zeros((count, *own.shape[1:]))
        row[self.part(count)] = own
        dist.all_reduce(row)
        return row

    def everyone(self, value: float, device: torch.device | str) -> list[float]:
        """What every process has to say, in the order of their ranks."""
        own = torch.tensor([value], dtype=torch.float64, device=device)
        said: list[float] = self.gathered(own, self.size).tolist()
        return said


class _Total(torch.autograd.Function):
    """y = Σ x over the processes; the slope by each x is Σ of the slopes by each y."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        """Sum the values."""
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, slope: Tensor) -> Tensor:
        """Sum the slopes, in a way that can be differentiated again."""
        summed: Tensor = _Total.apply(slope)
        return summed


ALONE = Team()

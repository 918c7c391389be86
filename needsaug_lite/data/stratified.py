"""Splits and batches in which every class, or class and attribute, has its place."""

from __future__ import annotations

import torch
from torch import Tensor

from needsaug_lite.data.batches import Augmentation, Batches, Normalisation
from needsaug_lite.data.bias import take_per_class
from needsaug_lite.data.splits import Examples, generator
from needsaug_lite.errors import UserError

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_DIVISION, _STRATA = 401, 402


def divide(
    examples: Examples, share: float, cells: Tensor, *, seed: int = 0
) -> tuple[Examples, Examples]:
    """Take a share of every cell out of `examples`.

    A cell of n images gives max(1, round(share n)) of them, but keeps at least one: a
    cell with a single image keeps it.

    Args:
        examples: N images.
        share: between 0 and 1.
        cells: number of the cell of each image, int64, shape (N,).
        seed: draws the images.

    Returns:
        The share, and the rest.

    Raises:
        UserError: for a share that is not between 0 and 1.

    Source: autobalance's 80/20 split, which leaves the smallest class of CIFAR-100-LT
    one image to validate on.
    """
    if not 0 < share < 1:
        raise UserError(
            f"a share of {share} can't be held out; give a number between 0 and 1"
        )
    sizes = torch.bincount(cells.cpu())
    wanted = (share * sizes.double()).round().long().clamp(min=1)
    wanted = torch.minimum(wanted, (sizes - 1).clamp(min=0))
    draw = generator(seed, _DIVISION)
    taken, rest = take_per_class(cells, wanted.tolist(), len(sizes), draw)
    return examples.subset(taken), examples.subset(rest)


class StratifiedBatches(Batches):
    """Batches with the same number of images of every cell.

    Within an epoch a cell is gone through in a random order, and again in the same
    order if it is small; what epoch e holds depends on (seed, e) alone. A mean over the
    images of a cell estimates the cell's mean, and no cell is ever missing.

    Source: errata A16 of autobalance.
    """

    def __init__(
        self,
        examples: Examples,
        cells: Tensor,
        batch_size: int,
        normalisation: Normalisation,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        steps: int | None = None,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            examples: N images.
            cells: number of the cell of each image, int64, shape (N,).
            batch_size: about this many images; every cell gets the same share of them,
                at least one image.
            normalisation: from bytes to floats.
            augment: random change of a uint8 batch, or None.
            seed: fixes order and augmentation.
            steps: batches in an epoch; default: as many as go through N images.

        Raises:
            UserError: if there are no images, or no batches are asked for.
        """
        super().__init__(
            examples, batch_size, normalisation, augment=augment, seed=seed
        )
        self.cells = cells.cpu()
        sizes = torch.bincount(self.cells)
        self.cell_sizes = sizes[sizes > 0]
        self.per_cell = max(1, batch_size // len(self.cell_sizes))
        size = self.per_cell * len(self.cell_sizes)
        self.steps = max(1, len(examples) // size) if steps is None else steps
        if self.steps < 1:
            raise UserError(f"steps is {steps}; an epoch needs at least 1 batch")

    def _sizes(self) -> list[int]:
        return [self.per_cell * len(self.cell_sizes)] * self.steps

    def order(self, epoch: int) -> Tensor:
        """Positions in the order of epoch `epoch`, cell by cell in every batch."""
        draw = generator(self.seed, _STRATA, epoch)
        shuffled = torch.randperm(len(self.cells), generator=draw)
        by_cell = shuffled[self.cells[shuffled].argsort(stable=True)]
        starts = self.cell_sizes.cumsum(0) - self.cell_sizes
        slots = torch.arange(self.steps * self.per_cell).view(self.steps, 1, -1)
        within = slots % self.cell_sizes.view(-1, 1)  # (steps, cells, per_cell)
        return by_cell[(starts.view(-1, 1) + within).flatten()]

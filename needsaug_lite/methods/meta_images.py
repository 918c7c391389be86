"""The small clean set from which a method learns what its training set can't tell."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from needsaug_lite.data import Batch, Batches, Normalisation, Splits
from needsaug_lite.errors import UserError


class MetaImages:
    """Batches of `splits.meta` without end, the same ones for the same epoch.

    They are shuffled and not augmented.
    """

    def __init__(
        self,
        splits: Splits,
        batch_size: int,
        normalisation: Normalisation,
        *,
        seed: int,
        steps: int,
        purpose: str,
    ) -> None:
        """Describe the batches.

        Args:
            splits: `meta` holds the images.
            batch_size: most images in a batch.
            normalisation: that of the training images.
            seed: order of the images.
            steps: batches that an epoch of training takes.
            purpose: what they are for, for the error message.

        Raises:
            UserError: if there are no meta images.
        """
        if len(splits.meta) == 0:
            raise UserError(
                f"{purpose}, and there are none; hold some out with meta_per_class, "
                "for example 10"
            )
        size = min(batch_size, len(splits.meta))
        self.batches = Batches(splits.meta, size, normalisation, seed=seed)
        self.steps = steps
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Start the batches of an epoch of training."""
        self._coming: Iterator[Batch] = self._laps(epoch * self.steps)

    def _laps(self, first: int) -> Iterator[Batch]:
        for lap in count(first):
            yield from self.batches.epoch(lap)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._coming)

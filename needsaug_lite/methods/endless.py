"""Batches that don't end with an epoch, for what a method looks at besides."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

from needsaug_lite.data import Batch, Batches


class Endless:
    """Batches of one part of the data without end, the same ones for the same epoch."""

    def __init__(self, batches: Batches, steps: int) -> None:
        """Describe the batches.

        Args:
            batches: gone through again and again.
            steps: batches that an epoch of training takes.
        """
        self.batches = batches
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


class FixedSteps(Endless):
    """Epochs of a fixed number of steps, however many images there are."""

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, which go on where the images end."""
        self.begin_epoch(epoch)
        yield from islice(self, self.steps)

"""Batches without end: laps of their own for every epoch of training."""

from __future__ import annotations

import torch

from needsaug_lite.data import Batches, Examples, InMemory, Normalisation
from needsaug_lite.methods.endless import Endless


def make(batch_size: int, steps: int) -> Endless:
    labels = torch.arange(12)
    examples = Examples(InMemory(torch.zeros(12, 1, 1, 1, dtype=torch.uint8)), labels)
    batches = Batches(examples, batch_size, Normalisation((0.0,), (1.0,)), seed=1)
    return Endless(batches, steps)


def coming(endless: Endless, count: int) -> list[list[int]]:
    return [next(endless).index.tolist() for _ in range(count)]


def test_every_lap_holds_each_image_once() -> None:
    endless = make(5, 4)
    for _ in range(4):
        lap = [number for batch in coming(endless, 3) for number in batch]
        assert sorted(lap) == list(range(12))


def test_an_epoch_repeats_whatever_came_before() -> None:
    endless = make(5, 4)
    first = coming(endless, 4)
    endless.begin_epoch(1)
    second = coming(endless, 4)
    endless.begin_epoch(0)
    assert coming(endless, 4) == first
    endless.begin_epoch(1)
    assert coming(endless, 4) == second
    assert first != second


def test_no_two_epochs_of_training_share_a_lap() -> None:
    """With all images in one batch, each of the three steps is a lap."""
    endless = make(12, 3)
    orders = []
    for epoch in range(5):
        endless.begin_epoch(epoch)
        orders += [tuple(order) for order in coming(endless, 3)]
    assert len(set(orders)) == 15


def test_it_is_its_own_iterator() -> None:
    endless = make(5, 4)
    assert iter(endless) is endless

"""Shares of cells, and batches in which every cell has its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite.data import (
    Examples,
    InMemory,
    Normalisation,
    StratifiedBatches,
    divide,
)
from needsaug_lite.errors import UserError

GREY = Normalisation((0.0,), (1.0,))
SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)


def make(sizes: list[int], seed: int = 3) -> tuple[Examples, Tensor]:
    """Images whose label is their number, and cells of these sizes in mixed order."""
    cells = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    source = torch.Generator().manual_seed(seed)
    cells = cells[torch.randperm(len(cells), generator=source)]
    pixels = torch.zeros(len(cells), 1, 1, 1, dtype=torch.uint8)
    return Examples(InMemory(pixels), torch.arange(len(cells))), cells


# --- divide -------------------------------------------------------------------


@settings(deadline=None)
@given(sizes=SIZES, share=st.floats(0.01, 0.99), seed=st.integers(0, 2**33))
def test_every_cell_gives_its_share_and_keeps_one(
    sizes: list[int], share: float, seed: int
) -> None:
    examples, cells = make(sizes)
    taken, rest = divide(examples, share, cells, seed=seed)
    both = torch.cat([taken.labels, rest.labels])
    assert both.sort().values.equal(torch.arange(len(cells)))
    for cell, size in enumerate(sizes):
        found = int((cells[taken.labels] == cell).sum())
        assert found == min(max(1, round(share * size)), max(size - 1, 0))


@pytest.mark.parametrize(("size", "given_"), [(1, 0), (2, 1), (5, 1), (6, 1), (13, 3)])
def test_a_fifth_of_small_classes(size: int, given_: int) -> None:
    """CIFAR-100-LT: five images of the rarest class, one to validate on."""
    taken, rest = divide(*swapped(make([size, 40])))
    assert (len(taken), len(rest)) == (given_ + 8, size - given_ + 32)


def swapped(made: tuple[Examples, Tensor]) -> tuple[Examples, float, Tensor]:
    return made[0], 0.2, made[1]


def test_a_division_follows_its_seed() -> None:
    examples, cells = make([20, 30])
    one, two, other = (
        divide(examples, 0.3, cells, seed=seed)[0].labels for seed in (1, 1, 2)
    )
    assert one.equal(two)
    assert not one.equal(other)


def test_every_image_of_a_cell_is_as_likely_to_be_taken() -> None:
    examples, cells = make([5, 10])
    hits = torch.zeros(15)
    for seed in range(400):
        hits[divide(examples, 0.4, cells, seed=seed)[0].labels] += 1
    # 400 draws with p = 0.4 deviate by 9.8; four deviations.
    assert bool(((hits - 160).abs() < 40).all())


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_impossible_shares(share: float) -> None:
    examples, cells = make([5, 5])
    with pytest.raises(UserError, match="between 0 and 1"):
        divide(examples, share, cells)


# --- batches ------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 10**6),
    seed=st.integers(0, 2**33),
)
def test_every_batch_holds_equally_many_of_every_cell(
    sizes: list[int], batch_size: int, epoch: int, seed: int
) -> None:
    """Whatever their sizes, gaps in their numbers included."""
    examples, cells = make(sizes)
    batches = StratifiedBatches(examples, cells, batch_size, GREY, seed=seed)
    present = sum(size > 0 for size in sizes)
    each = max(1, batch_size // present)
    found = [batch.index for batch in batches.epoch(epoch)]
    assert len(found) == len(batches) == max(1, sum(sizes) // (each * present))
    for index in found:
        counts = torch.bincount(cells[index], minlength=len(sizes))
        assert counts.tolist() == [each * (size > 0) for size in sizes]
    assert present * each <= max(batch_size, present)


@settings(deadline=None)
@given(sizes=SIZES, batch_size=st.integers(1, 40), steps=st.integers(1, 12))
def test_images_of_a_cell_are_used_equally_often(
    sizes: list[int], batch_size: int, steps: int
) -> None:
    """Within an epoch, up to one; and no image comes again before all others did."""
    examples, cells = make(sizes)
    batches = StratifiedBatches(examples, cells, batch_size, GREY, steps=steps)
    order = batches.order(5)
    assert len(batches) == steps
    for cell, size in enumerate(sizes):
        if size == 0:
            continue
        mine = order[cells[order] == cell]
        times = torch.bincount(mine, minlength=len(cells))[cells == cell]
        assert int(times.max() - times.min()) <= 1
        for lap in mine.split(size):
            assert len(lap.unique()) == len(lap)


def test_one_lap_of_equal_cells_is_an_epoch_of_all_images() -> None:
    examples, cells = make([12, 12, 12])
    batches = StratifiedBatches(examples, cells, 9, GREY)
    seen = torch.cat([batch.index for batch in batches.epoch(3)])
    assert seen.sort().values.equal(torch.arange(36))


def test_a_batch_holds_together() -> None:
    examples, cells = make([7, 2, 11])
    examples = Examples(examples.images, examples.labels, cells)
    for batch in StratifiedBatches(examples, cells, 6, GREY).epoch(0):
        assert len(batch) == len(batch.images) == 6
        assert batch.labels.equal(batch.index)
        assert batch.groups is not None
        assert batch.groups.equal(cells[batch.index])


def test_what_an_epoch_holds_depends_on_seed_and_epoch_alone() -> None:
    examples, cells = make([30, 9, 4])
    one, two = (StratifiedBatches(examples, cells, 12, GREY, seed=1) for _ in range(2))
    for epoch in range(3):
        list(one.epoch(epoch))
    assert one.order(3).equal(two.order(3))
    other = StratifiedBatches(examples, cells, 12, GREY, seed=2)
    assert not one.order(3).equal(one.order(4))
    assert not one.order(3).equal(other.order(3))


def test_over_epochs_all_images_of_a_large_cell_are_seen() -> None:
    examples, cells = make([100, 5])
    batches = StratifiedBatches(examples, cells, 10, GREY)
    hits = torch.zeros(105)
    for epoch in range(60):
        hits += torch.bincount(batches.order(epoch), minlength=105)
    large = hits[cells == 0]
    # 50 of 100 images an epoch: 30 in 60 epochs, with a deviation of 3.9.
    assert bool(((large - 30).abs() < 18).all())
    assert int(hits[cells == 1].min()) == int(hits[cells == 1].max()) == 600


def test_the_mean_over_a_cell_estimates_its_mean() -> None:
    """Without bias, also where an image comes twice and another once."""
    examples, cells = make([3, 5])
    batches = StratifiedBatches(examples, cells, 8, GREY, steps=1)
    weight = torch.zeros(8)
    for epoch in range(600):
        weight += torch.bincount(batches.order(epoch), minlength=8) / 4
    share = weight / 600
    assert share[cells == 0].sub(1 / 3).abs().max() < 0.03
    assert share[cells == 1].sub(1 / 5).abs().max() < 0.03


def test_impossible_batches() -> None:
    examples, cells = make([3, 5])
    with pytest.raises(UserError, match="steps"):
        StratifiedBatches(examples, cells, 4, GREY, steps=0)
    with pytest.raises(UserError, match="batch_size"):
        StratifiedBatches(examples, cells, 0, GREY)
    nothing = torch.arange(0)
    with pytest.raises(UserError, match="empty"):
        StratifiedBatches(examples.subset(nothing), nothing, 4, GREY)

"""Meta images: without end, and the same ones for the same epoch."""

from __future__ import annotations

import pytest
import torch
from helpers.meta_methods import load

from needsaug_lite import data
from needsaug_lite.data import Normalisation
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, run
from needsaug_lite.methods.meta_images import MetaImages


def make(batch_size: int, seed: int = 0, steps: int = 3) -> MetaImages:
    splits = load()
    return MetaImages(
        splits, batch_size, Normalisation.of(splits), seed=seed, steps=steps, purpose=""
    )


def coming(meta: MetaImages, count: int) -> list[list[int]]:
    return [next(meta).index.tolist() for _ in range(count)]


@pytest.mark.parametrize("batch_size", [16, 50, 128])
def test_every_lap_holds_each_image_once(batch_size: int) -> None:
    meta = make(batch_size)
    laps = -(-50 // batch_size)
    for _ in range(4):
        lap = [number for batch in coming(meta, laps) for number in batch]
        assert sorted(lap) == list(range(50))


@pytest.mark.parametrize(("batch_size", "size"), [(16, 16), (50, 50), (128, 50)])
def test_batches_are_as_large_as_training_batches_or_hold_all(
    batch_size: int, size: int
) -> None:
    assert len(next(make(batch_size))) == size


def test_an_epoch_repeats_whatever_came_before() -> None:
    meta = make(16)
    first = coming(meta, 7)
    meta.begin_epoch(1)
    second = coming(meta, 7)
    meta.begin_epoch(0)
    assert coming(meta, 7) == first
    meta.begin_epoch(1)
    assert coming(meta, 7) == second
    assert first != second
    assert first != coming(make(16, seed=1), 7)


def test_no_two_epochs_of_training_share_a_lap() -> None:
    """With all meta images in one batch, each of the three steps is a lap."""
    meta = make(50, steps=3)
    orders = []
    for epoch in range(4):
        meta.begin_epoch(epoch)
        orders += coming(meta, 3)
    assert len({tuple(order) for order in orders}) == 12


def test_they_are_the_held_out_images() -> None:
    splits, meta = load(), make(50)
    batch = next(iter(meta))
    assert batch.labels.bincount().tolist() == [5] * 10
    pixels = torch.cat(list(splits.meta.images.stream(batch.index.split(50))))
    expected = Normalisation.of(splits)(pixels)
    torch.testing.assert_close(batch.images, expected)


def test_without_meta_images_the_remedy_is_named() -> None:
    splits = data.load("digits", n_max=20)
    with pytest.raises(UserError, match="They teach, .* meta_per_class"):
        MetaImages(
            splits,
            8,
            Normalisation.of(splits),
            seed=0,
            steps=1,
            purpose="They teach",
        )


def test_training_on_both_parts_is_training_on_one_that_holds_both() -> None:
    """Two routes: images that join the training part, and the baseline that does so."""
    values = {
        "data": {"name": "digits", "n_max": 20, "meta_per_class": 5},
        "epochs": 2,
    }
    both = {**values, "method": "cross_entropy", "learn_from": "train+meta"}
    baseline = {**values, "method": "cross_entropy_with_meta"}
    one, other = (run(Spec.checked(each)) for each in (both, baseline))
    assert one.metrics == other.metrics
    assert one.data_checksum == other.data_checksum
    alone = run(Spec.checked({**values, "method": "cross_entropy"}))
    assert alone.metrics != one.metrics


def test_meta_images_that_joined_the_training_part_are_used_once() -> None:
    splits = load()
    joined = data.with_meta(splits)
    assert len(joined.meta) == 0
    assert len(joined.train) == len(splits.train) + len(splits.meta)
    assert joined.class_counts.equal(
        splits.class_counts + splits.meta.counts(splits.num_classes)
    )
    with pytest.raises(UserError, match="meta_per_class"):
        MetaImages(
            joined, 8, Normalisation.of(joined), seed=0, steps=1, purpose="They teach"
        )


def test_no_meta_images_can_join_where_none_are_held_out() -> None:
    with pytest.raises(UserError, match="to learn from train\\+meta"):
        Spec.checked({"learn_from": "train+meta"})

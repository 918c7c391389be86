"""GAMO's long tail: exact sizes, drawn with repeats from each class's first images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import data
from needsaug_lite.data import Examples, Splits
from needsaug_lite.errors import UserError

Make = Callable[[Sequence[int]], Splits]
Numbers = Callable[[Examples], Tensor]

COUNTS, POOL = (40, 12, 5), 30
SMALL: dict[str, Any] = {"counts": COUNTS, "pool": POOL, "test_pool": 1}


@pytest.fixture
def plain(make_splits: Make) -> Splits:
    """Three classes of 50, 41 and 60 numbered training images, nothing held out."""
    splits = make_splits([50, 41, 60])
    none = splits.train.subset(torch.arange(0))
    return replace(splits, val=none, meta=none)


def first_of(labels: Tensor, pool: int) -> list[set[int]]:
    """Positions of the first images of each class, found by going through the file."""
    found: list[set[int]] = [set() for _ in range(int(labels.max()) + 1)]
    for position, label in enumerate(labels.tolist()):
        if len(found[label]) < pool:
            found[label].add(position)
    return found


def test_the_sizes_are_those_of_gamo() -> None:
    assert len(data.GAMO_COUNTS) == 10
    assert sum(data.GAMO_COUNTS) == 9000
    assert max(data.GAMO_COUNTS) / min(data.GAMO_COUNTS) == 100


def test_training_images_are_the_first_of_their_class(
    plain: Splits, numbers: Numbers
) -> None:
    pools = first_of(plain.train.labels, POOL)
    seen: list[set[int]] = [set(), set(), set()]
    for seed in range(30):
        made = data.gamo_train(plain, seed, **SMALL)
        assert made.class_counts.tolist() == list(COUNTS)
        found = numbers(made.train)
        assert made.train.labels.equal(plain.train.labels[found])
        assert (found.diff() >= 0).all()
        for label, number in zip(
            made.train.labels.tolist(), found.tolist(), strict=True
        ):
            seen[label].add(number)
    # Within 30 seeds every one of the first images is drawn, and no other.
    assert seen == pools


def test_images_repeat_as_often_as_with_replacement(
    plain: Splits, numbers: Numbers
) -> None:
    distinct = []
    for seed in range(300):
        train = data.gamo_train(plain, seed, **SMALL).train
        largest = numbers(train)[train.labels == 0]
        distinct.append(float(len(largest.unique())))
    expected = POOL * (1 - (1 - 1 / POOL) ** COUNTS[0])
    mean, std = np.mean(distinct), np.std(distinct)
    assert abs(mean - expected) < 5 * std / len(distinct) ** 0.5


def test_draws_repeat_with_their_seed_only(plain: Splits) -> None:
    before = plain.checksum()
    held: dict[str, Any] = {"val_per_class": 3, "meta_per_class": 2}
    one = data.gamo_train(plain, 1, **SMALL, **held)
    assert one.checksum() == data.gamo_train(plain, 1, **SMALL, **held).checksum()
    other = data.gamo_train(plain, 2, **SMALL, **held)
    for part in ("train", "val", "meta"):
        pixels = [getattr(made, part).images.pixels for made in (one, other)]
        assert not pixels[0].equal(pixels[1])
    assert plain.checksum() == before


@given(val=st.integers(0, 6), meta=st.integers(0, 5), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_held_out_images_are_never_drawn_for_training(val, meta, seed) -> None:
    labels = torch.arange(140) % 3
    pixels = torch.arange(140).to(torch.uint8).view(-1, 1, 1, 1)
    part = Examples(data.InMemory(pixels), labels)
    none = part.subset(torch.arange(0))
    splits = Splits(part, none, none, part, ("a", "b", "c"))
    made = data.gamo_train(
        splits, seed, val_per_class=val, meta_per_class=meta, **SMALL
    )
    pools = set().union(*first_of(labels, POOL))
    held = (made.val, made.meta)
    chosen = [set(part.images.pixels.flatten().tolist()) for part in held]
    assert made.val.counts(3).tolist() == [val] * 3
    assert made.meta.counts(3).tolist() == [meta] * 3
    assert len(chosen[0]) == 3 * val
    assert len(chosen[1]) == 3 * meta
    assert not chosen[0] & chosen[1]
    assert not (chosen[0] | chosen[1]) & pools
    # What is held out leaves the training images alone.
    assert made.train.images.fingerprint() == (
        data.gamo_train(splits, seed, **SMALL).train.images.fingerprint()
    )


def test_the_test_part_stays_whole(plain: Splits) -> None:
    made = data.gamo_train(plain, **SMALL)
    assert made.test is plain.test
    assert made.provenance["gamo"] is True


def test_gamos_test_images_are_balanced_and_the_first_of_their_class() -> None:
    labels = torch.randint(4, (400,), generator=data.generator(5))
    pools, seen = first_of(labels, 20), [set[int]() for _ in range(4)]
    for seed in range(20):
        index = data.gamo_test_index(labels, 4, seed, per_class=30, pool=20)
        assert torch.bincount(labels[index]).tolist() == [30] * 4
        assert len(index.unique()) < len(index)  # 30 of 20 can't do without
        for position in index.tolist():
            seen[int(labels[position])].add(position)
    assert seen == pools
    one, again, other = (
        data.gamo_test_index(labels, 4, seed, per_class=30, pool=20)
        for seed in (1, 1, 2)
    )
    assert one.equal(again)
    assert not one.equal(other)


def test_impossible_draws_are_refused(plain: Splits, make_splits: Make) -> None:
    for options, message in (
        ({}, "have 10 classes, but these have 3"),
        ({**SMALL, "pool": 42}, "class 1 has 41 training images.* counts"),
        ({**SMALL, "test_pool": 2}, "class 0 has 1 test images"),
        ({**SMALL, "val_per_class": 12}, "has 11 images behind the first 30"),
        ({**SMALL, "val_per_class": 6, "meta_per_class": 6}, "ask for 11 or fewer"),
        ({**SMALL, "val_per_class": -1}, "can't be negative"),
    ):
        with pytest.raises(UserError, match=message):
            data.gamo_train(plain, **options)
    with pytest.raises(UserError, match="hold out none before"):
        data.gamo_train(make_splits([50, 41, 60]), **SMALL)
    with pytest.raises(UserError, match="class 2 has 0 test images"):
        data.gamo_test_index(torch.tensor([0, 1, 1]), 3, pool=1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one pixel, as many of each class as GAMO needs and ten more."""
    file = tmp_path_factory.mktemp("gamo") / "grey.npz"
    arrays = {}
    for part, size in (("train", 4010), ("test", 810)):
        labels = np.arange(10 * size) % 10
        rank = np.arange(10 * size) // 10 % 256
        arrays[f"x_{part}"] = rank.astype(np.uint8).reshape(-1, 1, 1)
        arrays[f"y_{part}"] = labels
    np.savez(file, **arrays)
    return file


def test_load_draws_gamos_sizes(archive: Path) -> None:
    made = data.load(archive, gamo=True, val_per_class=10, seed=3)
    assert made.class_counts.tolist() == list(data.GAMO_COUNTS)
    assert len(made.test) == 8100
    assert made.provenance["gamo"] is True
    assert made.val.counts(10).tolist() == [10] * 10
    # They are the last ten of each class, whatever the seed.
    assert set(made.val.images.pixels.flatten().tolist()) == {
        rank % 256 for rank in range(4000, 4010)
    }
    index = data.gamo_test_index(made.test.labels, 10, 3)
    assert len(index) == 1000
    assert int(index.max()) < 8000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 9, "n_max": 5}, "leave out imbalance, n_max"),
        ({"counts": [5] * 10}, "leave out counts"),
        ({"shuffle_classes": True}, "leave out shuffle_classes"),
        ({"colour": True}, "leave out colour"),
        ({"noise": 0.1}, "leave out noise"),
        ({"group_counts": (9, 9, 9, 9)}, "leave out group_counts"),
        ({"attribute_imbalance": 3.0}, "leave out attribute_imbalance"),
        ({}, "draws from the first 4000 of every class; .* counts"),
    ],
)
def test_other_biases_and_small_data_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        data.load("digits", gamo=True, **options)


def test_waterbirds_are_refused() -> None:
    with pytest.raises(UserError, match="leave out gamo"):
        data.load("waterbirds_features", gamo=True)

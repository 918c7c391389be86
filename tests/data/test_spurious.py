"""Coloured groups: exact counts, right labels, colours that say what they should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import data
from needsaug_lite.data import Examples, Splits
from needsaug_lite.errors import UserError

WATERBIRDS = (3498, 184, 56, 1057)


def grey(count: int, first: int) -> Examples:
    """Images of one pixel row whose four bytes are 1 and spell their number."""
    labels = torch.randint(10, (count,), generator=data.generator(first + 7))
    number = torch.arange(first, first + count)
    ones = torch.ones_like(number)
    rows = [ones, number // 65536, number // 256 % 256, number % 256]
    pixels = torch.stack(rows, 1).to(torch.uint8).view(-1, 1, 1, 4)
    return Examples(data.InMemory(pixels), labels)


@pytest.fixture(scope="module")
def plain() -> Splits:
    """9,001 training and 1,003 test images in ten classes."""
    train, test = grey(9001, 0), grey(1003, 500_000)
    none = train.subset(torch.arange(0))
    return Splits(train, none, none, test, tuple("0123456789"))


@pytest.fixture(scope="module")
def made(plain: Splits) -> Splits:
    return data.coloured_groups(
        plain, WATERBIRDS, val_per_class=60, meta_per_class=30, seed=3
    )


def pixels(part: Examples) -> Tensor:
    assert isinstance(part.images, data.InMemory)
    return part.images.pixels


def numbers(part: Examples) -> Tensor:
    """Number of each coloured image, from its bytes."""
    rows = pixels(part).long().sum(1).view(-1, 4)
    return rows[:, 1:] @ torch.tensor([65536, 256, 1])


def greens(part: Examples) -> Tensor:
    """1 where the image is green, from its pixels."""
    return pixels(part)[:, 1].flatten(1).any(1).long()


def cells(part: Examples) -> list[int]:
    """Images of each label and colour, counted from labels and pixels."""
    return torch.bincount(2 * part.labels + greens(part), minlength=4).tolist()


def test_the_training_part_has_exactly_the_asked_numbers(made: Splits) -> None:
    assert cells(made.train) == list(WATERBIRDS)
    assert data.Cells.of(made).counts(made.train).tolist() == [[3498, 184], [56, 1057]]
    shares = torch.tensor(WATERBIRDS) / sum(WATERBIRDS)
    printed = torch.tensor([0.73, 0.038, 0.012, 0.22])
    assert torch.allclose(shares, printed, atol=0.005)


def test_groups_are_label_and_colour_in_every_part(plain, made) -> None:
    for name in ("train", "val", "meta", "test"):
        part: Examples = getattr(made, name)
        assert part.groups.equal(2 * part.labels + greens(part))
        source = plain.test if name == "test" else plain.train
        place = numbers(part) - (500_000 if name == "test" else 0)
        assert part.labels.equal((source.labels[place] >= 5).long())  # no label noise
        assert part.true_labels is None
    assert made.class_names == ("0 to 4", "5 to 9")


def test_one_channel_holds_the_grey_image(made: Splits) -> None:
    found = pixels(made.train)
    assert found.dtype == torch.uint8
    assert found.shape == (sum(WATERBIRDS), 3, 1, 4)
    filled = found.flatten(2).any(2)
    assert (filled.sum(1) == 1).all()
    assert filled[:, 0].equal(made.train.groups % 2 == 0)
    assert not filled[:, 2].any()


def test_held_out_parts_are_balanced_and_nothing_is_in_two_parts(made: Splits) -> None:
    assert cells(made.val) == [30] * 4
    assert cells(made.meta) == [15] * 4
    both = torch.cat([numbers(part) for part in (made.train, made.val, made.meta)])
    assert len(both.unique()) == len(both) == sum(WATERBIRDS) + 180


def test_the_test_part_keeps_every_image_half_in_each_colour(plain, made) -> None:
    assert numbers(made.test).equal(torch.arange(500_000, 501_003))
    sizes = torch.bincount((plain.test.labels >= 5).long()).tolist()
    found = cells(made.test)
    assert [found[0] + found[1], found[2] + found[3]] == sizes
    assert abs(found[0] - found[1]) <= 1
    assert abs(found[2] - found[3]) <= 1


def test_within_a_class_the_colour_says_nothing_about_the_digit(plain, made) -> None:
    digits, green = plain.test.labels, greens(made.test).double()
    for digit in range(10):
        own = green[digits == digit]
        # Five deviations of a draw without replacement are fewer than these.
        assert abs(float(own.mean()) - 0.5) < 2.5 / len(own) ** 0.5


def test_draws_repeat_with_their_seed_only(plain: Splits, made: Splits) -> None:
    before = plain.checksum()
    held = {"val_per_class": 60, "meta_per_class": 30}
    again, other = (
        data.coloured_groups(plain, WATERBIRDS, seed=seed, **held) for seed in (3, 4)
    )
    assert again.checksum() == made.checksum()
    for name in ("train", "val", "meta"):
        assert not numbers(getattr(other, name)).equal(numbers(getattr(made, name)))
    assert not greens(other.test).equal(greens(made.test))
    assert plain.checksum() == before


def test_held_out_images_do_not_depend_on_the_counts(plain, made) -> None:
    held = {"val_per_class": 60, "meta_per_class": 30}
    other = data.coloured_groups(plain, (5, 6, 7, 8), seed=3, **held)
    for name in ("val", "meta", "test"):
        one, two = (pixels(getattr(splits, name)) for splits in (made, other))
        assert one.equal(two)


@settings(deadline=None, max_examples=20)
@given(
    counts=st.tuples(*[st.integers(1, 40)] * 4),
    val=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_any_numbers_that_there_are_images_for(plain, counts, val, seed) -> None:
    made = data.coloured_groups(plain, counts, val_per_class=2 * val, seed=seed)
    assert cells(made.train) == list(counts)
    assert cells(made.val) == [val] * 4
    assert len(made.meta) == 0


def test_load_makes_them_of_digits_and_says_so() -> None:
    counts = (200, 10, 4, 60)
    splits = data.load(
        "digits", group_counts=counts, val_per_class=40, meta_per_class=20
    )
    assert cells(splits.train) == list(counts)
    assert cells(splits.val) == [20] * 4
    assert splits.provenance["group_counts"] == list(counts)
    assert splits.image_shape == (3, 8, 8)
    # The test part is the one that digits always have; it isn't joined to train.
    assert len(splits.test) == len(data.load("digits").test)
    assert data.undivided(splits) is splits


def test_load_makes_them_of_an_npz(tmp_path) -> None:
    labels = np.arange(60) % 10
    images = np.full((60, 4, 4), 9, np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "a.npz", **arrays)
    splits = data.load(tmp_path / "a.npz", group_counts=[20, 3, 2, 9])
    assert cells(splits.train) == [20, 3, 2, 9]
    assert cells(splits.test) == [15] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": True}, "leave out colour"),
        ({"imbalance": 10, "noise": 0.1}, "leave out imbalance, noise"),
        ({"counts": [5] * 10}, "leave out counts"),
        ({"n_max": 5}, "leave out n_max"),
        ({"shuffle_classes": True}, "leave out shuffle_classes"),
        ({"attribute_imbalance": 3.0}, "leave out attribute_imbalance"),
        ({"channels": 3}, "leave out channels"),
        ({"val_per_class": 5}, "val_per_class is 5; give 0 or a multiple of 2"),
        ({"meta_per_class": -2}, "meta_per_class is -2"),
        ({"group_counts": (5, 5, 5)}, "four numbers of at least 1"),
        ({"group_counts": (5, 5, 5, 0)}, "four numbers of at least 1"),
        ({"group_counts": (5, 5, 5, 1.5)}, "four numbers of at least 1"),
        ({"val_per_class": 700}, "images are left after 700 are held out.*fewer"),
    ],
)
def test_impossible_options_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        data.load("digits", **{"group_counts": (5, 5, 5, 5), **options})


def test_too_large_numbers_are_answered_with_the_largest(plain: Splits) -> None:
    have = torch.bincount((plain.train.labels >= 5).long()).tolist()
    with pytest.raises(UserError, match=f"has {have[0]} training images, but") as told:
        data.coloured_groups(plain, (9000, 1000, 1, 2))
    largest = (int(have[0] * 0.9), int(have[0] * 0.1), 1, 1)
    assert f"at most group_counts={largest} is possible" in str(told.value)
    assert cells(data.coloured_groups(plain, largest).train) == list(largest)
    with pytest.raises(UserError, match=f"has {have[1] - 50}.*after 50 are held out"):
        data.coloured_groups(plain, (1, 1, 9000, 1000), val_per_class=50)
    # Where both classes are short, the proportions of all four stay.
    with pytest.raises(UserError) as told:
        data.coloured_groups(plain, (10_000, 10_000, 40_000, 10_000))
    share = have[1] / 50_000
    first = int(10_000 * share)
    assert f"({first}, {first}, {int(40_000 * share)}, {first})" in str(told.value)


def test_images_that_cannot_be_coloured_are_refused(
    make_splits: Callable[[Sequence[int]], Splits],
) -> None:
    splits = make_splits([9, 9])
    none = splits.train.subset(torch.arange(0))
    with pytest.raises(UserError, match="ten classes"):
        data.coloured_groups(replace(splits, val=none, meta=none), (1, 1, 1, 1))
    with pytest.raises(UserError, match="only grey images in memory"):
        data.coloured_groups(data.load("digits", channels=3), (1, 1, 1, 1))
    with pytest.raises(UserError, match="hold out none"):
        data.coloured_groups(data.load("digits", val_per_class=2), (1, 1, 1, 1))

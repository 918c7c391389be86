"""Coloured digits and attributes: stated probabilities, exact sizes, no overlap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import data, metrics
from needsaug_lite.data import Examples, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.metrics import Predictions

Make = Callable[[Sequence[int]], Splits]


def within(successes: int, trials: int, share: float, sigmas: float = 5.0) -> bool:
    """Whether a count lies within `sigmas` deviations of its binomial mean."""
    deviation = math.sqrt(max(trials * share * (1 - share), 0))
    return abs(successes - trials * share) <= sigmas * deviation + 1e-6


# --- coloured digits ----------------------------------------------------------


def test_a_share_of_coloured_digits_is_a_part_of_them() -> None:
    whole = data.load("digits", colour=True, meta_per_class=10)
    share = data.load("digits", colour=True, meta_per_class=10, kept=0.25)
    for part in ("val", "meta", "test"):
        assert getattr(share, part).checksum() == getattr(whole, part).checksum()
    expected = (whole.class_counts * 0.25).round().tolist()
    assert share.class_counts.tolist() == expected
    assert share.train.groups is not None
    assert len(share.train.groups) == len(share.train)


@pytest.fixture(scope="module")
def pair() -> tuple[Splits, Splits]:
    """60,000 grey images, whose three bytes spell their number, and coloured."""
    labels = torch.randint(10, (60_000,), generator=data.generator(7))
    number = torch.arange(60_000)
    digits = torch.stack([number // 65536 + 1, number // 256 % 256, number % 256], 1)
    images = data.InMemory(digits.to(torch.uint8).view(-1, 1, 1, 3))
    train = Examples(images, labels)
    none = train.subset(torch.arange(0))
    names = tuple(str(digit) for digit in range(10))
    plain = Splits(train, none, none, train.subset(torch.arange(9)), names)
    return plain, data.colour(plain, seed=3)


def reds(part: Examples) -> Tensor:
    """True where the image is red, from its pixels."""
    assert isinstance(part.images, data.InMemory)
    return part.images.pixels[:, 0].flatten(1).any(1)


def positions(part: Examples) -> Tensor:
    """Place of each coloured image among the grey ones."""
    assert isinstance(part.images, data.InMemory)
    rows = part.images.pixels.long().sum(1).view(-1, 3)
    return (rows - torch.tensor([1, 0, 0])) @ torch.tensor([65536, 256, 1])


def test_coloured_parts_are_the_training_images_in_file_order(pair) -> None:
    _, coloured = pair
    places = [positions(getattr(coloured, p)) for p in ("train", "val", "test")]
    assert [len(place) for place in places] == [30_000, 10_000, 20_000]
    assert torch.cat(places).equal(torch.arange(60_000))


def test_one_channel_holds_the_grey_image(pair) -> None:
    _, coloured = pair
    pixels = coloured.train.images.pixels
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (30_000, 3, 1, 3)
    filled = pixels.flatten(2).any(2)
    assert not filled[:, 2].any()
    assert (filled.sum(1) == 1).all()


@pytest.mark.parametrize(
    ("part", "noise"), [("train", 0.2), ("val", 0.5), ("test", 0.9)]
)
def test_labels_and_colours_have_the_stated_probabilities(pair, part, noise) -> None:
    plain, coloured = pair
    own: Examples = getattr(coloured, part)
    side = (plain.train.labels[positions(own)] >= 5).long()
    flipped, red = own.labels != side, reds(own)
    assert within(int(flipped.sum()), len(own), 0.25)
    odd = red != (own.labels == 0)
    assert within(int(odd.sum()), len(own), noise)
    # Both flips are independent of the digit's side and of each other.
    for mask in (side == 0, side == 1):
        assert within(int(flipped[mask].sum()), int(mask.sum()), 0.25)
        assert within(int(odd[mask].sum()), int(mask.sum()), noise)
    assert within(int((odd & flipped).sum()), len(own), 0.25 * noise)


@pytest.mark.parametrize("noise", [(0, 1, 0), (1, 0, 1)])
def test_certain_flips_stop_at_the_ends_of_the_parts(pair, noise) -> None:
    plain, _ = pair
    exact = data.colour(plain, label_noise=0, colour_noise=noise)
    for name, flip in zip(("train", "val", "test"), noise, strict=True):
        part: Examples = getattr(exact, name)
        assert part.labels.equal((plain.train.labels[positions(part)] >= 5).long())
        assert reds(part).equal(part.labels == flip)


def test_groups_code_colour_and_label(pair) -> None:
    _, coloured = pair
    for part in (coloured.train, coloured.val, coloured.test):
        assert part.groups.equal(2 * reds(part).long() + part.labels)
        assert part.groups.unique().tolist() == [0, 1, 2, 3]
    assert coloured.class_names == ("0 to 4", "5 to 9")
    assert coloured.train.true_labels is None  # the flipped label is the label


def test_colours_repeat_with_their_seed_only(pair) -> None:
    plain, coloured = pair
    before = plain.checksum()
    assert data.colour(plain, seed=3).checksum() == coloured.checksum()
    assert data.colour(plain, seed=4).checksum() != coloured.checksum()
    assert plain.checksum() == before


def test_coloured_meta_images_are_balanced_and_come_from_val(pair) -> None:
    plain, coloured = pair
    split = data.colour(plain, meta_per_class=6, seed=3)
    assert torch.bincount(split.meta.groups).tolist() == [3, 3, 3, 3]
    assert split.train.groups.equal(coloured.train.groups)
    assert split.test.groups.equal(coloured.test.groups)
    both = torch.cat([positions(split.val), positions(split.meta)])
    assert both.sort().values.equal(positions(coloured.val))
    other = data.colour(plain, meta_per_class=6, seed=4)
    assert not positions(other.meta).equal(positions(split.meta))


def test_coloured_digits_use_all_images_that_load_has_divided() -> None:
    grey, coloured = data.load("digits"), data.load("digits", colour=True)
    sizes = [len(getattr(coloured, part)) for part in ("train", "val", "test")]
    assert sizes == [898, 300, 599]
    assert sum(sizes) == len(grey.train) + len(grey.test)
    assert coloured.image_shape == (3, 8, 8)
    assert coloured.checksum() == data.load("digits", colour=True).checksum()
    # The test part has other colours: it must not be joined to the training part.
    assert data.undivided(coloured) is coloured


def group_accuracies(predictor: Sequence[int], noise: float) -> dict[int, float]:
    """P(prediction = y | colour, y) in closed form, digits balanced.

    `predictor[10 * red + digit]` is the predicted label. Given y, the colour says
    nothing more about the digit, and P(side = y | y) = 1 - noise.
    """
    found = {}
    for red, y in itertools.product((0, 1), (0, 1)):
        chance = 0.0
        for digit in range(10):
            agrees = (digit >= 5) == bool(y)
            share = (1 - noise if agrees else noise) / 5
            chance += share * (predictor[10 * red + digit] == y)
        found[2 * red + y] = chance
    return found


def test_no_predictor_has_a_worst_group_above_three_quarters() -> None:
    # For one colour, all 2^10 functions of the digit; the other colour is alike. A
    # random predictor is a mixture of these, and the sum is linear in it.
    best = 0.0
    for rule in itertools.product((0, 1), repeat=10):
        exact = group_accuracies([*rule, *rule], 0.25)
        assert exact[0] + exact[1] <= 1.5 + 1e-12
        best = max(best, min(exact.values()))
    assert best == pytest.approx(0.75)


def test_closed_form_of_the_limit_is_what_the_data_give(pair) -> None:
    plain, coloured = pair
    test = coloured.test
    digits = plain.train.labels[positions(test)]
    by_side = [digit // 5 for digit in range(10)] * 2
    by_colour = [1] * 10 + [0] * 10
    mixed = [digit // 5 for digit in range(10)] + [0] * 10
    for predictor in (by_side, by_colour, mixed):
        guess = torch.tensor(predictor)[10 * reds(test).long() + digits]
        logits = torch.nn.functional.one_hot(guess, 2).float()
        scores = metrics.from_predictions(Predictions(logits, test.labels, test.groups))
        exact = group_accuracies(predictor, 0.25)
        support = scores["group_support"]
        for group, share in enumerate(scores["per_group"]):
            hits = round(share * support[group])
            assert within(hits, support[group], exact[group])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 10, "noise": 0.1}, "leave out imbalance, noise"),
        ({"attribute_imbalance": 3.0}, "leave out attribute_imbalance"),
        ({"val_per_class": 5}, "leave out val_per_class"),
        ({"channels": 3}, "leave out channels"),
        ({"meta_per_class": 3}, "multiple of 2"),
        ({"meta_per_class": 500}, "ask for fewer"),
    ],
)
def test_impossible_colours_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        data.load("digits", colour=True, **options)


def test_images_that_cannot_be_coloured_are_refused(make_splits: Make, pair) -> None:
    plain, _ = pair
    with pytest.raises(UserError, match="ten classes"):
        data.colour(_nothing_held(make_splits([9, 9])))
    with pytest.raises(UserError, match="only grey images in memory"):
        data.colour(data.load("digits", channels=3))
    with pytest.raises(UserError, match="hold out none"):
        data.colour(data.load("digits", val_per_class=2))
    with pytest.raises(UserError, match="between 0 and 1"):
        data.colour(plain, label_noise=1.5)
    with pytest.raises(UserError, match="three for the colours"):
        data.colour(plain, colour_noise=(0.1, 0.2))


def _nothing_held(splits: Splits) -> Splits:
    none = splits.train.subset(torch.arange(0))
    return replace(splits, val=none, meta=none)


# --- sizes of attributes ------------------------------------------------------


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 5000), min_size=1, max_size=12),
    imbalance=st.floats(1, 500),
    attributes=st.integers(2, 9),
)
def test_attribute_counts_are_the_exponential_within_one(
    counts, imbalance, attributes
) -> None:
    found = data.attribute_counts(counts, imbalance, attributes)
    assert found.sum(1).tolist() == counts
    assert (found >= 0).all()
    powers = [imbalance ** (-a / (attributes - 1)) for a in range(attributes)]
    for row, count in zip(found.tolist(), counts, strict=True):
        assert row == sorted(row, reverse=True)
        for n, power in zip(row, powers, strict=True):
            assert abs(n - count * power / sum(powers)) < 1 + 1e-9


def test_attribute_counts_by_hand() -> None:
    # Shares 4/7, 2/7, 1/7; then 4.57, 2.29, 1.14 and 0.57, 0.29, 0.14.
    found = data.attribute_counts([70, 8, 1, 0], 4, 3)
    assert found.tolist() == [[40, 20, 10], [5, 2, 1], [1, 0, 0], [0, 0, 0]]
    assert data.attribute_counts([7], 1, 3).tolist() == [[3, 2, 2]]


def test_impossible_attribute_counts_are_refused() -> None:
    for counts, imbalance, attributes, message in (
        ([5], 2.0, 1, "2 or more"),
        ([5], 0.5, 3, "at least 1"),
        ([5], math.nan, 3, "at least 1"),
        ([5, -1], 2.0, 3, "at least 0"),
        ([], 2.0, 3, "every class"),
    ):
        with pytest.raises(UserError, match=message):
            data.attribute_counts(counts, imbalance, attributes)


# --- clusters -----------------------------------------------------------------

SIZES = [[40, 30, 20], [25, 35, 30]]  # of clusters at the points 0, 10, 20


def clouds(sizes: Sequence[Sequence[int]] = SIZES, seed: int = 0) -> Splits:
    """Images of two classes in three far groups of grey values, in mixed order."""
    draw = data.generator(seed)
    labels, greys = [], []
    for label, row in enumerate(sizes):
        for place, size in enumerate(row):
            labels.append(torch.full((size,), label))
            greys.append(100 * place + torch.randint(9, (size,), generator=draw))
    order = torch.randperm(sum(map(sum, sizes)), generator=draw)
    grey = torch.cat(greys)[order].to(torch.uint8)
    pixels = grey.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    train = Examples(data.InMemory(pixels), torch.cat(labels)[order])
    none = train.subset(torch.arange(0))
    return Splits(train, none, none, train.subset(torch.arange(50)), ("a", "b"))


def greys(part: Examples) -> Tensor:
    assert isinstance(part.images, data.InMemory)
    return part.images.pixels[:, 0, 0, 0].long() // 100


def test_attributes_are_the_clusters_largest_first() -> None:
    splits = data.attribute_groups(clouds(), 3)
    train = splits.train
    sizes = torch.bincount(train.groups, minlength=6).tolist()
    assert sizes == [40, 30, 20, 35, 30, 25]
    # Class 0 has its clusters in the order 0, 1, 2, class 1 in the order 1, 2, 0.
    place_of_group = torch.tensor([0, 1, 2, 1, 2, 0])
    for part in (train, splits.test):
        assert place_of_group[part.groups].equal(greys(part))
        assert (part.groups // 3).equal(part.labels)


def test_attributes_of_digits_fall_in_size_and_all_exist() -> None:
    train = data.attribute_groups(data.load("digits"), 6).train
    sizes = torch.bincount(train.groups, minlength=60).view(10, 6)
    assert (sizes.diff(dim=1) <= 0).all()
    assert (sizes > 0).all()


def test_attributes_do_not_depend_on_the_seed_or_the_order() -> None:
    one, other = (
        data.attribute_tail(clouds(), attribute_imbalance=2, attributes=3, seed=s)
        for s in (1, 2)
    )
    assert one.test.groups.equal(other.test.groups)
    assert one.checksum() != other.checksum()
    twice = data.attribute_groups(data.load("digits"), 4)
    again = data.attribute_groups(data.load("digits"), 4)
    assert twice.train.groups.equal(again.train.groups)
    assert twice.test.groups.equal(again.test.groups)


def test_features_take_the_place_of_pixels() -> None:
    splits = clouds()
    pixels = [part.images.pixels.flatten(1).double() for part in
              (splits.train, splits.test)]  # fmt: skip
    found = data.attribute_groups(splits, 3, (pixels[0], pixels[1]))
    expected = data.attribute_groups(splits, 3)
    assert found.train.groups.equal(expected.train.groups)
    odd = torch.arange(180).view(-1, 1) % 2 * 50.0
    found = data.attribute_groups(splits, 2, (odd, odd[:50]))
    for label in (0, 1):
        own = found.train.groups[splits.train.labels == label] % 2
        parity = torch.arange(180)[splits.train.labels == label] % 2
        assert own.equal(parity) or own.equal(1 - parity)


def test_features_that_do_not_fit_are_refused() -> None:
    splits, ones = clouds(), torch.ones(180, 2)
    for pair, message in (
        ((ones[:9], ones[:50]), "9 training and 50 test"),
        ((ones, ones[:50, :1]), "2 columns"),
        ((ones.flatten(), ones[:50]), "one row"),
        ((ones / 0, ones[:50]), "finite"),
        ((ones, ones[:50]), "fewer than 2 different images"),
    ):
        with pytest.raises(UserError, match=message):
            data.attribute_groups(splits, 2, pair)


def test_clusters_of_many_images_are_fitted_to_some_of_them() -> None:
    splits = data.attribute_groups(clouds([[1500, 900, 600], [5, 6, 7]]), 3)
    sizes = torch.bincount(splits.train.groups).tolist()
    assert sizes == [1500, 900, 600, 7, 6, 5]


# --- the tail of attributes ---------------------------------------------------


def test_tail_of_attributes_has_exact_sizes_and_balanced_parts() -> None:
    splits = data.load(
        "digits",
        attribute_imbalance=4,
        attributes=3,
        imbalance=5,
        n_max=30,
        val_per_class=3,
        meta_per_class=6,
        seed=2,
    )
    sizes = data.long_tail_counts(30, 5, 10)
    assert splits.class_counts.tolist() == sizes
    wanted = data.attribute_counts(sizes, 4, 3).flatten().tolist()
    assert torch.bincount(splits.train.groups, minlength=30).tolist() == wanted
    assert torch.bincount(splits.val.groups).tolist() == [1] * 30
    assert torch.bincount(splits.meta.groups).tolist() == [2] * 30
    for part in (splits.train, splits.val, splits.meta, splits.test):
        assert (part.groups // 3).equal(part.labels)
    assert len(splits.test) == len(data.load("digits").test)


def test_attribute_parts_do_not_overlap(make_splits: Make, numbers) -> None:
    whole = _nothing_held(make_splits([300, 300]))
    splits = data.attribute_tail(
        whole, attribute_imbalance=3, attributes=3, val_per_class=9, meta_per_class=6
    )
    parts = [numbers(part) for part in (splits.train, splits.val, splits.meta)]
    everything = torch.cat(parts)
    assert len(everything.unique()) == len(everything)
    for part, places in zip(
        (splits.train, splits.val, splits.meta), parts, strict=True
    ):
        assert part.labels.equal(whole.train.labels[places])
    # The val images stay when there is no meta set.
    alone = data.attribute_tail(
        whole, attribute_imbalance=3, attributes=3, val_per_class=9
    )
    assert numbers(alone.val).equal(parts[1])


def test_default_size_is_the_largest_that_the_clusters_allow() -> None:
    # Shares 4/7, 2/7, 1/7 of classes with 40, 30, 20 and 35, 30, 25 images.
    tail = data.attribute_tail(clouds(), attribute_imbalance=4, attributes=3)
    assert tail.class_counts.tolist() == [61, 61]  # 35 / (4/7) = 61.25
    with pytest.raises(UserError, match="takes 36 of them"):
        data.attribute_tail(clouds(), attribute_imbalance=4, attributes=3, n_max=63)


def test_shuffled_classes_are_those_of_the_plain_tail() -> None:
    options = {"imbalance": 5, "n_max": 30, "shuffle_classes": True, "seed": 3}
    plain = data.load("digits", **options)
    tail = data.load("digits", attribute_imbalance=3, attributes=2, **options)
    assert tail.class_counts.tolist() == plain.class_counts.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.2}, "leave out noise"),
        ({"meta_per_class": 4}, "multiple of 6"),
        ({"val_per_class": 15}, "multiple of 6"),
        ({"val_per_class": -6}, "multiple of 6"),
        ({"val_per_class": 600}, "images, but val_per_class takes 100"),
        ({"counts": [9] * 10, "n_max": 9}, "leave imbalance and n_max"),
        ({"n_max": 900}, "but training takes"),
        ({"attributes": 80, "meta_per_class": 80}, "no image of .* is left"),
        ({"attributes": 500}, "can't be divided into 500"),
        ({"attributes": 1}, "2 or more"),
        ({"attributes": 3, "attribute_imbalance": None}, "no effect"),
    ],
)
def test_impossible_attributes_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        data.load("digits", **{"attribute_imbalance": 3.0, **options})

"""Long tails, hold-outs and label noise: exact sizes, pure, seeded."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from needsaug_lite import data
from needsaug_lite.data import bias
from needsaug_lite.errors import UserError

# GAMO's training images per class for MNIST and Fashion-MNIST.
GAMO = [4000, 2000, 1000, 750, 500, 350, 200, 100, 60, 40]


def within(successes: int, trials: int, share: float, sigmas: float = 5.0) -> bool:
    """Whether a count lies within `sigmas` deviations of its binomial mean."""
    deviation = math.sqrt(trials * share * (1 - share))
    return abs(successes - trials * share) <= sigmas * deviation


# --- counts -------------------------------------------------------------------


def test_counts_of_needs_aware_table_3():
    expected = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
    assert data.long_tail_counts(5000, 50, 10) == expected


@pytest.mark.parametrize(
    ("n_max", "imbalance", "classes", "total"),
    [(5000, 100, 10, 12_406), (500, 100, 100, 10_847)],
)
def test_totals_of_cifar_lt(n_max, imbalance, classes, total):
    assert sum(data.long_tail_counts(n_max, imbalance, classes)) == total


@settings(deadline=None)
@given(
    n_max=st.integers(1, 20_000),
    share=st.floats(0, 1),
    classes=st.integers(2, 300),
)
def test_counts_are_the_floor_of_an_exponential(n_max, share, classes):
    imbalance = n_max**share
    counts = data.long_tail_counts(n_max, imbalance, classes)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 1
    for i, count in enumerate(counts):
        exact = n_max * math.exp(-math.log(imbalance) * i / (classes - 1))
        assert count - 1e-6 <= exact < count + 1 + 1e-6


@given(smallest=st.integers(1, 200), imbalance=st.integers(1, 500))
@example(smallest=1, imbalance=49)  # 49 * (1 / 49) < 1 in floating point
def test_smallest_class_is_exact_where_it_divides(smallest, imbalance):
    counts = data.long_tail_counts(smallest * imbalance, imbalance, 7)
    assert counts[-1] == smallest


def test_imbalance_one_is_balanced():
    assert data.long_tail_counts(31, 1, 5) == [31] * 5


@pytest.mark.parametrize("imbalance", [0.99, 0, -3, math.nan])
def test_imbalance_below_one_is_refused(imbalance):
    with pytest.raises(UserError, match="at least 1"):
        data.long_tail_counts(100, imbalance, 10)


def test_an_empty_rarest_class_is_refused():
    with pytest.raises(UserError, match="at or below 50"):
        data.long_tail_counts(50, 51, 10)
    with pytest.raises(UserError, match="at least 2 classes"):
        data.long_tail_counts(50, 5, 1)


# --- choosing images ----------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(data_=st.data())
def test_take_per_class_divides_the_positions(data_):
    labels = torch.tensor(data_.draw(st.lists(st.integers(0, 4), max_size=60))).long()
    have = torch.bincount(labels, minlength=5).tolist()
    counts = [data_.draw(st.integers(0, n)) for n in have]
    seed = data_.draw(st.integers(0, 2**40))
    taken, rest = bias.take_per_class(labels, counts, 5, data.generator(seed))
    assert torch.bincount(labels[taken], minlength=5).tolist() == counts
    assert torch.cat([taken, rest]).sort().values.equal(torch.arange(len(labels)))
    assert taken.equal(taken.sort().values)
    assert rest.equal(rest.sort().values)


def test_every_image_of_a_class_is_equally_likely():
    labels = torch.arange(30) % 3 // 2  # 20 images of class 0, 10 of class 1
    hits, draws = torch.zeros(30), 2000
    for seed in range(draws):
        taken, _ = bias.take_per_class(labels, [5, 5], 2, data.generator(seed))
        hits[taken] += 1
    for i, count in enumerate(hits.tolist()):
        assert within(int(count), draws, (5 / 20, 5 / 10)[int(labels[i])])


def test_taking_more_than_there_is_names_class_and_sizes():
    with pytest.raises(UserError, match="class 1 has 1 images, but 2"):
        bias.take_per_class(torch.tensor([0, 0, 1]), [1, 2], 2, data.generator(0))
    with pytest.raises(UserError, match="can't have -1"):
        bias.take_per_class(torch.tensor([0, 0, 1]), [-1, 1], 2, data.generator(0))


# --- the tail -----------------------------------------------------------------


def test_tail_keeps_exact_counts_of_original_images(make_splits, numbers):
    splits = make_splits([80] * 6)
    tailed = data.long_tail(splits, imbalance=10, seed=5)
    assert tailed.class_counts.tolist() == data.long_tail_counts(80, 10, 6)
    kept = numbers(tailed.train)
    assert len(kept.unique()) == len(kept)
    assert tailed.train.labels.equal(splits.train.labels[kept])


def test_tail_repeats_with_its_seed_only(make_splits, numbers):
    splits = make_splits([80] * 6)
    first, again, other = (
        numbers(data.long_tail(splits, imbalance=10, seed=s).train) for s in (5, 5, 6)
    )
    assert first.equal(again)
    assert not first.equal(other)


def test_tail_leaves_input_and_other_parts_alone(make_splits):
    splits = make_splits([40, 40, 40])
    before = splits.checksum()
    tailed = data.long_tail(splits, imbalance=4)
    assert splits.checksum() == before
    for part in ("val", "meta", "test"):
        assert getattr(tailed, part) is getattr(splits, part)


def test_shuffled_classes_permute_the_counts(make_splits):
    splits = make_splits([200] * 10)
    plain = data.long_tail(splits, imbalance=20).class_counts.tolist()
    seen = set()
    for seed in range(8):
        tailed = data.long_tail(splits, imbalance=20, shuffle_classes=True, seed=seed)
        counts = tailed.class_counts.tolist()
        assert sorted(counts, reverse=True) == plain
        seen.add(tuple(counts))
    assert len(seen) == 8


def test_explicit_counts_of_gamo(make_splits):
    splits = make_splits([4100] * 10)
    assert data.long_tail(splits, counts=GAMO).class_counts.tolist() == GAMO


def test_n_max_limits_the_largest_class(make_splits):
    splits = make_splits([80, 90, 70])
    tail = data.long_tail(splits, imbalance=4, n_max=20)
    assert tail.class_counts.tolist() == [20, 10, 5]
    whole = data.long_tail(splits, imbalance=4)
    assert whole.class_counts[0] == 70  # as many as every class has


def test_tail_refuses_contradictions(make_splits):
    splits = make_splits([20, 20])
    for wrong in ({}, {"imbalance": 2, "counts": [2, 1]}):
        with pytest.raises(UserError, match="either"):
            data.long_tail(splits, **wrong)
    with pytest.raises(UserError, match="3 counts were given for 2 classes"):
        data.long_tail(splits, counts=[3, 2, 1])
    with pytest.raises(UserError, match="20 images, but 21"):
        data.long_tail(splits, counts=[21, 1])
    with pytest.raises(UserError, match="no image"):
        data.long_tail(splits, imbalance=2, n_max=0)


# --- hold-outs ----------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """60 training images of 3 classes; the first two pixels spell the number."""
    pixels = np.zeros((60, 2, 2), np.uint8)
    pixels[:, 0, 0] = np.arange(60)
    labels = np.arange(60) % 3
    path = tmp_path / "numbered.npz"
    np.savez(
        path,
        x_train=pixels,
        y_train=labels,
        x_test=pixels[:9] + 100,
        y_test=labels[:9],
    )
    return path


def first_pixels(part: data.Examples) -> list[int]:
    assert isinstance(part.images, data.InMemory)
    return part.images.pixels[:, 0, 0, 0].tolist()


def test_hold_outs_are_balanced_and_disjoint(archive):
    splits = data.load(archive, val_per_class=4, meta_per_class=3, seed=1)
    assert splits.val.counts(3).tolist() == [4] * 3
    assert splits.meta.counts(3).tolist() == [3] * 3
    parts = (splits.train, splits.val, splits.meta)
    assert sorted(n for part in parts for n in first_pixels(part)) == list(range(60))
    assert first_pixels(splits.test) == list(range(100, 109))


def test_hold_outs_are_taken_before_tail_and_noise(archive):
    held = {"val_per_class": 4, "meta_per_class": 3, "seed": 1}
    plain = data.load(archive, **held)
    biased = data.load(archive, **held, imbalance=3, noise=0.3, noise_kind="flip")
    for part in ("val", "meta"):
        clean, after = getattr(plain, part), getattr(biased, part)
        assert first_pixels(after) == first_pixels(clean)
        assert after.labels.equal(clean.labels)
        assert after.labels.tolist() == [n % 3 for n in first_pixels(after)]
    assert set(first_pixels(biased.train)) <= set(first_pixels(plain.train))
    kept = torch.tensor(first_pixels(biased.train)) % 3
    assert torch.bincount(kept).tolist() == data.long_tail_counts(13, 3, 3)
    assert biased.test.labels.equal(plain.test.labels)


def test_val_stays_when_a_meta_set_is_added(archive):
    one = data.load(archive, val_per_class=4)
    two = data.load(archive, val_per_class=4, meta_per_class=3)
    assert first_pixels(one.val) == first_pixels(two.val)


def test_another_seed_holds_out_other_images(archive):
    one, two = (data.load(archive, val_per_class=4, seed=s) for s in (0, 1))
    assert first_pixels(one.val) != first_pixels(two.val)


@pytest.mark.parametrize(
    ("option", "part"), [("val_per_class", "validation"), ("meta_per_class", "meta")]
)
def test_class_smaller_than_the_hold_out_is_refused(archive, option, part):
    with pytest.raises(UserError, match=rf"class '0' has 20.*{part}"):
        data.load(archive, **{option: 20})


# --- keeping a share ----------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "counts"),
    [(1.0, [200, 40, 7, 1]), (0.5, [100, 20, 4, 1]), (0.01, [2, 1, 1, 1])],
)
def test_every_class_keeps_its_share_and_at_least_one(make_splits, share, counts):
    splits = make_splits([200, 40, 7, 1])
    assert data.keep_share(splits, share).class_counts.tolist() == counts


@pytest.mark.parametrize("seed", range(5))
def test_a_smaller_share_is_part_of_a_larger_one(make_splits, numbers, seed):
    splits = make_splits([90, 30, 5])
    kept = [
        set(numbers(data.keep_share(splits, share, seed).train).tolist())
        for share in (0.01, 0.1, 0.25, 0.5, 0.75, 1)
    ]
    assert all(small < large for small, large in itertools.pairwise(kept))


def test_every_image_of_a_class_is_kept_as_often(make_splits, numbers):
    splits, draws = make_splits([20, 10]), 2000
    hits = torch.zeros(30)
    for seed in range(draws):
        hits[numbers(data.keep_share(splits, 0.3, seed).train)] += 1
    assert all(within(int(hit), draws, 0.3) for hit in hits)


def test_a_kept_share_is_pure_and_known_afterwards(make_splits, numbers):
    splits = make_splits([40, 40, 40])
    before = splits.checksum()
    few = data.keep_share(splits, 0.25, seed=2)
    assert splits.checksum() == before
    assert "kept" not in splits.provenance
    assert few.provenance["kept"] == 0.25
    assert few.train.labels.equal(splits.train.labels[numbers(few.train)])
    assert few.checksum() == data.keep_share(splits, 0.25, seed=2).checksum()
    assert few.checksum() != data.keep_share(splits, 0.25, seed=3).checksum()
    for part in ("val", "meta", "test"):
        assert getattr(few, part) is getattr(splits, part)
    assert data.keep_share(splits, 1.0).checksum() == before


def test_the_share_is_of_what_hold_outs_and_tail_leave_and_clean(archive):
    biases = {"val_per_class": 4, "meta_per_class": 3, "imbalance": 3, "seed": 1}
    whole, few = (data.load(archive, **biases, kept=kept) for kept in (None, 0.5))
    for part in ("val", "meta", "test"):
        assert first_pixels(getattr(few, part)) == first_pixels(getattr(whole, part))
    halved = [round(count / 2) for count in data.long_tail_counts(13, 3, 3)]
    assert few.class_counts.tolist() == halved
    expected = data.keep_share(whole, 0.5, seed=1)
    assert first_pixels(few.train) == first_pixels(expected.train)
    noisy = data.load(archive, **biases, kept=0.5, noise=0.5)
    assert first_pixels(noisy.train) == first_pixels(few.train)
    assert noisy.train.true_labels.equal(few.train.labels)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_a_share_that_keeps_nothing_or_more_than_all_is_refused(make_splits, share):
    with pytest.raises(UserError, match="above 0 and at most 1"):
        data.keep_share(make_splits([5, 5]), share)


@pytest.mark.parametrize(
    "own",
    [{"gamo": True}, {"group_counts": (1, 1, 1, 1)}],
    ids=lambda own: next(iter(own)),
)
def test_data_with_sizes_of_its_own_is_not_reduced(own):
    with pytest.raises(UserError, match="leave out kept"):
        data.load("digits", kept=0.5, **own)


def test_waterbirds_is_not_reduced(tmp_path):
    with pytest.raises(UserError, match="leave out kept"):
        data.load("waterbirds", tmp_path, kept=0.5)


# --- label noise --------------------------------------------------------------


def test_uniform_noise_redraws_among_all_classes(make_splits):
    splits = make_splits([1500] * 8)
    noisy = data.label_noise(splits, 0.4, "uniform", seed=2)
    changed = int((noisy.train.labels != splits.train.labels).sum())
    # The true class is among those drawn: 1/8 of the redrawn labels stay.
    assert within(changed, 12_000, 0.4 * 7 / 8)
    for new in range(8):
        arrived = (noisy.train.labels == new) & (splits.train.labels != new)
        assert within(int(arrived.sum()), 10_500, 0.4 / 8)


@pytest.mark.parametrize(("kind", "targets"), [("flip", 1), ("flip2", 2)])
def test_flip_noise_has_fixed_targets(make_splits, kind, targets):
    splits = make_splits([2000] * 6)
    noisy = data.label_noise(splits, 0.3, kind, seed=4)
    clean = splits.train.labels
    for label in range(6):
        new = noisy.train.labels[clean == label]
        counts = torch.bincount(new, minlength=6)
        assert within(2000 - int(counts[label]), 2000, 0.3)
        counts[label] = 0
        assert int((counts > 0).sum()) == targets
        for count in counts[counts > 0].tolist():
            assert within(count, 2000, 0.3 / targets)


@given(seed=st.integers(0, 10_000), classes=st.integers(3, 12))
@settings(deadline=None, max_examples=40)
def test_flip_targets_are_never_the_class_itself(seed, classes):
    targets = bias._other_classes(classes, 2, data.generator(seed))
    own = torch.arange(classes)
    assert bool((targets != own.unsqueeze(1)).all())
    assert bool((targets[:, 0] != targets[:, 1]).all())


def test_flip_targets_depend_on_the_seed(make_splits):
    splits = make_splits([1] * 10)
    seen = {
        tuple(data.label_noise(splits, 1.0, "flip", seed=s).train.labels.tolist())
        for s in range(5)
    }
    assert len(seen) == 5


def test_noise_is_pure_seeded_and_touches_labels_only(make_splits):
    splits = make_splits([50, 50, 50])
    before = splits.checksum()
    noisy = data.label_noise(splits, 0.5, seed=1)
    assert splits.checksum() == before
    assert noisy.train.images is splits.train.images
    for part in ("val", "meta", "test"):
        assert getattr(noisy, part) is getattr(splits, part)
    assert noisy.checksum() == data.label_noise(splits, 0.5, seed=1).checksum()
    assert noisy.checksum() != data.label_noise(splits, 0.5, seed=2).checksum()
    assert data.label_noise(splits, 0.0).checksum() == before


def test_true_labels_are_kept_beside_the_noise(make_splits, numbers):
    splits = make_splits([50, 50, 50])
    noisy = data.label_noise(splits, 0.5, seed=1)
    true = splits.train.labels
    assert splits.train.mislabelled is None
    assert noisy.train.true_labels.equal(true)
    assert noisy.train.mislabelled.equal(noisy.train.labels != true)
    index = torch.tensor([7, 3, 3, 100])
    few = noisy.train.subset(index)
    assert few.true_labels.equal(true[index])
    assert few.mislabelled.equal(noisy.train.mislabelled[index])
    assert noisy.to("cpu").train.true_labels.equal(true)
    twice = data.label_noise(noisy, 0.5, seed=2)
    assert twice.train.true_labels.equal(true)
    tail = data.long_tail(noisy, imbalance=5).train
    assert tail.true_labels.equal(true[numbers(tail)])


def test_true_labels_are_joined(make_splits):
    splits = make_splits([50, 50, 50])
    noisy = data.label_noise(splits, 0.5, seed=1)
    both = noisy.train.joined(splits.meta)
    assert both.true_labels.equal(torch.cat([splits.train.labels, splits.meta.labels]))
    assert int(both.mislabelled.sum()) == int(noisy.train.mislabelled.sum())
    behind = splits.meta.joined(noisy.train)
    assert int(behind.mislabelled.sum()) == int(noisy.train.mislabelled.sum())
    assert splits.train.joined(splits.meta).true_labels is None


def test_true_labels_are_in_no_checksum_and_no_batch(make_splits):
    noisy = data.label_noise(make_splits([50, 50, 50]), 0.5, seed=1)
    hidden = noisy.without_true_labels()
    assert hidden.train.true_labels is None
    assert hidden.train.labels is noisy.train.labels
    assert hidden.checksum() == noisy.checksum()
    normalisation = data.Normalisation.of(noisy)
    for one, other in zip(
        data.Batches(noisy.train, 40, normalisation).epoch(0),
        data.Batches(hidden.train, 40, normalisation).epoch(0),
        strict=True,
    ):
        assert vars(one).keys() == {"images", "labels", "groups", "index", "whole"}
        assert one.whole is None, "of processes that share a batch"
        assert one.labels.equal(other.labels)


def test_true_labels_of_another_number_are_refused(make_splits):
    train = make_splits([5, 5]).train
    with pytest.raises(UserError, match="9 true labels but 10"):
        replace(train, true_labels=train.labels[:9])


def test_impossible_noise_is_refused(make_splits):
    splits = make_splits([5, 5])
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="between 0 and 1"):
            data.label_noise(splits, rate)
    with pytest.raises(UserError, match="unknown label noise"):
        data.label_noise(splits, 0.1, "pairs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 other class"):
        data.label_noise(splits, 0.1, "flip2")
    flipped = data.label_noise(splits, 1.0, "flip").train.labels
    assert flipped.equal(1 - splits.train.labels)


# --- seeds --------------------------------------------------------------------


def test_generators_depend_on_every_number_and_their_count():
    entropy = [(5,), (5, 0), (5, 0, 0), (0, 5), (6,), (5, 1)]
    draws = {
        int(torch.randint(2**62, (), generator=data.generator(*e))) for e in entropy
    }
    assert len(draws) == len(entropy)
    with pytest.raises(UserError, match="at least 0"):
        data.generator(-1)


def test_noise_that_empties_a_class_is_refused(archive):
    with pytest.raises(UserError, match="no training image of class"):
        data.load(archive, imbalance=13, noise=1.0, noise_kind="flip", seed=1)

"""Order, normalisation and augmentation of batches, against slow references."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from needsaug_lite import augment, data
from needsaug_lite.data import folders
from needsaug_lite.errors import UserError

GREY = data.Normalisation((0.0,), (1.0,))
ALL = augment.StandardAugmentation(crop=2, flip=True, cutout=3)


@pytest.fixture(scope="module")
def examples() -> data.Examples:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (50, 1, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.arange(50) % 5
    return data.Examples(data.InMemory(pixels), labels, groups=labels % 2)


def everything(batches: data.Batches, epoch: int) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches.epoch(epoch)])


# --- order --------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 60), epoch=st.integers(0, 10**6), seed=st.integers(0, 2**33))
def test_an_epoch_holds_every_image_once(size, epoch, seed, examples):
    batches = data.Batches(examples, size, GREY, seed=seed)
    seen = [batch.index for batch in batches.epoch(epoch)]
    assert len(seen) == len(batches)
    assert {len(index) for index in seen[:-1]} <= {size}
    assert torch.cat(seen).sort().values.equal(torch.arange(50))
    assert torch.cat(seen).equal(batches.order(epoch))


def test_a_batch_holds_together(examples):
    for batch in data.Batches(examples, 7, GREY, seed=3).epoch(2):
        assert len(batch) == len(batch.images)
        assert batch.labels.equal(examples.labels[batch.index])
        assert batch.groups.equal(examples.groups[batch.index])
        pixels = examples.images.pixels[batch.index]
        assert torch.allclose(batch.images * 255, pixels.float(), atol=1e-4)


def test_same_seed_same_batches_whatever_came_before(examples):
    one, two = (data.Batches(examples, 7, GREY, augment=ALL, seed=4) for _ in range(2))
    for epoch in range(3):
        everything(one, epoch)
    assert everything(one, 3).equal(everything(two, 3))


def test_epochs_and_seeds_differ(examples):
    batches = data.Batches(examples, 7, GREY, augment=ALL, seed=4)
    other = data.Batches(examples, 7, GREY, augment=ALL, seed=5)
    assert not batches.order(0).equal(batches.order(1))
    assert not batches.order(0).equal(other.order(0))
    still = [
        data.Batches(examples, 50, GREY, augment=ALL, seed=s, shuffle=False)
        for s in (4, 5)
    ]
    # The order is fixed; what is left to differ is the augmentation.
    assert not everything(still[0], 0).equal(everything(still[0], 1))
    assert not everything(still[0], 0).equal(everything(still[1], 0))


def test_steps_of_an_epoch_are_augmented_independently():
    same = data.Examples(
        data.InMemory(
            torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(8, 1, 1, 1)
        ),
        torch.zeros(8, dtype=torch.int64),
    )
    batches = data.Batches(same, 4, GREY, augment=ALL, seed=0)
    first, second = (batch.images for batch in batches.epoch(0))
    assert not first.equal(second)


def test_views_hold_the_same_images_augmented_differently(examples):
    weights = torch.tensor([1.0, 2.0, 0.0, 4.0, 1.0])
    for settings_ in ({}, {"shuffle": False}, {"class_weights": weights}):
        views = [
            data.Batches(examples, 7, GREY, augment=ALL, seed=4, view=v, **settings_)
            for v in (0, 1, 2)
        ]
        for batches in zip(*(view.epoch(3) for view in views), strict=True):
            for one, two in itertools.combinations(batches, 2):
                assert one.index.equal(two.index)
                assert one.labels.equal(two.labels)
                assert one.groups.equal(two.groups)
                assert not one.images.equal(two.images)


def test_views_differ_in_their_augmentation_alone(examples):
    bare = [data.Batches(examples, 7, GREY, seed=4, view=v) for v in (0, 1)]
    assert everything(bare[0], 2).equal(everything(bare[1], 2))


def test_a_view_repeats_itself_and_depends_on_seed_and_epoch(examples):
    def images(seed: int, epoch: int) -> torch.Tensor:
        view = data.Batches(
            examples, 50, GREY, augment=ALL, seed=seed, shuffle=False, view=1
        )
        return everything(view, epoch)

    assert images(4, 1).equal(images(4, 1))
    assert not images(4, 1).equal(images(4, 2))
    assert not images(4, 1).equal(images(5, 1))


@pytest.mark.parametrize("view", [0, 1])
def test_the_draws_of_a_view_stay_what_they_are(examples, view):
    """Numbers that were measured with a seed hold only while its draws last."""
    batches = data.Batches(examples, 7, GREY, augment=ALL, seed=4, view=view)
    for step, batch in enumerate(batches.epoch(3)):
        key = (4, 102, 3, step) if view == 0 else (4, 102, 3, step, view)
        pixels = examples.images.pixels[batch.index]
        assert batch.images.equal(GREY(ALL(pixels, data.generator(*key))))
    assert batches.order(3).equal(
        torch.randperm(50, generator=data.generator(4, 101, 3))
    )


def test_without_shuffling_the_order_is_kept(examples):
    batches = data.Batches(examples, 8, GREY, shuffle=False)
    assert batches.order(5).equal(torch.arange(50))


def test_class_weights_set_how_often_a_class_is_drawn():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([200, 900, 90, 10]))
    examples = data.Examples(
        data.InMemory(torch.zeros(1200, 1, 1, 1, dtype=torch.uint8)), labels
    )
    weights = torch.tensor([0.0, 1.0, 10.0, 30.0])
    batches = data.Batches(examples, 100, GREY, class_weights=weights, seed=1)
    order = torch.cat([batches.order(epoch) for epoch in range(10)])
    assert len(batches.order(0)) == 1200
    drawn = torch.bincount(labels[order], minlength=4)
    mass = torch.tensor([0.0, 900.0, 900.0, 300.0])
    for count, share in zip(drawn.tolist(), (mass / mass.sum()).tolist(), strict=True):
        deviation = math.sqrt(len(order) * share * (1 - share))
        assert abs(count - len(order) * share) <= 5 * deviation
    # Inside a class every image is equally likely, the first and the last too.
    rare = torch.bincount(order[labels[order] == 3] - 1190, minlength=10)
    expected = int(drawn[3]) / 10
    assert bool(((rare - expected).abs() < 5 * math.sqrt(expected)).all())


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0] * 4 + [-1.0], [math.nan] * 5, [0.0] * 5]
)
def test_impossible_class_weights_are_refused(examples, weights):
    with pytest.raises(UserError, match="class_weights"):
        data.Batches(examples, 8, GREY, class_weights=torch.tensor(weights))


def test_impossible_batches_are_refused(examples):
    with pytest.raises(UserError, match="at least 1"):
        data.Batches(examples, 0, GREY)
    with pytest.raises(UserError, match="val_per_class or meta_per_class"):
        data.Batches(data.load("digits").val, 8, GREY)


# --- normalisation ------------------------------------------------------------


def test_normalised_training_images_have_mean_zero_and_deviation_one(tmp_path):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, (60, 150, 256), (40, 6, 5, 3)).astype(np.uint8)
    labels = np.arange(40) % 2
    np.savez(
        tmp_path / "a.npz",
        x_train=pixels,
        y_train=labels,
        x_test=pixels[:2],
        y_test=labels[:2],
    )
    splits = data.load(tmp_path / "a.npz")
    norm = data.Normalisation.of(splits)
    scaled = pixels.astype(np.float64) / 255
    assert np.allclose(norm.mean, scaled.mean((0, 1, 2)), atol=1e-12)
    assert np.allclose(norm.std, scaled.std((0, 1, 2)), atol=1e-12)
    images = everything(data.Batches(splits.train, 16, norm), 0)
    assert images.dtype == torch.float32
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    square = (images**2).mean((0, 2, 3))
    assert torch.allclose(square, torch.ones(3), atol=1e-4)


def test_moments_of_a_sample_and_of_constant_images(make_splits):
    splits = make_splits([300, 300])
    assert data.Normalisation.of(splits, 50) == data.Normalisation.of(splits, 50)
    constant = torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)
    flat = data.Examples(data.InMemory(constant), torch.zeros(4, dtype=torch.int64))
    norm = data.Normalisation.of(data.Splits(flat, flat, flat, flat, ("a", "b")))
    assert norm.mean == pytest.approx((0.2,))
    assert bool(norm(constant).isfinite().all())


def features(numbers: torch.Tensor) -> data.Splits:
    part = data.Examples(
        data.InMemory(numbers[:, :, None, None]), torch.arange(len(numbers)) % 2
    )
    return data.Splits(part, part, part, part, ("a", "b"))


def test_features_are_standardised_one_by_one_and_not_divided():
    draw = torch.Generator().manual_seed(0)
    scale = torch.tensor([1e-6, 1.0, 300.0, 1e6])
    numbers = torch.randn(700, 4, generator=draw) * scale + torch.tensor([0, 5, 0, 1e7])
    splits = features(numbers)
    norm = data.Normalisation.of(splits)
    assert np.allclose(norm.mean, numbers.double().mean(0), rtol=1e-9)
    assert np.allclose(norm.std, numbers.double().std(0, correction=0), rtol=1e-6)
    images = everything(data.Batches(splits.train, 16, norm), 0)
    assert images.dtype == torch.float32
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose((images**2).mean((0, 2, 3)), torch.ones(4), atol=1e-4)
    # The unit of a feature doesn't matter.
    other = data.Normalisation.of(features(numbers * 512))
    expected = norm(numbers[:, :, None, None])
    assert torch.allclose(other(numbers[:, :, None, None] * 512), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e-5, 7e8])
def test_a_dead_feature_is_zero_on_all_images(value):
    numbers = torch.stack([torch.arange(50.0), torch.full((50,), value)], 1)
    norm = data.Normalisation.of(features(numbers))
    seen = norm(numbers[:, :, None, None])
    # Alive on images that were not there when the moments were taken.
    new = norm(torch.tensor([[1.0, 12.0]])[:, :, None, None])
    assert not seen[:, 1].any()
    assert not new[:, 1].any()
    assert bool(seen[:, 0].any())


def test_bytes_are_normalised_to_the_same_bits_as_ever():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in
                 (data.IMAGENET.mean, data.IMAGENET.std))  # fmt: skip
    expected = (pixels.to(torch.float32) / 255 - mean) / std
    assert data.IMAGENET(pixels).equal(expected)


# --- augmentation against a slow reference ---------------------------------------


def slow_crop(image: torch.Tensor, padding: int, top: int, left: int) -> torch.Tensor:
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            y, x = row + top - padding, column + left - padding
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


def slow_cutout(image: torch.Tensor, size: int, y: int, x: int) -> torch.Tensor:
    result = image.clone()
    _, height, width = image.shape
    for row in range(y - size // 2, y - size // 2 + size):
        for column in range(x - size // 2, x - size // 2 + size):
            if 0 <= row < height and 0 <= column < width:
                result[:, row, column] = 0
    return result


def some_images(count: int = 20, channels: int = 2, height: int = 7, width: int = 9):
    draw = torch.Generator().manual_seed(0)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("padding", [0, 1, 4, 12])
def test_random_crop_equals_the_reference(padding):
    images = some_images()
    cropped = augment.random_crop(images, padding, data.generator(6))
    offsets = torch.randint(2 * padding + 1, (2, 20, 1), generator=data.generator(6))
    for i, image in enumerate(images):
        top, left = offsets[:, i, 0].tolist()
        assert cropped[i].equal(slow_crop(image, padding, top, left))
    assert cropped.dtype == torch.uint8
    if padding == 0:
        assert cropped.equal(images)


def test_random_flip_equals_the_reference():
    images = some_images()
    flipped = augment.random_flip(images, data.generator(6))
    coins = torch.rand(20, generator=data.generator(6))
    for i, image in enumerate(images):
        mirrored = torch.stack([image[..., 8 - column] for column in range(9)], -1)
        assert flipped[i].equal(mirrored if coins[i] < 0.5 else image)
    assert 0 < int((coins < 0.5).sum()) < 20


@pytest.mark.parametrize("size", [1, 2, 3, 6, 30])
def test_cutout_equals_the_reference(size):
    images = some_images()
    holed = augment.cutout(images, size, data.generator(6))
    centres = torch.rand(2, 20, 1, generator=data.generator(6))
    for i, image in enumerate(images):
        y, x = int(centres[0, i] * 7), int(centres[1, i] * 9)
        assert holed[i].equal(slow_cutout(image, size, y, x))
    holes = (holed == 0).all(1).sum((1, 2))
    assert int(holes.max()) <= size**2
    assert int(holes.min()) >= 1


def test_every_shift_of_the_crop_is_equally_likely():
    """A single bright pixel shows the shift: uniform over the 9 places."""
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 1, 1] = 1
    places = augment.random_crop(images, 1, data.generator(0)).sum((0, 1))
    assert int(places.sum()) == 9000
    deviation = math.sqrt(9000 * (1 / 9) * (8 / 9))
    assert bool(((places - 1000).abs() < 5 * deviation).all())


def test_standard_augmentation_is_crop_then_flip_then_cutout():
    images, draw = some_images(), data.generator(2)
    expected = augment.random_crop(images, 2, draw)
    expected = augment.cutout(augment.random_flip(expected, draw), 3, draw)
    assert ALL(images, data.generator(2)).equal(expected)
    assert augment.StandardAugmentation()(images, draw) is images


def test_augmentation_leaves_the_data_as_they_are(examples):
    before = examples.images.fingerprint()
    everything(data.Batches(examples, 7, GREY, augment=ALL), 0)
    assert examples.images.fingerprint() == before


# --- streaming ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("a", 9), ("b", 6)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = draw.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_streaming_equals_memory_batch_for_batch(folder, monkeypatch):
    held = {"val_per_class": 1, "image_size": 8, "seed": 3}
    memory = data.load(folder, **held)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    disk = data.load(folder, **held)
    assert isinstance(disk.train.images, folders.OnDisk)
    norm = data.Normalisation.of(memory)
    assert data.Normalisation.of(disk) == norm
    for part in ("train", "val"):
        pair = [
            data.Batches(getattr(splits, part), 4, norm, augment=ALL, seed=2).epoch(1)
            for splits in (memory, disk)
        ]
        for one, two in zip(*pair, strict=True):
            assert one.images.equal(two.images)
            assert one.labels.equal(two.labels)
            assert one.index.equal(two.index)


def test_a_large_folder_is_decoded_only_where_it_is_asked_for(folder, monkeypatch):
    """100,000 images: subsets and orders cost nothing, batches their own images."""
    few = sorted(folder.rglob("*.png"))
    paths = tuple(few[i % len(few)] for i in range(100_000))
    opened = []
    decode = folders.decode

    def counted(path, channels, size):
        opened.append(path)
        return decode(path, channels, size)

    monkeypatch.setattr(folders, "decode", counted)
    images = folders.OnDisk(paths, 3, 8, workers=0)
    examples = data.Examples(images, torch.arange(100_000) % 10)
    half = examples.subset(torch.arange(0, 100_000, 2))
    norm = data.Normalisation((0.5,) * 3, (0.5,) * 3)
    epoch = data.Batches(half, 16, norm, seed=1).epoch(0)
    assert opened == []
    batch = next(epoch)
    assert len(opened) == 16
    assert opened == [paths[2 * i] for i in batch.index.tolist()]


# --- nothing leaks ----------------------------------------------------------------


def test_global_random_state_is_left_alone(folder, monkeypatch, examples):
    def states():
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
        )

    before = states()
    everything(data.Batches(examples, 7, GREY, augment=ALL), 0)
    data.load("digits", imbalance=5, val_per_class=2, noise=0.2, shuffle_classes=True)
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    splits = data.load(folder, image_size=8)
    everything(data.Batches(splits.train, 4, data.Normalisation.of(splits)), 0)
    assert states() == before


def test_global_random_state_has_no_influence(examples):
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        runs.append(everything(data.Batches(examples, 7, GREY, augment=ALL), 0))
    assert runs[0].equal(runs[1])


@pytest.mark.parametrize(
    "asked", [{"crop": 1}, {"flip": True}, {"cutout": 2}, {"policy": "augmix"}]
)
def test_features_can_not_be_augmented(asked):
    part = features(torch.rand(4, 3)).train
    norm = data.Normalisation((0.0,) * 3, (1.0,) * 3)
    change = augment.StandardAugmentation(**asked)
    with pytest.raises(UserError, match="here are features.*leave crop, flip"):
        everything(data.Batches(part, 2, norm, augment=change), 0)
    nothing = augment.StandardAugmentation()
    same = data.Batches(part, 2, norm, augment=nothing, shuffle=False)
    assert everything(same, 0).equal(part.images.pixels)


def test_a_lone_last_image_joins_the_batch_before_it(examples):
    sizes = {
        count: [
            len(batch)
            for batch in data.Batches(
                examples.subset(torch.arange(count)), 8, GREY
            ).epoch(0)
        ]
        for count in (1, 8, 9, 17, 18)
    }
    assert sizes == {1: [1], 8: [8], 9: [9], 17: [8, 9], 18: [8, 8, 2]}


@pytest.mark.parametrize(
    "norm", [data.IMAGENET, data.Normalisation((0.02, 0.5, 1.0), (1e-3, 0.3, 0.01))]
)
def test_every_byte_survives_the_way_back_from_its_normalisation(
    norm: data.Normalisation,
) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    images = norm(pixels)
    unit = norm.inverse(images)
    assert torch.equal(unit, pixels.float() / 255)
    assert torch.equal(norm.from_unit(unit), images)

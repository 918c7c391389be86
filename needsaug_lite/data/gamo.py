"""The long tail of GAMO: class sizes drawn with replacement, and its small test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from needsaug_lite.data.bias import take_per_class
from needsaug_lite.data.splits import Splits, generator
from needsaug_lite.errors import UserError

#: Training images of classes 0 to 9 in GAMO's experiments.
GAMO_COUNTS = (4000, 2000, 1000, 750, 500, 350, 200, 100, 60, 40)
TRAIN_POOL = 4000
TEST_POOL, TEST_PER_CLASS = 800, 100

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_TRAINING, _HELD, _TEST = 521, 522, 523
_INSTEAD = (
    "leave gamo out and give the sizes of the classes as counts, which are drawn from "
    "all images without replacement"
)


def gamo_train(
    splits: Splits,
    seed: int = 0,
    *,
    val_per_class: int = 0,
    meta_per_class: int = 0,
    counts: Sequence[int] = GAMO_COUNTS,
    pool: int = TRAIN_POOL,
    test_pool: int = TEST_POOL,
) -> Splits:
    """Training images as GAMO draws them: with replacement from each class's first.

    An image of class c is one of the first `pool` of its class, each with the same
    probability, so the n_c images of a class hold fewer different ones: on average

    pool * (1 - (1 - 1 / pool)^n_c)

    Val and meta images, which GAMO doesn't have, come from behind the first `pool`
    of each class: no training image is among them. The test part stays whole; see
    `gamo_test_index` for GAMO's own.

    Args:
        splits: with nothing held out; the order of its images is that of the files.
        seed: draws the training images and the held-out ones.
        val_per_class, meta_per_class: images of each class to hold out.
        counts: training images of class 0, 1, ...
        pool: how many first images of each class are drawn from.
        test_pool: test images that each class must have for `gamo_test_index`.

    Returns:
        Splits whose training images are in file order, repeats side by side.

    Raises:
        UserError: for another number of classes, a class with too few images, or
            splits in which something is held out.

    Source: Mullick et al. 2019, as their released code (SankhaSubhra/GAMO) draws;
    facog Table 1 follows it.
    """
    num_classes, labels = splits.num_classes, splits.train.labels.cpu()
    if num_classes != len(counts):
        raise UserError(
            f"GAMO's data have {len(counts)} classes, but these have {num_classes}; "
            f"{_INSTEAD}"
        )
    if len(splits.val) or len(splits.meta):
        raise UserError(
            "GAMO draws from each class's first images in the order of the files; "
            "hold out none before"
        )
    _check_pool(labels, num_classes, pool, "training")
    _check_pool(splits.test.labels.cpu(), num_classes, test_pool, "test")
    _check_held(splits, val_per_class, meta_per_class, pool)
    drawn = _drawn(labels, counts, pool, generator(seed, _TRAINING))
    rest, held = _behind(labels, num_classes, pool), []
    for part, size in enumerate((val_per_class, meta_per_class)):
        draw = generator(seed, _HELD, part)
        taken, left = take_per_class(
            labels[rest], [size] * num_classes, num_classes, draw
        )
        held.append(splits.train.subset(rest[taken]))
        rest = rest[left]
    train, facts = splits.train.subset(drawn), {**splits.provenance, "gamo": True}
    return replace(splits, train=train, val=held[0], meta=held[1], provenance=facts)


def gamo_test_index(
    labels: Tensor,
    num_classes: int,
    seed: int = 0,
    *,
    per_class: int = TEST_PER_CLASS,
    pool: int = TEST_POOL,
) -> Tensor:
    """Which test images GAMO judges on: some of each class's first, with replacement.

    Args:
        labels: of the whole test part, in the order of the files, shape (N,).
        num_classes: C.
        seed: draws the positions.
        per_class: images of each class.
        pool: how many first images of each class are drawn from.

    Returns:
        Positions in the test part, sorted, with repeats, int64 on the CPU, shape
        (C * per_class,).

    Raises:
        UserError: if a class has fewer than `pool` test images.

    Source: Mullick et al. 2019, as their released code (SankhaSubhra/GAMO) draws.
    """
    labels = labels.cpu()
    _check_pool(labels, num_classes, pool, "test")
    counts = [per_class] * num_classes
    return _drawn(labels, counts, pool, generator(seed, _TEST))


def _by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Positions class by class in file order, and where each class starts there."""
    sizes = torch.bincount(labels, minlength=num_classes)
    return torch.argsort(labels, stable=True), sizes.cumsum(0) - sizes


def _behind(labels: Tensor, num_classes: int, pool: int) -> Tensor:
    """Positions of all images but the first `pool` of each class, sorted."""
    order, starts = _by_class(labels, num_classes)
    rank = torch.arange(len(labels)) - starts[labels[order]]
    return order[rank >= pool].sort().values


def _drawn(
    labels: Tensor, counts: Sequence[int], pool: int, draw: torch.Generator
) -> Tensor:
    """Positions of `counts[c]` images of the first `pool` of class c, with repeats."""
    order, starts = _by_class(labels, len(counts))
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts)))
    rank = torch.randint(pool, (len(classes),), generator=draw)
    return order[starts[classes] + rank].sort().values


def _check_pool(labels: Tensor, num_classes: int, pool: int, part: str) -> None:
    """Refuse a part with a class from whose first `pool` nobody can draw."""
    have = torch.bincount(labels, minlength=num_classes)
    if int(have.min()) < pool:
        raise UserError(
            f"class {int(have.argmin())} has {int(have.min())} {part} images, but "
            f"GAMO's protocol draws from the first {pool} of every class; {_INSTEAD}"
        )


def _check_held(splits: Splits, val: int, meta: int, pool: int) -> None:
    """Refuse held-out parts that don't fit behind the first `pool` of each class."""
    if min(val, meta) < 0:
        raise UserError("val_per_class and meta_per_class can't be negative")
    smallest = int(splits.class_counts.argmin())
    beyond = int(splits.class_counts[smallest]) - pool
    if val + meta > beyond:
        raise UserError(
            f"class {splits.class_names[smallest]!r} has {beyond} images behind the "
            f"first {pool}, which are for training, but val_per_class and "
            f"meta_per_class take {val + meta}; ask for {beyond} or fewer in all"
        )

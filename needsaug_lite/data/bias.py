"""Biases made on purpose: long tails, few images, wrong labels. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from needsaug_lite.data.splits import Examples, Splits, generator
from needsaug_lite.errors import UserError

NoiseKind = Literal["uniform", "flip", "flip2"]

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_HOLD_OUT, _TAIL, _CLASS_ORDER, _NOISE, _KEPT = range(5)


def long_tail_counts(n_max: int, imbalance: float, num_classes: int) -> list[int]:
    """Class sizes that fall exponentially from the largest class to the smallest.

    n_i = floor(n_max * imbalance^(-i / (C - 1))),   i = 0 .. C - 1

    Args:
        n_max: images of the largest class.
        imbalance: ratio between the largest and the smallest class, at least 1.
        num_classes: C, at least 2.

    Returns:
        C counts, largest first.

    Raises:
        UserError: if the imbalance is below 1 or a class would be empty.

    Source: the CIFAR-LT convention; equals needs_aware Table 3 for
    `long_tail_counts(5000, 50, 10)`.
    """
    if not imbalance >= 1:
        raise UserError(
            f"imbalance is {imbalance}; it is the size of the largest class divided "
            "by the size of the smallest, so give a number of at least 1"
        )
    if num_classes < 2:
        raise UserError(f"a long tail needs at least 2 classes, not {num_classes}")
    last = num_classes - 1
    # 49 * (1 / 49) is 0.9999999999999999 in floating point, and means 1.
    counts = [int(n_max * imbalance ** (-i / last) + 1e-9) for i in range(num_classes)]
    if counts[-1] < 1:
        raise UserError(
            f"with n_max={n_max} and imbalance={imbalance} the rarest class would "
            f"have no image; keep imbalance at or below {n_max}"
        )
    return counts


def take_per_class(
    labels: Tensor, counts: Sequence[int], num_classes: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Choose `counts[c]` random positions of every class c, and return the rest.

    Returns:
        Chosen positions and remaining positions, both sorted.

    Raises:
        UserError: if a class has fewer images than are to be taken.
    """
    labels = labels.cpu()
    have = torch.bincount(labels, minlength=num_classes).tolist()
    for label, (wanted, present) in enumerate(zip(counts, have, strict=True)):
        if wanted < 0:
            raise UserError(f"class {label} can't have {wanted} images; give 0 or more")
        if wanted > present:
            raise UserError(
                f"class {label} has {present} images, but {wanted} are to be taken "
                "from it; ask for fewer per class or bring more images"
            )
    order = torch.randperm(len(labels), generator=draw)
    shuffled = labels[order]
    # Position of each example among the shuffled examples of its own class.
    by_class = torch.argsort(shuffled, stable=True)
    starts = torch.cumsum(torch.tensor([0, *have[:-1]]), 0)
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels)) - starts[shuffled[by_class]]
    chosen = rank < torch.tensor(list(counts))[shuffled]
    return order[chosen].sort().values, order[~chosen].sort().values


def hold_out(
    pool: Examples, per_class: int, num_classes: int, seed: int, part: int
) -> tuple[Examples, Examples]:
    """Take a balanced part of `per_class` images per class out of `pool`.

    Args:
        part: a number that tells apart several parts drawn with one seed.

    Returns:
        The part and the remaining examples.
    """
    draw = generator(seed, _HOLD_OUT, part)
    counts = [per_class] * num_classes
    taken, rest = take_per_class(pool.labels, counts, num_classes, draw)
    return pool.subset(taken), pool.subset(rest)


def with_held_out(splits: Splits, val: int, meta: int, seed: int) -> Splits:
    """Move `val` and `meta` random images of every class out of the training part.

    Raises:
        UserError: for negative numbers, or if a class would be left empty.
    """
    num_classes = splits.num_classes
    for part, size in enumerate((val, meta)):
        if size < 0:
            raise UserError("val_per_class and meta_per_class can't be negative")
        if size == 0:
            continue
        smallest = int(splits.class_counts.min())
        name = splits.class_names[int(splits.class_counts.argmin())]
        if size >= smallest:
            raise UserError(
                f"class {name!r} has {smallest} training images; {size} of them can't "
                f"be held out for {('validation', 'the meta set')[part]}, because at "
                "least one must stay for training"
            )
        taken, rest = hold_out(splits.train, size, num_classes, seed, part)
        if part == 0:
            splits = replace(splits, train=rest, val=taken)
        else:
            splits = replace(splits, train=rest, meta=taken)
    return splits


def long_tail(
    splits: Splits,
    *,
    imbalance: float | None = None,
    n_max: int | None = None,
    counts: Sequence[int] | None = None,
    shuffle_classes: bool = False,
    seed: int = 0,
) -> Splits:
    """Thin the training images to a long tail; the other parts stay as they are.

    Args:
        splits: the data.
        imbalance: ratio of largest to smallest class (give this or `counts`).
        n_max: images of the largest class; default: as many as every class has.
        counts: explicit class sizes, largest class first.
        shuffle_classes: which class is common and which is rare is drawn with the
            seed; otherwise class 0 is the largest.
        seed: chooses the images that stay.

    Returns:
        Splits with fewer training images.

    Raises:
        UserError: if both or neither of `imbalance` and `counts` are given, or if a
            class has fewer images than the tail wants.
    """
    if (imbalance is None) == (counts is None):
        raise UserError("a long tail needs either `imbalance` or `counts`, not both")
    num_classes = splits.num_classes
    if counts is None:
        assert imbalance is not None
        largest = int(splits.class_counts.min()) if n_max is None else n_max
        counts = long_tail_counts(largest, imbalance, num_classes)
    counts = counts_by_class(counts, num_classes, shuffle_classes, seed)
    draw = generator(seed, _TAIL)
    kept, _ = take_per_class(splits.train.labels, counts, num_classes, draw)
    return replace(splits, train=splits.train.subset(kept))


def counts_by_class(
    counts: Sequence[int], num_classes: int, shuffle_classes: bool, seed: int
) -> list[int]:
    """Sizes of class 0, 1, ... from sizes that are given largest first.

    Raises:
        UserError: if there isn't one size for every class.
    """
    if len(counts) != num_classes:
        raise UserError(f"{len(counts)} counts were given for {num_classes} classes")
    if not shuffle_classes:
        return list(counts)
    order = torch.randperm(num_classes, generator=generator(seed, _CLASS_ORDER))
    by_class = torch.empty(num_classes, dtype=torch.int64)
    by_class[order] = torch.tensor(list(counts))
    return by_class.tolist()


def keep_share(splits: Splits, share: float, seed: int = 0) -> Splits:
    """Keep a random share of the training images; the other parts stay as they are.

    n'_c = max(1, round(share n_c))   of the n_c images of class c

    With one seed, the images of a smaller share are among those of a larger one.
    `provenance` tells the share as `kept`.

    What mgr calls "reduced by 10%" is share=0.1: the accuracies of its Table 1b, 20% at
    "10%" and 82% at "75%", fit only the part that stays (errata M12). mgr draws from
    all images, whatever their class, and divides what is left 9:1 into training and
    validation. Here val and meta images are held out first, so that they are the same
    for every share, and every class keeps its proportion and at least one image.

    Args:
        splits: the data.
        share: of the images of each class that stay, in (0, 1].
        seed: chooses the images that stay.

    Returns:
        Splits with fewer training images.

    Raises:
        UserError: for a share outside (0, 1].

    Source: mgr Sec. 4.1 and 4.3.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"kept is {share}; it is the share of the training images that stay, so "
            "give a number above 0 and at most 1"
        )
    have = splits.class_counts.tolist()
    counts = [min(count, max(1, round(share * count))) for count in have]
    draw = generator(seed, _KEPT)
    kept, _ = take_per_class(splits.train.labels, counts, splits.num_classes, draw)
    facts = {**splits.provenance, "kept": share}
    return replace(splits, train=splits.train.subset(kept), provenance=facts)


def label_noise(
    splits: Splits, rate: float, kind: NoiseKind = "uniform", seed: int = 0
) -> Splits:
    """Make a share of the training labels wrong; the other parts stay clean.

    The labels from before are kept as `splits.train.true_labels`, so that it can be
    judged afterwards who has found the wrong ones.

    Args:
        splits: the data.
        rate: probability that a label is redrawn, in [0, 1].
        kind: "uniform" redraws among all classes (the true one included), "flip"
            sends class c to one other class that is fixed for c, "flip2" to two
            other classes with rate/2 each.
        seed: chooses the labels and the target classes.

    Returns:
        Splits with the same images in the same order.

    Raises:
        UserError: for a rate outside [0, 1] or an unknown kind.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"label noise has rate {rate}; give a share between 0 and 1")
    draw = generator(seed, _NOISE)
    labels, num_classes = splits.train.labels.cpu(), splits.num_classes
    hit = torch.rand(len(labels), generator=draw) < rate
    if kind == "uniform":
        wrong = torch.randint(num_classes, (len(labels),), generator=draw)
    elif kind in ("flip", "flip2"):
        each = 1 if kind == "flip" else 2
        if num_classes <= each:
            raise UserError(
                f"label noise {kind!r} needs {each} other class(es) for every class, "
                f"but there are only {num_classes} classes; use uniform or flip"
            )
        targets = _other_classes(num_classes, each, draw)
        which = torch.randint(targets.shape[1], (len(labels),), generator=draw)
        wrong = targets[labels, which]
    else:
        raise UserError(f"unknown label noise {kind!r}; use uniform, flip or flip2")
    noisy_labels = torch.where(hit, wrong, labels).to(splits.train.labels.device)
    known = splits.train.true_labels
    true_labels = splits.train.labels if known is None else known
    noisy = replace(splits.train, labels=noisy_labels, true_labels=true_labels)
    return replace(splits, train=noisy)


def _other_classes(num_classes: int, each: int, draw: torch.Generator) -> Tensor:
    """For every class, `each` different random other classes: (C, each)."""
    scores = torch.rand(num_classes, num_classes, generator=draw)
    scores.fill_diagonal_(2.0)
    return scores.argsort(dim=1)[:, :each]
